"""Where Nemotron-H's tensors lie, in layers of one mixer each: published, and as transformers 5 has them in memory."""

from . import nemotron_experts
from .family import ATTENTION
from .weights import Row, of_modules, rows


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
ATTENTIONS = tuple(
    row._replace(name=row.name.replace("model.", "backbone.").replace("self_attn", "mixer"))
    for row in ATTENTION
    if row.name.endswith("weight")
)
PUBLISHED += ATTENTIONS

LAYER, FIRST, SECOND = "backbone.layers.{l}.", "mtp.layers.0.", "mtp.layers.1."
MODULE = rows(
    (FIRST + "enorm.weight", "D", "mtp_{m}/norm_token/scale_D"),
    (FIRST + "hnorm.weight", "D", "mtp_{m}/norm_hidden/scale_D"),
    (FIRST + "eh_proj.weight", "D I", "mtp_{m}/w_ID"),
    (FIRST + "norm.weight", "D", "mtp_{m}/layer/attention_before/scale_D"),
    (SECOND + "norm.weight", "D", "mtp_{m}/layer/mlp_before/scale_D"),
    (SECOND + "final_layernorm.weight", "D", "mtp_{m}/final_norm/scale_D"),
)
MODULE += of_modules(ATTENTIONS, (LAYER, FIRST))
MODULE += of_modules(nemotron_experts.ROWS + nemotron_experts.SINGLE, (LAYER, SECOND))


def in_memory(row: Row) -> Row:
    """Under the names of transformers 5."""
    return row._replace(name=row.name.replace("backbone.", "model."))


WEIGHTS = PUBLISHED + nemotron_experts.SINGLE + rows(("lm_head.weight", "V D", "head_DV")) + MODULE
IN_MEMORY = tuple(map(in_memory, PUBLISHED + nemotron_experts.STACKED))
