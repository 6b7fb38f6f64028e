"""What the configs of many families have in common."""

from typing import Any

FOUR = {"torch_dtype": "float32", "transformers_version": "4.57.1"}
FIVE = {"dtype": "float32", "transformers_version": "5.23.0"}
COMMON = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "use_cache": True,
}
LLAMA3_ROPE = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


def dense(
    width: int, ffn: int, depth: int, heads: int, kv_heads: int, vocab: int, head_dim: int | None = None
) -> dict[str, Any]:
    """The sizes of a model with grouped-query attention; head_dim None leaves width / heads unsaid."""
    return {
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        **({} if head_dim is None else {"head_dim": head_dim}),
    }


def experts(count: int, top_k: int, ffn: int) -> dict[str, Any]:
    return {"num_experts": count, "num_experts_per_tok": top_k, "moe_intermediate_size": ffn}


def latent(
    width: int,
    ffn: int,
    depth: int,
    heads: int,
    vocab: int,
    *,
    nope: int,
    rope: int,
    value: int,
    kv: int,
    q: int | None,
) -> dict[str, Any]:
    """The sizes of a model with latent attention."""
    return dense(width, ffn, depth, heads, heads, vocab) | {
        "qk_nope_head_dim": nope,
        "qk_rope_head_dim": rope,
        "v_head_dim": value,
        "kv_lora_rank": kv,
        "q_lora_rank": q,
    }


def routed(
    count: int,
    top_k: int,
    ffn: int,
    *,
    shared: int,
    dense_layers: int,
    groups: int,
    kept: int,
    scale: float,
    norm: bool = True,
) -> dict[str, Any]:
    """The experts of a DeepSeek model."""
    return {
        "n_routed_experts": count,
        "num_experts_per_tok": top_k,
        "moe_intermediate_size": ffn,
        "n_shared_experts": shared,
        "first_k_dense_replace": dense_layers,
        "n_group": groups,
        "topk_group": kept,
        "routed_scaling_factor": scale,
        "norm_topk_prob": norm,
    }
