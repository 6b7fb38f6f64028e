"""Gemma 3, text."""

from typing import Any

from .common import COMMON, FIVE, FOUR, dense

GEMMA3 = {key: value for key, value in COMMON.items() if key not in ("hidden_act", "tie_word_embeddings")} | {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "hidden_activation": "gelu_pytorch_tanh",
    "eos_token_id": [1, 106],
    "bos_token_id": 2,
    "pad_token_id": 0,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "gemma3_remainder_linear": GEMMA3
    | FOUR
    | dense(32, 48, 8, 4, 1, 110, head_dim=12)
    | {
        "query_pre_attn_scalar": 20,
        "rope_local_base_freq": 100,
        "rope_theta": 1000,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 5,
        "sliding_window_pattern": 6,
    },
    "gemma3_layer_types_softcap": GEMMA3
    | FIVE
    | dense(48, 40, 4, 3, 3, 128, head_dim=10)
    | {
        "attention_bias": True,
        "final_logit_softcapping": 3.0,
        "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
        "query_pre_attn_scalar": 10,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
        "sliding_window": 7,
        "tie_word_embeddings": True,
        "use_bidirectional_attention": False,
    },
    "gemma3_gqa_untied": GEMMA3
    | FOUR
    | dense(36, 40, 5, 6, 2, 112, head_dim=8)
    | {
        "_sliding_window_pattern": 6,
        "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 8,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": 1,
        "tie_word_embeddings": False,
    },
}
