"""DeepSeek-V3 and Kimi K2."""

from typing import Any

from .common import COMMON, FIVE, FOUR, YARN, latent, routed

DEEPSEEK = COMMON | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "aux_loss_alpha": 0.001,
    "ep_size": 1,
    "moe_layer_freq": 1,
    "num_nextn_predict_layers": 1,
    "rms_norm_eps": 1e-6,
    "scoring_func": "sigmoid",
    "seq_aux": True,
    "topk_method": "noaux_tc",
}
DEEPSEEK_YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1}
KIMI_YARN = {"type": "yarn", "factor": 32.0, "original_max_position_embeddings": 64, "beta_fast": 1.0, "beta_slow": 1.0}

CONFIGS: dict[str, dict[str, Any]] = {
    "deepseek_v3_groups_yarn": DEEPSEEK
    | FOUR
    | latent(48, 64, 3, 5, 97, nope=8, rope=8, value=12, kv=20, q=24)
    | routed(8, 3, 16, shared=1, dense_layers=1, groups=4, kept=2, scale=2.5)
    | {"rope_theta": 10000, "rope_scaling": DEEPSEEK_YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
    "deepseek_v3_kimi": DEEPSEEK
    | FOUR
    | latent(64, 48, 2, 4, 118, nope=12, rope=8, value=8, kv=16, q=20)
    | routed(12, 4, 12, shared=1, dense_layers=1, groups=1, kept=1, scale=2.827)
    | {
        "rope_theta": 100.0,
        "rope_scaling": KIMI_YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
        "num_nextn_predict_layers": 0,
    },
    "deepseek_v3_halves_no_query_rank": DEEPSEEK
    | FIVE
    | latent(32, 40, 2, 3, 88, nope=10, rope=6, value=16, kv=12, q=None)
    | routed(6, 2, 20, shared=3, dense_layers=0, groups=2, kept=1, scale=1.0, norm=False)
    | {
        "rope_interleave": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": True,
    },
    "deepseek_v3_mscale": DEEPSEEK
    | FIVE
    | latent(40, 36, 4, 2, 103, nope=6, rope=12, value=10, kv=24, q=16)
    | routed(9, 2, 8, shared=2, dense_layers=2, groups=3, kept=2, scale=1.7)
    | {
        "rope_interleave": True,
        "rope_parameters": YARN | {"rope_theta": 100.0, "mscale": 0.707, "mscale_all_dim": 1.1, "beta_fast": 8.0},
    },
}
