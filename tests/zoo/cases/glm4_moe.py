"""GLM-4.5, 4.5-Air and 4.6."""

from typing import Any

from .common import COMMON, FIVE, FOUR, YARN, dense, routed

GLM4_MOE = COMMON | {
    "architectures": ["Glm4MoeForCausalLM"],
    "model_type": "glm4_moe",
    "attention_bias": True,
    "bos_token_id": None,
    "eos_token_id": [2, 5, 7],
    "num_nextn_predict_layers": 1,
    "pad_token_id": 2,
    "partial_rotary_factor": 0.5,
    "use_qk_norm": True,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "glm4_moe_normed": GLM4_MOE
    | FOUR
    | dense(40, 56, 4, 6, 2, 95, head_dim=12)
    | routed(10, 3, 12, shared=1, dense_layers=2, groups=1, kept=1, scale=2.5)
    | {"rope_theta": 1000000, "rope_scaling": None},
    "glm4_moe_air": GLM4_MOE
    | FOUR
    | dense(48, 40, 3, 4, 1, 110, head_dim=16)
    | routed(8, 2, 20, shared=1, dense_layers=1, groups=1, kept=1, scale=1.0)
    | {"rope_theta": 100.0, "rope_scaling": None, "use_qk_norm": False},
    "glm4_moe_groups_yarn_tied": {key: value for key, value in GLM4_MOE.items() if key != "partial_rotary_factor"}
    | FIVE
    | dense(36, 48, 2, 3, 3, 77, head_dim=20)
    | routed(12, 4, 8, shared=2, dense_layers=0, groups=4, kept=2, scale=1.7, norm=False)
    | {
        "attention_bias": False,
        "rope_parameters": YARN | {"rope_theta": 1000.0, "partial_rotary_factor": 0.3},
        "tie_word_embeddings": True,
    },
}
