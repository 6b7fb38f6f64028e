"""Mixtral (Jiang et al. 2024, arXiv 2401.04088): the attention of Mistral, eight experts of which each token takes two,
weighed by a softmax over those two."""

from typing import Any

from ..layers.attention import Attention
from ..layers.block import pre_norm
from ..layers.decoder import Spec
from ..layers.moe import MoE
from ..layers.norms import RMSNorm
from ..layers.rope import Rope
from ..layers.router import Router
from .family import ATTENTION, EMBEDDINGS, PLAIN, PRE_NORMS, Family, presets
from .fields import Fields, read_common, read_rope, write_common, write_rope
from .minimax_m2 import BLOCK, FUSED_BLOCK


def read(c: Fields) -> Spec:
    heads, norm = c.int("num_attention_heads", least=1), RMSNorm(eps=c.float("rms_norm_eps", 1e-5))
    head_dim = c.int("head_dim", c.int("hidden_size") // heads)
    router = Router(top_k=c.int("num_experts_per_tok", 2))
    return Spec(
        **read_common(c),
        attention=Attention(
            heads=heads,
            kv_heads=c.int("num_key_value_heads"),
            head_dim=head_dim,
            rope=read_rope(c.over({"rope_theta": 1e6}), head_dim),
            window=c.int("sliding_window", None),
        ),
        mlp=MoE(experts=c.int("num_local_experts", 8), ffn=c.int("intermediate_size"), router=router),
        block=pre_norm(norm),
        final_norm=norm,
    )


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    attention, moe = spec.attention[0], spec.mlp[0]
    fields = write_common(spec) | {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "sliding_window": attention.window,
        **write_rope(attention.rope, dialect),
        "intermediate_size": moe.ffn,
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.router.top_k,
        "rms_norm_eps": spec.final_norm.eps,
    }
    derived = attention.head_dim == spec.width // attention.heads
    return fields if derived else fields | {"head_dim": attention.head_dim}


def size(width: int, ffn: int, depth: int, heads: int, kv_heads: int, length: int, experts: int = 8) -> Spec:
    norm, dim = RMSNorm(eps=1e-5), width // heads
    return Spec(
        vocab=32_000,
        width=width,
        depth=depth,
        attention=Attention(heads=heads, kv_heads=kv_heads, head_dim=dim, rope=Rope(dim=dim, theta=1e6)),
        mlp=MoE(experts=experts, ffn=ffn, router=Router(top_k=2)),
        block=pre_norm(norm),
        final_norm=norm,
        max_length=length,
        bos_id=1,
        eos_ids=(2,),
    )


# Published numbers, those of v0.1.
SIZES = {
    "mixtral-8x7b": size(4096, 14336, 32, 32, 8, length=32_768),
    "mixtral-8x22b": size(6144, 16384, 56, 48, 8, length=65_536),
    "mixtral-nano": size(192, 256, 6, 6, 2, length=4096).replace(vocab=257, bos_id=256, eos_ids=(256,)),
}

FAMILY = Family(
    name="mixtral",
    architecture="MixtralForCausalLM",
    read=read,
    write=write,
    fixed=PLAIN,
    weights=EMBEDDINGS + PRE_NORMS + ATTENTION + BLOCK,
    fused=FUSED_BLOCK,
    inert=frozenset({"router_jitter_noise"}),  # of training
    presets=presets("mixtral", SIZES),
)
