"""Gemma 4, text."""

from typing import Any

from .common import FIVE, dense
from .gemma3 import GEMMA3

LOCAL, GLOBAL = "sliding_attention", "full_attention"
GEMMA4 = {key: value for key, value in GEMMA3.items() if key != "attn_logit_softcapping"} | {
    "architectures": ["Gemma4ForCausalLM"],
    "model_type": "gemma4_text",
    "attention_k_eq_v": False,
    "enable_moe_block": False,
    "hidden_size_per_layer_input": 0,
    "moe_intermediate_size": None,
    "num_experts": None,
    "num_kv_shared_layers": 0,
    "rope_parameters": {
        GLOBAL: {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
        LOCAL: {"rope_theta": 10000.0, "rope_type": "default"},
    },
    "tie_word_embeddings": True,
    "top_k_experts": None,
    "use_bidirectional_attention": None,
    "use_double_wide_mlp": False,
    "vocab_size_per_layer_input": 128,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "gemma4_per_layer_borrowed_keys": GEMMA4
    | FIVE
    | dense(32, 40, 7, 4, 2, 110, head_dim=8)
    | {
        "final_logit_softcapping": 3.0,
        "global_head_dim": 24,
        "hidden_size_per_layer_input": 6,
        "layer_types": [LOCAL, LOCAL, GLOBAL, LOCAL, LOCAL, LOCAL, GLOBAL],
        "num_kv_shared_layers": 3,
        "sliding_window": 5,
        "use_double_wide_mlp": True,
    },
    "gemma4_experts_keys_as_values": GEMMA4
    | FIVE
    | dense(40, 24, 4, 4, 2, 96, head_dim=10)
    | {
        "attention_k_eq_v": True,
        "enable_moe_block": True,
        "final_logit_softcapping": 5.0,
        "global_head_dim": 16,
        "layer_types": [LOCAL, LOCAL, GLOBAL, GLOBAL],
        "moe_intermediate_size": 12,
        "num_experts": 7,
        "num_global_key_value_heads": 1,
        "sliding_window": 3,
        "top_k_experts": 3,
        "use_bidirectional_attention": "vision",
    },
    "gemma4_own_heads_untied": GEMMA4
    | FIVE
    | dense(36, 40, 3, 6, 3, 112, head_dim=8)
    | {
        "attention_k_eq_v": True,
        "hidden_activation": "silu",
        "hidden_size_per_layer_input": 4,
        "layer_types": [GLOBAL, LOCAL, GLOBAL],
        "per_layer_config": {
            "0": {"head_dim": 12, "num_key_value_heads": 2},
            "2": {"head_dim": 12, "num_key_value_heads": 2},
        },
        "rope_parameters": {
            GLOBAL: {"rope_theta": 1000.0, "rope_type": "default"},
            LOCAL: {"factor": 2.0, "partial_rotary_factor": 0.5, "rope_theta": 100.0, "rope_type": "proportional"},
        },
        "sliding_window": 1,
        "tie_word_embeddings": False,
    },
    "gemma4_same_heads": GEMMA4
    | FIVE
    | dense(60, 54, 3, 3, 1, 120, head_dim=16)
    | {"global_head_dim": 16, "layer_types": [LOCAL, GLOBAL, GLOBAL], "num_kv_shared_layers": 0, "sliding_window": 30},
}
