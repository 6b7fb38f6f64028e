"""Nemotron-H (NVIDIA 2025, arXiv 2504.03624): layers of one mixer each, most of them Mamba-2 or an MLP of squared
ReLUs, a few of them attention without rope. Nemotron 3 (NVIDIA 2025): experts in place of the MLPs, those of the larger
models in a narrower space.
"""

import math
from typing import Any

from ..layers.attention import Attention
from ..layers.decoder import Spec
from ..layers.mamba2 import Mamba2
from ..layers.moe import MoE
from ..layers.narrow import NarrowMoE
from ..layers.norms import RMSNorm
from ..layers.plain import MLP, PlainExpert
from ..layers.router import Router
from ..layers.single import Absent, Single
from . import nemotron_experts
from .family import ATTENTION, Family, presets
from .fields import Fields, read_common, write_common
from .gemma3 import shortest
from .weights import Row, rows

KINDS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
"""Of layers, as letters of `hybrid_override_pattern` (transformers 4) and in `layers_block_type` (5)."""

_INERT = """
chunk_size expand mamba_proj_bias mamba_ssm_cache_dtype num_logits_to_keep rescale_prenorm_residual residual_in_fp32
time_step_floor time_step_max time_step_rank use_mamba_kernels moe_intermediate_size moe_latent_size
moe_shared_expert_intermediate_size moe_shared_expert_overlap mtp_hybrid_override_pattern mtp_layers_block_type n_group
n_routed_experts n_shared_experts norm_topk_prob num_experts_per_tok routed_scaling_factor topk_group
"""
"""Also what describes experts in configs of models without: those that have them read it."""


def read(c: Fields) -> Spec:
    kinds, norm = read_kinds(c), RMSNorm(eps=c.float("layer_norm_epsilon", 1e-5))
    for name, allowed in (("attention_bias", False), ("attention_dropout", 0.0), ("hidden_dropout", 0.0)):
        c.only(name, allowed)
    c.only("mamba_hidden_act", "silu")
    c.only("mlp_hidden_act", "relu2")
    c.only("sliding_window", None)
    unlimited = [0.0, math.inf], [0.0, {"__float__": "Infinity"}]  # the second is how transformers 5 writes it
    if list(c.get("time_step_limit", (0.0, math.inf))) not in unlimited:
        raise ValueError(f"config field 'time_step_limit' is {c.get('time_step_limit')!r:.80}; it takes [0, Infinity]")
    mamba = Mamba2(
        heads=c.int("mamba_num_heads", 128),
        head_dim=c.int("mamba_head_dim", 64),
        groups=c.int("n_groups", 8),
        state_dim=c.int("ssm_state_size", 128),
        taps=c.int("conv_kernel", 4),
        least_step=c.float("time_step_min", 0.001),
        conv_bias=c.bool("use_conv_bias", True),
        bias=c.bool("use_bias", False),
        eps=norm.eps,
    )
    heads = c.int("num_attention_heads", 32)
    attention = Attention(
        heads=heads,
        kv_heads=c.int("num_key_value_heads", 8),
        head_dim=c.int("head_dim", c.int("attention_head_dim", 128)),
    )
    mlp = MLP(ffn=c.int("intermediate_size", 21_504), activation="relu2", bias=c.bool("mlp_bias", False))
    mixers = {"M": mamba, "*": attention}
    mlps = {"-": mlp, "E": nemotron_experts.read(c) if "E" in kinds else None}
    return Spec(
        **read_common(c.over({"max_position_embeddings": 4096, "num_hidden_layers": len(kinds)})),
        attention=shortest(tuple(mixers.get(kind, Absent()) for kind in kinds)),
        mlp=shortest(tuple(mlps.get(kind, Absent()) for kind in kinds)),
        block=Single(before=norm),
        final_norm=norm,
    )


def read_kinds(c: Fields) -> str:
    """The kind of each layer, a letter."""
    letters = {name: letter for letter, name in KINDS.items()} | {"mamba": "M", "attention": "*"}
    spelt = c.get("hybrid_override_pattern", "")
    kinds = c.list("layers_block_type", None) or [KINDS.get(letter, letter) for letter in spelt]
    depth = c.int("num_hidden_layers", len(kinds))
    if unknown := sorted(set(kinds) - set(letters)):
        raise ValueError(f"a layer of kind {unknown[0]!r} is not supported; supported: {', '.join(KINDS.values())}")
    if not kinds or len(kinds) != depth:
        raise ValueError(f"config field 'layers_block_type' must name the kind of {depth} layers, not {len(kinds)}")
    return "".join(letters[kind] for kind in kinds)


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    kinds = "".join(kind_of(layer) for layer in spec.layers)
    mamba, attention = (next(at.attention for at in spec.layers if kind_of(at) == kind) for kind in "M*")
    found = {kind_of(layer): layer.mlp for layer in spec.layers}
    mlp, moe = found.get("-", MLP(ffn=21_504, activation="relu2")), found.get("E")
    named = {"layers_block_type": [KINDS[kind] for kind in kinds]}
    return write_common(spec) | {
        **(named if dialect >= 5 else {"hybrid_override_pattern": kinds}),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "intermediate_size": mlp.ffn,
        "mlp_hidden_act": mlp.activation,
        "mlp_bias": moe.shared.bias if moe else mlp.bias,
        **(nemotron_experts.write(moe) if moe else {}),
        "mamba_num_heads": mamba.heads,
        "mamba_head_dim": mamba.head_dim,
        "n_groups": mamba.groups,
        "ssm_state_size": mamba.state_dim,
        "conv_kernel": mamba.taps,
        "time_step_min": mamba.least_step,
        "use_conv_bias": mamba.conv_bias,
        "use_bias": mamba.bias,
        "mamba_hidden_act": "silu",
        "layer_norm_epsilon": spec.final_norm.eps,
    }


def kind_of(layer: Any) -> str:
    kinds = {Mamba2: "M", Attention: "*", MLP: "-", MoE: "E", NarrowMoE: "E"}
    return next(kinds[type(mixer)] for mixer in (layer.attention, layer.mlp) if not isinstance(mixer, Absent))


def parts(prefix: str, names: str) -> list[str]:
    return [f"attention/{prefix}{name}" for name in names.split()]


MIXER, MIXED = nemotron_experts.MIXER, "[(K G U) (K E) (K E)]"
IN = "[(K G U) (K G U) (K E) (K E) (K G)]"
PUBLISHED = rows(
    (MIXER + "in_proj.weight", IN + " D", *parts("w_", "gate_DKGU v_DKGU k_DKE q_DKE step_DKG")),
    (MIXER + "in_proj.bias", IN, *parts("b_", "gate_KGU v_KGU k_KE q_KE step_KG")),
    (MIXER + "conv1d.weight", MIXED + " () T", *parts("conv_", "v_KGUT k_KET q_KET")),
    (MIXER + "conv1d.bias", MIXED, *parts("b_conv_", "v_KGU k_KE q_KE")),
    (MIXER + "A_log", "(K G)", "attention/log_forget_KG"),
    (MIXER + "D", "(K G)", "attention/skip_KG"),
    (MIXER + "dt_bias", "(K G)", "attention/b_time_KG"),
    (MIXER + "norm.weight", "(K G U)", "attention/scale_KGU"),
    (MIXER + "out_proj.weight", "D (K G U)", "attention/w_out_KGUD"),
    (MIXER + "out_proj.bias", "D", "attention/b_out_D"),
    ("backbone.embeddings.weight", "V D", "embed_VD"),
    ("backbone.norm_f.weight", "D", "final_norm/scale_D"),
    ("backbone.layers.{l}.norm.weight", "D", "before/scale_D"),
    (MIXER + "up_proj.weight", "F D", "mlp/w_up_DF"),
    (MIXER + "up_proj.bias", "F", "mlp/b_up_F"),
    (MIXER + "down_proj.weight", "D F", "mlp/w_down_FD"),
    (MIXER + "down_proj.bias", "D", "mlp/b_down_D"),
)
PUBLISHED += nemotron_experts.ROWS
PUBLISHED += tuple(
    row._replace(name=row.name.replace("model.", "backbone.").replace("self_attn", "mixer"))
    for row in ATTENTION
    if row.name.endswith("weight")
)


def in_memory(row: Row) -> Row:
    """Under the names of transformers 5."""
    return row._replace(name=row.name.replace("backbone.", "model."))


def size(kinds: str, attention: Attention, mamba: Mamba2, mlp: Any, width: int) -> Spec:
    norm, mixers = RMSNorm(eps=1e-5), {"M": mamba, "*": attention}
    return Spec(
        vocab=131_072,
        width=width,
        depth=len(kinds),
        attention=tuple(mixers.get(kind, Absent()) for kind in kinds),
        mlp=tuple(mlp if kind in "-E" else Absent() for kind in kinds),
        block=Single(before=norm),
        final_norm=norm,
        max_length=8192,
        bos_id=1,
        eos_ids=(2,),
        pad_id=0,
    )


# Published: the order of the layers and 8192 positions; the rest are class defaults of transformers, and the same.
ORDER_8B = "M-M-M-M*-" + "M-M-M-M-M*-" * 3 + "M-M-M-M-M-"
BASE_8B = size(
    ORDER_8B,
    Attention(heads=32, kv_heads=8, head_dim=128),
    Mamba2(heads=128, head_dim=64, groups=8, state_dim=128, least_step=0.001),
    MLP(ffn=21_504, activation="relu2"),
    width=4096,
)
# Published numbers.
ORDER_30B = "MEMEM*E" + "MEMEM*E" * 4 + "MEMEMEM*E" + "MEMEMEME"
NANO_30B = size(
    ORDER_30B,
    Attention(heads=32, kv_heads=2, head_dim=128),
    Mamba2(heads=64, head_dim=64, groups=8, state_dim=128, least_step=0.001),
    MoE(
        experts=128,
        ffn=1856,
        router=Router(top_k=6, score="sigmoid", bias=True, scale=2.5),
        expert=PlainExpert(),
        shared=MLP(ffn=3712, activation="relu2"),
    ),
    width=2688,
).replace(max_length=262_144)
NANO = size(
    "M-M*-M*-",
    Attention(heads=4, kv_heads=2, head_dim=32),
    Mamba2(heads=8, head_dim=32, groups=2, state_dim=32, least_step=0.001),
    MLP(ffn=512, activation="relu2"),
    width=128,
)

FAMILY = Family(
    name="nemotron_h",
    architecture="NemotronHForCausalLM",
    read=read,
    write=write,
    weights=PUBLISHED + nemotron_experts.SINGLE + rows(("lm_head.weight", "V D", "head_DV")),
    fused=tuple(map(in_memory, PUBLISHED + nemotron_experts.STACKED)),
    inert=frozenset(_INERT.split()),
    presets=presets(
        "nemotron_h",
        {
            "nemotron-h-8b": BASE_8B,
            "nemotron3-nano-30b-a3b": NANO_30B,
            "nemotron-h-nano": NANO.replace(vocab=257, bos_id=256, eos_ids=(256,), pad_id=None),
        },
    ),
)
