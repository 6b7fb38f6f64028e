"""MiniMax-M2."""

from typing import Any

from .common import COMMON, FIVE, FOUR, YARN, dense

MINIMAX_M2 = {key: value for key, value in COMMON.items() if key != "attention_bias"} | {
    "architectures": ["MiniMaxM2ForCausalLM"],
    "model_type": "minimax_m2",
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
}
PUBLISHED = {
    "num_mtp_modules": 3,
    "qk_norm_type": "per_layer",
    "scoring_func": "sigmoid",
    "shared_intermediate_size": 0,
    "use_mtp": True,
    "use_qk_norm": True,
    "use_routing_bias": True,
}


def experts(count: int, top_k: int) -> dict[str, Any]:
    return {"num_local_experts": count, "num_experts_per_tok": top_k}


CONFIGS: dict[str, dict[str, Any]] = {
    "minimax_m2_half_rope": MINIMAX_M2
    | FOUR
    | PUBLISHED
    | dense(40, 20, 3, 6, 2, 93, head_dim=12)
    | experts(9, 3)
    | {"attn_type_list": [1, 1, 1], "rope_theta": 5000000, "rotary_dim": 6},
    "minimax_m2_yarn_mqa": MINIMAX_M2
    | FIVE
    | dense(48, 12, 2, 3, 1, 70, head_dim=20)
    | experts(6, 1)
    | {"rope_parameters": YARN | {"rope_theta": 100.0, "partial_rotary_factor": 0.6}},
    "minimax_m2_whole_rope_tied": MINIMAX_M2
    | FIVE
    | dense(32, 24, 2, 4, 4, 126, head_dim=10)
    | experts(8, 4)
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "tie_word_embeddings": True},
}
