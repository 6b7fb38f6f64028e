"""SmolLM3."""

from typing import Any

from .common import COMMON, FIVE, FOUR, YARN, dense

SMOLLM3 = COMMON | {
    "architectures": ["SmolLM3ForCausalLM"],
    "model_type": "smollm3",
    "mlp_bias": False,
    "no_rope_layer_interval": 4,
    "pad_token_id": 4,
    "rms_norm_eps": 1e-6,
    "sliding_window": None,
    "use_sliding_window": False,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "smollm3_every_fourth_tied": SMOLLM3
    | FOUR
    | dense(48, 56, 4, 6, 2, 91)
    | {
        "layer_types": ["full_attention"] * 4,
        "max_window_layers": 28,
        "no_rope_layers": [1, 1, 1, 0],
        "rope_scaling": None,
        "rope_theta": 5000000.0,
        "tie_word_embeddings": True,
    },
    "smollm3_window_yarn_biases": SMOLLM3
    | FIVE
    | dense(40, 44, 4, 5, 5, 102)
    | {
        "attention_bias": True,
        "mlp_bias": True,
        "no_rope_layer_interval": 2,
        "rope_parameters": YARN | {"rope_theta": 1000.0},
        "sliding_window": 5,
        "use_sliding_window": True,
    },
    "smollm3_layer_types_mqa": SMOLLM3
    | FIVE
    | dense(36, 60, 3, 3, 1, 77, head_dim=16)
    | {
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "no_rope_layers": [0, 1, 1],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "sliding_window": 8,
        "use_sliding_window": True,
    },
}
