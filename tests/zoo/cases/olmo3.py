"""OLMo 3. transformers 5 takes the theta of windowed layers from a config of transformers 4 only where it is 500000."""

from typing import Any

from .common import COMMON, FIVE, FOUR, LLAMA3_ROPE, YARN, dense

OLMO3 = COMMON | {"architectures": ["Olmo3ForCausalLM"], "model_type": "olmo3", "pad_token_id": 3, "rms_norm_eps": 1e-6}
PLAIN = {"rope_type": "default", "rope_theta": 500000.0}

CONFIGS: dict[str, dict[str, Any]] = {
    "olmo3_pattern_yarn": OLMO3
    | FOUR
    | dense(40, 48, 4, 5, 5, 70)
    | {
        "rope_scaling": YARN | {"attention_factor": 1.2079441541679836, "beta_fast": 32, "beta_slow": 1},
        "rope_theta": 500000,
        "sliding_window": 5,
    },
    "olmo3_gqa_layer_types_llama3": OLMO3
    | FIVE
    | dense(48, 40, 3, 6, 2, 99)
    | {
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": LLAMA3_ROPE | {"rope_type": "llama3", "rope_theta": 500000.0},
            "sliding_attention": PLAIN,
        },
        "sliding_window": 7,
    },
    "olmo3_mqa_bias_windows_everywhere_tied": OLMO3
    | FIVE
    | dense(32, 60, 2, 4, 1, 64, head_dim=12)
    | {
        "attention_bias": True,
        "layer_types": ["sliding_attention", "sliding_attention"],
        "rope_parameters": {"sliding_attention": PLAIN},
        "sliding_window": 1,
        "tie_word_embeddings": True,
    },
}
