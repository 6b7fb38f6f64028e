"""MiniMax-M2 (MiniMax 2025): grouped-query attention that rotates half of each head, QK-norm over the full width; many
small experts, none shared, behind a sigmoid router with a selection bias."""

from typing import Any

from ..layers.attention import Attention
from ..layers.block import pre_norm
from ..layers.decoder import Spec
from ..layers.moe import MoE
from ..layers.norms import QKNorm, RMSNorm
from ..layers.rope import Rope
from ..layers.router import Router
from .family import ATTENTION, EMBEDDINGS, PLAIN, PRE_NORMS, WIDTH_NORMS, Family, presets
from .fields import Fields, read_common, read_rope, write_common, write_rope
from .weights import rows

FIXED = PLAIN | {
    "scoring_func": "sigmoid",
    "use_qk_norm": True,
    "qk_norm_type": "per_layer",
    "use_routing_bias": True,
    "shared_intermediate_size": 0,
    "sliding_window": None,
}


def read(c: Fields) -> Spec:
    c.only("attn_type_list", [1] * c.int("num_hidden_layers"))
    heads, norm = c.int("num_attention_heads", least=1), RMSNorm(eps=c.float("rms_norm_eps", 1e-6))
    head_dim = c.int("head_dim", 128, least=1)
    share = c.int("rotary_dim", head_dim) / head_dim
    router = Router(top_k=c.int("num_experts_per_tok", 8), score="sigmoid", bias=True)
    return Spec(
        **read_common(c),
        attention=Attention(
            heads=heads,
            kv_heads=c.int("num_key_value_heads", heads),
            head_dim=head_dim,
            rope=read_rope(c.over({"rope_theta": 5e6}), head_dim, share=share),
            qk_norm=QKNorm(norm=norm, over="width"),
        ),
        mlp=MoE(experts=c.int("num_local_experts", 256), ffn=c.int("intermediate_size"), router=router),
        block=pre_norm(norm),
        final_norm=norm,
    )


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    attention, moe = spec.attention[0], spec.mlp[0]
    rope = write_rope(attention.rope, dialect, attention.head_dim)
    if dialect < 5:
        rope = {**rope, "rotary_dim": attention.rope.dim}
        del rope["partial_rotary_factor"]
    return write_common(spec) | {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        **rope,
        "intermediate_size": moe.ffn,
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.router.top_k,
        "rms_norm_eps": spec.final_norm.eps,
    }


BLOCK = rows(
    ("model.layers.{l}.block_sparse_moe.gate.weight", "X D", "mlp/router/w_DX"),
    ("model.layers.{l}.block_sparse_moe.e_score_correction_bias", "X", "mlp/router/bias_X"),
    ("model.layers.{l}.block_sparse_moe.experts.{e}.w1.weight", "F D", "mlp/w_gate_XFD"),
    ("model.layers.{l}.block_sparse_moe.experts.{e}.w3.weight", "F D", "mlp/w_up_XFD"),
    ("model.layers.{l}.block_sparse_moe.experts.{e}.w2.weight", "D F", "mlp/w_down_XDF"),
)
FUSED_BLOCK = rows(
    ("model.layers.{l}.mlp.gate.weight", "X D", "mlp/router/w_DX"),
    ("model.layers.{l}.mlp.e_score_correction_bias", "X", "mlp/router/bias_X"),
    ("model.layers.{l}.mlp.experts.gate_up_proj", "X [F F] D", "mlp/w_gate_XFD", "mlp/w_up_XFD"),
    ("model.layers.{l}.mlp.experts.down_proj", "X D F", "mlp/w_down_XDF"),
)


def model(width: int, depth: int, heads: int, kv_heads: int, dim: int, experts: int, top_k: int, ffn: int) -> Spec:
    norm = RMSNorm(eps=1e-6)
    return Spec(
        vocab=200_064,
        width=width,
        depth=depth,
        attention=Attention(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=dim,
            rope=Rope(dim=dim // 2, theta=5e6),
            qk_norm=QKNorm(norm=norm, over="width"),
        ),
        mlp=MoE(experts=experts, ffn=ffn, router=Router(top_k=top_k, score="sigmoid", bias=True)),
        block=pre_norm(norm),
        final_norm=norm,
        max_length=196_608,
        bos_id=200_034,
        eos_ids=(200_020,),
    )


# Sizes and token ids are the class defaults of transformers, made for this model; the rotated half is published.
FAMILY = Family(
    name="minimax_m2",
    architecture="MiniMaxM2ForCausalLM",
    read=read,
    write=write,
    fixed=FIXED,
    weights=EMBEDDINGS + PRE_NORMS + ATTENTION + WIDTH_NORMS + BLOCK,
    fused=FUSED_BLOCK,
    inert=frozenset({"use_mtp", "num_mtp_modules", "mtp_transformer_layers", "router_jitter_noise"}),
    presets=presets(
        "minimax_m2",
        {
            "minimax-m2": model(3072, 62, 48, 8, 128, 256, 8, 1536),
            "minimax-m2-nano": model(128, 4, 6, 2, 32, 16, 4, 64).replace(
                vocab=257, max_length=4096, bos_id=256, eos_ids=(256,)
            ),
        },
    ),
)
