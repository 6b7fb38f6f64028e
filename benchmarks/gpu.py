"""What an H100 would hold, compiled ahead of time on a machine without one: python benchmarks/gpu.py [--gpu h100]
[--lengths 2048 8192 32768]

Needs the aot extra (pip install 'archzoo[aot]'). Temporary bytes of a forward and backward pass, as XLA plans them,
and the shapes that its program holds:
  experts    32 experts of DeepSeek-V3 (width 7168, ffn 2048, bfloat16), as a device has when 8 share the 256: our
             kernels, and `lax.ragged_dot` on rows sorted by expert. Twice: with the 65,536 assignments that such a
             device gets on average when the 8 together hold 65,536 tokens of 8 choices each, and with all 8 choices of
             65,536 tokens among the 32.
  attention  DeepSeek-V3's (128 heads, keys of 192, values of 128) and Gemma 3 12B's windowed (16 heads that share 8 of
             256, window 1024), batch 1: our kernels, blocks of queries as on the CPU, and whole score matrices.
  mesh       Llama 3.1 8B's attention over 4 x 2 GPUs, batch and heads apart: the collectives in the program.

Exits 1 unless the experts' temporaries are 4 times smaller than through `ragged_dot`, our programs hold no array of
[experts, rows, width] or [length, length], and a mesh adds no collective. Speed is not known here. Writes
results/gpu.json."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA complains of what would not fit a GPU

import argparse
import json
import math
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from archzoo.layers.attend import attend
from archzoo.layers.attention_gpu import flash_attention
from archzoo.layers.grouped_gpu import mix_gated
from archzoo.layers.mlp import hidden
from archzoo.layers.products import Keys
from archzoo.sharding.rules import Rules, make_mesh
from archzoo.sharding.targets import topology

RESULTS = Path(__file__).parent / "results" / "gpu.json"
EXPERTS, WIDTH, FFN, TOKENS = 32, 7168, 2048, 65536
LEAST_RATIO = 4.0
ATTENTION: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "deepseek-v3": ((128, 1, 192, 128), {"scale": 192**-0.5}),
    "gemma3-12b windowed": ((8, 2, 256, 256), {"scale": 256**-0.5, "window": 1024}),
}
"""kv_heads, queries per kv head, head and value dimensions."""


# --- what is compiled ------------------------------------------------------------------------------------------------


def through_kernel(x_TD: Any, experts_TK: Any, weights_TK: Any, gate_XFD: Any, up_XFD: Any, down_XDF: Any) -> Any:
    return mix_gated(x_TD, experts_TK, weights_TK, (gate_XFD, up_XFD, down_XDF), partial(hidden, "silu"))


def through_ragged_dot(x_TD: Any, experts_TK: Any, weights_TK: Any, gate_XDF: Any, up_XDF: Any, down_XFD: Any) -> Any:
    order_A = jnp.argsort(experts_TK.reshape(-1), stable=True)
    sizes_X = jnp.bincount(experts_TK.reshape(-1), length=EXPERTS).astype(jnp.int32)
    token_A = order_A // experts_TK.shape[1]
    product = partial(jax.lax.ragged_dot, group_sizes=sizes_X)
    x_AD = x_TD[token_A]
    y_AD = product(jax.nn.silu(product(x_AD, gate_XDF)) * product(x_AD, up_XDF), down_XFD)
    return jnp.zeros_like(x_TD).at[token_A].add(y_AD * weights_TK.reshape(-1)[order_A][:, None].astype(y_AD.dtype))


def kernel(q: Any, k: Any, v: Any, segments: Any, rules: Any = None, **rule: Any) -> Any:
    return flash_attention(q, k, v, None, segments, rules=rules, **rule)


def query_blocks(q: Any, k: Any, v: Any, segments: Any, **rule: Any) -> Any:
    slots = jnp.arange(q.shape[1], dtype=jnp.int32)
    return attend(q, [Keys(k, v, slots[None], segments)], slots, segments, **rule)


def whole_matrix(q: Any, k: Any, v: Any, segments: Any, scale: float, window: int | None = None) -> Any:
    scores = jnp.einsum("BLKGE,BMKE->BKGLM", q, k, preferred_element_type=jnp.float32) * scale
    slots = jnp.arange(q.shape[1])
    seen = (slots[None, :] <= slots[:, None]) & (slots[:, None] - slots[None, :] < (window or len(slots)))
    seen = seen & (segments[:, :, None] == segments[:, None, :])
    weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, -1e30), axis=-1).astype(q.dtype)
    return jnp.einsum("BKGLM,BMKU->BLKGU", weights, v)


def both_ways(function: Callable[..., Any], integers: tuple[int, ...]) -> Callable[..., Any]:
    """Its value and all gradients, from the arguments and a cotangent; `integers` are the arguments that have none."""

    def run(*arguments: Any) -> Any:
        *arguments, dy = arguments
        floats = [a for i, a in enumerate(arguments) if i not in integers]

        def of_floats(*floats: Any) -> Any:
            rest = iter(floats)
            return function(*(a if i in integers else next(rest) for i, a in enumerate(arguments)))

        y, pull = jax.vjp(of_floats, *floats)
        return y, pull(dy)

    return run


# --- compiling it ----------------------------------------------------------------------------------------------------


def compiled(mesh: Mesh, function: Callable[..., Any], *arguments: Any) -> tuple[int, str]:
    """(temporary bytes a device, the program's text)."""
    with jax.set_mesh(mesh):
        program = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).compile()
    return int(program.memory_analysis().temp_size_in_bytes), program.as_text()


def arrays(text: str) -> set[tuple[int, ...]]:
    """The shapes of every array in a program."""
    return {tuple(map(int, dims.split(","))) for dims in re.findall(r"\b[a-z]+\d*\[([\d,]+)\]", text)}


def experts(mesh: Mesh, choices: int) -> dict[str, Any]:
    whole = NamedSharding(mesh, PartitionSpec())
    array = partial(jax.ShapeDtypeStruct, sharding=whole)
    row = array((TOKENS, WIDTH), jnp.bfloat16)
    widen, narrow = array((EXPERTS, FFN, WIDTH), jnp.bfloat16), array((EXPERTS, WIDTH, FFN), jnp.bfloat16)
    routing = array((TOKENS, choices), jnp.int32), array((TOKENS, choices), jnp.float32)
    result: dict[str, Any] = {"tokens": TOKENS, "assignments": TOKENS * choices, "experts": EXPERTS}
    both = ("kernel", through_kernel, widen, narrow), ("ragged_dot", through_ragged_dot, narrow, widen)
    for name, function, up, down in both:  # each with matrices as it likes them, [out, in] and [in, out]
        temp, text = compiled(mesh, both_ways(function, integers=(1,)), row, *routing, up, up, down, row)
        grown = [s for s in arrays(text) if math.prod(s) >= EXPERTS * TOKENS * choices * min(WIDTH, FFN)]
        result |= {f"{name}_bytes": temp, f"{name}_expert_row_arrays": sorted(grown)}
    return result | {"ratio": result["ragged_dot_bytes"] / result["kernel_bytes"]}


def attention(mesh: Mesh, model: str, length: int) -> dict[str, Any]:
    (kv_heads, group, dim, value_dim), rule = ATTENTION[model]
    half = partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec()))
    q, dout = (half((1, length, kv_heads, group, e)) for e in (dim, value_dim))
    k, v = (half((1, length, kv_heads, e)) for e in (dim, value_dim))
    segments = jax.ShapeDtypeStruct((1, length), jnp.int32, sharding=q.sharding)
    result: dict[str, Any] = {"model": model, "length": length}
    for function in (kernel, query_blocks, whole_matrix):
        temp, text = compiled(mesh, both_ways(partial(function, **rule), integers=(3,)), q, k, v, segments, dout)
        squares = [s for s in arrays(text) if s.count(length) > 1]
        result |= {f"{function.__name__}_bytes": temp, f"{function.__name__}_square_arrays": sorted(squares)}
    return result


def over_a_mesh(gpu: str) -> dict[str, Any]:
    """Collectives of attention whose batch and heads lie apart."""
    mesh = make_mesh(topology(gpu, per_host=8).devices, fsdp=4, tensor=2)
    part = partial(jax.ShapeDtypeStruct, sharding=NamedSharding(mesh, PartitionSpec("fsdp", None, "tensor")))
    q, k = part((8, 8192, 8, 4, 128), jnp.bfloat16), part((8, 8192, 8, 128), jnp.bfloat16)
    segments = jax.ShapeDtypeStruct((8, 8192), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
    function = partial(kernel, rules=Rules(), scale=128**-0.5)
    temp, text = compiled(mesh, both_ways(function, integers=(3,)), q, k, k, segments, q)
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    return {"devices": 8, "kernel_bytes": temp, "collectives": re.findall(rf"\b({kinds})(?:-start)?\(", text)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", default="h100", help="a name in sharding/targets.py")
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192, 32768])
    options = parser.parse_args(argv)
    try:
        mesh = make_mesh(topology(options.gpu).devices, data=1)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2

    report: dict[str, Any] = {"gpu": options.gpu, "jax": jax.__version__, "experts": [], "attention": []}
    wrong: list[str] = []
    gigabytes = lambda n: f"{n / 1e9:10.3f}"  # noqa: E731
    print(f"{options.gpu}, jax {jax.__version__}: temporaries of forward + backward, GB (10^9 bytes)\n")
    print(f"{'experts: assignments':28}{'kernel':>10}{'ragged_dot':>12}{'ratio':>8}  [experts, rows, width] in ours")
    for choices in (1, 8):
        r = experts(mesh, choices)
        report["experts"].append(r)
        held = r["kernel_expert_row_arrays"]
        sizes = f"{gigabytes(r['kernel_bytes'])}  {gigabytes(r['ragged_dot_bytes'])}{r['ratio']:8.1f}"
        print(f"{r['assignments']:<28,}{sizes}  {held or 'none'}")
        if r["ratio"] < LEAST_RATIO or held:
            wrong.append(f"experts, {r['assignments']:,} assignments: ratio {r['ratio']:.1f}, arrays {held}")
    print(f"\n{'attention: length':28}{'kernel':>10}{'query blocks':>14}{'whole':>12}  [length, length] in ours")
    for model in ATTENTION:
        for length in options.lengths:
            r = attention(mesh, model, length)
            report["attention"].append(r)
            held = r["kernel_square_arrays"]
            blocks, whole = gigabytes(r["query_blocks_bytes"]), gigabytes(r["whole_matrix_bytes"])
            print(f"{f'{model}: {length:,}':28}{gigabytes(r['kernel_bytes'])}    {blocks}  {whole}  {held or 'none'}")
            if held:
                wrong.append(f"attention of {model} at {length:,}: arrays {held}")
    report["mesh"] = over_a_mesh(options.gpu)
    print(f"\nattention over 4 x 2 GPUs: collectives {report['mesh']['collectives'] or 'none'}")
    if report["mesh"]["collectives"]:
        wrong.append(f"attention over a mesh: {report['mesh']['collectives']}")
    report["wrong"] = wrong
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    for line in wrong:
        print(f"not as it must be: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
