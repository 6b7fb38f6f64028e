"""Gemma 3, text (Gemma team 2025, arXiv 2503.19786): five windowed layers to a global one, each kind with its own
rope; sandwich norms with zero-centred scales; QK-norm per head; embeddings scaled by sqrt(width)."""

import math
from dataclasses import replace
from typing import Any

from ..layers.attention import Attention, Scores
from ..layers.block import sandwich_norm
from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from ..layers.norms import QKNorm, RMSNorm
from ..layers.rope import Linear, Rope
from .family import ATTENTION, EMBEDDINGS, HEAD_NORMS, MLP, SANDWICH_NORMS, Family, Wrapper, presets, shortest
from .fields import (
    GLOBAL,
    LOCAL,
    Fields,
    layer_kinds,
    layer_types,
    read_activation,
    read_common,
    read_ropes,
    rope_parameters,
    write_activation,
    write_common,
)

THETAS = {GLOBAL: ("rope_theta", 1e6), LOCAL: ("rope_local_base_freq", 1e4)}
CLASS_DEFAULTS = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "num_hidden_layers": 26,
    "max_position_embeddings": 131_072,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
"""What published configs of the multimodal sizes leave to the class of transformers."""

FIXED = {
    "use_bidirectional_attention": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,  # transformers reads it and does not apply it
}


def read(c: Fields) -> Spec:
    c = c.over(CLASS_DEFAULTS)
    depth, every = c.int("num_hidden_layers"), c.int("sliding_window_pattern", 6, least=1)
    kinds = layer_kinds(c, "layer_types", [LOCAL if (i + 1) % every else GLOBAL for i in range(depth)], THETAS)
    norm, head_dim = RMSNorm(eps=c.float("rms_norm_eps", 1e-6), zero_centred=True), c.int("head_dim", 256)
    ropes, window = read_ropes(c, head_dim, THETAS), c.int("sliding_window", 4096)

    def attention(kind: str) -> Attention:
        return Attention(
            heads=c.int("num_attention_heads", 8),
            kv_heads=c.int("num_key_value_heads", 4),
            head_dim=head_dim,
            rope=ropes[kind],
            window=window if kind == LOCAL else None,
            qk_norm=QKNorm(norm=norm),
            scores=Scores(scale=c.float("query_pre_attn_scalar", 256) ** -0.5),
            bias="qkvo" if c.bool("attention_bias", False) else "",
        )

    activation = read_activation(c, "hidden_activation", "gelu_pytorch_tanh")
    return Spec(
        **read_common(c, tied=True),
        attention=shortest(tuple(map(attention, kinds))),
        mlp=GatedMLP(ffn=c.int("intermediate_size", 9216), activation=activation),
        block=sandwich_norm(norm),
        final_norm=norm,
        embedding_scale=math.sqrt(c.int("hidden_size")),
        logit_softcap=c.float("final_logit_softcapping", None),
    )


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    mlp, kinds = spec.mlp[0], layer_types(spec)
    of = {kind: layer.attention for kind, layer in zip(reversed(kinds), reversed(spec.layers), strict=True)}
    attention = spec.layers[0].attention
    fields = write_common(spec) | {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "query_pre_attn_scalar": round(attention.scores.scale**-2),
        "final_logit_softcapping": spec.logit_softcap,
        "attention_bias": bool(attention.bias),
        "sliding_window": of[LOCAL].window if LOCAL in of else 4096,
        "layer_types": kinds,
        "intermediate_size": mlp.ffn,
        "hidden_activation": write_activation(mlp.activation),
        "rms_norm_eps": spec.final_norm.eps,
    }
    ropes = {kind: rope_parameters(each.rope) for kind, each in of.items()}
    if dialect >= 5:
        return fields | {"rope_parameters": ropes}
    thetas = {name: ropes[kind].pop("rope_theta") if kind in ropes else usual for kind, (name, usual) in THETAS.items()}
    scaling = ropes.get(GLOBAL, {})
    return fields | thetas | {"rope_scaling": scaling if "factor" in scaling else None}


def size(
    width: int, ffn: int, depth: int, heads: int, kv_heads: int, head_dim: int, window: int, scalar: int, factor: float
) -> Spec:
    norm = RMSNorm(eps=1e-6, zero_centred=True)
    local = Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope=Rope(dim=head_dim, theta=1e4),
        window=window,
        qk_norm=QKNorm(norm=norm),
        scores=Scores(scale=scalar**-0.5),
    )
    stretched = Rope(dim=head_dim, theta=1e6, scaling=Linear(factor=factor) if factor > 1 else None)
    return Spec(
        vocab=262_208,
        width=width,
        depth=depth,
        attention=(local,) * 5 + (replace(local, rope=stretched, window=None),),
        mlp=GatedMLP(ffn=ffn, activation="gelu_tanh"),
        block=sandwich_norm(norm),
        final_norm=norm,
        tied=True,
        embedding_scale=math.sqrt(width),
        max_length=131_072,
        bos_id=2,
        eos_ids=(1, 106),
        pad_id=0,
    )


SMALL = {"vocab": 262_144, "max_length": 32_768}

FAMILY = Family(
    name="gemma3_text",
    architecture="Gemma3ForCausalLM",
    read=read,
    write=write,
    fixed=FIXED,
    weights=EMBEDDINGS + ATTENTION + HEAD_NORMS + MLP + SANDWICH_NORMS,
    inert=frozenset({"_sliding_window_pattern"}),  # transformers 4 wrote it beside layer_types and never read it
    wrapper=Wrapper(
        model_type="gemma3",
        prefixes={"language_model.": "", "model.language_model.": "model."},
        left_out=("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."),
    ),
    presets=presets(
        "gemma3_text",
        {
            "gemma3-270m": size(640, 2048, 18, 4, 1, 256, 512, 256, 1).replace(SMALL),
            "gemma3-1b": size(1152, 6912, 26, 4, 1, 256, 512, 256, 1).replace(SMALL),
            "gemma3-4b": size(2560, 10240, 34, 8, 4, 256, 1024, 256, 8),
            "gemma3-12b": size(3840, 15360, 48, 16, 8, 256, 1024, 256, 8),
            "gemma3-27b": size(5376, 21504, 62, 32, 16, 128, 1024, 168, 8),
            "gemma3-nano": size(192, 512, 8, 6, 2, 32, 64, 32, 1).replace(vocab=257, bos_id=256, eos_ids=(256,)),
        },
    ),
)
