"""Training on a mesh against training on one device: `python tests/sharding/equality.py` prints family by mesh.

    python tests/sharding/equality.py [--devices N] [--family NAME ...] [--mesh MESH ...] [--json]

Each number is the largest of: the relative difference of the losses of five steps; the difference of the gradients of
the first step, leaf by leaf, relative to the global norm; the difference of the parameters after five steps of gradient
descent, relative to the largest parameter. Then what the compiled step holds: FLOPs of products of all devices
together relative to one device's, and whether shardings and buffers are as the rules say.
"""

import argparse
import json
import math
import os
import re
import sys
from functools import partial
from typing import Any

STEPS, ROWS, LENGTH, VOCAB = 5, 16, 32, 96

MESHES = (
    "fsdp=4,tensor=2",
    "data=2,expert=2,sequence=2",
    "data=8",
    "fsdp=8",
    "tensor=8",
    "data=4,fsdp=2",
    "data=2,tensor=4",
    "expert=8",
    "fsdp=2,expert=4",
    "data=2,expert=2,tensor=2",
    "fsdp=2,sequence=4",
    "tensor=4,sequence=2",
    "data=2,fsdp=2,tensor=2",
)
SIXTEEN = ("data=2,fsdp=2,expert=2,tensor=2", "fsdp=8,tensor=2")
RATE = 0.01
SCANNED = 3
"""Layers of a scanned stack."""


def families() -> dict[str, Any]:
    """Tiny models of five families, whose axes divide by eight."""
    from archzoo.layers.attention import Attention
    from archzoo.layers.block import pre_norm, sandwich_norm
    from archzoo.layers.decoder import Spec
    from archzoo.layers.delta import GatedDelta
    from archzoo.layers.latent import LatentAttention
    from archzoo.layers.mlp import GatedMLP
    from archzoo.layers.moe import MoE
    from archzoo.layers.norms import QKNorm, RMSNorm
    from archzoo.layers.rope import Rope
    from archzoo.layers.router import Groups, Router

    size = {"vocab": VOCAB, "width": 32, "max_length": LENGTH, "embedding_scale": 16.0}
    heads = {"heads": 16, "kv_heads": 8, "head_dim": 8, "rope": Rope(dim=8)}
    norm, dense = RMSNorm(), GatedMLP(ffn=64)
    full = Attention(**heads)
    sharp = Router(top_k=2, score="sigmoid", bias=True, groups=Groups(count=4, kept=2))
    latent = LatentAttention(heads=8, nope_dim=8, value_dim=8, kv_rank=16, q_rank=16, rope=Rope(dim=4))
    softmax = MoE(experts=8, ffn=16, router=Router(top_k=2))
    selected = MoE(experts=8, ffn=16, router=sharp, shared=GatedMLP(ffn=16))
    # What a first token reads is nearly nothing where its query and key are nearly orthogonal: normalised, it is noise.
    linear = GatedDelta(key_heads=8, value_heads=16, key_dim=8, value_dim=8, norm=RMSNorm(eps=1e-2))
    normed = Attention(**heads, qk_norm=QKNorm())
    return {
        "llama": Spec(**size, depth=SCANNED, attention=full, mlp=dense, block=pre_norm(norm)),
        "gemma3": Spec(
            **size,
            depth=2 * SCANNED,
            attention=(Attention(**heads, window=8), full),
            mlp=dense,
            block=sandwich_norm(norm),
            tied=True,
        ),
        "deepseek_v3": Spec(
            **size, depth=1 + SCANNED, attention=latent, mlp=(dense, selected, ...), block=pre_norm(norm)
        ),
        "qwen3_moe": Spec(**size, depth=SCANNED, attention=normed, mlp=softmax, block=pre_norm(norm)),
        "qwen3_next": Spec(**size, depth=2 * SCANNED, attention=(linear, full), mlp=dense, block=pre_norm(norm)),
    }


def batches() -> list[dict[str, Any]]:
    import numpy as np

    rng = np.random.default_rng(0)
    made = []
    for _ in range(STEPS):
        tokens = rng.integers(0, VOCAB, (ROWS, LENGTH + 1)).astype(np.int32)
        segments = 1 + (np.arange(LENGTH) >= rng.integers(1, LENGTH, (ROWS, 1))).astype(np.int32)
        weights = (rng.random((ROWS, LENGTH)) < 0.9).astype(np.float32)
        made.append({"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "segment_ids": segments, "weights": weights})
    return made


def trained(spec: Any, mesh: str, devices: Any) -> dict[str, Any]:
    """What five steps leave, and what the compiled step and the state hold."""
    import jax
    import numpy as np
    import optax

    from archzoo.layers.execution import Execution
    from archzoo.train import placement as p
    from archzoo.train.loss import default_losses
    from archzoo.train.optimizer import Optimizer
    from archzoo.train.step import init_state, make_gradient

    place = p.place(spec, mesh, "default", ROWS, LENGTH, devices) if mesh else None
    execution = Execution(rules=place.rules if place else None)
    gradient = make_gradient(spec, execution, default_losses(spec))
    optimizer = Optimizer(steps=STEPS)
    with p.in_force(place):
        shardings = place.params(spec) if place else None
        pinned = {} if place is None else {"out_shardings": place.state(spec, optimizer)}
        state = jax.jit(partial(init_state, spec, optimizer), **pinned)(jax.random.key(0))

        def descend(params: Any, batch: Any) -> Any:
            (loss, sums), gradients = gradient(params, batch)
            updates, _ = optax.sgd(RATE).update(gradients, optax.sgd(RATE).init(params))
            return optax.apply_updates(params, updates), gradients, loss, sums.nats

        pinned = (
            {}
            if place is None
            else {
                "in_shardings": (shardings, place.batch),
                "out_shardings": (shardings, shardings, place.whole, place.whole),
            }
        )
        given = [p.placed(batch, place) for batch in batches()]
        compiled = jax.jit(descend, **pinned).lower(state.params, given[0]).compile()
        params, losses, first = state.params, [], None
        for batch in given:
            params, gradients, loss, _ = compiled(params, batch)
            first = first or gradients
            losses.append(float(loss))
    host = partial(jax.tree.map, np.asarray)
    spread = None if place is None else misplaced(spec, place, {"params": params, "gradients": first, "opt": state})
    return {
        "losses": losses,
        "gradients": host(first),
        "start": host(state.params),
        "params": host(params),
        "text": compiled.as_text(),
        "misplaced": spread,
    }


def misplaced(spec: Any, place: Any, trees: dict[str, Any]) -> list[str]:
    """Every array that does not lie as the rules say."""
    import jax

    from archzoo.layers.accounting import leaves

    wanted = {leaf.path: place.rules.partition(leaf.axes, place.mesh) for leaf in leaves(spec)}
    wrong = []
    for tree, held in trees.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(held):
            names = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
            found = [wanted[names[i:]] for i in range(len(names)) if names[i:] in wanted]
            spec_of = found[0] if found else jax.sharding.PartitionSpec()
            same = jax.sharding.NamedSharding(place.mesh, spec_of)
            if not leaf.sharding.is_equivalent_to(same, leaf.ndim):
                wrong.append(f"{tree} {jax.tree_util.keystr(path)}: {leaf.sharding.spec}, not {spec_of}")
    return wrong


def flops(text: str) -> int:
    """Multiply-adds, times two, of all products of a program, those in loops as often as they run."""
    from archzoo.sharding.hlo import computations, runs

    entry, bodies = computations(text)
    total = 0
    for name, (count, _) in runs(entry, bodies).items():
        shapes = {made.name: made.shape for made in bodies[name]}
        for made in bodies[name]:
            if made.op == "dot":
                left = dimensions(shapes[re.match(r"(?:\S+ )?%?([\w.\-]+)", made.rest)[1]])
                summed = [int(i) for i in re.search(r"lhs_contracting_dims=\{([\d,]*)\}", made.rest)[1].split(",") if i]
                total += count * 2 * math.prod(dimensions(made.shape)) * math.prod(left[i] for i in summed)
    return total


def dimensions(shape: str) -> list[int]:
    return [int(n) for n in re.search(r"\[([\d,]*)\]", shape)[1].split(",") if n]


def compare(one: dict[str, Any], many: dict[str, Any], devices: int) -> dict[str, Any]:
    import jax
    import numpy as np

    norm = math.sqrt(sum(float(np.sum(np.square(g))) for g in jax.tree.leaves(one["gradients"])))

    def apart(name: str) -> float:
        gaps = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), one[name], many[name])
        return max(jax.tree.leaves(gaps))

    scale = max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(one["params"]))
    return {
        "loss": max(abs(a - b) / abs(a) for a, b in zip(one["losses"], many["losses"], strict=True)),
        "gradient": apart("gradients") / norm,
        "parameters": apart("params") / scale,
        "initial": apart("start"),
        "flops": devices * flops(many["text"]) / flops(one["text"]),
        "misplaced": many["misplaced"],
        "whole": [line for line in many["text"].splitlines() if holds_stack(line)],
    }


def holds_stack(line: str) -> bool:
    """Whether it gathers a whole scanned stack of matrices."""
    found = re.search(r"= [a-z]\w*\[([\d,]+)\]\S* all-gather(?:-start)?\(", line)
    shape = [int(n) for n in found[1].split(",")] if found else [0]
    return shape[0] == SCANNED and math.prod(shape) > 2 * 32 * 32


def in_words(row: dict[str, Any]) -> str:
    worst = max(row[name] for name in ("loss", "gradient", "parameters"))
    as_told = "as the rules say" if not row["misplaced"] else f"{len(row['misplaced'])} misplaced"
    return f"{worst:.0e}  FLOPs {row['flops']:.3f}  {as_told}  {len(row['whole'])} whole"


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--devices", type=int, default=8)
    options.add_argument("--family", nargs="*")
    options.add_argument("--mesh", nargs="*")
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    flag = f"--xla_force_host_platform_device_count={given.devices}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    found: dict[str, Any] = {}
    meshes = given.mesh or (MESHES if given.devices == 8 else SIXTEEN)
    for name, spec in families().items():
        if given.family and name not in given.family:
            continue
        one = trained(spec, "", None)
        found[name] = {}
        for mesh in meshes:
            many = trained(spec, mesh, jax.devices())
            found[name][mesh] = row = compare(one, many, given.devices)
            if not given.json:
                print(f"{name:12} {mesh:32} {in_words(row)}", flush=True)
    if given.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
