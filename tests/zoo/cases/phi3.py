"""Phi-3 and Phi-4."""

from typing import Any

from .common import COMMON, FIVE, FOUR, dense

PHI3 = COMMON | {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "embd_pdrop": 0.0,
    "original_max_position_embeddings": 128,
    "resid_pdrop": 0.0,
}
PHI3 = {key: value for key, value in PHI3.items() if key != "attention_bias"}

CONFIGS: dict[str, dict[str, Any]] = {
    "phi3_window_mha": PHI3
    | FOUR
    | dense(40, 56, 3, 5, 5, 87)
    | {"pad_token_id": 3, "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": 7},
    "phi3_gqa": PHI3
    | FOUR
    | dense(48, 44, 2, 6, 2, 110)
    | {"pad_token_id": 2, "rope_scaling": None, "rope_theta": 250000, "sliding_window": None},
    "phi3_partial_mqa_tied": PHI3
    | FIVE
    | dense(36, 64, 2, 3, 1, 96, head_dim=16)
    | {
        "pad_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.75},
        "tie_word_embeddings": True,
    },
}
