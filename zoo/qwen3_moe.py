"""Qwen3-MoE (Qwen team 2025, arXiv 2505.09388): the attention of Qwen3; softmax-routed experts, none shared."""

from typing import Any

from ..layers.block import pre_norm
from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from ..layers.moe import MoE
from ..layers.norms import RMSNorm
from ..layers.router import Router
from . import qwen3
from .family import (
    ATTENTION,
    EMBEDDINGS,
    EXPERTS,
    FUSED_EXPERTS,
    HEAD_NORMS,
    MLP,
    PLAIN,
    PRE_NORMS,
    Family,
    presets,
    shortest,
)
from .fields import Fields, read_common, write_common
from .qwen3 import read_attention, write_attention


def read(c: Fields) -> Spec:
    for inert_without_window in ("sliding_window", "max_window_layers"):
        c.taken.add(inert_without_window)
    norm = RMSNorm(eps=c.float("rms_norm_eps", 1e-6))
    depth, step = c.int("num_hidden_layers"), c.int("decoder_sparse_step", 1, least=1)
    dense = c.list("mlp_only_layers", [])
    experts = c.int("num_local_experts", c.int("num_experts", 128))
    router = Router(top_k=c.int("num_experts_per_tok", 8), renormalise=c.bool("norm_topk_prob", False))
    moe = MoE(experts=experts, ffn=c.int("moe_intermediate_size", 768), router=router)
    plain = GatedMLP(ffn=c.int("intermediate_size"))
    mlp = tuple(plain if i in dense or (i + 1) % step else moe for i in range(depth))
    return Spec(
        **read_common(c),
        attention=read_attention(c, norm, None),
        mlp=shortest(mlp),
        block=pre_norm(norm),
        final_norm=norm,
    )


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    mlps = [layer.mlp for layer in spec.layers]
    moe = next(mlp for mlp in mlps if isinstance(mlp, MoE))
    plain = next((mlp for mlp in mlps if isinstance(mlp, GatedMLP)), None)
    return (
        write_common(spec)
        | write_attention(spec, dialect)
        | {
            "intermediate_size": 6144 if plain is None else plain.ffn,
            "sliding_window": None,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [i for i, mlp in enumerate(mlps) if mlp is plain or mlp == plain],
            "num_local_experts" if dialect >= 5 else "num_experts": moe.experts,
            "num_experts_per_tok": moe.router.top_k,
            "norm_topk_prob": moe.router.renormalise,
            "moe_intermediate_size": moe.ffn,
        }
    )


def size(
    width: int, ffn: int, depth: int, heads: int, kv_heads: int, head_dim: int = 128, experts: int = 128, top_k: int = 8
) -> Spec:
    moe = MoE(experts=experts, ffn=ffn, router=Router(top_k=top_k))
    return qwen3.size(width, ffn, depth, heads, kv_heads, head_dim).replace(mlp=moe)


FAMILY = Family(
    name="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    read=read,
    write=write,
    fixed=PLAIN | {"use_sliding_window": False},
    weights=EMBEDDINGS + PRE_NORMS + ATTENTION + HEAD_NORMS + MLP + EXPERTS,
    fused=FUSED_EXPERTS,
    presets=presets(
        "qwen3_moe",
        {
            "qwen3-30b-a3b": size(2048, 768, 48, 32, 4),
            "qwen3-235b-a22b": size(4096, 1536, 94, 64, 4),
            "qwen3-moe-nano": size(192, 96, 6, 6, 2, 32, 16, 4).replace(vocab=257, bos_id=256, eos_ids=(256,)),
        },
    ),
)
