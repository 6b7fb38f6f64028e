"""The models that are compared, as the Hugging Face configs that every side reads: one geometry by construction.

Small enough to train on a laptop, large enough that matrix products take the time: about 29 million parameters, of
the mixture-of-experts models about 42 million, 11 million of them active."""

from typing import Any

Config = dict[str, Any]

COMMON: Config = {
    "num_hidden_layers": 6,
    "vocab_size": 8192,
    "max_position_embeddings": 32768,
    "initializer_range": 0.02,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "attention_dropout": 0.0,
    "attention_bias": False,
    "tie_word_embeddings": False,
}
DENSE: Config = COMMON | {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8, "hidden_act": "silu"}
EXPERTS: Config = COMMON | {"hidden_size": 256, "num_attention_heads": 8, "hidden_act": "silu"}

MODELS: dict[str, Config] = {
    "olmo2": DENSE | {"model_type": "olmo2", "num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_theta": 500000.0},
    "llama": DENSE
    | {
        "model_type": "llama",
        "num_key_value_heads": 4,
        "head_dim": 64,
        "mlp_bias": False,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
    },
    "gemma3": {name: value for name, value in DENSE.items() if name != "hidden_act"}
    | {
        "model_type": "gemma3_text",
        "num_key_value_heads": 4,
        "head_dim": 64,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 64,
        "sliding_window": 256,
        "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "tie_word_embeddings": True,
    },
    "deepseek_v3": EXPERTS
    | {
        "model_type": "deepseek_v3",
        "intermediate_size": 1024,
        "moe_intermediate_size": 256,
        "num_key_value_heads": 8,
        "q_lora_rank": 128,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "n_routed_experts": 32,
        "num_experts_per_tok": 4,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
    },
    "qwen3_moe": EXPERTS
    | {
        "model_type": "qwen3_moe",
        "intermediate_size": 1024,
        "moe_intermediate_size": 256,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
    },
}


def is_moe(model: str) -> bool:
    return "num_experts_per_tok" in MODELS[model]
