"""Where DeepSeek-V4's tensors lie: under the names that transformers writes, and under those that it has in memory.

The former are nearly the published ones, with `model.` before them; deepseek_v4_hub.py has the differences."""

from .family import FUSED_EXPERTS
from .weights import rows

_TOP = rows(
    ("model.embed_tokens.weight", "V D", "embed_VD"),
    ("model.norm.weight", "D", "final_norm/scale_D"),
    ("model.hc_head.hc_fn", "X (N D)", "close/read/w_NDX"),
    ("model.hc_head.hc_base", "X", "close/read/bias_X"),
    ("model.hc_head.hc_scale", "G", "close/read/gain_G"),
)

_NAMES = (
    ("attn_norm.weight", "input_layernorm.weight", "D", "attention_before/scale_D"),
    ("ffn_norm.weight", "post_attention_layernorm.weight", "D", "mlp_before/scale_D"),
    *(
        (f"hc_{part}_{old}", f"{part}_hc.{old}", layout, f"{ours}_streams/{name}")
        for part, ours in (("attn", "attention"), ("ffn", "mlp"))
        for old, layout, name in (("fn", "X (N D)", "w_NDX"), ("base", "X", "bias_X"), ("scale", "G", "gain_G"))
    ),
    ("attn.wq_a.weight", "self_attn.q_a_proj.weight", "Q D", "attention/wq_down_DQ"),
    ("attn.q_norm.weight", "self_attn.q_a_norm.weight", "Q", "attention/q_norm/scale_Q"),
    ("attn.wq_b.weight", "self_attn.q_b_proj.weight", "(K G E) Q", "attention/wq_up_QKGE"),
    ("attn.wkv.weight", "self_attn.kv_proj.weight", "E D", "attention/wk_DE"),
    ("attn.norm.weight", "self_attn.kv_norm.weight", "E", "attention/k_norm/scale_E"),
    ("attn.wo_a.weight", "self_attn.o_a_proj.weight", "(K C) (G E)", "attention/wo_down_KGEC"),
    ("attn.wo_b.weight", "self_attn.o_b_proj.weight", "D A", "attention/wo_up_AD"),
    ("attn.attn_sink", "self_attn.sinks", "(K G)", "attention/sinks_KG"),
    *(
        (f"attn.{old}.{theirs}", f"self_attn.{new}.{now}", layout, f"attention/{ours}/{name}")
        for old, new, ours in (
            ("compressor", "compressor", "compressor"),
            ("indexer.compressor", "compressor.indexer", "index"),
        )
        for theirs, now, layout, name in (
            ("wkv.weight", "kv_proj.weight", "U D", "w_DU"),
            ("wgate.weight", "gate_proj.weight", "U D", "w_gate_DU"),
            ("ape", "position_bias", "T U", "bias_TU"),
            ("norm.weight", "kv_norm.weight", "E", "entry_norm/scale_E"),
        )
    ),
    ("attn.indexer.wq_b.weight", "self_attn.compressor.indexer.q_b_proj.weight", "(I E) Q", "attention/w_index_QIE"),
    (
        "attn.indexer.weights_proj.weight",
        "self_attn.compressor.indexer.scorer.weights_proj.weight",
        "I D",
        "attention/w_index_DI",
    ),
    ("ffn.gate.weight", "mlp.gate.weight", "X D", "mlp/router/w_DX"),
    ("ffn.gate.bias", "mlp.gate.e_score_correction_bias", "X", "mlp/router/bias_X"),
    ("ffn.gate.tid2eid", "mlp.gate.tid2eid", "V K", "mlp/router/table_VK"),
    ("ffn.shared_experts.w1.weight", "mlp.shared_experts.gate_proj.weight", "F D", "mlp/shared/w_gate_DF"),
    ("ffn.shared_experts.w3.weight", "mlp.shared_experts.up_proj.weight", "F D", "mlp/shared/w_up_DF"),
    ("ffn.shared_experts.w2.weight", "mlp.shared_experts.down_proj.weight", "D F", "mlp/shared/w_down_FD"),
)
"""Names in a layer as transformers writes them and as it has them in memory, layout, parameter."""

_EXPERTS = rows(
    ("model.layers.{l}.ffn.experts.{e}.w1.weight", "F D", "mlp/w_gate_XFD"),
    ("model.layers.{l}.ffn.experts.{e}.w3.weight", "F D", "mlp/w_up_XFD"),
    ("model.layers.{l}.ffn.experts.{e}.w2.weight", "D F", "mlp/w_down_XDF"),
)
_WRITTEN, _IN_MEMORY = (
    rows((head, "V D", "head_DV"), *((f"model.layers.{{l}}.{names[which]}", *names[2:]) for names in _NAMES))
    for which, head in enumerate(("head.weight", "lm_head.weight"))
)

WRITTEN = _TOP + _WRITTEN + _EXPERTS
IN_MEMORY = _IN_MEMORY + FUSED_EXPERTS
