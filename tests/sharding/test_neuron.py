"""The Neuron plug-in is used where it is, and named where it is not; the environment is set, and the user's stays."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from archzoo.cli import main
from archzoo.sharding.neuron import INSTALL, SETTINGS, Processes, environment, local_devices, missing, prepare

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a package on sys.path: install(name, summary, entry point or none)."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def installed(name: str, about: str = "", entry: str = "", metadata: str = "") -> None:
        folder = site / f"{name.replace('-', '_')}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nSummary: {about}\n{metadata}"
        )
        if entry:
            (folder / "entry_points.txt").write_text(f"[jax_plugins]\n{entry}\n")
        importlib.invalidate_caches()

    return installed


def test_without_the_plug_in_the_command_says_what_to_install_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NEURON_CC_FLAGS", raising=False)
    out = tmp_path / "run"
    assert main(["train", "olmo2-7b", "--target", "neuron", "--data", "/nowhere", "--out", str(out)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "the JAX plug-in for Neuron is not installed" in line
    assert line.endswith(INSTALL)
    assert not out.exists()


@pytest.mark.parametrize(
    ("about", "more"),
    [("WRONG PACKAGE", ""), ("A placeholder.", ""), ("", "\nThis is the WRONG PACKAGE: see AWS's index."), ("JAX", "")],
)
@pytest.mark.parametrize("name", ["jax-neuronx", "libneuronxla"])
def test_the_public_indexs_placeholder_is_no_plug_in(install: Install, name: str, about: str, more: str) -> None:
    install(name, about, metadata=more)
    reason = missing()
    assert reason is not None
    assert name in reason
    with pytest.raises(OSError, match="extra-index-url"):
        prepare(environ={})


def test_a_placeholder_is_one_though_it_brings_an_entry_point(install: Install) -> None:
    install("libneuronxla", "WRONG PACKAGE", "neuron = libneuronxla")
    assert missing() is not None


def test_an_entry_point_is_a_plug_in(install: Install) -> None:
    install("jax-neuronx", "JAX on Trainium")
    install("libneuronxla", "PJRT for Trainium", "libneuronxla = libneuronxla.jax_plugin")
    assert missing() is None


def test_a_module_in_jax_plugins_is_a_plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jax_plugins" / "neuron").mkdir(parents=True)
    (tmp_path / "jax_plugins" / "neuron" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "jax_plugins", raising=False)
    assert missing() is None


def test_what_the_user_set_stays(install: Install) -> None:
    install("libneuronxla", "PJRT", "neuron = libneuronxla")
    environ = {"NEURON_CC_FLAGS": "-O2", "NEURON_FSDP": "0"}
    prepare({"fsdp": 4}, environ=environ)
    assert environ == {**SETTINGS, "NEURON_CC_FLAGS": "-O2", "NEURON_FSDP": "0"}


def test_a_process_gets_the_chips_generator(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("libneuronxla", "PJRT", "neuron = libneuronxla")
    for name in SETTINGS:
        monkeypatch.setenv(name, "")  # to be undone after the test
        monkeypatch.delenv(name)
    before = jax.config.jax_default_prng_impl
    try:
        prepare()
        assert str(jax.random.key_impl(jax.random.key(0))) == "rbg"
    finally:
        jax.config.update("jax_default_prng_impl", before)


def test_fsdp_and_processes_are_told_to_the_runtime() -> None:
    assert environment() == SETTINGS
    assert environment({"fsdp": 1, "tensor": 8}) == SETTINGS
    assert environment({"fsdp": 8}) == {**SETTINGS, "NEURON_FSDP": "1"}
    assert environment(None, Processes(count=2, index=1, devices=64, host="ten")) == {
        **SETTINGS,
        "NEURON_PJRT_PROCESSES_NUM_DEVICES": "64,64",
        "NEURON_PJRT_PROCESS_INDEX": "1",
        "NEURON_RT_ROOT_COMM_ID": "ten:41000",
    }


def test_processes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="index is 2: of 2 processes it is 0 to 1"):
        Processes(count=2, index=2, devices=64, host="ten")
    with pytest.raises(ValueError, match="devices=0"):
        Processes(count=2, index=0, devices=0, host="ten")


def test_devices_are_four_a_chip(tmp_path: Path) -> None:
    for name in ("neuron0", "neuron1", "neuron_monitor", "null"):
        (tmp_path / name).touch()
    assert local_devices(str(tmp_path)) == 8


def test_a_launcher_that_the_runtime_does_not_know_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NEURON_PJRT_PROCESS_INDEX", raising=False)
    assert main(["train", "olmo2-7b", "--target", "neuron", "--distributed"]) == 1
    assert "--process-id" in capsys.readouterr().err
