"""DeepSeek-V4."""

from typing import Any

from .common import COMMON, FIVE, FOUR

LOCAL, SPARSE, HEAVY = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
V4 = COMMON | {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "num_key_value_heads": 1,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
}


def sizes(width: int, depth: int, heads: int, head_dim: int, vocab: int, q: int, groups: int, out: int) -> Any:
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "head_dim": head_dim,
        "vocab_size": vocab,
        "q_lora_rank": q,
        "o_groups": groups,
        "o_lora_rank": out,
    }


def routed(count: int, top_k: int, ffn: int, limit: float, scale: float) -> Any:
    return {
        "n_routed_experts": count,
        "num_experts_per_tok": top_k,
        "moe_intermediate_size": ffn,
        "swiglu_limit": limit,
        "routed_scaling_factor": scale,
    }


def indexer(heads: int, dim: int, top_k: int) -> dict[str, int]:
    """Many heads, so that no two entries score nothing with all of them."""
    return {"index_n_heads": heads, "index_head_dim": dim, "index_topk": top_k}


CONFIGS: dict[str, dict[str, Any]] = {
    "deepseek_v4_all_kinds": V4
    | FIVE
    | sizes(32, 4, 4, 16, 97, q=12, groups=2, out=10)
    | routed(6, 2, 16, limit=0.7, scale=1.5)
    | indexer(16, 12, 3)
    | {
        "layer_types": [LOCAL, SPARSE, HEAVY, SPARSE],
        "mlp_layer_types": ["hash_moe", "moe", "moe", "moe"],
        "compress_rates": {SPARSE: 3, HEAVY: 5},
        "sliding_window": 5,
        "hc_mult": 3,
        "hc_sinkhorn_iters": 4,
        "hc_eps": 1e-5,
        "scoring_func": "sqrtsoftplus",
        "partial_rotary_factor": 0.5,
        "rope_parameters": {
            "main": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
            "compress": {
                "rope_type": "yarn",
                "rope_theta": 1000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "attention_factor": 1.2,
                "partial_rotary_factor": 0.5,
            },
        },
    },
    "deepseek_v4_old_names": V4
    | FOUR
    | sizes(24, 3, 6, 12, 101, q=20, groups=3, out=8)
    | routed(5, 3, 12, limit=10.0, scale=2.0)
    | indexer(16, 8, 2)
    | {
        "compress_ratios": [4, 0, 4],
        "num_hash_layers": 2,
        "qk_rope_head_dim": 6,
        "sliding_window": 7,
        "hc_mult": 2,
        "rope_theta": 10000,
        "compress_rope_theta": 500.0,
        "rope_scaling": {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16},
        "num_nextn_predict_layers": 1,
        "topk_method": "noaux_tc",
    },
    "deepseek_v4_usual_kinds": V4
    | FIVE
    | sizes(40, 4, 2, 16, 88, q=16, groups=1, out=24)
    | routed(7, 2, 20, limit=2.0, scale=1.0)
    | indexer(20, 8, 64)
    | {
        "compress_rate_csa": 2,
        "compress_rate_hca": 4,
        "num_hash_layers": 0,
        "scoring_func": "sigmoid",
        "qk_rope_head_dim": 4,
        "sliding_window": 3,
        "compress_rope_theta": 300.0,
    },
}
