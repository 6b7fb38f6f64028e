"""Kimi Linear (Kimi team 2025, arXiv 2510.26692): three layers of Kimi Delta Attention to one of latent attention
without rope; DeepSeek-V3's experts.
"""

from dataclasses import replace
from typing import Any

from ..layers.block import pre_norm
from ..layers.decoder import Spec
from ..layers.kda import KimiDelta
from ..layers.mlp import GatedMLP
from ..layers.moe import MoE
from ..layers.norms import RMSNorm
from ..layers.rope import Proportional, Rope
from .deepseek import LATENT, SHARED, read_experts, read_latent, write_experts, write_latent
from .family import EMBEDDINGS, EXPERTS, FUSED_EXPERTS, MLP, PRE_NORMS, Family, presets, shortest, tailed
from .fields import Fields, layer_kinds, read_common, write_common
from .hybrid import FULL, LINEAR, mixers
from .weights import Row, rows

WORDS = {
    "model_max_length": "max_position_embeddings",
    "moe_renormalize": "norm_topk_prob",
    "moe_router_activation_func": "scoring_func",
    "num_expert_group": "n_group",
    "num_experts": "n_routed_experts",
    "num_experts_per_token": "num_experts_per_tok",
    "num_local_experts": "n_routed_experts",
    "num_shared_experts": "n_shared_experts",
}
"""Fields of the published config, and of transformers, in the words of DeepSeek-V3."""

DENSE, SPARSE = "dense", "sparse"
NESTED = "linear_attn_config"
AT_REST = frozenset({"head_dim", "qk_head_dim", "rope_interleave", "rope_parameters", "rope_scaling", "rope_theta"})
"""Fields that mean nothing where nothing is rotated."""


def unrotated(dim: int) -> Rope:
    """The dimensions of a key that all heads share, which stand still (NoPE)."""
    return Rope(dim=dim, scaling=Proportional(share=0.0))


def read(c: Fields) -> Spec:
    said = {WORDS.get(name, name): value for name, value in c.config.items() if name not in AT_REST}
    d = Fields({"n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.446} | said)
    norm, depth, linear = RMSNorm(eps=d.float("rms_norm_eps", 1e-5)), d.int("num_hidden_layers"), c.nested(NESTED)
    head_dim = linear.int("head_dim", d.int("linear_head_dim", 128))
    delta = KimiDelta(
        heads=linear.int("num_heads", d.int("linear_num_heads", 32)),
        head_dim=head_dim,
        rank=head_dim,
        taps=linear.int("short_conv_kernel_size", d.int("linear_conv_kernel_dim", 4)),
        norm=norm,
    )
    latent = replace(read_latent(d), rope=unrotated(d.int("qk_rope_head_dim")))
    full = linear.list("full_attn_layers", [i + 1 for i in range(depth) if i and i % 4 == 0])
    deltas = linear.list("kda_layers", [i + 1 for i in range(depth) if i + 1 not in full])
    linear.finish_nested("linear attention")
    if sorted([*full, *deltas]) != list(range(1, depth + 1)):
        raise ValueError(f"config field {NESTED!r} does not place {depth} layers: {full!r:.80} and {deltas!r:.80}")
    attentions = {LINEAR: delta, FULL: latent}
    kinds = layer_kinds(d, "layer_types", [FULL if i + 1 in full else LINEAR for i in range(depth)], attentions)
    mlps = {DENSE: GatedMLP(ffn=d.int("intermediate_size")), SPARSE: read_experts(d)}
    usual = [DENSE if i < d.int("first_k_dense_replace", 1) else SPARSE for i in range(depth)]
    spec = Spec(
        **read_common(d),
        attention=shortest([attentions[kind] for kind in kinds]),
        mlp=tailed([mlps[kind] for kind in layer_kinds(d, "mlp_layer_types", usual, mlps)]),
        block=pre_norm(norm),
        final_norm=norm,
    )
    c.taken |= {name for name in c.config if WORDS.get(name, name) in d.taken}
    return spec


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    """In the words of the published config, which either version of transformers reads."""
    delta, latent = mixers(spec, KimiDelta)
    full = [i + 1 for i, layer in enumerate(spec.layers) if not isinstance(layer.attention, KimiDelta)]
    mlps = [layer.mlp for layer in spec.layers]
    moe = next(mlp for mlp in mlps if isinstance(mlp, MoE))
    fields = write_common(spec) | write_latent(latent, dialect) | write_experts(moe)
    names = {theirs: name for name, theirs in WORDS.items() if name != "num_local_experts"}
    return {names.get(name, name): value for name, value in fields.items() if name not in AT_REST} | {
        NESTED: {
            "head_dim": delta.head_dim,
            "num_heads": delta.heads,
            "short_conv_kernel_size": delta.taps,
            "full_attn_layers": full,
            "kda_layers": [i + 1 for i in range(spec.depth) if i + 1 not in full],
        },
        "moe_router_activation_func": moe.router.score,
        "intermediate_size": next((mlp.ffn for mlp in mlps if isinstance(mlp, GatedMLP)), 9216),
        "mlp_layer_types": [SPARSE if isinstance(mlp, MoE) else DENSE for mlp in mlps],
        "rms_norm_eps": spec.final_norm.eps,
    }


SELF = "model.layers.{l}.self_attn."
FORGET = (
    ("A_log", "() () H ()", "attention/log_forget_H"),
    ("dt_bias", "(H E)", "attention/b_step_HE"),
    ("f_a_proj.weight", "R D", "attention/w_step_down_DR"),
    ("f_b_proj.weight", "(H E) R", "attention/w_step_up_RHE"),
)
DELTA = rows(
    *((SELF + f"{x}_proj.weight", "(H E) D", f"attention/w{x}_DHE") for x in "qkv"),
    *((SELF + f"{x}_conv1d.weight", "(H E) () T", f"attention/conv_{x}_HET") for x in "qkv"),
    *((SELF + name, *rest) for name, *rest in FORGET),
    (SELF + "b_proj.weight", "H D", "attention/w_rate_DH"),
    (SELF + "g_a_proj.weight", "R D", "attention/w_gate_down_DR"),
    (SELF + "g_b_proj.weight", "(H E) R", "attention/w_gate_up_RHE"),
    (SELF + "o_norm.weight", "E", "attention/out_norm/scale_E"),
    (SELF + "o_proj.weight", "D (H E)", "attention/wo_HED"),
)
IN_MEMORY = rows(
    (SELF + "conv1d.weight", "[(H E) (H E) (H E)] () T", *(f"attention/conv_{x}_HET" for x in "qkv")),
    *((SELF + "forget_gate." + name, *rest) for name, *rest in FORGET),
)


def published(row: Row) -> Row:
    """The row under the names of the published checkpoint, whose experts are Mixtral's."""
    name = row.name.replace(".mlp.", ".block_sparse_moe.")
    for theirs, ours in (("{e}.gate_proj", "{e}.w1"), ("{e}.up_proj", "{e}.w3"), ("{e}.down_proj", "{e}.w2")):
        name = name.replace(theirs, ours)
    return row._replace(name=name)


def size(width: int, ffn: int, heads: int, head_dim: int, rank: int, full: list[int], **more: Any) -> Spec:
    """full: the layers with latent attention, counted from 1; the last of them is the last layer."""
    config = {
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_hidden_layers": full[-1],
        "num_attention_heads": heads,
        "qk_nope_head_dim": head_dim,
        "qk_rope_head_dim": head_dim // 2,
        "v_head_dim": head_dim,
        "kv_lora_rank": rank,
        "rms_norm_eps": 1e-5,
        NESTED: {"num_heads": heads, "head_dim": head_dim, "full_attn_layers": full},
    }
    return read(Fields(config | more))


# Published, all but the ids of tokens, which are class defaults: 27 layers, of which every fourth and the last attend.
TOKENS = {"vocab_size": 163_840, "bos_token_id": 163_584, "eos_token_id": 163_586, "pad_token_id": 163_839}
A3B = {"num_experts": 256, "num_experts_per_token": 8, "moe_intermediate_size": 1024, "model_max_length": 1_048_576}
NANO = {"num_experts": 16, "num_experts_per_token": 4, "moe_intermediate_size": 64, "model_max_length": 4096}
LETTERS = {"vocab_size": 257, "bos_token_id": 256, "eos_token_id": 256}

FAMILY = Family(
    name="kimi_linear",
    architecture="KimiLinearForCausalLM",
    read=read,
    write=write,
    fixed={"hidden_act": "silu", "mla_use_nope": True, "moe_layer_freq": 1},
    weights=EMBEDDINGS + PRE_NORMS + LATENT + DELTA + MLP + tuple(map(published, EXPERTS + SHARED)),
    fused=FUSED_EXPERTS + EXPERTS[:1] + SHARED + IN_MEMORY,
    inert=AT_REST | {"use_grouped_topk"},
    presets=presets(
        "kimi_linear",
        {
            "kimi-linear-48b-a3b": size(2304, 9216, 32, 128, 512, [4, 8, 12, 16, 20, 24, 27], **A3B, **TOKENS),
            "kimi-linear-nano": size(128, 320, 4, 32, 48, [4, 8], **NANO, **LETTERS),
        },
    ),
)
