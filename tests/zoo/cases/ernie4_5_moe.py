"""ERNIE 4.5, text."""

from typing import Any

from .common import COMMON, FIVE, FOUR, YARN, dense

ERNIE = {key: value for key, value in COMMON.items() if not key.startswith("attention_")} | {
    "architectures": ["Ernie4_5_MoeForCausalLM"],
    "model_type": "ernie4_5_moe",
    "moe_layer_interval": 1,
    "moe_norm_min": 1e-12,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "use_bias": False,
}


def experts(count: int, top_k: int, ffn: int, shared: int, start: int, end: int = -1) -> dict[str, int]:
    return {
        "moe_num_experts": count,
        "moe_k": top_k,
        "moe_intermediate_size": ffn,
        "moe_num_shared_experts": shared,
        "moe_layer_start_index": start,
        "moe_layer_end_index": end,
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "ernie4_5_moe_tied": ERNIE
    | FOUR
    | dense(40, 56, 3, 5, 1, 99)
    | experts(8, 3, 12, shared=2, start=1)
    | {"moe_capacity": [64, 64, 64], "moe_use_aux_free": True, "rope_theta": 500000.0, "rope_scaling": None},
    "ernie4_5_moe_linear_window_of_layers": ERNIE
    | FIVE
    | dense(36, 48, 4, 6, 2, 74, head_dim=10)
    | experts(6, 2, 20, shared=1, start=1, end=2)
    | {
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0},
        "tie_word_embeddings": False,
    },
    "ernie4_5_moe_none_shared_every_second": ERNIE
    | FIVE
    | dense(48, 40, 4, 4, 4, 120)
    | experts(7, 4, 16, shared=0, start=0)
    | {"moe_layer_interval": 2, "rope_parameters": YARN | {"rope_theta": 1000.0}, "tie_word_embeddings": False},
}
