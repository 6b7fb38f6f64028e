"""The parity table as data: tiny configs of every family, spelt as published ones are, and weights that follow from
their names.

Between them the configs of a family use every variant that the family publishes and every field that changes its
mathematics. Some speak the dialect of transformers 4, some that of 5. Nothing here needs torch.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

GOLDENS = Path(__file__).parent / "goldens"

TOLERANCE = 1e-4
"""The largest error of a logit that is allowed, relative to the standard deviation of the logits."""

BATCH, LENGTH = 2, 20
PROMPT, NEW = 9, 32
"""Logits are compared on BATCH rows of LENGTH tokens; greedy generation goes on from their first PROMPT tokens for NEW
more.
"""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A line of the table: `config` is what config.json holds."""

    name: str
    config: Mapping[str, Any]

    @property
    def family(self) -> str:
        return str(self.config["model_type"])

    def tokens(self) -> Array:
        """int64 [BATCH, LENGTH]."""
        return _rng(self.name).integers(0, self.config["vocab_size"], (BATCH, LENGTH))

    def weights(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
        """float32 tensors of these names and shapes; all of them random, none at what a model starts with."""
        return {name: weight(name, tuple(shape), self.family == "gemma3_text") for name, shape in shapes.items()}

    def write(self, directory: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """A checkpoint directory with config.json and the weights."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(self.config, indent=2))
        save_file(self.weights(shapes), directory / "model.safetensors", metadata={"format": "pt"})


def weight(name: str, shape: tuple[int, ...], zero_centred: bool) -> Array:
    """A tensor whose random numbers follow from its name, of a size that keeps activations and logits ordinary."""
    noise = _rng(name).standard_normal(shape)
    if name.endswith("norm.weight"):
        noise = 0.2 * noise + (not zero_centred)
    elif name.endswith("bias"):
        noise *= 0.3 if "e_score" in name else 0.1
    elif name == "model.embed_tokens.weight":
        noise *= 0.15
    else:
        noise *= (2 if name == "lm_head.weight" else 1) * shape[-1] ** -0.5
    return noise.astype(np.float32)


def _rng(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


# --- the table -------------------------------------------------------------------------------------------------------

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

LLAMA = COMMON | {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "mlp_bias": False, "pretraining_tp": 1}
OLMO2 = COMMON | {"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "pad_token_id": 3, "rms_norm_eps": 1e-6}
GEMMA3 = {key: value for key, value in COMMON.items() if key not in ("hidden_act", "tie_word_embeddings")} | {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "hidden_activation": "gelu_pytorch_tanh",
    "eos_token_id": [1, 106],
    "bos_token_id": 2,
    "pad_token_id": 0,
}
QWEN3 = COMMON | {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "max_window_layers": 28,
    "sliding_window": None,
    "use_sliding_window": False,
}
QWEN3_MOE = QWEN3 | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}
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


LLAMA3_ROPE = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
QWEN_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
DEEPSEEK_YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1}
KIMI_YARN = {"type": "yarn", "factor": 32.0, "original_max_position_embeddings": 64, "beta_fast": 1.0, "beta_slow": 1.0}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama_gqa_llama3_tied": LLAMA
    | FOUR
    | dense(48, 80, 3, 6, 2, 96, head_dim=16)
    | {"rope_theta": 10000.0, "rope_scaling": LLAMA3_ROPE | {"rope_type": "llama3"}, "tie_word_embeddings": True},
    "llama_mha_biases_linear": LLAMA
    | FOUR
    | dense(40, 56, 2, 5, 5, 61)
    | {
        "rope_theta": 500.0,
        "rope_scaling": {"type": "linear", "factor": 2.5},
        "attention_bias": True,
        "mlp_bias": True,
    },
    "llama_mqa_yarn": LLAMA
    | FIVE
    | dense(36, 64, 2, 3, 1, 127, head_dim=20)
    | {
        "rope_parameters": QWEN_YARN
        | {"rope_theta": 100.0, "beta_fast": 8.0, "beta_slow": 2.0, "attention_factor": 1.3, "truncate": False}
    },
    "llama_plain": LLAMA
    | FIVE
    | dense(64, 32, 2, 8, 4, 80, head_dim=8)
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "eos_token_id": [2, 5]},
    "olmo2_mha": OLMO2 | FOUR | dense(40, 48, 3, 5, 5, 70) | {"rope_theta": 500000, "rope_scaling": None},
    "olmo2_gqa_llama3": OLMO2
    | FIVE
    | dense(48, 40, 2, 6, 2, 99)
    | {"rope_parameters": LLAMA3_ROPE | {"rope_type": "llama3", "rope_theta": 10000.0}},
    "olmo2_mqa_bias_tied": OLMO2
    | FOUR
    | dense(32, 60, 2, 4, 1, 64, head_dim=12)
    | {"rope_theta": 10000.0, "rope_scaling": QWEN_YARN, "attention_bias": True, "tie_word_embeddings": True},
    "gemma3_remainder_linear": GEMMA3
    | FOUR
    | dense(32, 48, 8, 4, 1, 110, head_dim=12)
    | {
        "query_pre_attn_scalar": 20,
        "rope_local_base_freq": 100,
        "rope_theta": 1000,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 5,
        "sliding_window_pattern": 6,
    },
    "gemma3_layer_types_softcap": GEMMA3
    | FIVE
    | dense(48, 40, 4, 3, 3, 128, head_dim=10)
    | {
        "attention_bias": True,
        "final_logit_softcapping": 3.0,
        "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
        "query_pre_attn_scalar": 10,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
        "sliding_window": 7,
        "tie_word_embeddings": True,
        "use_bidirectional_attention": False,
    },
    "gemma3_gqa_untied": GEMMA3
    | FOUR
    | dense(36, 40, 5, 6, 2, 112, head_dim=8)
    | {
        "_sliding_window_pattern": 6,
        "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 8,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": 1,
        "tie_word_embeddings": False,
    },
    "qwen3_gqa_tied": QWEN3
    | FOUR
    | dense(36, 60, 3, 6, 2, 90, head_dim=10)
    | {"rope_theta": 1000000, "rope_scaling": None, "tie_word_embeddings": True},
    "qwen3_window_yarn": QWEN3
    | FOUR
    | dense(48, 36, 5, 3, 3, 77, head_dim=12)
    | {
        "rope_theta": 1000.0,
        "rope_scaling": QWEN_YARN,
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 2,
    },
    "qwen3_layer_types_mqa_bias": QWEN3
    | FIVE
    | dense(40, 44, 4, 5, 1, 101, head_dim=16)
    | {
        "attention_bias": True,
        "layer_types": ["full_attention", "sliding_attention"] * 2,
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        "use_sliding_window": True,
        "sliding_window": 4,
    },
    "qwen3_moe_gqa": QWEN3_MOE
    | FOUR
    | dense(32, 48, 2, 6, 2, 85, head_dim=10)
    | experts(6, 2, 20)
    | {"rope_theta": 1000000.0, "rope_scaling": None},
    "qwen3_moe_dense_layers_yarn": QWEN3_MOE
    | FIVE
    | dense(40, 48, 4, 4, 4, 120, head_dim=8)
    | {"num_local_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 12}
    | {"mlp_only_layers": [0, 3], "norm_topk_prob": False, "rope_parameters": QWEN_YARN | {"rope_theta": 10000.0}},
    "qwen3_moe_every_second_mqa_tied": QWEN3_MOE
    | FOUR
    | dense(48, 32, 4, 3, 1, 66, head_dim=16)
    | experts(5, 1, 24)
    | {
        "attention_bias": True,
        "decoder_sparse_step": 2,
        "norm_topk_prob": False,
        "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "tie_word_embeddings": True,
    },
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
        "rope_parameters": QWEN_YARN | {"rope_theta": 100.0, "mscale": 0.707, "mscale_all_dim": 1.1, "beta_fast": 8.0},
    },
}

CASES = tuple(Case(name=name, config=config) for name, config in CONFIGS.items())
