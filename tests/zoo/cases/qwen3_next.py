"""Qwen3-Next."""

from typing import Any

from .common import COMMON, FIVE, FOUR, YARN, dense, experts

QWEN3_NEXT = COMMON | {
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "output_router_logits": False,
    "rms_norm_eps": 1e-6,
    "router_aux_loss_coef": 0.001,
}


def delta(heads: int, value_heads: int, key_dim: int, value_dim: int, taps: int = 4) -> dict[str, int]:
    return {
        "linear_conv_kernel_dim": taps,
        "linear_key_head_dim": key_dim,
        "linear_num_key_heads": heads,
        "linear_num_value_heads": value_heads,
        "linear_value_head_dim": value_dim,
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3_next_every_fourth": QWEN3_NEXT
    | FOUR
    | dense(32, 48, 4, 4, 2, 93, head_dim=16)
    | experts(6, 2, 12)
    | delta(2, 4, 6, 10)
    | {
        "full_attention_interval": 4,
        "partial_rotary_factor": 0.25,
        "rope_scaling": None,
        "rope_theta": 10000000,
        "shared_expert_intermediate_size": 20,
    },
    "qwen3_next_layer_types_dense_layers_yarn_tied": QWEN3_NEXT
    | FIVE
    | dense(40, 36, 3, 3, 1, 120, head_dim=12)
    | experts(5, 3, 8)
    | delta(3, 3, 8, 6, taps=2)
    | {
        "layer_types": ["full_attention", "linear_attention", "linear_attention"],
        "mlp_only_layers": [1],
        "norm_topk_prob": False,
        "rope_parameters": YARN | {"rope_theta": 10000.0, "partial_rotary_factor": 0.5},
        "shared_expert_intermediate_size": 8,
        "tie_word_embeddings": True,
    },
    "qwen3_next_every_second": QWEN3_NEXT
    | FOUR
    | dense(48, 24, 4, 2, 2, 71, head_dim=20)
    | experts(4, 1, 16)
    | delta(1, 6, 7, 5, taps=5)
    | {
        "decoder_sparse_step": 2,
        "full_attention_interval": 2,
        "partial_rotary_factor": 1.0,
        "rope_theta": 1000.0,
        "shared_expert_intermediate_size": 16,
    },
}
