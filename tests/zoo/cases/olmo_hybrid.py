"""OLMo Hybrid."""

from typing import Any

from .common import COMMON, FIVE, FOUR, YARN, dense

OLMO_HYBRID = COMMON | {
    "architectures": ["OlmoHybridForCausalLM"],
    "model_type": "olmo_hybrid",
    "linear_a_log_max": 16.0,
    "linear_a_log_min": 0.0,
    "linear_dt_init_floor": 0.0001,
    "linear_dt_max": 0.1,
    "linear_dt_min": 0.001,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-6,
}


def delta(heads: int, value_heads: int, key_dim: int, value_dim: int, taps: int, negative: bool) -> dict[str, Any]:
    """As many keys as values: where it saves others, transformers cuts the convolution at the wrong channels."""
    return {
        "linear_num_key_heads": heads,
        "linear_num_value_heads": value_heads,
        "linear_key_head_dim": key_dim,
        "linear_value_head_dim": value_dim,
        "linear_conv_kernel_dim": taps,
        "linear_allow_neg_eigval": negative,
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "olmo_hybrid_nope": OLMO_HYBRID
    | FIVE
    | dense(48, 64, 4, 4, 4, 97)
    | delta(4, 4, 9, 9, 4, True)
    | {
        "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
        "rope_parameters": {"rope_theta": None, "rope_type": "default"},
    },
    "olmo_hybrid_rope_grouped_tied": OLMO_HYBRID
    | FOUR
    | dense(36, 40, 3, 6, 2, 110)
    | delta(2, 6, 15, 5, 3, False)
    | {
        "layer_types": ["full_attention", "linear_attention", "full_attention"],
        "rope_theta": 500000.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
    },
    "olmo_hybrid_yarn_biases": OLMO_HYBRID
    | FIVE
    | dense(32, 56, 4, 2, 1, 85)
    | delta(3, 6, 8, 4, 5, True)
    | {
        "attention_bias": True,
        "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
        "rope_parameters": YARN | {"rope_theta": 10000.0},
    },
}
