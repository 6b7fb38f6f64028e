"""Training on a mesh against training on one device: `python tests/sharding/equality.py` prints family by mesh.

    python tests/sharding/equality.py [--devices N] [--family NAME ...] [--mesh MESH ...] [--json | --write FILE]

Each number is the largest of: the relative difference of the losses of five steps; the difference of the gradients of
the first step, leaf by leaf, relative to the global norm; the difference of the parameters after five steps of gradient
descent, leaf by leaf, relative to the leaf's largest. Then what the compiled programs hold and compute (held.py).
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from held import Signs, flops, homes, repeated, too_much

STEPS, ROWS, LENGTH = 5, 16, 56
SIGNS = Signs(layers=5, experts=24, vocab=88, ffn=17, tokens=7)
"""Sizes, or factors of sizes, that nothing else in these models has."""

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
SIXTEEN = ("data=2,fsdp=2,expert=2,tensor=2", "fsdp=2,expert=4,tensor=2", "fsdp=8,tensor=2")
STEPPED = (MESHES[0], "fsdp=2,expert=4", "data=2,expert=2,tensor=2", *SIXTEEN[1:])
"""Where a whole step is compiled too, with Muon, for what it holds. Not where a device has two whole layers of half of
the experts, which have the size that tells all experts of one.
"""

RATE = 0.01
"""With ten times as much, five steps part by themselves: experts' choices turn (5e-2 apart, of qwen3_moe)."""
COMPARED = ("loss", "gradient", "parameters")


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

    depth, experts = SIGNS.layers, {"experts": SIGNS.experts, "ffn": 8 * SIGNS.ffn}
    size = {"vocab": SIGNS.vocab, "width": 64, "max_length": LENGTH}
    heads = {"heads": 16, "kv_heads": 8, "head_dim": 8, "rope": Rope(dim=8)}
    norm, dense = RMSNorm(), GatedMLP(ffn=128)
    full = Attention(**heads)
    sharp = Router(top_k=2, score="sigmoid", bias=True, groups=Groups(count=4, kept=2))
    latent = LatentAttention(heads=8, nope_dim=8, value_dim=8, kv_rank=24, q_rank=16, rope=Rope(dim=8))
    softmax = MoE(**experts, router=Router(top_k=2))
    selected = MoE(**experts, router=sharp, shared=GatedMLP(ffn=16))
    # Two models are ill-conditioned as they are initialised, so that rounding alone moves them. Sigmoid scores of small
    # hidden states are all nearly 1/2, and which expert is chosen turns on the last digits (7e-4 apart, with a scale of
    # 1). What a first token reads is nearly nothing where its query and key are nearly orthogonal: normalised without
    # more, it is noise (2e-1 apart, with an eps of 1e-6).
    larger = {**size, "embedding_scale": 16.0}
    linear = GatedDelta(key_heads=8, value_heads=16, key_dim=8, value_dim=8, norm=RMSNorm(eps=1e-2))
    normed = Attention(**heads, qk_norm=QKNorm())
    return {
        "llama": Spec(**size, depth=depth, attention=full, mlp=dense, block=pre_norm(norm)),
        "gemma3": Spec(
            **size,
            depth=2 * depth,
            attention=(Attention(**heads, window=8), full),
            mlp=dense,
            block=sandwich_norm(norm),
            tied=True,
        ),
        "deepseek_v3": Spec(
            **larger, depth=1 + depth, attention=latent, mlp=(dense, selected, ...), block=pre_norm(norm)
        ),
        "qwen3_moe": Spec(**size, depth=depth, attention=normed, mlp=softmax, block=pre_norm(norm)),
        "qwen3_next": Spec(**larger, depth=2 * depth, attention=(linear, full), mlp=dense, block=pre_norm(norm)),
    }


def batches() -> list[dict[str, Any]]:
    import numpy as np

    rng = np.random.default_rng(0)
    made = []
    for _ in range(STEPS):
        tokens = rng.integers(0, SIGNS.vocab, (ROWS, LENGTH + 1)).astype(np.int32)
        segments = 1 + (np.arange(LENGTH) >= rng.integers(1, LENGTH, (ROWS, 1))).astype(np.int32)
        weights = (rng.random((ROWS, LENGTH)) < 0.9).astype(np.float32)
        made.append({"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "segment_ids": segments, "weights": weights})
    return made


def trained(spec: Any, mesh: str, devices: Any) -> dict[str, Any]:
    """What five steps leave, and what the compiled programs and the state hold."""
    import jax
    import numpy as np
    import optax

    from archzoo.layers.accounting import leaves
    from archzoo.layers.execution import Execution
    from archzoo.train import placement as p
    from archzoo.train.loss import default_losses
    from archzoo.train.optimizer import Optimizer
    from archzoo.train.step import init_state, make_gradient, make_step

    place = p.place(spec, mesh, "default", ROWS, LENGTH, devices) if mesh else None
    execution = Execution(rules=place.rules if place else None)
    gradient = make_gradient(spec, execution, default_losses(spec))
    optimizer = Optimizer(steps=STEPS, name="muon")
    with p.in_force(place):
        shardings = place.params(spec) if place else None
        pinned = {} if place is None else {"out_shardings": place.state(spec, optimizer)}
        state = jax.jit(partial(init_state, spec, optimizer), **pinned)(jax.random.key(0))

        def descend(params: Any, batch: Any) -> Any:
            (loss, sums), gradients = gradient(params, batch)
            updates, _ = optax.sgd(RATE).update(gradients, optax.sgd(RATE).init(params))
            return optax.apply_updates(params, updates), gradients, loss, dropped(sums)

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
        texts = [compiled.as_text()]
        if place is not None and mesh in STEPPED:
            step = make_step(spec, execution, optimizer, default_losses(spec))
            pinned = {"out_shardings": (place.state(spec, optimizer), place.whole)}
            texts.append(jax.jit(step, donate_argnums=0, **pinned).lower(state, given[0]).compile().as_text())
        params, losses, first, drops = state.params, [], None, 0.0
        for batch in given:
            params, gradients, loss, lost = compiled(params, batch)
            first = first or gradients
            losses.append(float(loss))
            drops += float(lost)
    host = partial(jax.tree.map, np.asarray)
    sizes = {} if place is None else dict(place.mesh.shape)
    return {
        "losses": losses,
        "gradients": host(first),
        "start": host(state.params),
        "params": host(params),
        "dropped": drops,
        "text": texts[0],
        "misplaced": place and misplaced(spec, place, {"params": params, "gradients": first, "opt": state}),
        "held": place and [line for text in texts for line in too_much(text, leaves(spec), place.rules, sizes, SIGNS)],
    }


def dropped(sums: Any) -> Any:
    """How many choices of experts were dropped."""
    import jax.numpy as jnp

    return sum((jnp.sum(held["dropped"]) for held in sums.statistics.values()), jnp.float32(0))


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


def compare(spec: Any, mesh: str, one: dict[str, Any], many: dict[str, Any], devices: int) -> dict[str, Any]:
    import jax
    import numpy as np

    norm = math.sqrt(sum(float(np.sum(np.square(g))) for g in jax.tree.leaves(one["gradients"])))

    def apart(name: str, relative: bool) -> float:
        def gap(a: Any, b: Any) -> float:
            scale = float(np.max(np.abs(a))) if relative else 1.0
            return float(np.max(np.abs(a - b))) / (scale or 1.0)

        return max(jax.tree.leaves(jax.tree.map(gap, one[name], many[name])))

    return {
        "loss": max(abs(a - b) / abs(a) for a, b in zip(one["losses"], many["losses"], strict=True)),
        "gradient": apart("gradients", relative=False) / norm,
        "parameters": apart("params", relative=True),
        "initial": apart("start", relative=False),
        "dropped": one["dropped"] + many["dropped"],
        "misplaced": many["misplaced"],
        "held": many["held"],
        **work(spec, mesh, one["text"], many["text"], devices),
    }


def work(spec: Any, mesh: str, one: str, many: str, devices: int) -> dict[str, float]:
    """FLOPs of the products of all devices together, relative to one device's. flops: of all.  dense: of all but those
    of routed experts.  alike: what `dense` would be if nothing but the products that tensor devices all do was done
    twice.  rows: what those of experts would be by the rows that they have room for.
    """
    from archzoo.layers.accounting import leaves
    from archzoo.sharding.mesh import parse_mesh
    from archzoo.sharding.rules import Rules

    sizes, tokens = parse_mesh(mesh), ROWS * LENGTH
    (dense, routed), (own_dense, own_routed) = flops(one, SIGNS.ffn), flops(many, SIGNS.ffn)
    routers = [layer.mlp.router for layer in spec.layers if hasattr(layer.mlp, "router")]
    found = {
        "flops": devices * (own_dense + own_routed) / (dense + routed),
        "dense": devices * own_dense / dense,
        "alike": 1 + repeated(leaves(spec), Rules(), sizes, tokens) / dense,
    }
    if routers:
        found["experts"] = devices * own_routed / routed
        found["rows"] = homes(tokens, routers[0].top_k, SIGNS.experts, Rules(), sizes)
    return found


# --- telling ---------------------------------------------------------------------------------------------------------


def worst(row: Mapping[str, Any]) -> float:
    return max(row[name] for name in COMPARED)


def in_words(row: Mapping[str, Any]) -> str:
    as_told = "as the rules say" if not row["misplaced"] else f"{len(row['misplaced'])} misplaced"
    more = f" experts {row['experts']:.3f} (rows {row['rows']:.3f})" if "experts" in row else ""
    flops = f"FLOPs {row['flops']:.3f}: dense {row['dense']:.3f} (alike {row['alike']:.3f}){more}"
    return f"{worst(row):.0e}  {as_told}  {len(row['held'])} held  {flops}"


PAGE = """# Training on a mesh is training on one device

Written by `python tests/sharding/equality.py --write docs/equality.md`, on virtual devices of a CPU, with tiny models
of {families} families. The tests hold every cell to 1e-5.

A number is the largest of three differences from one device: of the losses of five steps, relative; of the gradients of
the first step, leaf by leaf, relative to the global norm; of the parameters after five steps of gradient descent, leaf
by leaf, relative to the leaf's largest. Every parameter, gradient and moment lay as the rules say, and no choice of an
expert was dropped. No instruction of the compiled programs, of this step or (on {stepped} of the meshes) of one with
Muon, gave an array with more of a stack of layers than the device's own part, with all experts of a layer
(expert > 1), or with the whole vocabulary (tensor > 1).

{equal}
## Work

FLOPs of all devices together in the compiled step, relative to one device's. Above 1 is what tensor devices all do
alike (a router, the products into latents: no axis of theirs lies over tensor) and room for experts' tokens, which is
in sixteens of rows, of which tiny models have few: the tests hold the numbers to what these two come to, within 5%;
with an expert axis, whose exchange has other room, all but the products of experts.
Meshes with a sequence axis are left out: this count, by the program's text, does not follow all of their work.

{work}"""


def page(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    def table(cell: Any, without: str = "-") -> str:
        names = list(found)
        meshes = list(dict.fromkeys(mesh for rows in found.values() for mesh in rows if without not in mesh))
        lines = [["mesh", *names], ["---"] * (1 + len(names))]
        lines += [[f"`{mesh}`", *(cell(found[f][mesh]) if mesh in found[f] else "" for f in names)] for mesh in meshes]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    equal, done = table(lambda row: f"{worst(row):.0e}"), table(lambda row: f"{row['flops']:.2f}", without="sequence")
    return PAGE.format(families=len(found), stepped=len(STEPPED), equal=equal, work=done)


def several(counts: tuple[int, ...]) -> dict[str, Any]:
    """The tables of several numbers of devices, which take a process each, as one."""
    import subprocess

    merged: dict[str, Any] = {}
    for count in counts:
        command = [sys.executable, __file__, "--devices", str(count), "--json"]
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        for family, rows in json.loads(told).items():
            merged.setdefault(family, {}).update(rows)
    return merged


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--devices", type=int, default=8)
    options.add_argument("--family", nargs="*")
    options.add_argument("--mesh", nargs="*")
    options.add_argument("--json", action="store_true")
    options.add_argument("--write", type=Path, metavar="FILE", help="all families and meshes, as a page")
    given = options.parse_args()
    if given.write:
        given.write.write_text(page(several((8, 16))))
        return 0
    flag = f"--xla_force_host_platform_device_count={given.devices}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    import jax

    jax.config.update("jax_platforms", "cpu")
    found: dict[str, Any] = {}
    meshes = given.mesh or (MESHES if given.devices == 8 else SIXTEEN)
    for name, spec in families().items():
        if given.family and name not in given.family:
            continue
        one = trained(spec, "", None)
        found[name] = {}
        for mesh in meshes:
            many = trained(spec, mesh, jax.devices())
            found[name][mesh] = row = compare(spec, mesh, one, many, given.devices)
            if not given.json:
                print(f"{name:12} {mesh:32} {in_words(row)}", flush=True)
                print("".join(f"    {line}\n" for line in (*row["misplaced"], *row["held"])), end="", flush=True)
    if given.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
