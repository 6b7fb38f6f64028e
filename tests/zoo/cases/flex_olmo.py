"""FlexOlmo."""

from typing import Any

from .common import COMMON, FIVE, FOUR, LLAMA3_ROPE, dense

FLEX = COMMON | {
    "architectures": ["FlexOlmoForCausalLM"],
    "model_type": "flex_olmo",
    "output_router_logits": False,
    "pad_token_id": 3,
    "rms_norm_eps": 1e-6,
    "router_aux_loss_coef": 0.01,
}


def experts(count: int, top_k: int) -> dict[str, Any]:
    return {"num_experts": count, "num_experts_per_tok": top_k}


CONFIGS: dict[str, dict[str, Any]] = {
    "flex_olmo_mha": FLEX
    | FOUR
    | dense(40, 24, 3, 5, 5, 77)
    | experts(7, 5)
    | {"norm_topk_prob": False, "rope_scaling": None, "rope_theta": 500000.0},
    "flex_olmo_gqa_renormalised_llama3": FLEX
    | FIVE
    | dense(48, 20, 2, 6, 2, 102)
    | experts(4, 2)
    | {
        "norm_topk_prob": True,
        "rope_parameters": LLAMA3_ROPE | {"rope_type": "llama3", "rope_theta": 10000.0},
    },
    "flex_olmo_bias_top_1_tied": FLEX
    | FOUR
    | dense(36, 28, 2, 3, 1, 89, head_dim=14)
    | experts(5, 1)
    | {"attention_bias": True, "rope_theta": 1000.0, "tie_word_embeddings": True},
}
