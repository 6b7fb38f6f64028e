"""Gemma 3, text (Gemma team 2025, arXiv 2503.19786): five windowed layers to a global one, each kind with its own
rope; sandwich norms with zero-centred scales; QK-norm per head; embeddings scaled by sqrt(width)."""

import math
from typing import Any

from ..layers.attention import Attention, Scores
from ..layers.block import sandwich_norm
from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from ..layers.norms import QKNorm, RMSNorm
from ..layers.pattern import expand
from ..layers.rope import Linear, Rope
from .family import ATTENTION, EMBEDDINGS, HEAD_NORMS, MLP, SANDWICH_NORMS, Family, Wrapper, presets
from .fields import Fields, read_common, rope_of, rope_parameters, write_common

LOCAL, GLOBAL = "sliding_attention", "full_attention"
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "silu": "silu"}
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


def read(c: Fields) -> Spec:
    c = c.over(CLASS_DEFAULTS)
    head_dim, max_length = c.int("head_dim", 256), c.int("max_position_embeddings")
    depth, every = c.int("num_hidden_layers"), c.int("sliding_window_pattern", 6, least=1)
    kinds = c.list("layer_types", [LOCAL if (i + 1) % every else GLOBAL for i in range(depth)])
    if len(kinds) != depth or any(kind not in (LOCAL, GLOBAL) for kind in kinds):
        raise ValueError(f"config field 'layer_types' must be {depth} of {LOCAL!r} and {GLOBAL!r}, not {kinds!r:.80}")
    c.only("use_bidirectional_attention", False)
    c.only("attention_dropout", 0.0)
    c.only("attn_logit_softcapping", None)  # transformers reads it and does not apply it
    both = c.nested("rope_parameters")
    everywhere, local = [both.nested(GLOBAL), c.nested("rope_scaling")], [both.nested(LOCAL)]
    ropes = {
        GLOBAL: rope_of(everywhere, head_dim, max_length, c.float("rope_theta", 1e6)),
        LOCAL: rope_of(local, head_dim, max_length, c.float("rope_local_base_freq", 1e4)),
    }
    both.finish_nested("a model with a rope for each kind of layer")
    norm = RMSNorm(eps=c.float("rms_norm_eps", 1e-6), zero_centred=True)

    def attention(kind: str, window: int | None) -> Attention:
        return Attention(
            heads=c.int("num_attention_heads", 8),
            kv_heads=c.int("num_key_value_heads", 4),
            head_dim=head_dim,
            rope=ropes[kind],
            window=window,
            qk_norm=QKNorm(norm=norm),
            scores=Scores(scale=c.float("query_pre_attn_scalar", 256) ** -0.5),
            bias="qkvo" if c.bool("attention_bias", False) else "",
        )

    layers = {LOCAL: attention(LOCAL, c.int("sliding_window", 4096)), GLOBAL: attention(GLOBAL, None)}
    return Spec(
        **read_common(c, tied=True),
        attention=shortest(tuple(layers[kind] for kind in kinds)),
        mlp=GatedMLP(
            ffn=c.int("intermediate_size", 9216),
            activation=ACTIVATIONS[c.choice("hidden_activation", "gelu_pytorch_tanh", ACTIVATIONS)],
        ),
        block=sandwich_norm(norm),
        final_norm=norm,
        embedding_scale=math.sqrt(c.int("hidden_size")),
        logit_softcap=c.float("final_logit_softcapping", None),
    )


def shortest(layers: tuple[Any, ...]) -> tuple[Any, ...]:
    """The shortest pattern whose repetition gives these layers."""
    return next(layers[:n] for n in range(1, len(layers) + 1) if expand(layers[:n], len(layers)) == layers)


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    mlp = spec.mlp[0]
    layers = [layer.attention for layer in spec.layers]
    kinds = [GLOBAL if attention.window is None else LOCAL for attention in layers]
    of = dict(zip(reversed(kinds), reversed(layers), strict=True))
    any_kind = layers[0]
    ropes = {kind: rope_parameters(attention.rope) for kind, attention in of.items()}
    fields = write_common(spec) | {
        "num_attention_heads": any_kind.heads,
        "num_key_value_heads": any_kind.kv_heads,
        "head_dim": any_kind.head_dim,
        "query_pre_attn_scalar": round(any_kind.scores.scale**-2),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": spec.logit_softcap,
        "attention_bias": bool(any_kind.bias),
        "attention_dropout": 0.0,
        "sliding_window": of[LOCAL].window if LOCAL in of else 4096,
        "layer_types": kinds,
        "use_bidirectional_attention": False,
        "intermediate_size": mlp.ffn,
        "hidden_activation": next(name for name, ours in ACTIVATIONS.items() if ours == mlp.activation),
        "rms_norm_eps": spec.final_norm.eps,
    }
    if dialect >= 5:
        return fields | {"rope_parameters": ropes}
    scaling = ropes.get(GLOBAL, {"rope_theta": 1e6})
    return fields | {
        "rope_theta": scaling.pop("rope_theta"),
        "rope_scaling": scaling if "factor" in scaling else None,
        "rope_local_base_freq": ropes.get(LOCAL, {"rope_theta": 1e4})["rope_theta"],
    }


def size(
    width: int, ffn: int, depth: int, heads: int, kv_heads: int, head_dim: int, window: int, scalar: int, factor: float
) -> Spec:
    norm = RMSNorm(eps=1e-6, zero_centred=True)
    common: dict[str, Any] = {
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "qk_norm": QKNorm(norm=norm),
        "scores": Scores(scale=scalar**-0.5),
    }
    scaling = Linear(factor=factor) if factor > 1 else None
    local = Attention(**common, rope=Rope(dim=head_dim, theta=1e4), window=window)
    everywhere = Attention(**common, rope=Rope(dim=head_dim, theta=1e6, scaling=scaling))
    return Spec(
        vocab=262_208,
        width=width,
        depth=depth,
        attention=(local,) * 5 + (everywhere,),
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
