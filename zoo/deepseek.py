"""What DeepSeek's families gave to others: latent attention, and experts behind a sigmoid router with a selection bias,
in configs and checkpoints.
"""

from typing import Any

from ..layers.latent import LatentAttention
from ..layers.mlp import GatedMLP
from ..layers.moe import MoE
from ..layers.router import Groups, Router
from .fields import Fields, Names, read_part, read_rope, write_part, write_rope
from .weights import rows

_LATENT: Names = {
    "heads": "num_attention_heads",
    "nope_dim": "qk_nope_head_dim",
    "value_dim": "v_head_dim",
    "kv_rank": "kv_lora_rank",
    "q_rank": ("q_lora_rank", None),
}
_ROUTER: Names = {
    "top_k": "num_experts_per_tok",
    "renormalise": ("norm_topk_prob", True),
    "scale": ("routed_scaling_factor", 2.5),
}


def read_latent(c: Fields) -> LatentAttention:
    c.only("attention_bias", False)
    c.only("attention_dropout", 0.0)
    rope = read_rope(c, c.int("qk_rope_head_dim"), interleaved=c.bool("rope_interleave", True))
    latent = read_part(c, LatentAttention, _LATENT, rope=rope)
    c.only("num_key_value_heads", latent.heads)
    c.only("head_dim", rope.dim)
    c.only("qk_head_dim", rope.dim + latent.nope_dim)
    return latent


def write_latent(latent: LatentAttention, dialect: int) -> dict[str, Any]:
    return write_part(latent, _LATENT) | {
        "num_key_value_heads": latent.heads,
        "qk_rope_head_dim": latent.rope.dim,
        "rope_interleave": latent.rope.interleaved,
        **write_rope(latent.rope, dialect),
        "attention_bias": False,
        "attention_dropout": 0.0,
    }


def read_experts(c: Fields) -> MoE:
    """The experts behind a sigmoid router with a bias."""
    c.only("scoring_func", "sigmoid")
    c.only("topk_method", "noaux_tc")
    ffn, shared = c.int("moe_intermediate_size"), c.int("n_shared_experts", 1, least=1)
    count, kept = c.int("n_group", 8, least=1), c.int("topk_group", 4)
    groups = Groups(count=count, kept=kept) if count > 1 else None
    router = read_part(c, Router, _ROUTER, score="sigmoid", bias=True, groups=groups)
    return MoE(experts=c.int("n_routed_experts"), ffn=ffn, router=router, shared=GatedMLP(ffn=ffn * shared))


def write_experts(moe: MoE) -> dict[str, Any]:
    groups = moe.router.groups or Groups(count=1, kept=1)
    return {
        "moe_intermediate_size": moe.ffn,
        "n_routed_experts": moe.experts,
        "n_shared_experts": moe.shared.ffn // moe.ffn if moe.shared else 0,
        "n_group": groups.count,
        "topk_group": groups.kept,
        **write_part(moe.router, _ROUTER),
    }


def experts(count: int, top_k: int, ffn: int, groups: Groups | None, scale: float) -> MoE:
    """`count` experts and a shared one, as published."""
    router = Router(top_k=top_k, score="sigmoid", groups=groups, bias=True, scale=scale)
    return MoE(experts=count, ffn=ffn, router=router, shared=GatedMLP(ffn=ffn))


LATENT = rows(
    ("model.layers.{l}.self_attn.q_proj.weight", "(H P) D", "attention/wq_DHP"),
    ("model.layers.{l}.self_attn.q_a_proj.weight", "Q D", "attention/wq_down_DQ"),
    ("model.layers.{l}.self_attn.q_a_layernorm.weight", "Q", "attention/q_norm/scale_Q"),
    ("model.layers.{l}.self_attn.q_b_proj.weight", "(H P) Q", "attention/wq_up_QHP"),
    ("model.layers.{l}.self_attn.kv_a_proj_with_mqa.weight", "T D", "attention/wkv_down_DT"),
    ("model.layers.{l}.self_attn.kv_a_layernorm.weight", "C", "attention/kv_norm/scale_C"),
    ("model.layers.{l}.self_attn.kv_b_proj.weight", "(H [N V]) C", "attention/wk_CHN", "attention/wv_CHV"),
    ("model.layers.{l}.self_attn.o_proj.weight", "D (H V)", "attention/wo_HVD"),
)

SHARED = rows(
    ("model.layers.{l}.mlp.gate.e_score_correction_bias", "X", "mlp/router/bias_X"),
    ("model.layers.{l}.mlp.shared_experts.gate_proj.weight", "F D", "mlp/shared/w_gate_DF"),
    ("model.layers.{l}.mlp.shared_experts.up_proj.weight", "F D", "mlp/shared/w_up_DF"),
    ("model.layers.{l}.mlp.shared_experts.down_proj.weight", "D F", "mlp/shared/w_down_FD"),
)
