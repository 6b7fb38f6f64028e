"""Nemotron-H (NVIDIA 2025, arXiv 2504.03624): layers of one mixer each, most of them Mamba-2 or an MLP of squared
ReLUs, a few of them attention without rope. Nemotron 3 (NVIDIA 2025): experts in place of the MLPs, those of the larger
models in a narrower space; beside the model, a module of multi-token prediction (names and order: vLLM), published as a
layer of attention and one of experts.
"""

import math
from typing import Any

from ..layers.attention import Attention
from ..layers.block import pre_norm
from ..layers.decoder import Spec
from ..layers.mamba2 import Mamba2
from ..layers.moe import MoE
from ..layers.mtp import MTP
from ..layers.narrow import NarrowMoE
from ..layers.norms import RMSNorm
from ..layers.plain import MLP
from ..layers.single import Absent, Single
from . import nemotron_experts
from .family import Family, presets, shortest
from .fields import Fields, Names, read_common, read_part, write_common, write_part
from .nemotron_h_names import IN_MEMORY, WEIGHTS

KINDS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
"""Of layers, as letters of `hybrid_override_pattern` (transformers 4) and in `layers_block_type` (5)."""
LETTERS = {name: letter for letter, name in KINDS.items()} | {"mamba": "M", "attention": "*"}
COUNTED, MODULE_KINDS = "num_nextn_predict_layers", "*E"

_INERT = """
chunk_size expand mamba_proj_bias mamba_ssm_cache_dtype num_logits_to_keep rescale_prenorm_residual residual_in_fp32
time_step_floor time_step_max time_step_rank use_mamba_kernels moe_intermediate_size moe_latent_size
moe_shared_expert_intermediate_size moe_shared_expert_overlap mtp_hybrid_override_pattern mtp_layers_block_type n_group
n_routed_experts n_shared_experts norm_topk_prob num_experts_per_tok routed_scaling_factor topk_group
"""
"""Also what describes experts in configs of models without: those that have them read it."""

FIXED: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "sliding_window": None,
}
FIXED |= {"mamba_hidden_act": "silu", "mlp_hidden_act": "relu2"}
HEADS: Names = {"heads": ("num_attention_heads", 32), "kv_heads": ("num_key_value_heads", 8)}
MAMBA: Names = {
    "heads": ("mamba_num_heads", 128),
    "head_dim": ("mamba_head_dim", 64),
    "groups": ("n_groups", 8),
    "state_dim": ("ssm_state_size", 128),
    "taps": ("conv_kernel", 4),
    "least_step": ("time_step_min", 0.001),
    "conv_bias": ("use_conv_bias", True),
    "bias": ("use_bias", False),
}


def read(c: Fields) -> Spec:
    kinds, norm = read_kinds(c), RMSNorm(eps=c.float("layer_norm_epsilon", 1e-5))
    unlimited = [0.0, math.inf], [0.0, {"__float__": "Infinity"}]  # the second is how transformers 5 writes it
    if list(c.get("time_step_limit", (0.0, math.inf))) not in unlimited:
        raise ValueError(f"config field 'time_step_limit' is {c.get('time_step_limit')!r:.80}; it takes [0, Infinity]")
    mamba = read_part(c, Mamba2, MAMBA, eps=norm.eps)
    head_dim = c.int("head_dim", c.int("attention_head_dim", 128))
    attention = read_part(c, Attention, HEADS, head_dim=head_dim)
    mlp = MLP(ffn=c.int("intermediate_size", 21_504), activation="relu2", bias=c.bool("mlp_bias", False))
    mixers = {"M": mamba, "*": attention}
    mlps = {"-": mlp, "E": nemotron_experts.read(c) if "E" in kinds else None}
    return Spec(
        **read_common(c.over({"max_position_embeddings": 4096, "num_hidden_layers": len(kinds)})),
        attention=shortest(tuple(mixers.get(kind, Absent()) for kind in kinds)),
        mlp=shortest(tuple(mlps.get(kind, Absent()) for kind in kinds)),
        block=Single(before=norm),
        final_norm=norm,
        mtp=read_module(c, attention, norm),
    )


def read_module(c: Fields, attention: Attention, norm: RMSNorm) -> MTP | None:
    """The module of attention and experts; others, of which none is published, are not read."""
    spelt = [KINDS.get(letter, letter) for letter in c.get("mtp_hybrid_override_pattern", MODULE_KINDS)]
    kinds = "".join(LETTERS.get(kind, "?") for kind in c.list("mtp_layers_block_type", spelt))
    if (c.int(COUNTED, 0), kinds) != (1, MODULE_KINDS):
        return None
    return MTP(block=pre_norm(norm), attention=attention, mlp=nemotron_experts.read(c))


def read_kinds(c: Fields) -> str:
    """The kind of each layer, a letter."""
    spelt = c.get("hybrid_override_pattern", "")
    kinds = c.list("layers_block_type", None) or [KINDS.get(letter, letter) for letter in spelt]
    depth = c.int("num_hidden_layers", len(kinds))
    if unknown := sorted(set(kinds) - set(LETTERS)):
        raise ValueError(f"a layer of kind {unknown[0]!r} is not supported; supported: {', '.join(KINDS.values())}")
    if not kinds or len(kinds) != depth:
        raise ValueError(f"config field 'layers_block_type' must name the kind of {depth} layers, not {len(kinds)}")
    return "".join(LETTERS[kind] for kind in kinds)


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    kinds = "".join(kind_of(layer) for layer in spec.layers)
    mamba, attention = (next(at.attention for at in spec.layers if kind_of(at) == kind) for kind in "M*")
    found = {kind_of(layer): layer.mlp for layer in spec.layers}
    mlp, moe = found.get("-", MLP(ffn=21_504, activation="relu2")), found.get("E")
    named = {"layers_block_type": [KINDS[kind] for kind in kinds]}
    module: dict[str, Any] = {}
    if spec.mtp:
        spelt = {"mtp_layers_block_type": [KINDS[kind] for kind in MODULE_KINDS]}
        module = {COUNTED: spec.mtp.depth} | (spelt if dialect >= 5 else {"mtp_hybrid_override_pattern": MODULE_KINDS})
    return write_common(spec) | {
        **(named if dialect >= 5 else {"hybrid_override_pattern": kinds}),
        **module,
        **write_part(attention, HEADS),
        "head_dim": attention.head_dim,
        "intermediate_size": mlp.ffn,
        "mlp_bias": moe.shared.bias if moe else mlp.bias,
        **(nemotron_experts.write(moe) if moe else {}),
        **write_part(mamba, MAMBA),
        "layer_norm_epsilon": spec.final_norm.eps,
    }


def kind_of(layer: Any) -> str:
    kinds = {Mamba2: "M", Attention: "*", MLP: "-", MoE: "E", NarrowMoE: "E"}
    return next(kinds[type(mixer)] for mixer in (layer.attention, layer.mlp) if not isinstance(mixer, Absent))


def size(kinds: str, width: int, **more: Any) -> Spec:
    """A letter for each layer; what is not said is as in the class of transformers."""
    config: dict[str, Any] = {"vocab_size": 131_072, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config |= {"max_position_embeddings": 8192, "hidden_size": width, "hybrid_override_pattern": kinds}
    return read(Fields(config | more))


# Published: the order of the layers and 8192 positions; the rest are class defaults of transformers, and the same.
ORDER_8B = "M-M-M-M*-" + "M-M-M-M-M*-" * 3 + "M-M-M-M-M-"
# Published numbers.
ORDER_30B = "MEMEM*E" + "MEMEM*E" * 4 + "MEMEMEM*E" + "MEMEMEME"
NANO_30B: dict[str, Any] = {"num_key_value_heads": 2, "mamba_num_heads": 64, "max_position_embeddings": 262_144}
NANO_30B |= {"n_routed_experts": 128, "num_experts_per_tok": 6, "routed_scaling_factor": 2.5}
NANO_30B |= {"moe_intermediate_size": 1856, "moe_shared_expert_intermediate_size": 3712}
ORDER_120B = "MEMEMEM*" + "EMEMEMEM*" * 2 + "EMEMEMEMEM*" * 4 + "EMEMEMEM*" + "EMEMEMEME"
SUPER_120B: dict[str, Any] = {"num_key_value_heads": 2, "max_position_embeddings": 262_144, "eos_token_id": [2, 11]}
SUPER_120B |= {"n_routed_experts": 512, "num_experts_per_tok": 22, "routed_scaling_factor": 5.0, COUNTED: 1}
SUPER_120B |= {"moe_intermediate_size": 2688, "moe_shared_expert_intermediate_size": 5376, "moe_latent_size": 1024}
NANO: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "intermediate_size": 512}
NANO |= {"mamba_num_heads": 8, "mamba_head_dim": 32, "n_groups": 2, "ssm_state_size": 32}
NANO |= {"vocab_size": 257, "bos_token_id": 256, "eos_token_id": 256, "pad_token_id": None}

FAMILY = Family(
    name="nemotron_h",
    architecture="NemotronHForCausalLM",
    read=read,
    write=write,
    fixed=FIXED,
    weights=WEIGHTS,
    fused=IN_MEMORY,
    inert=frozenset(_INERT.split()),
    counted=COUNTED,
    presets=presets(
        "nemotron_h",
        {
            "nemotron-h-8b": size(ORDER_8B, 4096),
            "nemotron3-nano-30b-a3b": size(ORDER_30B, 2688, **NANO_30B),
            "nemotron3-super-120b-a12b": size(ORDER_120B, 4096, **SUPER_120B),
            "nemotron-h-nano": size("M-M*-M*-", 128, **NANO),
        },
    ),
)
