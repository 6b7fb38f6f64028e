"""Llama 4, text."""

from typing import Any

from .common import COMMON, FIVE, FOUR, LLAMA3_ROPE, dense

LLAMA4 = COMMON | {
    "architectures": ["Llama4ForCausalLM"],
    "model_type": "llama4_text",
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
}


def experts(count: int, top_k: int = 1, dense_ffn: int = 56) -> dict[str, Any]:
    return {"num_local_experts": count, "num_experts_per_tok": top_k, "intermediate_size_mlp": dense_ffn}


CONFIGS: dict[str, dict[str, Any]] = {
    "llama4_scout": LLAMA4
    | FOUR
    | dense(40, 36, 4, 6, 2, 93, head_dim=12)
    | experts(5)
    | {
        "attention_chunk_size": 6,
        "attn_scale": 0.1,
        "attn_temperature_tuning": True,
        "floor_scale": 4,
        "interleave_moe_layer_step": 1,
        "no_rope_layers": [1, 1, 1, 0],
        "rope_scaling": LLAMA3_ROPE | {"rope_type": "llama3"},
        "rope_theta": 500000.0,
        "use_qk_norm": True,
    },
    "llama4_maverick": LLAMA4
    | FOUR
    | dense(36, 20, 4, 4, 1, 101, head_dim=16)
    | experts(8)
    | {
        "attention_chunk_size": 5,
        "floor_scale": 3,
        "attn_scale": 0.8,
        "interleave_moe_layer_step": 2,
        "no_rope_layers": [],
        "rope_scaling": None,
        "rope_theta": 500000.0,
        "use_qk_norm": False,
    },
    "llama4_types_apart_bias_two_experts": LLAMA4
    | FIVE
    | dense(32, 24, 3, 4, 4, 70, head_dim=8)
    | experts(6, 2, 40)
    | {
        "attention_bias": True,
        "attention_chunk_size": 7,
        "attn_temperature_tuning": False,
        "layer_types": ["full_attention", "chunked_attention", "chunked_attention"],
        "moe_layers": [0, 2],
        "no_rope_layer_interval": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": True,
    },
}
