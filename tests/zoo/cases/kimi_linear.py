"""Kimi Linear."""

from typing import Any

from .common import COMMON, FIVE, FOUR, latent

KIMI_LINEAR = {key: value for key, value in COMMON.items() if key != "max_position_embeddings"} | {
    "architectures": ["KimiLinearForCausalLM"],
    "model_type": "kimi_linear",
    "model_max_length": 128,
    "pad_token_id": 0,
}


def delta(heads: int, head_dim: int, taps: int, full: list[int], depth: int) -> dict[str, Any]:
    """Layers are counted from 1."""
    return {
        "linear_attn_config": {
            "full_attn_layers": full,
            "head_dim": head_dim,
            "kda_layers": [i + 1 for i in range(depth) if i + 1 not in full],
            "num_heads": heads,
            "short_conv_kernel_size": taps,
        }
    }


def routed(
    count: int,
    top_k: int,
    ffn: int,
    *,
    shared: int,
    dense: int,
    groups: int,
    kept: int,
    scale: float,
    norm: bool = True,
) -> dict[str, Any]:
    """The experts, in the words of the published config."""
    return {
        "num_experts": count,
        "num_experts_per_token": top_k,
        "moe_intermediate_size": ffn,
        "num_shared_experts": shared,
        "first_k_dense_replace": dense,
        "num_expert_group": groups,
        "topk_group": kept,
        "routed_scaling_factor": scale,
        "moe_renormalize": norm,
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "kimi_linear_published": KIMI_LINEAR
    | FOUR
    | latent(48, 64, 4, 4, 97, nope=12, rope=6, value=12, kv=20, q=None)
    | delta(3, 8, 4, [4], 4)
    | routed(8, 3, 16, shared=1, dense=1, groups=1, kept=1, scale=2.446)
    | {
        "head_dim": 72,
        "mla_use_nope": True,
        "moe_layer_freq": 1,
        "moe_router_activation_func": "sigmoid",
        "num_nextn_predict_layers": 0,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "use_grouped_topk": True,
    },
    "kimi_linear_groups_query_rank": KIMI_LINEAR
    | FIVE
    | latent(40, 36, 3, 2, 103, nope=6, rope=4, value=10, kv=24, q=16)
    | delta(2, 10, 3, [1, 3], 3)
    | routed(9, 2, 8, shared=2, dense=0, groups=3, kept=2, scale=1.7, norm=False),
    "kimi_linear_layer_types": {k: v for k, v in KIMI_LINEAR.items() if k != "model_max_length"}
    | FIVE
    | latent(32, 40, 4, 3, 88, nope=10, rope=6, value=16, kv=12, q=None)
    | {
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
        "linear_conv_kernel_dim": 2,
        "linear_head_dim": 6,
        "linear_num_heads": 5,
        "max_position_embeddings": 128,
        "mlp_layer_types": ["dense", "sparse", "dense", "sparse"],
        "moe_intermediate_size": 20,
        "n_group": 1,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 2,
        "num_local_experts": 6,
        "routed_scaling_factor": 1.0,
        "topk_group": 1,
    },
}
