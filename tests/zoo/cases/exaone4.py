"""EXAONE 4.0."""

from typing import Any

from .common import COMMON, FIVE, FOUR, LLAMA3_ROPE, dense

EXAONE4 = {key: value for key, value in COMMON.items() if key != "attention_bias"} | {
    "architectures": ["Exaone4ForCausalLM"],
    "model_type": "exaone4",
    "pad_token_id": 0,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "exaone4_hybrid_gqa_llama3": EXAONE4
    | FOUR
    | dense(48, 56, 4, 6, 2, 106, head_dim=10)
    | {
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
        "rope_scaling": LLAMA3_ROPE | {"rope_type": "llama3"},
        "rope_theta": 1000000,
        "sliding_window": 6,
        "sliding_window_pattern": "LLLG",
    },
    "exaone4_global_tied": EXAONE4
    | FIVE
    | dense(40, 48, 2, 5, 5, 74)
    | {
        "layer_types": ["full_attention"] * 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
        "sliding_window": None,
        "tie_word_embeddings": True,
    },
    "exaone4_pattern_mqa": EXAONE4
    | FIVE
    | dense(36, 44, 3, 3, 1, 121)
    | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "sliding_window": 8,
        "sliding_window_pattern": 2,
    },
}
