"""DeepSeek-V2 and V2-Lite."""

from typing import Any

from .common import COMMON, FIVE, FOUR, YARN, latent, routed

DEEPSEEK = COMMON | {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "aux_loss_alpha": 0.001,
    "ep_size": 1,
    "moe_layer_freq": 1,
    "rms_norm_eps": 1e-6,
    "scoring_func": "softmax",
    "seq_aux": True,
    "topk_method": "greedy",
}
PUBLISHED_YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1}

CONFIGS: dict[str, dict[str, Any]] = {
    "deepseek_v2_groups_yarn": DEEPSEEK
    | FOUR
    | latent(45, 64, 3, 5, 97, nope=8, rope=8, value=12, kv=20, q=24)
    | routed(12, 3, 16, shared=2, dense_layers=1, groups=4, kept=2, scale=16.0, norm=False)
    | {
        "rope_theta": 10000,
        "rope_scaling": PUBLISHED_YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
        "topk_method": "group_limited_greedy",
    },
    "deepseek_v2_lite": DEEPSEEK
    | FOUR
    | latent(36, 40, 4, 3, 88, nope=10, rope=6, value=16, kv=12, q=None)
    | routed(7, 2, 20, shared=2, dense_layers=1, groups=1, kept=1, scale=1.0, norm=False)
    | {"rope_theta": 100.0, "rope_scaling": PUBLISHED_YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}},
    "deepseek_v2_no_dense_tied": DEEPSEEK
    | FIVE
    | latent(40, 36, 2, 2, 103, nope=6, rope=12, value=10, kv=24, q=16)
    | routed(9, 4, 8, shared=1, dense_layers=0, groups=3, kept=2, scale=1.7, norm=False)
    | {
        "rope_parameters": YARN | {"rope_theta": 100.0, "mscale": 0.707, "mscale_all_dim": 1.1, "beta_fast": 8.0},
        "tie_word_embeddings": True,
        "topk_method": "group_limited_greedy",
    },
}
