"""Granite 3 MoE (IBM 2024): Granite whose MLPs are many small experts, weighed by a softmax over those chosen."""

from typing import Any

from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from ..layers.moe import MoE
from ..layers.router import Router
from . import granite
from .family import ATTENTION, EMBEDDINGS, PLAIN, PRE_NORMS, Family, presets
from .fields import Fields
from .weights import rows


def read(c: Fields) -> Spec:
    router, spec = Router(top_k=c.int("num_experts_per_tok", 2)), granite.read(c)
    return spec.replace(mlp=MoE(experts=c.int("num_local_experts", 8), ffn=spec.mlp[0].ffn, router=router))


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    moe = spec.mlp[0]
    fields = granite.write(spec.replace(mlp=GatedMLP(ffn=moe.ffn)), dialect) | {
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.router.top_k,
    }
    return {name: value for name, value in fields.items() if name != "mlp_bias"}


BLOCK = rows(
    ("model.layers.{l}.block_sparse_moe.router.layer.weight", "X D", "mlp/router/w_DX"),
    ("model.layers.{l}.block_sparse_moe.input_linear.weight", "X [F F] D", "mlp/w_gate_XFD", "mlp/w_up_XFD"),
    ("model.layers.{l}.block_sparse_moe.output_linear.weight", "X D F", "mlp/w_down_XDF"),
)
FUSED_BLOCK = rows(
    ("model.layers.{l}.block_sparse_moe.router.weight", "X D", "mlp/router/w_DX"),
    ("model.layers.{l}.block_sparse_moe.experts.gate_up_proj", "X [F F] D", "mlp/w_gate_XFD", "mlp/w_up_XFD"),
    ("model.layers.{l}.block_sparse_moe.experts.down_proj", "X D F", "mlp/w_down_XDF"),
)


def size(width: int, ffn: int, depth: int, heads: int, kv_heads: int, experts: int, top_k: int) -> Spec:
    dense = granite.size(width, ffn, depth, heads, kv_heads, divisor=6)
    return dense.replace(mlp=MoE(experts=experts, ffn=ffn, router=Router(top_k=top_k)))


# Published sizes and multipliers; eps is that of the dense models of the same series.
SIZES = {
    "granite3.0-1b-a400m": size(1024, 512, 24, 16, 8, experts=32, top_k=8),
    "granite3.0-3b-a800m": size(1536, 512, 32, 24, 8, experts=40, top_k=8),
    "granite3-moe-nano": size(192, 96, 6, 6, 2, experts=16, top_k=4).replace(
        vocab=257, bos_id=256, eos_ids=(256,), pad_id=None
    ),
}

FAMILY = Family(
    name="granitemoe",
    architecture="GraniteMoeForCausalLM",
    read=read,
    write=write,
    fixed=PLAIN | {"mlp_bias": False},
    weights=EMBEDDINGS + PRE_NORMS + ATTENTION + BLOCK,
    fused=FUSED_BLOCK,
    presets=presets("granitemoe", SIZES),
)
