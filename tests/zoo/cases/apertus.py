"""Apertus."""

from typing import Any

from .common import COMMON, FIVE, FOUR, LLAMA3_ROPE, YARN, dense

APERTUS = COMMON | {
    "architectures": ["ApertusForCausalLM"],
    "model_type": "apertus",
    "hidden_act": "xielu",
    "pad_token_id": 3,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "apertus_gqa_llama3": APERTUS
    | FOUR
    | dense(48, 80, 3, 6, 2, 103)
    | {
        "mlp_bias": False,
        "post_norm": False,
        "qk_norm": True,
        "rope_scaling": LLAMA3_ROPE | {"rope_type": "llama3"},
        "rope_theta": 12000000,
    },
    "apertus_mqa_bias_yarn_tied": APERTUS
    | FIVE
    | dense(36, 60, 2, 3, 1, 81, head_dim=14)
    | {"attention_bias": True, "rope_parameters": YARN | {"rope_theta": 1000.0}, "tie_word_embeddings": True},
    "apertus_plain_rope": APERTUS
    | FIVE
    | dense(40, 44, 2, 5, 5, 125)
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
}
