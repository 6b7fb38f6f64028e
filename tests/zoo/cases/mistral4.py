"""Mistral 4."""

from typing import Any

from .common import COMMON, FIVE, FOUR, YARN, latent, routed

MISTRAL4 = COMMON | {"architectures": ["Mistral4ForCausalLM"], "model_type": "mistral4", "pad_token_id": 11}
SHARPENED = YARN | {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}

CONFIGS: dict[str, dict[str, Any]] = {
    "mistral4_no_groups": MISTRAL4
    | FIVE
    | latent(40, 56, 3, 4, 93, nope=8, rope=8, value=12, kv=16, q=20)
    | routed(9, 4, 20, shared=1, dense_layers=0, groups=1, kept=1, scale=1.0)
    | {
        "rope_interleave": True,
        "rope_parameters": SHARPENED
        | {
            "llama_4_scaling_beta": 0.1,
            "max_position_embeddings": 128,
            "original_max_position_embeddings": 8,
            "partial_rotary_factor": 0.5,
            "rope_theta": 10000.0,
            "type": "yarn",
        },
    },
    "mistral4_groups_dense_no_query_rank": MISTRAL4
    | FIVE
    | latent(36, 40, 3, 3, 101, nope=12, rope=4, value=8, kv=12, q=None)
    | routed(8, 2, 16, shared=2, dense_layers=1, groups=4, kept=2, scale=2.5, norm=False)
    | {
        "rope_interleave": False,
        "rope_parameters": YARN
        | {"llama_4_scaling_beta": 1.5, "original_max_position_embeddings": 5, "rope_theta": 1000.0},
        "tie_word_embeddings": True,
    },
    "mistral4_dialect_four": MISTRAL4
    | FOUR
    | latent(32, 48, 2, 4, 70, nope=6, rope=10, value=6, kv=8, q=14)
    | routed(6, 3, 12, shared=1, dense_layers=0, groups=1, kept=1, scale=1.5)
    | {
        "rope_scaling": SHARPENED
        | {
            "llama_4_scaling_beta": 0.4,
            "mscale_all_dim": 0.5,
            "original_max_position_embeddings": 3,
            "partial_rotary_factor": 0.625,
        },
        "rope_theta": 10000.0,
    },
}
