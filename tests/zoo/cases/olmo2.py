"""OLMo 2."""

from typing import Any

from .common import COMMON, FIVE, FOUR, LLAMA3_ROPE, YARN, dense

OLMO2 = COMMON | {"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "pad_token_id": 3, "rms_norm_eps": 1e-6}

CONFIGS: dict[str, dict[str, Any]] = {
    "olmo2_mha": OLMO2 | FOUR | dense(40, 48, 3, 5, 5, 70) | {"rope_theta": 500000, "rope_scaling": None},
    "olmo2_gqa_llama3": OLMO2
    | FIVE
    | dense(48, 40, 2, 6, 2, 99)
    | {"rope_parameters": LLAMA3_ROPE | {"rope_type": "llama3", "rope_theta": 10000.0}},
    "olmo2_mqa_bias_tied": OLMO2
    | FOUR
    | dense(32, 60, 2, 4, 1, 64, head_dim=12)
    | {"rope_theta": 10000.0, "rope_scaling": YARN, "attention_bias": True, "tie_word_embeddings": True},
}
