"""Qwen3."""

from typing import Any

from .common import COMMON, FIVE, FOUR, YARN, dense

QWEN3 = COMMON | {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "max_window_layers": 28,
    "sliding_window": None,
    "use_sliding_window": False,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3_gqa_tied": QWEN3
    | FOUR
    | dense(36, 60, 3, 6, 2, 90, head_dim=10)
    | {"rope_theta": 1000000, "rope_scaling": None, "tie_word_embeddings": True},
    "qwen3_window_yarn": QWEN3
    | FOUR
    | dense(48, 36, 5, 3, 3, 77, head_dim=12)
    | {
        "rope_theta": 1000.0,
        "rope_scaling": YARN,
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 2,
    },
    "qwen3_layer_types_mqa_bias": QWEN3
    | FIVE
    | dense(40, 44, 4, 5, 1, 101, head_dim=16)
    | {
        "attention_bias": True,
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        "use_sliding_window": True,
        "sliding_window": 4,
    },
}
