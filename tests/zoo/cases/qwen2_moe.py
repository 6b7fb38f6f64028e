"""Qwen1.5-MoE and Qwen2-MoE."""

from typing import Any

from .common import COMMON, FIVE, FOUR, YARN, dense, experts

QWEN2_MOE = {key: value for key, value in COMMON.items() if key != "attention_bias"} | {
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    "decoder_sparse_step": 1,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "use_sliding_window": False,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2_moe_weighed": QWEN2_MOE
    | FOUR
    | dense(48, 40, 3, 6, 2, 97)
    | experts(9, 4, 12)
    | {
        "max_window_layers": 2,
        "norm_topk_prob": False,
        "rope_theta": 1000000.0,
        "shared_expert_intermediate_size": 30,
        "sliding_window": 32,
    },
    "qwen2_moe_dense_layers_renormalised_tied": QWEN2_MOE
    | FOUR
    | dense(36, 52, 4, 3, 1, 110, head_dim=14)
    | experts(6, 2, 20)
    | {
        "decoder_sparse_step": 2,
        "mlp_only_layers": [1],
        "norm_topk_prob": True,
        "rope_scaling": YARN,
        "rope_theta": 1000.0,
        "shared_expert_intermediate_size": 16,
        "tie_word_embeddings": True,
    },
    "qwen2_moe_no_bias": QWEN2_MOE
    | FIVE
    | dense(40, 44, 2, 4, 4, 72)
    | experts(7, 3, 16)
    | {
        "layer_types": ["full_attention", "full_attention"],
        "mlp_only_layers": [0],
        "qkv_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        "shared_expert_intermediate_size": 24,
    },
}
