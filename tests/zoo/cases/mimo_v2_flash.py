"""MiMo-V2-Flash."""

from typing import Any

from .common import COMMON, FIVE, FOUR, dense

MIMO = COMMON | {"architectures": ["MiMoV2FlashForCausalLM"], "model_type": "mimo_v2_flash"}


def experts(count: int, top_k: int, ffn: int) -> dict[str, Any]:
    return {
        "n_routed_experts": count,
        "num_experts_per_tok": top_k,
        "moe_intermediate_size": ffn,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "mimo_v2_flash_published_ropes": MIMO
    | FOUR
    | dense(40, 56, 4, 4, 1, 93, head_dim=24)
    | experts(8, 3, 20)
    | {
        "partial_rotary_factor": 0.334,
        "rope_theta": 5000000,
        "routed_scaling_factor": None,
        "sliding_window": 6,
        "sliding_window_size": 4,
        "swa_rope_theta": 10000,
        "v_head_dim": 16,
    },
    "mimo_v2_flash_published_names": {key: value for key, value in MIMO.items() if key != "rms_norm_eps"}
    | FOUR
    | dense(32, 40, 3, 4, 2, 89, head_dim=12)
    | experts(6, 2, 16)
    | {
        "add_full_attention_sink_bias": False,
        "add_swa_attention_sink_bias": True,
        "attention_chunk_size": 4,
        "attention_value_scale": 0.707,
        "hybrid_block_size": None,
        "hybrid_layer_pattern": [0, 1, 1],
        "layernorm_epsilon": 1e-05,
        "moe_layer_freq": [0, 1, 1],
        "n_shared_experts": None,
        "partial_rotary_factor": 0.334,
        "rope_theta": 5000000,
        "routed_scaling_factor": None,
        "scoring_func": "sigmoid",
        "sliding_window": 4,
        "sliding_window_size": 4,
        "swa_head_dim": 12,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_rope_theta": 10000,
        "swa_v_head_dim": 8,
        "topk_method": "noaux_tc",
        "v_head_dim": 8,
    },
    "mimo_v2_flash_types_bias": MIMO
    | FIVE
    | dense(36, 40, 3, 8, 2, 101, head_dim=12)
    | experts(6, 2, 16)
    | {
        "attention_bias": True,
        "attention_value_scale": None,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "mlp_layer_types": ["sparse", "dense", "sparse"],
        "norm_topk_prob": False,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
        },
        "routed_scaling_factor": 2.5,
        "sliding_window": 3,
        "v_head_dim": 20,
    },
    "mimo_v2_flash_groups_tied": MIMO
    | FIVE
    | dense(32, 48, 2, 4, 2, 70, head_dim=16)
    | experts(8, 2, 12)
    | {
        "attention_value_scale": 0.5,
        "n_group": 4,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25},
        },
        "sliding_window": 5,
        "tie_word_embeddings": True,
        "topk_group": 2,
        "v_head_dim": 8,
    },
}
