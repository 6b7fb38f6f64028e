"""Qwen3-MoE."""

from typing import Any

from .common import FIVE, FOUR, YARN, dense, experts
from .qwen3 import QWEN3

QWEN3_MOE = QWEN3 | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3_moe_gqa": QWEN3_MOE
    | FOUR
    | dense(32, 48, 2, 6, 2, 85, head_dim=10)
    | experts(6, 2, 20)
    | {"rope_theta": 1000000.0, "rope_scaling": None},
    "qwen3_moe_dense_layers_yarn": QWEN3_MOE
    | FIVE
    | dense(40, 48, 4, 4, 4, 120, head_dim=8)
    | {"num_local_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 12}
    | {"mlp_only_layers": [0, 3], "norm_topk_prob": False, "rope_parameters": YARN | {"rope_theta": 10000.0}},
    "qwen3_moe_every_second_mqa_tied": QWEN3_MOE
    | FOUR
    | dense(48, 32, 4, 3, 1, 66, head_dim=16)
    | experts(5, 1, 24)
    | {
        "attention_bias": True,
        "decoder_sparse_step": 2,
        "norm_topk_prob": False,
        "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "tie_word_embeddings": True,
    },
}
