"""Ministral 3."""

from typing import Any

from .common import COMMON, FIVE, FOUR, YARN, dense

MINISTRAL3 = {key: value for key, value in COMMON.items() if key != "attention_bias"} | {
    "architectures": ["Ministral3ForCausalLM"],
    "model_type": "ministral3",
    "pad_token_id": 11,
}
SHARPENED = YARN | {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}

CONFIGS: dict[str, dict[str, Any]] = {
    "ministral3_gqa": MINISTRAL3
    | FIVE
    | dense(48, 72, 3, 6, 2, 93, head_dim=12)
    | {
        "rope_parameters": SHARPENED
        | {
            "llama_4_scaling_beta": 0.1,
            "max_position_embeddings": 128,
            "original_max_position_embeddings": 8,
            "rope_theta": 1000000.0,
            "type": "yarn",
        },
        "sliding_window": None,
    },
    "ministral3_steep_window_tied": MINISTRAL3
    | FIVE
    | dense(36, 40, 2, 3, 1, 101, head_dim=20)
    | {
        "rope_parameters": YARN
        | {"llama_4_scaling_beta": 1.5, "original_max_position_embeddings": 5, "rope_theta": 1000.0},
        "sliding_window": 6,
        "tie_word_embeddings": True,
    },
    "ministral3_dialect_four": MINISTRAL3
    | FOUR
    | dense(40, 64, 2, 4, 4, 128, head_dim=16)
    | {
        "pad_token_id": 11,
        "rope_scaling": SHARPENED | {"llama_4_scaling_beta": 0.4, "original_max_position_embeddings": 3},
        "rope_theta": 10000.0,
    },
}
