"""What the hybrids of linear and softmax attention have in common: `layer_types`, Gated DeltaNet in configs and
checkpoints, and Qwen's module of multi-token prediction in them.
"""

from typing import Any

from ..layers.decoder import Spec
from ..layers.delta import GatedDelta
from ..layers.norms import RMSNorm
from .family import ATTENTION, EXPERTS, FUSED_EXPERTS, HEAD_NORMS, MLP, PRE_NORMS
from .fields import Fields
from .weights import of_modules, rows

LINEAR, FULL = "linear_attention", "full_attention"
QWEN = {"num_key_heads": 16, "num_value_heads": 32, "key_head_dim": 128, "value_head_dim": 128, "conv_kernel_dim": 4}
"""What Qwen's classes have for the fields of Gated DeltaNet."""


def read_kinds(c: Fields, every: int) -> tuple[str, ...]:
    """The kind of each layer; where the config does not say, every `every`-th is softmax attention."""
    depth = c.int("num_hidden_layers")
    kinds = c.list("layer_types", [FULL if (i + 1) % every == 0 else LINEAR for i in range(depth)])
    if len(kinds) != depth or any(kind not in (LINEAR, FULL) for kind in kinds):
        raise ValueError(f"config field 'layer_types' must be {depth} of {LINEAR!r} and {FULL!r}, not {kinds!r:.80}")
    if len(set(kinds)) < 2:
        raise ValueError(f"config field 'layer_types' must have both {LINEAR!r} and {FULL!r}, not only {kinds[0]!r}")
    return tuple(kinds)


def mixers(spec: Spec, linear: type) -> tuple[Any, Any]:
    """A layer of linear attention of this type and one of the other kind."""
    found = [layer.attention for layer in spec.layers]
    kinds = [isinstance(mixer, linear) for mixer in found]
    if len(set(kinds)) < 2:
        raise ValueError(f"Spec.attention needs both {linear.__name__} and softmax attention to be of this family")
    return found[kinds.index(True)], found[kinds.index(False)]


def write_kinds(spec: Spec, linear: type) -> list[str]:
    return [LINEAR if isinstance(layer.attention, linear) else FULL for layer in spec.layers]


def read_delta(c: Fields, norm: RMSNorm, reach: float = 1.0, **defaults: int) -> GatedDelta:
    """defaults: of the fields by name, for families whose class has some."""
    names = ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim", "conv_kernel_dim")
    sizes = [c.int(f"linear_{name}", **({"default": defaults[name]} if name in defaults else {})) for name in names]
    keys, values, key_dim, value_dim, taps = sizes
    return GatedDelta(
        key_heads=keys,
        value_heads=values,
        key_dim=key_dim,
        value_dim=value_dim,
        taps=taps,
        reach=reach,
        norm=norm,
    )


def write_delta(delta: GatedDelta) -> dict[str, Any]:
    return {
        "linear_num_key_heads": delta.key_heads,
        "linear_num_value_heads": delta.value_heads,
        "linear_key_head_dim": delta.key_dim,
        "linear_value_head_dim": delta.value_dim,
        "linear_conv_kernel_dim": delta.taps,
    }


DECAY = rows(
    ("model.layers.{l}.linear_attn.A_log", "(K G)", "attention/log_forget_KG"),
    ("model.layers.{l}.linear_attn.dt_bias", "(K G)", "attention/b_step_KG"),
)

CONVOLUTION = rows(
    (
        "model.layers.{l}.linear_attn.conv1d.weight",
        "[(K E) (K E) (K G U)] () T",
        "attention/conv_q_KET",
        "attention/conv_k_KET",
        "attention/conv_v_KGUT",
    ),
)

GATED = rows(
    ("model.layers.{l}.self_attn.q_proj.weight", "(K G [E E]) D", "attention/wq_DKGE", "attention/wg_DKGE"),
)
GATED += tuple(row for row in ATTENTION if "q_proj" not in row.name and row.name.endswith("weight")) + HEAD_NORMS

DELTA = rows(
    ("model.layers.{l}.linear_attn.norm.weight", "U", "attention/out_norm/scale_U"),
    ("model.layers.{l}.linear_attn.out_proj.weight", "D (K G U)", "attention/w_out_KGUD"),
)
DELTA += DECAY + CONVOLUTION

QKVZ = rows(
    (
        "model.layers.{l}.linear_attn.in_proj_qkvz.weight",
        "(K [E E (G U) (G U)]) D",
        "attention/w_q_DKE",
        "attention/w_k_DKE",
        "attention/w_v_DKGU",
        "attention/w_gate_DKGU",
    ),
    (
        "model.layers.{l}.linear_attn.in_proj_ba.weight",
        "(K [G G]) D",
        "attention/w_rate_DKG",
        "attention/w_step_DKG",
    ),
)

SHARED = rows(
    ("model.layers.{l}.mlp.shared_expert.gate_proj.weight", "F D", "mlp/shared/w_gate_DF"),
    ("model.layers.{l}.mlp.shared_expert.up_proj.weight", "F D", "mlp/shared/w_up_DF"),
    ("model.layers.{l}.mlp.shared_expert.down_proj.weight", "D F", "mlp/shared/w_down_FD"),
    ("model.layers.{l}.mlp.shared_expert_gate.weight", "() D", "mlp/shared/weigh_D"),
)

IN_MODULE = "model.layers.{l}.", "mtp.layers.{m}."
MODULE = rows(
    ("mtp.pre_fc_norm_embedding.weight", "D", "mtp_{m}/norm_token/scale_D"),
    ("mtp.pre_fc_norm_hidden.weight", "D", "mtp_{m}/norm_hidden/scale_D"),
    ("mtp.fc.weight", "D I", "mtp_{m}/w_ID"),
    ("mtp.norm.weight", "D", "mtp_{m}/final_norm/scale_D"),
)
MODULE += of_modules(PRE_NORMS + GATED + MLP + EXPERTS + SHARED, IN_MODULE)
FUSED_MODULE = of_modules(FUSED_EXPERTS, IN_MODULE)
