"""Nemotron-H, the sizes without experts."""

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


CONFIGS: dict[str, dict[str, Any]] = {
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
}
