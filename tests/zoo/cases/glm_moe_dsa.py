"""GLM-5."""

from typing import Any

from .common import FIVE, FOUR, YARN, latent, routed
from .deepseek_v3 import DEEPSEEK
from .deepseek_v32 import indexer

GLM5 = DEEPSEEK | {
    "architectures": ["GlmMoeDsaForCausalLM"],
    "model_type": "glm_moe_dsa",
    "indexer_rope_interleave": True,
    "rms_norm_eps": 1e-5,
    "rope_interleave": True,
    "eos_token_id": [2, 5, 7],
}

CONFIGS: dict[str, dict[str, Any]] = {
    "glm_moe_dsa_yarn": GLM5
    | FOUR
    | latent(48, 64, 3, 4, 98, nope=12, rope=8, value=14, kv=20, q=24)
    | routed(8, 3, 16, shared=1, dense_layers=1, groups=1, kept=1, scale=2.5)
    | indexer(20, 12, 6)
    | {"rope_theta": 1000, "rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
    "glm_moe_dsa_groups_tied": GLM5
    | FIVE
    | latent(40, 36, 4, 2, 103, nope=6, rope=12, value=10, kv=24, q=16)
    | routed(9, 2, 8, shared=2, dense_layers=2, groups=3, kept=2, scale=1.7, norm=False)
    | indexer(17, 20, 11)
    | {
        "indexer_types": ["full"] * 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000},
        "tie_word_embeddings": True,
    },
    "glm_moe_dsa_mlp_types": GLM5
    | FIVE
    | latent(32, 40, 3, 3, 88, nope=10, rope=6, value=16, kv=12, q=14)
    | routed(6, 2, 20, shared=3, dense_layers=0, groups=1, kept=1, scale=1.0)
    | indexer(16, 6, 4)
    | {
        "index_skip_topk_offset": 1,
        "index_topk_freq": 2,
        "mlp_layer_types": ["sparse", "sparse", "dense"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "glm_moe_dsa_shared_choice": GLM5
    | FIVE
    | latent(24, 30, 5, 3, 75, nope=8, rope=4, value=6, kv=10, q=12)
    | routed(5, 2, 10, shared=1, dense_layers=1, groups=1, kept=1, scale=1.0)
    | indexer(18, 10, 5)
    | {
        "indexer_types": ["full", "shared", "full", "shared", "full"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
    },
}
