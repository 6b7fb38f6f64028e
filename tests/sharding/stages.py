"""Training whose depth is cut among stages, against training on one device: prints how far apart, model by model.

    python tests/sharding/stages.py [--case NAME ...]

On eight virtual devices of a CPU. Numbers are the largest of: relative differences of the losses of five steps of
gradient descent; differences of the gradients of the first step, leaf by leaf, relative to the global norm; differences
of the statistics of routers, relative to the number of tokens.
"""

import argparse
import json
import math
import os
import re
import sys
from functools import partial
from typing import Any

STEPS, ROWS, LENGTH, VOCAB, DEPTH, RATE = 5, 16, 20, 32, 4, 0.05

CASES = {
    "dense": ("stage=4,fsdp=2", "bfloat16", None),
    "windows": ("stage=2,tensor=2,sequence=2", "float32", 4),
    "experts": ("stage=2,fsdp=2,expert=2", "float32", None),
}
"""Model -> mesh, dtype of a second run on it, microbatches."""


def models() -> dict[str, Any]:
    from archzoo.layers.attention import Attention
    from archzoo.layers.block import pre_norm, sandwich_norm
    from archzoo.layers.decoder import Spec
    from archzoo.layers.latent import LatentAttention
    from archzoo.layers.mlp import GatedMLP
    from archzoo.layers.moe import MoE
    from archzoo.layers.norms import RMSNorm
    from archzoo.layers.rope import Rope
    from archzoo.layers.router import Router

    size = {"vocab": VOCAB, "width": 16, "max_length": LENGTH, "embedding_scale": 16.0}
    heads, dense, norm = {"heads": 4, "kv_heads": 2, "head_dim": 4, "rope": Rope(dim=4)}, GatedMLP(ffn=32), RMSNorm()
    latent = LatentAttention(heads=4, nope_dim=4, value_dim=4, kv_rank=8, rope=Rope(dim=4))
    experts = MoE(experts=4, ffn=8, router=Router(top_k=2), shared=GatedMLP(ffn=12))
    local = Attention(**heads, window=4)
    pattern = {"attention": (local, Attention(**heads)), "block": sandwich_norm(norm)}
    return {
        "dense": Spec(**size, depth=DEPTH, attention=Attention(**heads), mlp=dense, block=pre_norm(norm)),
        # Four times a period of two, and one layer that no stage has.
        "windows": Spec(**size, depth=2 * DEPTH + 1, mlp=dense, tied=True, **pattern),
        "experts": Spec(**size, depth=1 + DEPTH, attention=latent, mlp=(dense, experts, ...), block=pre_norm(norm)),
    }


def batches() -> list[dict[str, Any]]:
    """Documents packed and padded: segments, and with them positions, differ from row to row."""
    import numpy as np

    rng = np.random.default_rng(0)
    made = []
    for _ in range(STEPS):
        tokens = rng.integers(0, VOCAB, (ROWS, LENGTH + 1)).astype(np.int32)
        cut, end = rng.integers(1, LENGTH, (ROWS, 1)), rng.integers(LENGTH // 2, LENGTH + 1, (ROWS, 1))
        place = np.arange(LENGTH)
        segments = np.where(place < end, 1 + (place >= cut), 0).astype(np.int32)
        weights = ((rng.random((ROWS, LENGTH)) < 0.9) & (segments > 0)).astype(np.float32)
        made.append({"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "segment_ids": segments, "weights": weights})
    return made


def trained(spec: Any, mesh: str, microbatches: int | None, dtype: str = "float32") -> dict[str, Any]:
    import jax
    import numpy as np

    from archzoo.layers.execution import Execution
    from archzoo.train import placement as p
    from archzoo.train.loss import Losses
    from archzoo.train.optimizer import Optimizer
    from archzoo.train.step import init_state, make_gradient

    place = p.place(spec, mesh, "default", ROWS, LENGTH) if mesh else None
    execution = Execution(rules=place and place.rules, microbatches=microbatches, dtype=dtype)
    gradient = make_gradient(spec, execution, Losses(balance=0.1, router_z=0.1, sequence_balance=0.1))
    optimizer = Optimizer(steps=STEPS, name="adamw")

    def descend(params: Any, batch: Any) -> Any:
        (loss, sums), gradients = gradient(params, batch)
        return jax.tree.map(lambda w, g: w - RATE * g, params, gradients), gradients, loss, sums.statistics

    with p.in_force(place):
        pinned = {} if place is None else {"out_shardings": place.state(spec, optimizer)}
        state = jax.jit(partial(init_state, spec, optimizer), **pinned)(jax.random.key(0))
        shardings = place and place.params(spec)
        pinned = {} if place is None else {"out_shardings": (shardings, shardings, place.whole, place.whole)}
        given = [p.placed(batch, place) for batch in batches()]
        compiled = jax.jit(descend, **pinned).lower(state.params, given[0]).compile()
        params, losses, first = state.params, [], None
        for batch in given:
            params, gradients, loss, statistics = compiled(params, batch)
            first = first or jax.tree.map(np.asarray, (gradients, statistics))
            losses.append(float(loss))
    return {"losses": losses, "first": first, "text": compiled.as_text(), "state": state._replace(params=params)}


def compare(one: dict[str, Any], many: dict[str, Any]) -> dict[str, Any]:
    import jax
    import numpy as np

    norm = math.sqrt(sum(float(np.sum(np.square(g))) for g in jax.tree.leaves(one["first"][0])))

    def apart(which: int) -> float:
        gaps = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), one["first"][which], many["first"][which])
        return max(jax.tree.leaves(gaps), default=0.0)

    gathers = re.findall(r"= (f32|bf16)\[([\d,]*)\]\S* all-gather(?:-start)?\(", many["text"])
    gathered = [tuple(int(n) for n in shape.split(",")) for _, shape in gathers]
    stacks = {leaf.shape for leaf in jax.tree.leaves(one["state"].params) if leaf.ndim > 2 and leaf.shape[0] == DEPTH}
    cut = {
        jax.tree_util.keystr(path): str(leaf.sharding.spec)
        for path, leaf in jax.tree_util.tree_leaves_with_path(many["state"])
        if leaf.ndim
    }
    return {
        "loss": max(abs(a - b) / abs(a) for a, b in zip(one["losses"], many["losses"], strict=True)),
        "gradient": apart(0) / norm,
        "statistics": apart(1) / (ROWS * LENGTH),
        "shardings": cut,
        "permutes": len(re.findall(r" collective-permute(?:-start)?\(", many["text"])),
        "stacks": [shape for shape in gathered if (DEPTH, *shape[1:]) in stacks and len(shape) > 2],
        "rows": [shape for shape in gathered if LENGTH in shape],
    }


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--case", nargs="*", default=list(CASES))
    given = options.parse_args()
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    os.environ["JAX_PLATFORMS"] = "cpu"
    found = {}
    for name in given.case:
        (mesh, dtype, microbatches), spec = CASES[name], models()[name]
        one, many = trained(spec, "", None), trained(spec, mesh, microbatches)
        found[name] = compare(one, many)
        if dtype != "float32":
            found[name]["coarse"] = trained(spec, mesh, microbatches, dtype)["losses"]
            found[name]["fine"] = one["losses"]
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
