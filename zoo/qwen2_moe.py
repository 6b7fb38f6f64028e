"""Qwen1.5-MoE (Qwen team 2024) and Qwen2-57B-A14B (arXiv 2407.10671): Qwen2 with fine-grained experts, whose weights
are not renormalised, beside a shared one that each token weighs."""

from typing import Any

from ..layers.attention import Attention
from ..layers.block import pre_norm
from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from ..layers.moe import MoE
from ..layers.norms import RMSNorm
from ..layers.rope import Rope
from ..layers.router import Router
from ..layers.weighed import WeighedMLP
from .family import ATTENTION, EMBEDDINGS, EXPERTS, FUSED_EXPERTS, MLP, PLAIN, PRE_NORMS, Family, presets
from .fields import GLOBAL, Fields, read_common, read_rope, write_common, write_rope
from .hybrid import SHARED


def read(c: Fields) -> Spec:
    depth, step = c.int("num_hidden_layers"), c.int("decoder_sparse_step", 1, least=1)
    c.only("layer_types", [GLOBAL] * depth)
    c.taken |= {"sliding_window", "max_window_layers"}  # inert without windows
    heads, norm = c.int("num_attention_heads", least=1), RMSNorm(eps=c.float("rms_norm_eps", 1e-6))
    head_dim = c.int("head_dim", c.int("hidden_size") // heads)
    moe = MoE(
        experts=c.int("num_experts", 60),
        ffn=c.int("moe_intermediate_size", 1408),
        router=Router(top_k=c.int("num_experts_per_tok", 4), renormalise=c.bool("norm_topk_prob", False)),
        shared=WeighedMLP(ffn=c.int("shared_expert_intermediate_size", 5632)),
    )
    plain, dense = GatedMLP(ffn=c.int("intermediate_size")), c.list("mlp_only_layers", [])
    mlp = tuple(plain if i in dense or (i + 1) % step else moe for i in range(depth))
    return Spec(
        **read_common(c),
        attention=Attention(
            heads=heads,
            kv_heads=c.int("num_key_value_heads", heads),
            head_dim=head_dim,
            rope=read_rope(c, head_dim),
            bias="qkv" if c.bool("qkv_bias", True) else "",
        ),
        mlp=mlp if len(set(mlp)) > 1 else mlp[0],
        block=pre_norm(norm),
        final_norm=norm,
    )


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    attention, mlps = spec.attention[0], [layer.mlp for layer in spec.layers]
    moe = next(mlp for mlp in mlps if isinstance(mlp, MoE))
    plain = next((mlp for mlp in mlps if isinstance(mlp, GatedMLP)), None)
    fields = write_common(spec) | {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        **write_rope(attention.rope, dialect),
        "qkv_bias": bool(attention.bias),
        "intermediate_size": 5632 if plain is None else plain.ffn,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i, mlp in enumerate(mlps) if mlp == plain],
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.router.top_k,
        "norm_topk_prob": moe.router.renormalise,
        "moe_intermediate_size": moe.ffn,
        "shared_expert_intermediate_size": moe.shared.ffn if moe.shared else 0,
        "rms_norm_eps": spec.final_norm.eps,
    }
    derived = attention.head_dim == spec.width // attention.heads
    return fields if derived else fields | {"head_dim": attention.head_dim}


def size(width: int, depth: int, heads: int, kv_heads: int, experts: int, top_k: int, ffn: int, shared: int) -> Spec:
    norm, dim = RMSNorm(eps=1e-6), width // heads
    rope, router = Rope(dim=dim, theta=1e6), Router(top_k=top_k, renormalise=False)
    return Spec(
        vocab=151_936,
        width=width,
        depth=depth,
        attention=Attention(heads=heads, kv_heads=kv_heads, head_dim=dim, rope=rope, bias="qkv"),
        mlp=MoE(experts=experts, ffn=ffn, router=router, shared=WeighedMLP(ffn=shared)),
        block=pre_norm(norm),
        final_norm=norm,
        max_length=32_768,
        bos_id=151_643,
        eos_ids=(151_645,),
    )


# Published sizes; those of the first are the class defaults of transformers too. Token ids are the instruct models'.
SIZES = {
    "qwen1.5-moe-a2.7b": size(2048, 24, 16, 16, experts=60, top_k=4, ffn=1408, shared=5632).replace(max_length=8192),
    "qwen2-57b-a14b": size(3584, 28, 28, 4, experts=64, top_k=8, ffn=2560, shared=20_480),
    "qwen2-moe-nano": size(192, 6, 6, 2, experts=16, top_k=4, ffn=64, shared=128).replace(
        vocab=257, bos_id=256, eos_ids=(256,)
    ),
}

FAMILY = Family(
    name="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    read=read,
    write=write,
    fixed=PLAIN | {"use_sliding_window": False},
    weights=EMBEDDINGS + PRE_NORMS + ATTENTION + MLP + EXPERTS + SHARED,
    fused=FUSED_EXPERTS,
    presets=presets("qwen2_moe", SIZES),
)
