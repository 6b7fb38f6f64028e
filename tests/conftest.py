"""What the whole suite shares: a compiler that does not polish what runs once, and a tiny run, trained once, with all
that a run leaves behind."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import pytest

# Nearly all of the suite's time is compilation. A newer compiler has one way to emit fusions, and no flag for it.
_FLAGS = ["--xla_backend_optimization_level=0"]
if metadata.version("jax") < "0.11":
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_FLAGS))


@pytest.fixture(scope="session")
def on_devices() -> Callable[..., str]:
    """(how many, *arguments of Python): what that program prints, with so many virtual devices of a CPU."""

    def run(count: int, *arguments: str) -> str:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
        ran = subprocess.run(
            [sys.executable, *arguments],
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr[-2000:]
        return ran.stdout

    return run


MAPS = Path("/proc/self/maps")
MOST_MAPS = 20_000
"""Each compiled program holds memory maps, of which Linux gives a process 65,530: then compiling is a crash."""


@pytest.fixture(autouse=True)
def _forget_compiled_programs() -> Iterator[None]:
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        import jax

        jax.clear_caches()


TINY = (
    "--set", "width=32", "--set", "depth=3", "--set", "attention.heads=2", "--set", "attention.nope_dim=8",
    "--set", "attention.value_dim=8", "--set", "attention.kv_rank=16", "--set", "attention.q_rank=16",
    "--set", "attention.rope.dim=8", "--set", "mlp[0].ffn=48", "--set", "mlp[1].experts=8", "--set", "mlp[1].ffn=16",
    "--set", "mlp[1].router.top_k=2", "--set", "mlp[1].shared.ffn=16",
)  # fmt: skip
"""deepseek-v3-nano made small enough to train in a second."""

TINY_RUN = (
    "--steps", "60", "--batch", "4", "--length", "64", "--learning-rate", "0.01", "--optimizer", "adamw",
    "--evals", "2", "--saves", "1",
)  # fmt: skip


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of documents with something to learn."""
    folder = tmp_path_factory.mktemp("text")
    for i in range(24):
        lines = [f"def function_{i}_{j}(argument):\n    return argument + {j}\n" for j in range(20)]
        (folder / f"module_{i:02d}.py").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the command line."""
    from archzoo.cli import main

    out = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", "deepseek-v3-nano", *TINY, *TINY_RUN, "--data", str(text), "--out", str(out), "--json"]) == 0
    return out


@pytest.fixture(scope="session")
def exported(run: Path) -> Path:
    """The same run as a Hugging Face directory."""
    from archzoo.cli import main

    out = run.parent / "exported"
    assert main(["export", str(run), str(out)]) == 0
    return out
