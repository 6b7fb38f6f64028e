"""Granite 3 MoE."""

from typing import Any

from .common import COMMON, FIVE, FOUR, YARN, dense
from .minimax_m2 import experts

GRANITE = COMMON | {
    "architectures": ["GraniteMoeForCausalLM"],
    "model_type": "granitemoe",
    "output_router_logits": False,
    "router_aux_loss_coef": 0.0,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "granitemoe_gqa_tied": GRANITE
    | FOUR
    | dense(48, 16, 3, 6, 2, 86)
    | experts(10, 4)
    | {
        "attention_multiplier": 0.125,
        "embedding_multiplier": 12.0,
        "logits_scaling": 6.0,
        "residual_multiplier": 0.22,
        "rope_scaling": None,
        "rope_theta": 10000,
        "tie_word_embeddings": True,
    },
    "granitemoe_mqa_bias_yarn": GRANITE
    | FIVE
    | dense(36, 20, 2, 3, 1, 117)
    | experts(5, 1)
    | {
        "attention_bias": True,
        "attention_multiplier": 0.3,
        "embedding_multiplier": 3,
        "logits_scaling": 4.9,
        "residual_multiplier": 1.5,
        "rope_parameters": YARN | {"rope_theta": 1000.0},
    },
    "granitemoe_default_multipliers": GRANITE
    | FOUR
    | dense(40, 24, 2, 5, 5, 65)
    | experts(6, 3)
    | {"pad_token_id": 0, "rope_theta": 10000.0},
}
