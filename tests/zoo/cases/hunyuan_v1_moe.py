"""Hunyuan-A13B."""

from typing import Any

from .common import COMMON, FIVE, FOUR, YARN, dense

HUNYUAN = COMMON | {
    "architectures": ["HunYuanMoEV1ForCausalLM"],
    "model_type": "hunyuan_v1_moe",
    "eod_token_id": 3,
    "pad_token_id": 0,
    "sep_token_id": 4,
}
ALPHA = {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0}

CONFIGS: dict[str, dict[str, Any]] = {
    "hunyuan_v1_moe_alpha_tied": HUNYUAN
    | FOUR
    | dense(40, 20, 3, 6, 2, 95, head_dim=12)
    | {
        "attention_head_dim": 12,
        "moe_intermediate_size": [20, 20, 20],
        "moe_topk": [3, 3, 3],
        "num_experts": 7,
        "num_shared_expert": [1, 1, 1],
        "rope_scaling": ALPHA | {"mscale_all_dim": 1.0},
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "use_cla": False,
        "use_mixed_mlp_moe": True,
        "use_qk_norm": True,
    },
    "hunyuan_v1_moe_top_k_by_layer_bias": HUNYUAN
    | FIVE
    | dense(36, 28, 4, 4, 4, 110, head_dim=10)
    | {
        "attention_bias": True,
        "moe_topk": [1, 2, 4, 2],
        "num_experts": 6,
        "rope_parameters": {"rope_type": "dynamic", "alpha": 50.0, "factor": 1.0, "rope_theta": 100.0},
    },
    "hunyuan_v1_moe_yarn_mqa": HUNYUAN
    | FIVE
    | dense(48, 16, 2, 3, 1, 74, head_dim=16)
    | {"moe_topk": 2, "num_experts": 9, "rope_parameters": YARN | {"rope_theta": 1000.0}},
}
