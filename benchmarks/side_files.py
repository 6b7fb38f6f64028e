"""The sides of files.py, each in a process of its own (worker.py): task["side"] is a name below.

What a run reads is held until the next one; what it writes is on the disk when it ends, where task["sync"] says so."""

import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from worker import Run, Task, serve

Built = tuple[Run, dict[str, Any]]

# --- the plain copy --------------------------------------------------------------------------------------------------


def copy(task: Task) -> Built:
    """Of the model's weights, as often as their bytes go into those of the operation; by the kernel, in one thread."""
    source, targets = (
        Path(task["model"]) / "model.safetensors",
        [Path(task["out"]) / str(i) for i in range(task["copies"])],
    )

    def run() -> None:
        for target in targets:
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(source, target)
            if task["sync"]:
                to_disk(target)

    return run, {"bytes": len(targets) * source.stat().st_size}


def to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- archzoo ---------------------------------------------------------------------------------------------------------


def make(task: Task) -> Built:
    """No side: writes a model of random weights, about task["bytes"] large, and its checkpoints."""
    import jax
    import numpy as np

    import archzoo
    from archzoo.layers.decoder import param_shapes

    one, two = (archzoo.spec_from_hf(task["config"] | {"num_hidden_layers": n}).param_count() * 4 for n in (1, 2))
    depth = max(1, round(1 + (task["bytes"] - one) / (two - one)))
    spec = archzoo.spec_from_hf(task["config"] | {"num_hidden_layers": depth})
    rng = np.random.default_rng(0)
    draw = lambda leaf: rng.standard_normal(leaf.shape, np.float32) * np.float32(0.02)  # noqa: E731
    archzoo.save_hf(task["model"], spec, jax.tree.map(draw, param_shapes(spec)))
    sizes = {}
    for optimizer, name in ((False, "params"), (True, "state")):
        run, facts = save(task | {"optimizer": optimizer, "out": f"{task['checkpoints']}/{name}"})
        run()
        sizes[name] = facts["bytes"]
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "numpy", "orbax-checkpoint", "transformers"))
    facts = {"sizes": sizes, "depth": depth, "parameters": spec.param_count(), "versions": versions}
    return lambda: None, facts


def load_hf(task: Task) -> Built:
    import archzoo

    held: list[Any] = []

    def run() -> None:
        held.clear()
        held.append(archzoo.load_hf(task["model"]))

    return run, {}


def save_hf(task: Task) -> Built:
    import archzoo

    spec, params = archzoo.load_hf(task["model"])
    return lambda: archzoo.save_hf(task["out"], spec, params), {}


def save(task: Task) -> Built:
    import jax
    import jax.numpy as jnp

    import archzoo
    from archzoo.train.checkpoint import Saver
    from archzoo.train.step import State, start_state

    spec, params = archzoo.load_hf(task["model"])
    state = State(params, (), jnp.int32(0))
    if task["optimizer"]:
        noise = jax.jit(lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape, leaf.dtype))
        state = start_state(spec, adamw(), params)
        state = jax.tree.map(lambda leaf: noise(leaf) if leaf.ndim else leaf, state)
    jax.block_until_ready(state)

    def run() -> None:
        with Saver(task["out"], spec, {}, {}) as saver:
            saver.save(state, {})

    return run, {"bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state))}


def restore(task: Task) -> Built:
    from archzoo.train.checkpoint import find, load_params
    from archzoo.train.checkpoint import restore as read
    from archzoo.train.step import state_shapes

    held: list[Any] = []

    def run() -> None:
        held.clear()
        if task["optimizer"]:
            found = find(f"{task['checkpoints']}/state")
            held.append(read(found, state_shapes(found.spec, adamw())))
        else:
            held.append(load_params(f"{task['checkpoints']}/params"))

    return run, {}


def adamw() -> Any:
    from archzoo.train.optimizer import Optimizer

    return Optimizer(steps=10, name="adamw")


# --- transformers ----------------------------------------------------------------------------------------------------


def from_pretrained(task: Task) -> Built:
    from transformers import AutoModelForCausalLM

    held: list[Any] = []

    def run() -> None:
        held.clear()
        model = AutoModelForCausalLM.from_pretrained(task["model"], dtype="float32")
        held.append(model)
        for parameter in model.parameters():  # it may have mapped the file: this reads every page
            parameter.detach().reshape(-1)[::1024].sum()

    return run, {}


def save_pretrained(task: Task) -> Built:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype="float32")
    for parameter in model.parameters():  # memory of its own, as after training
        parameter.data = parameter.data.clone()

    def run() -> None:
        model.save_pretrained(task["out"])
        for file in Path(task["out"]).iterdir():
            to_disk(file)

    return run, {}


# --- all of them -----------------------------------------------------------------------------------------------------

SIDES = {
    side.__name__: side for side in (make, copy, load_hf, save_hf, save, restore, from_pretrained, save_pretrained)
}


def build(task: Task) -> Built:
    """A side's run. The first one also finds what memory it takes, once a tiny model has warmed the process up."""
    side = SIDES[task["side"]]
    if "tiny" in task:
        side(task | task["tiny"])[0]()
    run, facts = side(task)

    def measured() -> None:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: what was highest is forgotten
        before = memory("VmRSS")
        run()
        facts.setdefault("peak", memory("VmHWM") - before)

    return measured, facts


def memory(field: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at most."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


serve(build)
