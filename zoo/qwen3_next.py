"""Qwen3-Next (Qwen team 2025): three layers of Gated DeltaNet to one of gated attention with a quarter of rope; many
small experts beside one shared, which each token weighs. A module of multi-token prediction, whose layer is one of
gated attention (names and order: vLLM).
"""

from typing import Any

from ..layers.attention import Attention
from ..layers.block import pre_norm
from ..layers.decoder import Spec
from ..layers.delta import GatedDelta
from ..layers.mlp import GatedMLP
from ..layers.moe import MoE
from ..layers.mtp import MTP
from ..layers.norms import QKNorm, RMSNorm
from ..layers.rope import Rope
from ..layers.router import Router
from ..layers.weighed import WeighedMLP
from .family import EMBEDDINGS, EXPERTS, FUSED_EXPERTS, MLP, PRE_NORMS, Family, presets, shortest
from .fields import Fields, read_common, read_rope, write_common, write_rope
from .hybrid import (
    DELTA,
    GATED,
    LINEAR,
    MODULE,
    QKVZ,
    QWEN,
    SHARED,
    mixers,
    read_delta,
    read_kinds,
    write_delta,
    write_kinds,
)

COUNTED = "num_nextn_predict_layers"


def read(c: Fields) -> Spec:
    depth, step = c.int("num_hidden_layers"), c.int("decoder_sparse_step", 1, least=1)
    dense, moe = c.list("mlp_only_layers", []), read_experts(c, renormalise=c.bool("norm_topk_prob", True))
    plain = GatedMLP(ffn=c.int("intermediate_size", 5632))
    return read_mixers(c, tuple(plain if i in dense or (i + 1) % step else moe for i in range(depth)), COUNTED, moe)


def read_mixers(c: Fields, mlps: tuple[GatedMLP | MoE, ...], counted: str, mlp: GatedMLP | MoE) -> Spec:
    """The model with these MLPs.

    counted: the field that counts modules of multi-token prediction; their `mlp`. More than one, of which none is
    published, would share their norms and are not read."""
    c.only("hidden_act", "silu")
    c.only("attention_bias", False)
    c.only("attention_dropout", 0.0)
    c.only("use_sliding_window", False)
    eps, head_dim = c.float("rms_norm_eps", 1e-6), c.int("head_dim", 256)
    norm = RMSNorm(eps=eps, zero_centred=True)
    attention = Attention(
        heads=c.int("num_attention_heads", 16),
        kv_heads=c.int("num_key_value_heads", 2),
        head_dim=head_dim,
        rope=read_rope(c, head_dim, share=0.25),
        qk_norm=QKNorm(norm=norm),
        gate=True,
    )
    delta, kinds = read_delta(c, RMSNorm(eps=eps), **QWEN), read_kinds(c, every=c.int("full_attention_interval", 4))
    return Spec(
        **read_common(c),
        attention=shortest(tuple(delta if kind == LINEAR else attention for kind in kinds)),
        mlp=shortest(mlps),
        block=pre_norm(norm),
        final_norm=norm,
        mtp=MTP(attention=attention, mlp=mlp) if c.int(counted, 0) == 1 else None,
    )


def read_experts(c: Fields, renormalise: bool) -> MoE:
    return MoE(
        experts=c.int("num_experts", 512),
        ffn=c.int("moe_intermediate_size", 512),
        router=Router(top_k=c.int("num_experts_per_tok", 10), renormalise=renormalise),
        shared=WeighedMLP(ffn=c.int("shared_expert_intermediate_size", 512)),
    )


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    mlps = [layer.mlp for layer in spec.layers]
    plain = [i for i, mlp in enumerate(mlps) if isinstance(mlp, GatedMLP)]
    moe = next(mlp for mlp in mlps if isinstance(mlp, MoE))
    return write_mixers(spec, dialect) | {
        **({COUNTED: spec.mtp.depth} if spec.mtp else {}),
        "intermediate_size": mlps[plain[0]].ffn if plain else 5632,
        "decoder_sparse_step": 1,
        "mlp_only_layers": plain,
        "norm_topk_prob": moe.router.renormalise,
        **write_experts(moe),
    }


def write_mixers(spec: Spec, dialect: int) -> dict[str, Any]:
    delta, attention = mixers(spec, GatedDelta)
    return write_common(spec) | {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        **write_rope(attention.rope, dialect, attention.head_dim),
        "attention_bias": False,
        "attention_dropout": 0.0,
        **write_delta(delta),
        "layer_types": write_kinds(spec, GatedDelta),
        "hidden_act": "silu",
        "rms_norm_eps": spec.final_norm.eps,
    }


def write_experts(moe: MoE) -> dict[str, Any]:
    return {
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.router.top_k,
        "moe_intermediate_size": moe.ffn,
        "shared_expert_intermediate_size": moe.shared.ffn if moe.shared else 0,
    }


def size(
    mlp: GatedMLP | MoE, *, width: int, depth: int, heads: int, kv_heads: int, head_dim: int, delta: GatedDelta
) -> Spec:
    norm = RMSNorm(zero_centred=True)
    rope = Rope(dim=head_dim // 4, theta=1e7)
    attention = Attention(
        heads=heads, kv_heads=kv_heads, head_dim=head_dim, rope=rope, qk_norm=QKNorm(norm=norm), gate=True
    )
    return Spec(
        vocab=151_936,
        width=width,
        depth=depth,
        attention=(delta,) * 3 + (attention,),
        mlp=mlp,
        block=pre_norm(norm),
        final_norm=norm,
        max_length=262_144,
        bos_id=151_643,
        eos_ids=(151_645,),
    )


def predicting(spec: Spec) -> Spec:
    """The model with a module whose layer is as the last one."""
    return spec.replace(mtp=MTP(attention=spec.layers[-1].attention, mlp=spec.layers[-1].mlp))


def experts(count: int, top_k: int, ffn: int) -> MoE:
    return MoE(experts=count, ffn=ffn, router=Router(top_k=top_k), shared=WeighedMLP(ffn=ffn))


DELTA_32 = GatedDelta(key_heads=16, value_heads=32, key_dim=128, value_dim=128)
DELTA_NANO = GatedDelta(key_heads=2, value_heads=4, key_dim=32, value_dim=32)
NANO = {"width": 128, "depth": 8, "heads": 4, "kv_heads": 2, "head_dim": 32, "delta": DELTA_NANO}
LETTERS = {"vocab": 257, "max_length": 4096, "bos_id": 256, "eos_ids": (256,)}

FAMILY = Family(
    name="qwen3_next",
    architecture="Qwen3NextForCausalLM",
    read=read,
    write=write,
    weights=EMBEDDINGS + PRE_NORMS + GATED + DELTA + QKVZ + MLP + EXPERTS + SHARED + MODULE,
    fused=FUSED_EXPERTS,
    counted=COUNTED,
    presets=presets(
        "qwen3_next",
        {
            # Class defaults, which the published config repeats; published: theta, positions, token ids, the module.
            "qwen3-next-80b-a3b": predicting(
                size(experts(512, 10, 512), width=2048, depth=48, heads=16, kv_heads=2, head_dim=256, delta=DELTA_32)
            ),
            "qwen3-next-nano": size(experts(16, 4, 64), **NANO).replace(LETTERS),  # type: ignore[arg-type]
        },
    ),
)
