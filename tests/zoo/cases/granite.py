"""Granite 3."""

from typing import Any

from .common import COMMON, FIVE, FOUR, YARN, dense

GRANITE = COMMON | {"architectures": ["GraniteForCausalLM"], "model_type": "granite", "mlp_bias": False}

CONFIGS: dict[str, dict[str, Any]] = {
    "granite_gqa_tied": GRANITE
    | FOUR
    | dense(48, 64, 3, 6, 2, 89)
    | {
        "attention_multiplier": 0.125,
        "embedding_multiplier": 12.0,
        "logits_scaling": 16.0,
        "residual_multiplier": 0.22,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    },
    "granite_mqa_biases_yarn": GRANITE
    | FIVE
    | dense(36, 40, 2, 3, 1, 115)
    | {
        "attention_bias": True,
        "attention_multiplier": 0.3,
        "embedding_multiplier": 3,
        "logits_scaling": 4.9,
        "mlp_bias": True,
        "residual_multiplier": 1.5,
        "rope_parameters": YARN | {"rope_theta": 1000.0},
    },
    "granite_default_multipliers": GRANITE
    | FOUR
    | dense(40, 48, 2, 5, 5, 66, head_dim=12)
    | {"rope_theta": 10000.0, "pad_token_id": 0},
}
