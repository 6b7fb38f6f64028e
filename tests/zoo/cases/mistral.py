"""Mistral."""

from typing import Any

from .common import COMMON, FIVE, FOUR, YARN, dense

MISTRAL = {key: value for key, value in COMMON.items() if key != "attention_bias"} | {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
}

CONFIGS: dict[str, dict[str, Any]] = {
    "mistral_window_gqa": MISTRAL | FOUR | dense(48, 72, 3, 6, 2, 93) | {"rope_theta": 10000.0, "sliding_window": 6},
    "mistral_default_window_mqa_tied": MISTRAL
    | FOUR
    | dense(36, 40, 2, 3, 1, 101, head_dim=20)
    | {"rope_theta": 1000.0, "rope_scaling": YARN, "tie_word_embeddings": True},
    "mistral_small_no_window": MISTRAL
    | FIVE
    | dense(40, 64, 2, 4, 4, 128, head_dim=16)
    | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000000.0},
        "sliding_window": None,
        "eos_token_id": [2, 7],
        "pad_token_id": 11,
    },
}
