"""DeepSeek-V3.2."""

from typing import Any

from .common import FIVE, FOUR, YARN, latent, routed
from .deepseek_v3 import DEEPSEEK, DEEPSEEK_YARN

DEEPSEEK_V32 = DEEPSEEK | {"architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32"}


def indexer(heads: int, dim: int, top_k: int) -> dict[str, int]:
    """Many heads, so that no two tokens score nothing with all of them."""
    return {"index_n_heads": heads, "index_head_dim": dim, "index_topk": top_k}


CONFIGS: dict[str, dict[str, Any]] = {
    "deepseek_v32_groups_yarn": DEEPSEEK_V32
    | FOUR
    | latent(48, 64, 3, 5, 97, nope=8, rope=8, value=12, kv=20, q=24)
    | routed(8, 3, 16, shared=1, dense_layers=1, groups=4, kept=2, scale=2.5)
    | indexer(20, 12, 7)
    | {"rope_theta": 10000, "rope_scaling": DEEPSEEK_YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
    "deepseek_v32_mlp_types_tied": DEEPSEEK_V32
    | FIVE
    | latent(40, 36, 4, 2, 103, nope=6, rope=12, value=10, kv=24, q=16)
    | routed(9, 2, 8, shared=2, dense_layers=2, groups=3, kept=2, scale=1.7, norm=False)
    | indexer(17, 20, 10)
    | {
        "mlp_layer_types": ["sparse", "dense", "sparse", "sparse"],
        "rope_parameters": YARN | {"rope_theta": 100.0, "mscale": 0.707, "mscale_all_dim": 1.1},
        "tie_word_embeddings": True,
    },
    "deepseek_v32_sees_all": DEEPSEEK_V32
    | FIVE
    | latent(32, 40, 2, 3, 88, nope=10, rope=6, value=16, kv=12, q=14)
    | routed(6, 2, 20, shared=3, dense_layers=0, groups=2, kept=1, scale=1.0)
    | indexer(16, 6, 64)
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
}
