"""Llama."""

from typing import Any

from .common import COMMON, FIVE, FOUR, LLAMA3_ROPE, YARN, dense

LLAMA = COMMON | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "mlp_bias": False, "pretraining_tp": 1}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama_gqa_llama3_tied": LLAMA
    | FOUR
    | dense(48, 80, 3, 6, 2, 96, head_dim=16)
    | {"rope_theta": 10000.0, "rope_scaling": LLAMA3_ROPE | {"rope_type": "llama3"}, "tie_word_embeddings": True},
    "llama_mha_biases_linear": LLAMA
    | FOUR
    | dense(40, 56, 2, 5, 5, 61)
    | {
        "rope_theta": 500.0,
        "rope_scaling": {"type": "linear", "factor": 2.5},
        "attention_bias": True,
        "mlp_bias": True,
    },
    "llama_mqa_yarn": LLAMA
    | FIVE
    | dense(36, 64, 2, 3, 1, 127, head_dim=20)
    | {
        "rope_parameters": YARN
        | {"rope_theta": 100.0, "beta_fast": 8.0, "beta_slow": 2.0, "attention_factor": 1.3, "truncate": False}
    },
    "llama_plain": LLAMA
    | FIVE
    | dense(64, 32, 2, 8, 4, 80, head_dim=8)
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "eos_token_id": [2, 5]},
}
