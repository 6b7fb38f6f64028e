"""Gemma 4, text (Google DeepMind 2026): five windowed layers to a global one of larger heads, whose keys may serve as
values and whose rope turns a quarter of its pairs; values normalised; per-layer embeddings and borrowed keys and values
in the small models, experts beside a dense MLP in one."""

import math
from dataclasses import replace
from typing import Any

from ..layers.beside import Beside, NormedRouter
from ..layers.decoder import Spec
from ..layers.expert import GatedExpert
from ..layers.lent import NormedAttention
from ..layers.mlp import GatedMLP
from ..layers.moe import MoE
from ..layers.norms import RMSNorm
from ..layers.per_layer import PerLayer, ScaledBlock
from ..layers.rope import Proportional, Rope
from .family import Family, Wrapper, presets, shortest
from .fields import (
    GLOBAL,
    LOCAL,
    Fields,
    layer_kinds,
    layer_types,
    read_activation,
    read_common,
    rope_of,
    rope_parameters,
    write_activation,
    write_common,
)
from .gemma3 import CLASS_DEFAULTS
from .gemma4_names import WEIGHTS

PER_LAYER = ("vocab_size_per_layer_input", "hidden_size_per_layer_input")
ROPES = {LOCAL: Rope(dim=2, theta=1e4), GLOBAL: Rope(dim=2, theta=1e6, scaling=Proportional(share=0.25))}
"""What a config leaves to the class of transformers, but for dim."""
DEFAULTS = CLASS_DEFAULTS | {"vocab_size": 262_144, "num_hidden_layers": 30}


def read(c: Fields) -> Spec:
    c = c.over(DEFAULTS)
    depth, width = c.int("num_hidden_layers"), c.int("hidden_size")
    usual = [LOCAL if (i + 1) % 6 and i + 1 < depth else GLOBAL for i in range(depth)]
    kinds = layer_kinds(c, "layer_types", usual, ROPES)
    if kinds[-1] != GLOBAL:
        raise ValueError(f"config field 'layer_types' must end in {GLOBAL!r}, not in {kinds[-1]!r}")
    if c.get("use_bidirectional_attention", None) != "vision":  # which is tokens of images alone
        c.only("use_bidirectional_attention", None)
    both, by_layer = c.nested("rope_parameters"), c.nested("per_layer_config")
    longest, window = c.int("max_position_embeddings"), c.int("sliding_window", 512)
    norm, borrowing = RMSNorm(eps=c.float("rms_norm_eps", 1e-6)), c.int("num_kv_shared_layers", 0)
    plain, tied = c.int("head_dim", 256), c.bool("attention_k_eq_v", False)
    heads, kv_heads = c.int("num_attention_heads", 8), c.int("num_key_value_heads", 4)
    large, few = c.int("global_head_dim", 512), c.int("num_global_key_value_heads", kv_heads)
    own = kinds[: max(depth - borrowing, 0)]
    if borrowing and set(own) != set(kinds):
        raise ValueError(f"config field 'num_kv_shared_layers' is {borrowing}, which leaves no layer of a kind to lend")
    lenders = {kind: len(own) - 1 - own[::-1].index(kind) for kind in set(kinds)} if borrowing else {}

    def rope(kind: str, dim: int) -> Rope:
        said, usual = both.nested(kind), ROPES[kind]
        return rope_of([said], dim, longest, usual.theta) if said.config else replace(usual, dim=dim)

    def attention(i: int) -> NormedAttention:
        kind, stated = kinds[i], by_layer.nested(str(i))
        grown = kind == GLOBAL and c.config.get("per_layer_config") is None
        head_dim = stated.int("head_dim", large if grown else plain)
        of_kind = stated.int("num_key_value_heads", few if grown and tied else kv_heads)
        stated.finish_nested("a layer")
        return NormedAttention(
            heads=heads,
            kv_heads=of_kind,
            head_dim=head_dim,
            rope=rope(kind, head_dim),
            norm=norm,
            window=window if kind == LOCAL else None,
            shared_value=tied and kind == GLOBAL and i < len(own),
            lends=kind if lenders.get(kind) == i else "",
            borrows=kind if i >= len(own) else "",
        )

    attentions = tuple(attention(i) for i in range(depth))
    both.taken |= set(ROPES)
    both.finish_nested("a model with a rope for each kind of layer")
    by_layer.finish_nested("a model of this depth")
    activation = read_activation(c, "hidden_activation", "gelu_pytorch_tanh")
    ffn, wide, dim = c.int("intermediate_size", 9216), c.bool("use_double_wide_mlp", False), c.int(PER_LAYER[1], 256)
    dense = tuple(GatedMLP(ffn=ffn * (2 if wide and a.borrows else 1), activation=activation) for a in attentions)
    routed = read_experts(c, norm, activation) if c.bool("enable_moe_block", False) else None
    c.taken |= {"num_experts", "top_k_experts", "moe_intermediate_size", PER_LAYER[0]}  # read or without effect
    return Spec(
        **read_common(c, tied=True),
        attention=shortest(attentions),
        mlp=shortest(tuple(Beside(dense=d, experts=routed, norm=norm) if routed else d for d in dense)),
        block=ScaledBlock(norm=norm, mlp_normed=not routed, dim=dim, activation=activation),
        final_norm=norm,
        embedding_scale=math.sqrt(width),
        logit_softcap=c.float("final_logit_softcapping", None),
        per_layer=PerLayer(vocab=c.int(PER_LAYER[0], 262_144), dim=dim, norm=norm) if dim else None,
    )


def read_experts(c: Fields, norm: RMSNorm, activation: str) -> MoE:
    router = NormedRouter(top_k=c.int("top_k_experts"), eps=norm.eps)
    expert = GatedExpert(activation=activation)
    return MoE(experts=c.int("num_experts"), ffn=c.int("moe_intermediate_size"), router=router, expert=expert)


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    """One dialect: the family is younger than transformers 5."""
    layers, mlp = [layer.attention for layer in spec.layers], spec.mlp[0]
    of = {GLOBAL if a.window is None else LOCAL: a for a in reversed(layers)}
    last, local = of[GLOBAL], of.get(LOCAL, of[GLOBAL])
    ropes = {kind: of[kind].rope if kind in of else usual for kind, usual in ROPES.items()}
    dense, routed = (mlp.dense, mlp.experts) if isinstance(mlp, Beside) else (mlp, None)
    widest = max(getattr(layer.mlp, "dense", layer.mlp).ffn for layer in spec.layers)
    return write_common(spec) | {
        "num_attention_heads": last.heads,
        "num_key_value_heads": local.kv_heads,
        "head_dim": local.head_dim,
        "global_head_dim": last.head_dim,
        "num_global_key_value_heads": last.kv_heads if last.shared_value else None,
        "attention_k_eq_v": last.shared_value,
        "sliding_window": local.window or 512,
        "layer_types": layer_types(spec),
        "rope_parameters": {kind: rope_parameters(rope) for kind, rope in ropes.items()},
        "num_kv_shared_layers": sum(bool(a.borrows) for a in layers),
        "use_double_wide_mlp": widest > dense.ffn,
        "use_bidirectional_attention": None,
        "intermediate_size": dense.ffn,
        "hidden_activation": write_activation(dense.activation),
        "enable_moe_block": routed is not None,
        "num_experts": routed and routed.experts,
        "top_k_experts": routed and routed.router.top_k,
        "moe_intermediate_size": routed and routed.ffn,
        PER_LAYER[1]: spec.per_layer.dim if spec.per_layer else 0,
        PER_LAYER[0]: spec.per_layer.vocab if spec.per_layer else spec.vocab,
        "final_logit_softcapping": spec.logit_softcap,
        "rms_norm_eps": spec.final_norm.eps,
    }


def size(width: int, ffn: int, depth: int, heads: int, kv_heads: int, window: int, dim: int, **more: Any) -> Spec:
    """dim: of per-layer embeddings, 0 for none; more: other fields as in a config."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    config = dict(zip(names, (width, ffn, depth, heads, kv_heads), strict=True)) | {
        "sliding_window": window,
        PER_LAYER[1]: dim,
        "final_logit_softcapping": 30.0,
        "eos_token_id": [1, 106],
    }
    return read(Fields(config | more))


LARGE = {"attention_k_eq_v": True, "max_position_embeddings": 262_144}
EXPERTS = {"enable_moe_block": True, "num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704}
E2B = {"num_kv_shared_layers": 20, "use_double_wide_mlp": True, "layer_types": [*[LOCAL] * 4, GLOBAL] * 7}
NANO = {
    "vocab_size": 257,
    PER_LAYER[0]: 257,
    "head_dim": 32,
    "global_head_dim": 64,
    "num_kv_shared_layers": 2,
    "layer_types": [LOCAL, LOCAL, GLOBAL] * 2 + [LOCAL, GLOBAL],
    "max_position_embeddings": 4096,
    "bos_token_id": 256,
    "eos_token_id": 256,
}

# Published sizes, whose sums are the parameter counts that are published with them (2.3B and 4.5B without tables).
FAMILY = Family(
    name="gemma4_text",
    architecture="Gemma4ForCausalLM",
    read=read,
    write=write,
    fixed={"attention_bias": False, "attention_dropout": 0.0},
    weights=WEIGHTS,
    wrapper=Wrapper(
        model_type="gemma4",
        prefixes={"model.language_model.": "model."},
        left_out=("model.vision_tower.", "model.embed_vision.", "model.audio_tower.", "model.embed_audio."),
    ),
    presets=presets(
        "gemma4_text",
        {
            "gemma4-e2b": size(1536, 6144, 35, 8, 1, 512, 256, **E2B),
            "gemma4-e4b": size(2560, 10240, 42, 8, 2, 512, 256, num_kv_shared_layers=18),
            "gemma4-26b-a4b": size(2816, 2112, 30, 16, 8, 1024, 0, num_global_key_value_heads=2, **LARGE, **EXPERTS),
            "gemma4-31b": size(5376, 21504, 60, 32, 16, 1024, 0, num_global_key_value_heads=4, **LARGE),
            "gemma4-nano": size(192, 512, 8, 6, 2, 64, 32, **NANO),
        },
    ),
)
