"""GLM-4.7-Flash."""

from typing import Any

from .common import COMMON, FIVE, FOUR, YARN, latent, routed

LITE = COMMON | {
    "architectures": ["Glm4MoeLiteForCausalLM"],
    "model_type": "glm4_moe_lite",
    "num_nextn_predict_layers": 1,
    "topk_method": "noaux_tc",
}

CONFIGS: dict[str, dict[str, Any]] = {
    "glm4_moe_lite_flash": LITE
    | FOUR
    | latent(40, 56, 4, 5, 96, nope=12, rope=8, value=16, kv=20, q=24)
    | routed(9, 2, 12, shared=1, dense_layers=1, groups=1, kept=1, scale=1.8)
    | {"partial_rotary_factor": 1.0, "rope_theta": 1000000, "rope_scaling": None},
    "glm4_moe_lite_layer_types_groups": {k: v for k, v in LITE.items() if k != "topk_method"}
    | FIVE
    | latent(36, 40, 4, 3, 81, nope=6, rope=10, value=8, kv=12, q=None)
    | {
        k: v
        for k, v in routed(8, 3, 10, shared=2, dense_layers=0, groups=4, kept=2, scale=1.0, norm=False).items()
        if k != "first_k_dense_replace"
    }
    | {
        "mlp_layer_types": ["sparse", "dense", "sparse", "dense"],
        "rope_interleave": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 1.0},
        "tie_word_embeddings": True,
    },
    "glm4_moe_lite_yarn": LITE
    | FIVE
    | latent(32, 48, 2, 4, 104, nope=10, rope=6, value=12, kv=16, q=20)
    | routed(6, 2, 16, shared=1, dense_layers=1, groups=2, kept=1, scale=2.5)
    | {
        "rope_interleave": True,
        "rope_parameters": YARN | {"rope_theta": 1000.0, "mscale": 0.707, "mscale_all_dim": 1.0},
    },
}
