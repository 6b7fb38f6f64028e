"""Gemma 2."""

from typing import Any

from .common import COMMON, FIVE, FOUR, dense

GEMMA2 = {key: value for key, value in COMMON.items() if key not in ("hidden_act", "tie_word_embeddings")} | {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "hidden_activation": "gelu_pytorch_tanh",
    "eos_token_id": 1,
    "bos_token_id": 2,
    "pad_token_id": 0,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "gemma2_gqa_softcaps": GEMMA2
    | FOUR
    | dense(48, 64, 4, 6, 2, 118, head_dim=10)
    | {
        "attn_logit_softcapping": 1.5,
        "cache_implementation": "hybrid",
        "final_logit_softcapping": 2.0,
        "hidden_act": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 6,
        "rope_theta": 10000.0,
        "sliding_window": 5,
        "sliding_window_size": 5,
    },
    "gemma2_mqa_default_softcaps_bias_untied": GEMMA2
    | FOUR
    | dense(36, 40, 3, 3, 1, 99, head_dim=14)
    | {
        "attention_bias": True,
        "query_pre_attn_scalar": 4,
        "rope_theta": 1000.0,
        "sliding_window": 1,
        "tie_word_embeddings": False,
    },
    "gemma2_layer_types_no_softcaps_linear": GEMMA2
    | FIVE
    | dense(40, 36, 3, 5, 5, 84, head_dim=8)
    | {
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "hidden_activation": "silu",
        "layer_types": ["full_attention", "full_attention", "sliding_attention"],
        "query_pre_attn_scalar": 20,
        "rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0},
        "sliding_window": 7,
        "tie_word_embeddings": True,
        "use_bidirectional_attention": False,
    },
}
