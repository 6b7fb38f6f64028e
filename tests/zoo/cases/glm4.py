"""GLM-4-0414."""

from typing import Any

from .common import COMMON, FIVE, FOUR, YARN, dense

GLM4 = COMMON | {
    "architectures": ["Glm4ForCausalLM"],
    "model_type": "glm4",
    "eos_token_id": [1, 4, 6],
    "pad_token_id": 1,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "glm4_half_rope_bias": GLM4
    | FOUR
    | dense(48, 64, 3, 6, 2, 109, head_dim=12)
    | {"attention_bias": True, "partial_rotary_factor": 0.5, "rope_theta": 10000.0},
    "glm4_no_bias_default_share_tied": GLM4
    | FOUR
    | dense(36, 40, 2, 3, 1, 75, head_dim=16)
    | {"rope_theta": 100.0, "rope_scaling": None, "tie_word_embeddings": True},
    "glm4_whole_rope_yarn": GLM4
    | FIVE
    | dense(40, 56, 2, 4, 4, 92, head_dim=10)
    | {"attention_bias": True, "rope_parameters": YARN | {"partial_rotary_factor": 1.0, "rope_theta": 1000.0}},
}
