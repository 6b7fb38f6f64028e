"""Mixtral."""

from typing import Any

from .common import COMMON, FIVE, FOUR, YARN, dense
from .minimax_m2 import experts

MIXTRAL = {key: value for key, value in COMMON.items() if key != "attention_bias"} | {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "output_router_logits": False,
    "router_aux_loss_coef": 0.02,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral_gqa": MIXTRAL
    | FOUR
    | dense(48, 24, 3, 6, 2, 91)
    | experts(8, 2)
    | {"rope_theta": 1000000.0, "sliding_window": None},
    "mixtral_window_mqa_tied": MIXTRAL
    | FOUR
    | dense(36, 20, 2, 3, 1, 120, head_dim=16)
    | experts(5, 3)
    | {"rope_scaling": YARN, "rope_theta": 1000.0, "sliding_window": 6, "tie_word_embeddings": True},
    "mixtral_top_1_jitter": MIXTRAL
    | FIVE
    | dense(40, 28, 2, 4, 4, 73)
    | experts(6, 1)
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}, "router_jitter_noise": 0.1},
}
