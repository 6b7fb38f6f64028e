"""LongCat-Flash."""

from typing import Any

from .common import COMMON, FIVE, FOUR, YARN, latent

LONGCAT = COMMON | {"architectures": ["LongcatFlashForCausalLM"], "model_type": "longcat_flash"}
PUBLISHED = {
    "attention_method": "MLA",
    "mla_scale_kv_lora": True,
    "mla_scale_q_lora": True,
    "zero_expert_type": "identity",
}


def sizes(width: int, ffn: int, depth: int, heads: int, vocab: int, **dims: Any) -> dict[str, Any]:
    """With head_dim, from which transformers takes how much to rotate."""
    named = latent(width, ffn, depth, heads, vocab, **dims) | {"head_dim": dims["rope"]}
    return {
        {"intermediate_size": "ffn_hidden_size", "num_hidden_layers": "num_layers"}.get(name, name): value
        for name, value in named.items()
    }


def experts(count: int, nothing: int, top_k: int, ffn: int, scale: float) -> dict[str, Any]:
    return {
        "n_routed_experts": count,
        "zero_expert_num": nothing,
        "moe_topk": top_k,
        "expert_ffn_hidden_size": ffn,
        "routed_scaling_factor": scale,
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "longcat_flash_zero_experts": LONGCAT
    | FOUR
    | PUBLISHED
    | sizes(40, 48, 2, 5, 93, nope=8, rope=6, value=12, kv=20, q=24)
    | experts(5, 3, 4, 12, scale=6.0)
    | {"rope_theta": 10000000.0},
    "longcat_flash_mostly_zero_yarn": LONGCAT
    | FIVE
    | sizes(36, 40, 1, 3, 77, nope=10, rope=8, value=16, kv=12, q=16)
    | experts(3, 7, 3, 20, scale=2.5)
    | {"rope_parameters": YARN | {"rope_theta": 100.0, "mscale": 0.707, "mscale_all_dim": 1.1}},
    "longcat_flash_no_zero_experts_tied": LONGCAT
    | FIVE
    | sizes(32, 36, 2, 2, 110, nope=6, rope=12, value=10, kv=16, q=20)
    | experts(6, 0, 2, 16, scale=1.5)
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}, "tie_word_embeddings": True},
}
