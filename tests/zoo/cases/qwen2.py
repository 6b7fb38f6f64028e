"""Qwen2 and Qwen2.5."""

from typing import Any

from .common import COMMON, FIVE, FOUR, YARN, dense

QWEN2 = {key: value for key, value in COMMON.items() if key != "attention_bias"} | {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "max_window_layers": 28,
    "rms_norm_eps": 1e-6,
    "sliding_window": 32768,
    "use_sliding_window": False,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2_gqa_tied": QWEN2
    | FOUR
    | dense(56, 60, 3, 7, 1, 90)
    | {"rope_theta": 1000000.0, "tie_word_embeddings": True},
    "qwen2_window_yarn": QWEN2
    | FOUR
    | dense(48, 36, 4, 6, 2, 77)
    | {
        "rope_theta": 1000.0,
        "rope_scaling": YARN,
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 1,
    },
    "qwen2_layer_types_head_dim": QWEN2
    | FIVE
    | dense(40, 44, 4, 5, 5, 101, head_dim=12)
    | {
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "use_sliding_window": True,
        "sliding_window": 4,
    },
}
