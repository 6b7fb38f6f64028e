"""Mistral 4 (Mistral AI 2026): latent attention whose late queries are sharpened, and many small experts behind a
softmax router, beside shared ones."""

from typing import Any

from ..layers.block import pre_norm
from ..layers.decoder import Spec
from ..layers.latent import LatentAttention
from ..layers.mlp import GatedMLP
from ..layers.moe import MoE
from ..layers.norms import RMSNorm
from ..layers.rope import Rope, Yarn
from ..layers.router import Groups, Router
from ..layers.temperature import Temperature
from .deepseek import LATENT, SHARED, write_experts, write_latent
from .family import EMBEDDINGS, EXPERTS, FUSED_EXPERTS, MLP, PLAIN, PRE_NORMS, Family, presets
from .fields import Fields, read_common, read_rope, write_common
from .ministral3 import CLASS_ROPE, ROPES, read_temperature, write_temperature

ROPE = CLASS_ROPE | {"rope_theta": 10_000.0, "factor": 128.0, "original_max_position_embeddings": 8192}


def read(c: Fields) -> Spec:
    heads, nope_dim, rope_dim = c.int("num_attention_heads"), c.int("qk_nope_head_dim"), c.int("qk_rope_head_dim")
    c.only("num_key_value_heads", heads)
    for name in ("head_dim", "qk_head_dim"):
        c.only(name, nope_dim + rope_dim)
    plain, temperature = read_temperature(c, ROPE, share=rope_dim / (nope_dim + rope_dim))
    ffn, groups = c.int("moe_intermediate_size"), c.int("n_group", 1, least=1)
    kept = c.int("topk_group", 1)
    router = Router(
        top_k=c.int("num_experts_per_tok", 4),
        groups=Groups(count=groups, kept=kept) if groups > 1 else None,
        renormalise=c.bool("norm_topk_prob", True),
        scale=c.float("routed_scaling_factor", 1.0),
    )
    count, shared = c.int("n_routed_experts", c.int("num_local_experts", 128)), c.int("n_shared_experts", 1, least=1)
    moe = MoE(experts=count, ffn=ffn, router=router, shared=GatedMLP(ffn=ffn * shared))
    dense = (GatedMLP(ffn=c.int("intermediate_size", 12_288)),) * c.int("first_k_dense_replace", 0)
    norm = RMSNorm(eps=c.float("rms_norm_eps", 1e-6))
    return Spec(
        **read_common(c),
        attention=LatentAttention(
            heads=heads,
            nope_dim=nope_dim,
            value_dim=c.int("v_head_dim", 128),
            kv_rank=c.int("kv_lora_rank", 256),
            q_rank=c.int("q_lora_rank", None),
            rope=read_rope(plain, rope_dim, interleaved=c.bool("rope_interleave", True)),
            temperature=temperature,
        ),
        mlp=(*dense, moe, ...) if dense else moe,
        block=pre_norm(norm),
        final_norm=norm,
    )


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    attention, mlps = spec.attention[0], [layer.mlp for layer in spec.layers]
    dense = [mlp for mlp in mlps if isinstance(mlp, GatedMLP)]
    fields = write_temperature(write_latent(attention, dialect), attention.temperature)
    rope = next(name for name in ROPES if name in fields)
    share = attention.rope.dim / (attention.nope_dim + attention.rope.dim)
    return write_common(spec) | {
        **fields,
        rope: {**fields[rope], "partial_rotary_factor": share},
        "intermediate_size": dense[0].ffn if dense else 12_288,
        "first_k_dense_replace": len(dense),
        **write_experts(next(mlp for mlp in [*mlps, *spec.mlp] if isinstance(mlp, MoE))),
        "rms_norm_eps": spec.final_norm.eps,
    }


def size(width: int, depth: int, attention: LatentAttention, experts: int, top_k: int, ffn: int) -> Spec:
    norm = RMSNorm(eps=1e-6)
    return Spec(
        vocab=131_072,
        width=width,
        depth=depth,
        attention=attention,
        mlp=MoE(experts=experts, ffn=ffn, router=Router(top_k=top_k), shared=GatedMLP(ffn=ffn)),
        block=pre_norm(norm),
        final_norm=norm,
        max_length=1_048_576,
        bos_id=1,
        eos_ids=(2,),
        pad_id=11,
    )


def latent(heads: int, nope: int, rope: int, value: int, kv_rank: int, q_rank: int, yarn: Yarn) -> LatentAttention:
    return LatentAttention(
        heads=heads,
        nope_dim=nope,
        value_dim=value,
        kv_rank=kv_rank,
        q_rank=q_rank,
        rope=Rope(dim=rope, theta=1e4, scaling=yarn, interleaved=True),
        temperature=Temperature(length=yarn.original_length),
    )


# The class defaults, which are those of the published 119B; the nano is for laptops.
YARN = Yarn(factor=128.0, original_length=8192, mscale=1.0, mscale_all_dim=1.0)
NANO_YARN = Yarn(factor=8.0, original_length=512, mscale=1.0, mscale_all_dim=1.0)
SIZES = {
    "mistral-small4-119b": size(4096, 36, latent(32, 64, 64, 128, 256, 1024, YARN), 128, 4, 2048),
    "mistral4-nano": size(128, 4, latent(4, 16, 16, 32, 48, 64, NANO_YARN), 16, 4, 64).replace(
        vocab=257, bos_id=256, eos_ids=(256,), pad_id=None, max_length=4096
    ),
}

ROUTER = EXPERTS[:1]  # experts are published in one tensor

FAMILY = Family(
    name="mistral4",
    architecture="Mistral4ForCausalLM",
    read=read,
    write=write,
    fixed=PLAIN | {"attention_bias": False},
    weights=EMBEDDINGS + PRE_NORMS + LATENT + MLP + ROUTER + FUSED_EXPERTS + SHARED,
    presets=presets("mistral4", SIZES),
)
