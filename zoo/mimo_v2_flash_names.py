"""Where MiMo-V2-Flash's tensors lie, those of its modules of multi-token prediction as vLLM and SGLang read them."""

from .deepseek import SHARED
from .family import ATTENTION, EMBEDDINGS, EXPERTS, FUSED_EXPERTS, MLP, PRE_NORMS
from .weights import of_modules, rows

VALUES = rows(
    ("model.layers.{l}.self_attn.v_proj.weight", "(K U) D", "attention/wv_DKU"),
    ("model.layers.{l}.self_attn.v_proj.bias", "(K U)", "attention/bv_KU"),
    ("model.layers.{l}.self_attn.o_proj.weight", "D (K G U)", "attention/wo_KGUD"),
    ("model.layers.{l}.self_attn.attention_sink_bias", "(K G)", "attention/sinks_KG"),
)

MODULES = rows(
    ("model.mtp.layers.{m}.enorm.weight", "D", "mtp_{m}/norm_token/scale_D"),
    ("model.mtp.layers.{m}.hnorm.weight", "D", "mtp_{m}/norm_hidden/scale_D"),
    ("model.mtp.layers.{m}.eh_proj.weight", "D I", "mtp_{m}/w_ID"),
    ("model.mtp.layers.{m}.final_layernorm.weight", "D", "mtp_{m}/final_norm/scale_D"),
)
MODULES += of_modules(
    PRE_NORMS + ATTENTION + VALUES + MLP,
    ("model.layers.{l}.", "model.mtp.layers.{m}."),
    ("post_attention_layernorm", "pre_mlp_layernorm"),
)

WEIGHTS = EMBEDDINGS + PRE_NORMS + ATTENTION + VALUES + MLP + EXPERTS + SHARED + MODULES
IN_MEMORY = FUSED_EXPERTS + rows(("model.layers.{l}.self_attn.sinks", "(K G)", "attention/sinks_KG"))
"""What transformers has in memory, and may write."""
