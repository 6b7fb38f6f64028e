"""Nemotron-H, and Nemotron 3 with its experts."""

from typing import Any

from .common import FIVE, FOUR

NEMOTRON_H: dict[str, Any] = {
    "architectures": ["NemotronHForCausalLM"],
    "model_type": "nemotron_h",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "chunk_size": 128,
    "eos_token_id": 2,
    "expand": 2,
    "hidden_dropout": 0.0,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-5,
    "mamba_hidden_act": "silu",
    "max_position_embeddings": 128,
    "mlp_hidden_act": "relu2",
    "num_logits_to_keep": 1,
    "pad_token_id": 0,
    "rescale_prenorm_residual": True,
    "residual_in_fp32": False,
    "tie_word_embeddings": False,
    "time_step_floor": 0.0001,
    "time_step_max": 0.1,
    "time_step_min": 0.001,
    "use_cache": True,
    "use_mamba_kernels": True,
}


def sizes(width: int, ffn: int, heads: int, kv_heads: int, head_dim: int, vocab: int) -> dict[str, int]:
    return {
        "head_dim": head_dim,
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
    }


def mamba(heads: int, head_dim: int, groups: int, state: int, taps: int) -> dict[str, int]:
    return {
        "conv_kernel": taps,
        "mamba_head_dim": head_dim,
        "mamba_num_heads": heads,
        "n_groups": groups,
        "ssm_state_size": state,
    }


def experts(count: int, top_k: int, ffn: int, shared: int, latent: int | None) -> dict[str, Any]:
    return {
        "moe_intermediate_size": ffn,
        "moe_latent_size": latent,
        "moe_shared_expert_intermediate_size": shared,
        "moe_shared_expert_overlap": False,
        "n_routed_experts": count,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": top_k,
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "nemotron_h_narrow_experts_in_groups": NEMOTRON_H
    | FIVE
    | sizes(48, 40, 3, 1, 8, 77)
    | mamba(3, 8, 1, 6, 4)
    | experts(9, 2, 20, 28, 16)
    | {
        "layers_block_type": ["moe", "linear_attention", "mlp", "full_attention", "moe"],
        "mlp_bias": True,
        "n_group": 3,
        "norm_topk_prob": False,
        "topk_group": 2,
    },
    "nemotron_h_pattern": NEMOTRON_H
    | FOUR
    | sizes(48, 64, 4, 2, 12, 97)
    | mamba(6, 8, 2, 10, 4)
    | {
        "hybrid_override_pattern": "M-M*-M",
        "mamba_proj_bias": False,
        "mlp_bias": False,
        "num_hidden_layers": 6,
        "use_bias": False,
        "use_conv_bias": True,
    },
    "nemotron_h_biases": NEMOTRON_H
    | FIVE
    | sizes(36, 40, 3, 1, 10, 110)
    | mamba(4, 6, 1, 7, 3)
    | {
        "layers_block_type": ["mlp", "full_attention", "linear_attention", "linear_attention"],
        "mlp_bias": True,
        "time_step_min": 0.7,
        "use_bias": True,
        "use_conv_bias": True,
    },
    "nemotron_h_no_conv_bias": NEMOTRON_H
    | FIVE
    | sizes(32, 56, 2, 2, 16, 85)
    | mamba(5, 4, 5, 9, 2)
    | {
        "layers_block_type": ["linear_attention", "full_attention", "mlp"],
        "use_conv_bias": False,
    },
    "nemotron_h_experts": NEMOTRON_H
    | FOUR
    | sizes(40, 24, 4, 2, 10, 91)
    | mamba(4, 6, 2, 8, 4)
    | experts(8, 3, 24, 36, None)
    | {
        "hybrid_override_pattern": "MEM*E",
        "mlp_bias": False,
        "n_group": 1,
        "num_hidden_layers": 5,
        "routed_scaling_factor": 2.5,
        "topk_group": 1,
    },
}
