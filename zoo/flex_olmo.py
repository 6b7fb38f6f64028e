"""FlexOlmo (Shi et al. 2025, arXiv 2507.07024): OLMo 2 whose MLPs are experts, trained apart on data that stay with
their owners and merged by their router, whose weights are not renormalised."""

from typing import Any

from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from ..layers.moe import MoE
from ..layers.router import Router
from . import olmo2
from .family import ATTENTION, EMBEDDINGS, EXPERTS, FUSED_EXPERTS, PLAIN, POST_NORMS, WIDTH_NORMS, Family, presets
from .fields import Fields


def read(c: Fields) -> Spec:
    router = Router(top_k=c.int("num_experts_per_tok", 5), renormalise=c.bool("norm_topk_prob", False))
    spec = olmo2.read(c.over({"rms_norm_eps": 1e-6, "rope_theta": 500_000.0}))
    return spec.replace(mlp=MoE(experts=c.int("num_experts", 7), ffn=spec.mlp[0].ffn, router=router))


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    moe = spec.mlp[0]
    return olmo2.write(spec.replace(mlp=GatedMLP(ffn=moe.ffn)), dialect) | {
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.router.top_k,
        "norm_topk_prob": moe.router.renormalise,
    }


def size(width: int, ffn: int, depth: int, heads: int, experts: int, top_k: int) -> Spec:
    router = Router(top_k=top_k, renormalise=False)
    return olmo2.size(width, ffn, depth, heads, heads).replace(mlp=MoE(experts=experts, ffn=ffn, router=router))


# The class defaults of transformers, made for this model; seven experts and its 33B parameters are published.
SIZES = {
    "flex-olmo-7x7b": size(4096, 11008, 32, 32, experts=7, top_k=5),
    "flex-olmo-nano": size(192, 256, 6, 6, experts=4, top_k=2).replace(
        vocab=257, bos_id=256, eos_ids=(256,), pad_id=None
    ),
}

FAMILY = Family(
    name="flex_olmo",
    architecture="FlexOlmoForCausalLM",
    read=read,
    write=write,
    fixed=PLAIN,
    weights=EMBEDDINGS + ATTENTION + WIDTH_NORMS + EXPERTS + POST_NORMS,
    fused=FUSED_EXPERTS,
    presets=presets("flex_olmo", SIZES),
)
