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
    "phi3_longrope_near": PHI3
    | FOUR
    | dense(32, 40, 2, 4, 2, 90)
    | {
        "pad_token_id": None,
        "original_max_position_embeddings": 64,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.5, 2], "long_factor": [1.0, 3.5, 9.0, 40.0]},
        "rope_theta": 10000.0,
        "sliding_window": 200,
    },
    "phi3_longrope_far": PHI3
    | FOUR
    | dense(48, 40, 2, 3, 1, 90)
    | {
        "pad_token_id": None,
        "original_max_position_embeddings": 8,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0, 1.0, 1.1, 1.2, 1.5, 2.0],
            "long_factor": [1.0, 1.7, 3.5, 5.0, 9.0, 16.0],
        },
        "rope_theta": 10000.0,
        "sliding_window": None,
    },
    "phi3_longrope_amplitude": PHI3
    | FIVE
    | dense(36, 40, 2, 3, 3, 90)
    | {
        "pad_token_id": None,
        "original_max_position_embeddings": 8,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 500.0,
            "partial_rotary_factor": 1.0,
            "attention_factor": 1.25,
            "original_max_position_embeddings": 8,
            "short_factor": [1.0] * 6,
            "long_factor": [1.0, 1.7, 3.5, 5.0, 9.0, 16.0],
        },
        "sliding_window": None,
    },
}
