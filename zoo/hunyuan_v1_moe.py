"""Hunyuan-A13B (Tencent Hunyuan team 2025, technical report): grouped-query attention with QK-norm per head after rope,
whose base is stretched; experts behind a softmax router, beside a shared one of their size."""

from typing import Any

from ..layers.attention import Attention
from ..layers.block import pre_norm
from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from ..layers.moe import MoE
from ..layers.norms import QKNorm, RMSNorm
from ..layers.rope import Rope
from ..layers.router import Router
from .family import ATTENTION, EMBEDDINGS, EXPERTS, FUSED_EXPERTS, PLAIN, PRE_NORMS, Family, presets
from .fields import Fields, read_common, read_rope, write_common, write_rope
from .weights import rows

FIXED = PLAIN | {
    "mlp_bias": False,
    "norm_type": "rms",
    "use_qk_norm": True,
    "use_cla": False,
    "use_mixed_mlp_moe": True,
    "moe_layer_num_skipped": 0,
}


def read(c: Fields) -> Spec:
    depth, heads, ffn = c.int("num_hidden_layers"), c.int("num_attention_heads", least=1), c.int("intermediate_size")
    head_dim = c.int("head_dim", c.int("attention_head_dim", c.int("hidden_size") // heads))
    c.only("attention_head_dim", head_dim)
    for name, value in (("moe_intermediate_size", ffn), ("num_shared_expert", 1)):
        c.only(name, [value] * depth if isinstance(c.get(name, value), list) else value)
    each = c.get("moe_topk", 1)
    chosen = list(each) if isinstance(each, list) else [each] * depth
    if len(chosen) != depth or not all(type(k) is int for k in chosen):
        raise ValueError(
            f"config field 'moe_topk' is {each!r:.80}; it takes an integer, or one for each of {depth} layers"
        )
    experts, norm = c.int("num_experts", 1, least=1), RMSNorm(eps=c.float("rms_norm_eps", 1e-5))
    moes = [MoE(experts=experts, ffn=ffn, router=Router(top_k=k), shared=GatedMLP(ffn=ffn)) for k in chosen]
    return Spec(
        **read_common(c),
        attention=Attention(
            heads=heads,
            kv_heads=c.int("num_key_value_heads", heads),
            head_dim=head_dim,
            rope=read_stretched(c, head_dim),
            qk_norm=QKNorm(norm=norm, after_rope=True),
            bias="qkvo" if c.bool("attention_bias", False) else "",
        ),
        mlp=tuple(moes) if len(set(moes)) > 1 else moes[0],
        block=pre_norm(norm),
        final_norm=norm,
    )


def read_stretched(c: Fields, dim: int) -> Rope:
    """A rope of type "dynamic" with an `alpha` is not dynamic: that only stretches the base."""
    given = [p for p in (c.nested("rope_parameters"), c.nested("rope_scaling")) if p.config]
    if len(given) != 1 or "dynamic" not in (given[0].config.get("type"), given[0].config.get("rope_type")):
        return read_rope(c, dim)
    p = given[0]
    p.taken |= {"type", "rope_type", "factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"}
    theta, alpha = p.float("rope_theta", c.float("rope_theta", 10_000.0)), p.float("alpha")
    p.finish_nested("rope_type 'dynamic' with alpha")
    return Rope(dim=dim, theta=stretched(theta, alpha, dim))


def stretched(theta: float, alpha: float, dim: int) -> float:
    """The base under which the longest wave is `alpha` times as long and the shortest stays ("NTK-aware" scaling)."""
    return float(theta * alpha ** (dim / (dim - 2)))


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    attention, moes = spec.attention[0], [layer.mlp for layer in spec.layers]
    chosen = [moe.router.top_k for moe in moes]
    return write_common(spec) | {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        **write_rope(attention.rope, dialect),
        "attention_bias": bool(attention.bias),
        "intermediate_size": moes[0].ffn,
        "num_experts": moes[0].experts,
        "moe_topk": chosen[0] if len(set(chosen)) == 1 else chosen,
        "rms_norm_eps": spec.final_norm.eps,
    }


OWN_NAMES = rows(
    ("model.layers.{l}.self_attn.query_layernorm.weight", "E", "attention/q_norm/scale_E"),
    ("model.layers.{l}.self_attn.key_layernorm.weight", "E", "attention/k_norm/scale_E"),
    ("model.layers.{l}.mlp.gate.wg.weight", "X D", "mlp/router/w_DX"),
    ("model.layers.{l}.mlp.shared_mlp.gate_proj.weight", "F D", "mlp/shared/w_gate_DF"),
    ("model.layers.{l}.mlp.shared_mlp.up_proj.weight", "F D", "mlp/shared/w_up_DF"),
    ("model.layers.{l}.mlp.shared_mlp.down_proj.weight", "D F", "mlp/shared/w_down_FD"),
)


def model(width: int, depth: int, heads: int, kv_heads: int, dim: int, experts: int, top_k: int, ffn: int) -> Spec:
    norm = RMSNorm(eps=1e-5)
    return Spec(
        vocab=128_167,
        width=width,
        depth=depth,
        attention=Attention(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=dim,
            rope=Rope(dim=dim, theta=stretched(1e4, 1000.0, dim)),
            qk_norm=QKNorm(norm=norm, after_rope=True),
        ),
        mlp=MoE(experts=experts, ffn=ffn, router=Router(top_k=top_k), shared=GatedMLP(ffn=ffn)),
        block=pre_norm(norm),
        final_norm=norm,
        tied=True,
        max_length=32_768,
        bos_id=1,
        eos_ids=(127_960,),
        pad_id=127_961,
    )


# The published size; token ids too.
FAMILY = Family(
    name="hunyuan_v1_moe",
    architecture="HunYuanMoEV1ForCausalLM",
    read=read,
    write=write,
    fixed=FIXED,
    weights=EMBEDDINGS + PRE_NORMS + ATTENTION + EXPERTS[1:] + OWN_NAMES,
    fused=FUSED_EXPERTS,
    inert=frozenset({"eod_token_id", "sep_token_id", "cla_share_factor", "moe_drop_tokens", "capacity_factor"}),
    presets=presets(
        "hunyuan_v1_moe",
        {
            "hunyuan-a13b": model(4096, 32, 32, 8, 128, 64, 8, 3072),
            "hunyuan-moe-nano": model(128, 4, 6, 2, 32, 16, 4, 64).replace(
                vocab=257, max_length=4096, bos_id=256, eos_ids=(256,), pad_id=None
            ),
        },
    ),
)
