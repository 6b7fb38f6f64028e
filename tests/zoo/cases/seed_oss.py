"""Seed-OSS."""

from typing import Any

from .common import COMMON, FIVE, FOUR, YARN, dense

SEED_OSS = COMMON | {
    "architectures": ["SeedOssForCausalLM"],
    "model_type": "seed_oss",
    "attention_bias": True,
    "attention_dropout": 0.1,
    "attention_out_bias": False,
    "mlp_bias": False,
    "pad_token_id": 3,
    "pretraining_tp": 1,
    "residual_dropout": 0.1,
    "rms_norm_eps": 1e-6,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "seed_oss_wide_heads": SEED_OSS
    | FOUR
    | dense(40, 56, 3, 10, 2, 83, head_dim=8)
    | {"rope_scaling": {"rope_type": "default"}, "rope_theta": 10000000.0},
    "seed_oss_out_bias_yarn_tied": SEED_OSS
    | FIVE
    | dense(36, 48, 2, 3, 1, 119, head_dim=20)
    | {
        "attention_bias": False,
        "attention_out_bias": True,
        "mlp_bias": True,
        "rope_parameters": YARN | {"rope_theta": 1000.0},
        "tie_word_embeddings": True,
    },
    "seed_oss_all_biases_linear": SEED_OSS
    | FOUR
    | dense(48, 36, 2, 4, 4, 72, head_dim=12)
    | {
        "attention_out_bias": True,
        "rope_scaling": {"rope_type": "linear", "factor": 3.0},
        "rope_theta": 10000.0,
    },
}
