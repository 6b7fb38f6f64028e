"""A restored run goes on bit for bit; damage is found, said, and passed over; what is incomplete is never seen."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from archzoo.layers.attention import Attention
from archzoo.layers.block import pre_norm
from archzoo.layers.decoder import Spec, param_shapes
from archzoo.layers.execution import Execution
from archzoo.layers.mlp import GatedMLP
from archzoo.layers.norms import RMSNorm
from archzoo.sharding.rules import Rules, make_mesh
from archzoo.train import tokenizer
from archzoo.train.checkpoint import Saver, find, latest, load_params, restore
from archzoo.train.data import Dataset, load
from archzoo.train.loss import Losses
from archzoo.train.optimizer import Optimizer
from archzoo.train.step import State, make_step, start_state, state_shapes, state_shardings
from archzoo.zoo.tensors import aligned

OPTIMIZER = Optimizer(steps=5)
CONFIG = {"learning_rate": 0.001, "source": "tiny"}


@pytest.fixture(scope="module")
def spec() -> Spec:
    attention = Attention(heads=2, kv_heads=1, head_dim=4)
    return Spec(vocab=257, width=8, depth=2, attention=attention, mlp=GatedMLP(ffn=8), block=pre_norm(RMSNorm()))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    file = tmp_path_factory.mktemp("corpus") / "text.txt"
    file.write_text("".join(chr(97 + n * n % 26) for n in range(400)))
    return load(str(file), length=8, batch=2)


@pytest.fixture(scope="module")
def step(spec: Spec) -> Any:
    function = make_step(spec, Execution(), OPTIMIZER, Losses())
    return jax.jit(function, donate_argnums=0, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def started(spec: Spec) -> State:
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: np.float32(rng.normal(size=leaf.shape) * 0.1), param_shapes(spec))
    state: State = start_state(spec, OPTIMIZER, params)
    return state


@pytest.fixture(scope="module")
def run(
    spec: Spec, data: Dataset, step: Any, started: State, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Any]]:
    """(directory with checkpoints of steps 2 and 3, what the state and metrics were after each of 5 steps)."""
    directory = tmp_path_factory.mktemp("run")
    batches, state, history = data.train(), jax.tree.map(np.asarray, started), []
    with Saver(directory, spec, data.tokenizer.files, CONFIG, keep=2) as saver:
        for _ in range(5):
            state, metrics = step(state, next(batches))
            if state.step <= 3:
                saver.save(state, batches.get_state())
            history.append(jax.tree.map(lambda x: np.array(x, copy=True), (state, metrics)))
    return directory, history


@pytest.fixture
def copy(run: tuple[Path, list[Any]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(run[0], tmp_path / "copy"))


def same(ours: Any, theirs: Any) -> bool:
    bits = lambda a, b: a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()  # noqa: E731
    return bool(jax.tree.all(jax.tree.map(bits, ours, theirs)))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# --- going on --------------------------------------------------------------------------------------------------------


def test_a_resumed_run_equals_an_uninterrupted_one(
    run: tuple[Path, list[Any]], spec: Spec, data: Dataset, step: Any
) -> None:
    directory, history = run
    checkpoint = latest(directory)
    assert checkpoint is not None
    assert checkpoint.step == 3
    state, batches = restore(checkpoint, state_shapes(checkpoint.spec, OPTIMIZER)), data.train()
    assert same(state, history[2][0])
    batches.set_state(checkpoint.data)
    for expected in history[3:]:
        state, metrics = step(state, next(batches))
        assert same((state, metrics), expected)


def test_a_checkpoint_says_all_about_its_run(run: tuple[Path, list[Any]], spec: Spec, data: Dataset) -> None:
    found = find(run[0], 2)
    assert (found.step, found.spec, found.config) == (2, spec, CONFIG)
    assert found.tokenizer == data.tokenizer.files
    assert tokenizer.load(found.path / "tokenizer").eos == data.tokenizer.eos


def test_parameters_can_be_read_alone_and_from_a_relative_path(
    run: tuple[Path, list[Any]], spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, history = run
    monkeypatch.chdir(directory.parent)
    found, params = load_params(directory.name, 2)
    assert found == spec
    assert same(params, history[1][0].params)


def test_arrays_are_restored_onto_their_shardings(run: tuple[Path, list[Any]], spec: Spec) -> None:
    mesh = make_mesh(jax.devices()[:1], fsdp=1)
    shardings = state_shardings(spec, OPTIMIZER, mesh, Rules())
    with_sharding = lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s)  # noqa: E731
    state = restore(find(run[0]), jax.tree.map(with_sharding, state_shapes(spec, OPTIMIZER), shardings))
    assert jax.tree.all(jax.tree.map(lambda leaf, s: leaf.sharding == s, state, shardings))
    _, params = load_params(run[0], shardings=shardings.params)
    assert jax.tree.all(jax.tree.map(lambda leaf, s: leaf.sharding == s, params, shardings.params))
    assert same(state, run[1][2][0])


def test_another_model_or_optimizer_is_refused(run: tuple[Path, list[Any]], spec: Spec) -> None:
    checkpoint = find(run[0])
    wider = spec.replace(**{"mlp.ffn": 16})
    with pytest.raises(ValueError, match=r"params.*w_down_FD' is float32 \[2, 8, 8\] in the .* float32 \[2, 16, 8\]"):
        restore(checkpoint, state_shapes(wider, OPTIMIZER))
    with pytest.raises(ValueError, match=r"array 'opt_state.*' is (float32 \[.*\]|absent) in the checkpoint and"):
        restore(checkpoint, state_shapes(spec, Optimizer(steps=5, name="muon")))


def test_arrays_are_read_to_where_they_stay(
    run: tuple[Path, list[Any]], spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[int] = []

    def watched(shape: tuple[int, ...], dtype: Any) -> Any:
        array = aligned(shape, dtype)
        places.append(array.ctypes.data)
        return array

    monkeypatch.setattr("archzoo.train.checkpoint.aligned", watched)
    state = restore(find(run[0]), state_shapes(spec, OPTIMIZER))
    assert sorted(leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)) == sorted(places)


def test_orbax_reads_the_same_arrays(run: tuple[Path, list[Any]], spec: Spec) -> None:
    like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), param_shapes(spec))
    args = ocp.args.PyTreeRestore(like, restore_args=ocp.checkpoint_utils.construct_restore_args(like))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        params = reader.restore(run[0] / "00000003" / "state" / "params", args=args)
    assert same(params, run[1][2][0].params)


def test_arrays_of_another_writer_are_refused(copy: Path, spec: Spec) -> None:
    checkpoint = find(copy, 3)
    file = checkpoint.path / "state" / "params" / "embed_VD" / ".zarray"
    file.write_text(file.read_text().replace('"order":"C"', '"order":"F"'))
    with pytest.raises(ValueError, match=r"params/embed_VD: its array is stored in another way than archzoo does"):
        restore(checkpoint, state_shapes(spec, OPTIMIZER))


RESHARDED = """
import sys
import jax
import numpy as np
from archzoo import Rules, make_mesh
from archzoo.layers.decoder import Spec
from archzoo.train.checkpoint import Saver, find, restore
from archzoo.train.optimizer import Optimizer
from archzoo.train.step import init_state, state_shapes, state_shardings

directory, text = sys.argv[1:]
spec, optimizer = Spec.from_json(text), Optimizer(steps=5)
meshes = [make_mesh(fsdp=4), make_mesh(jax.devices()[:2], fsdp=2), make_mesh(jax.devices()[:1], fsdp=1)]
shardings = [state_shardings(spec, optimizer, mesh, Rules()) for mesh in meshes]
like = state_shapes(spec, optimizer)
for number, held in enumerate(shardings):
    state = jax.jit(init_state, static_argnums=(0, 1), out_shardings=held)(spec, optimizer, jax.random.key(0))
    state = state._replace(step=jax.device_put(np.int32(number), held.step))
    with Saver(directory, spec, {}, {}) as saver:
        saver.save(state, {})
    found = find(directory, number)
    for wanted in shardings:
        put = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        back = restore(found, jax.tree.map(put, like, wanted))
        assert jax.tree.all(jax.tree.map(lambda leaf, sharding: leaf.sharding == sharding, back, wanted))
        jax.tree.map(np.testing.assert_array_equal, back, state)
    jax.tree.map(np.testing.assert_array_equal, restore(found, like), state)
files = [path for path in (found.path.parent / "00000000/state/params/embed_VD").iterdir() if path.name[0] != "."]
assert len(files) == 4, files
"""


def test_a_run_goes_on_with_other_numbers_of_devices(tmp_path: Path, spec: Spec) -> None:
    wide = spec.replace(vocab=260)
    ran = subprocess.run(
        [sys.executable, "-c", RESHARDED, str(tmp_path), wide.to_json()],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert "OCDBT" not in ran.stderr


# --- which steps are there -------------------------------------------------------------------------------------------


def test_the_newest_are_kept(run: tuple[Path, list[Any]]) -> None:
    assert names(run[0]) == ["00000002", "00000003"]


def test_a_step_is_replaced_and_later_ones_put_aside(copy: Path, spec: Spec, started: State) -> None:
    changed = started._replace(step=np.int32(2), params=jax.tree.map(np.zeros_like, started.params))
    with Saver(copy, spec, {"merges.txt": "a\r\nb"}, {}, keep=2) as saver:
        saver.save(changed, {})
    assert find(copy).tokenizer == {"merges.txt": "a\r\nb"}
    assert names(copy) == ["00000002", "abandoned-00000002", "abandoned-00000003"]
    assert same(load_params(copy)[1], changed.params)


def test_what_is_half_written_is_never_seen(copy: Path, spec: Spec) -> None:
    shutil.copytree(copy / "00000003", copy / ".partial-00000004")
    assert find(copy).step == 3
    Saver(copy, spec, {}, {})
    assert names(copy) == ["00000002", "00000003"]


def test_where_nothing_was_saved_nothing_is_found(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
    assert latest(tmp_path / "absent") is None
    with pytest.raises(FileNotFoundError, match="no checkpoint there"):
        find(tmp_path)


def test_a_step_that_is_not_there_is_refused(run: tuple[Path, list[Any]]) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 7, only of \[2, 3\]"):
        find(run[0], 7)


# --- damage ----------------------------------------------------------------------------------------------------------


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "said"),
    [(truncate, r"has \d+ bytes of \d+"), (flip, "has other content than was written"), (Path.unlink, "is missing")],
)
def test_a_damaged_step_is_passed_over_with_a_warning(copy: Path, harm: Callable[[Path], None], said: str) -> None:
    largest = max((copy / "00000003" / "state").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    harm(largest)
    with pytest.warns(RuntimeWarning, match=f"{largest} {said}; going back to the step before"):
        assert find(copy).step == 2
    with pytest.raises(OSError, match=f"{largest} {said}"):
        find(copy, 3)


def test_a_flipped_bit_is_found_in_every_file(copy: Path) -> None:
    files = [path for path in (copy / "00000003").rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) > 10
    for file in files:
        content = file.read_bytes()
        flip(file)
        with pytest.raises(OSError, match="damaged"):
            find(copy, 3)
        file.write_bytes(content)
    assert find(copy, 3).step == 3


def test_steps_that_are_all_damaged_are_not_a_new_beginning(copy: Path) -> None:
    for step in (2, 3):
        (copy / f"0000000{step}" / "manifest.json").write_text("{}")
    with pytest.warns(RuntimeWarning, match="is not a manifest"), pytest.raises(OSError, match=r"all 2 .* are damaged"):
        latest(copy)


# --- failure to write ------------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_error_and_keeps_earlier_steps(
    copy: Path, spec: Spec, started: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(copy)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"disk full: the checkpoint of step 0 needs \d+ bytes, 1000 are free") as error:
        Saver(copy, spec, {}, {}).save(started, {})
    assert error.value.errno == errno.ENOSPC
    assert names(copy) == ["00000002", "00000003"]


def test_a_failure_in_the_background_is_raised_later_and_leaves_nothing(
    copy: Path, spec: Spec, started: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*paths: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    saver = Saver(copy, spec, {}, {})
    with monkeypatch.context() as patch:
        patch.setattr("archzoo.train.checkpoint._publish", full)
        saver.save(started, {})
        with pytest.raises(OSError, match="the checkpoint of step 0 was not saved: disk full") as error:
            saver.wait()
    assert error.value.errno == errno.ENOSPC
    assert names(copy) == ["00000002", "00000003"]
    with saver:
        saver.save(started._replace(step=np.int32(4)), {})
    assert find(copy).step == 4


def test_at_least_one_step_is_kept(tmp_path: Path, spec: Spec) -> None:
    with pytest.raises(ValueError, match="keep is 0: at least one checkpoint must be kept"):
        Saver(tmp_path, spec, {}, {}, keep=0)
