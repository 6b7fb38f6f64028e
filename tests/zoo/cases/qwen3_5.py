"""Qwen3.5, text: with dense MLPs and with experts."""

from typing import Any

from .common import COMMON, FIVE, FOUR, dense, experts
from .qwen3_next import delta

QWEN3_5 = COMMON | {
    "architectures": ["Qwen3_5ForCausalLM"],
    "model_type": "qwen3_5_text",
    "rms_norm_eps": 1e-6,
}
QWEN3_5_MOE = QWEN3_5 | {
    "architectures": ["Qwen3_5MoeForCausalLM"],
    "model_type": "qwen3_5_moe_text",
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}
MROPE = {"mrope_interleaved": True, "mrope_section": [2, 1, 1], "rope_type": "default"}


def routed(width: int, depth: int, heads: int, kv_heads: int, vocab: int, head_dim: int) -> dict[str, Any]:
    return {k: v for k, v in dense(width, 1, depth, heads, kv_heads, vocab, head_dim).items() if "inter" not in k}


CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3_5_published": QWEN3_5
    | FIVE
    | dense(32, 48, 4, 4, 2, 93, head_dim=32)
    | delta(2, 4, 6, 10)
    | {
        "full_attention_interval": 4,
        "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
        "rope_parameters": MROPE | {"rope_theta": 10000000, "partial_rotary_factor": 0.25},
    },
    "qwen3_5_tied": QWEN3_5
    | FOUR
    | dense(40, 36, 3, 3, 1, 120, head_dim=12)
    | delta(3, 3, 8, 6, taps=2)
    | {
        "layer_types": ["full_attention", "linear_attention", "linear_attention"],
        "partial_rotary_factor": 0.5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    },
    "qwen3_5_every_second": QWEN3_5
    | FIVE
    | dense(48, 24, 4, 2, 2, 71, head_dim=20)
    | delta(1, 6, 7, 5, taps=5)
    | {
        "full_attention_interval": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 1.0},
    },
    "qwen3_5_moe_published": QWEN3_5_MOE
    | FIVE
    | routed(32, 4, 4, 2, 93, 32)
    | experts(6, 2, 12)
    | delta(2, 4, 6, 10)
    | {
        "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
        "rope_parameters": MROPE | {"rope_theta": 10000000, "partial_rotary_factor": 0.25},
        "shared_expert_intermediate_size": 20,
    },
    "qwen3_5_moe_tied": QWEN3_5_MOE
    | FOUR
    | routed(40, 3, 3, 1, 120, 12)
    | experts(5, 3, 8)
    | delta(3, 3, 8, 6, taps=2)
    | {
        "layer_types": ["full_attention", "linear_attention", "linear_attention"],
        "partial_rotary_factor": 0.5,
        "rope_theta": 10000.0,
        "shared_expert_intermediate_size": 8,
        "tie_word_embeddings": True,
    },
    "qwen3_5_moe_one_expert": QWEN3_5_MOE
    | FIVE
    | routed(48, 2, 2, 2, 71, 20)
    | experts(4, 1, 16)
    | delta(1, 6, 7, 5, taps=5)
    | {
        "layer_types": ["linear_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 1.0},
        "shared_expert_intermediate_size": 16,
    },
}
