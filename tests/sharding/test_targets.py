"""A GPU is described in full, and what cannot be compiled for is refused with what would help."""

from importlib import metadata

import pytest

from archzoo.sharding import targets
from archzoo.sharding.targets import GPUS, target_config, topology


@pytest.mark.parametrize("name", GPUS)
def test_the_description_holds_every_number_of_the_gpu(name: str) -> None:
    gpu, text = GPUS[name], target_config(GPUS[name])
    for line in (
        f"device_memory_size: {gpu.memory}",
        f"memory_bandwidth: {gpu.bandwidth}",
        f"core_count: {gpu.cores}",
        f"l2_cache_size: {gpu.l2}",
        f"major: {gpu.capability[0]} minor: {gpu.capability[1]}",
    ):
        assert line in text
    assert text.count("{") == text.count("}")


def test_an_unknown_gpu_is_refused() -> None:
    with pytest.raises(ValueError, match="no such GPU: 'h1000'; there are h100"):
        topology("h1000")


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "PLUGIN", "no-such-plugin")
    with pytest.raises(ValueError, match=r"no-such-plugin, which is not installed: pip install 'archzoo\[aot\]'"):
        topology("h100")


def test_a_compiler_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", {targets.PLUGIN: "0.10.2", "jaxlib": "0.12.0"}.__getitem__)
    with pytest.raises(ValueError, match=r"is 0\.10\.2 and jaxlib 0\.12\.0.*pip install jax-cuda12-plugin==0\.12\.0"):
        topology("h100")
