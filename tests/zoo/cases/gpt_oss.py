"""gpt-oss."""

from typing import Any

from .common import COMMON, FIVE, FOUR, YARN, dense

GPT_OSS = COMMON | {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "model_type": "gpt_oss",
    "output_router_logits": False,
    "router_aux_loss_coef": 0.9,
}
PUBLISHED = {
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 64,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150,
    "swiglu_limit": 7.0,
}


def experts(count: int, top_k: int) -> dict[str, Any]:
    return {"num_local_experts": count, "num_experts_per_tok": top_k}


CONFIGS: dict[str, dict[str, Any]] = {
    "gpt_oss_published_fields": GPT_OSS
    | FOUR
    | PUBLISHED
    | dense(40, 36, 4, 6, 2, 93, head_dim=12)
    | experts(8, 4)
    | {
        "experts_per_token": 4,
        "initial_context_length": 64,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 6,
    },
    "gpt_oss_tight_clamp_odd_depth": GPT_OSS
    | FIVE
    | dense(36, 20, 3, 4, 1, 101, head_dim=10)
    | experts(5, 1)
    | {"rope_parameters": YARN | {"rope_theta": 1000.0}, "sliding_window": 3, "swiglu_alpha": 1.1, "swiglu_limit": 0.4},
    "gpt_oss_no_bias_plain_rope_tied": GPT_OSS
    | FIVE
    | dense(32, 24, 2, 4, 4, 70, head_dim=8)
    | experts(6, 2)
    | {
        "attention_bias": False,
        "layer_types": ["full_attention", "sliding_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "sliding_window": 5,
        "tie_word_embeddings": True,
    },
}
