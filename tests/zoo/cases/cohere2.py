"""Command R7B and Command A."""

from typing import Any

from .common import COMMON, FIVE, FOUR, dense

COHERE2 = {key: value for key, value in COMMON.items() if key != "rms_norm_eps"} | {
    "architectures": ["Cohere2ForCausalLM"],
    "model_type": "cohere2",
    "layer_norm_eps": 1e-5,
    "pad_token_id": 0,
    "sliding_window": 5,
    "tie_word_embeddings": True,
}
PUBLISHED = {
    "cache_implementation": "hybrid",
    "head_dim": 8,
    "order_of_interleaved_layers": "local_attn_first",
    "position_embedding_type": "rope_gptj",
    "rotary_pct": 1.0,
    "use_embedding_sharing": True,
    "use_gated_activation": True,
    "use_parallel_block": True,
    "use_parallel_embedding": False,
    "use_qk_norm": False,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "cohere2_pattern_gqa": COHERE2
    | PUBLISHED
    | FOUR
    | dense(48, 64, 4, 6, 2, 113)
    | {"logit_scale": 0.25, "rope_scaling": None, "rope_theta": 50000, "sliding_window_pattern": 4},
    "cohere2_layer_types_bias_linear": COHERE2
    | FIVE
    | dense(40, 36, 3, 5, 5, 78)
    | {
        "attention_bias": True,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "logit_scale": 1.7,
        "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1000.0},
        "sliding_window": 8,
    },
    "cohere2_default_scale_mqa_untied": COHERE2
    | FOUR
    | dense(36, 48, 4, 3, 1, 95)
    | {"rope_theta": 10000.0, "sliding_window_pattern": 2, "tie_word_embeddings": False},
}
