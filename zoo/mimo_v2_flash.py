"""MiMo-V2-Flash (Xiaomi 2025): five windowed layers, with sinks and twice the key heads, to one that sees all; values
narrower than keys; rope on a third of a head; experts behind a sigmoid router with a selection bias, none shared.

Three modules of multi-token prediction, each a windowed layer with a dense MLP. They read what they do in SGLang, to
which Xiaomi gave the model: its states before the last norm, and no module those of another. transformers leaves them
out, and names the layers' kinds in ways of its own.
"""

from dataclasses import replace
from typing import Any

from ..layers.attention import Attention, Scores, Values
from ..layers.block import pre_norm
from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from ..layers.moe import MoE
from ..layers.norms import RMSNorm
from ..layers.rope import Rope
from ..layers.router import Router
from ..layers.unchained import Unchained
from .deepseek import read_experts, write_experts
from .family import PLAIN, Family, presets, shortest
from .fields import (
    GLOBAL,
    LOCAL,
    Fields,
    layer_types,
    layer_windows,
    read_common,
    rope_of,
    rope_parameters,
    write_common,
)
from .mimo_v2_flash_names import IN_MEMORY, WEIGHTS

DENSE, SPARSE = "dense", "sparse"
COUNTED = "num_nextn_predict_layers"
THETAS = {GLOBAL: "rope_theta", LOCAL: "swa_rope_theta"}
NO_GROUPS = {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0}


def read(c: Fields) -> Spec:
    heads, head_dim, depth = c.int("num_attention_heads"), c.int("head_dim", 192), c.int("num_hidden_layers")
    only_published(c, heads, head_dim)
    both, share = c.nested("rope_parameters"), c.float("partial_rotary_factor", 0.334)
    thetas = {GLOBAL: c.float(THETAS[GLOBAL], 5e6), LOCAL: c.float(THETAS[LOCAL], 1e4)}
    length = c.int("max_position_embeddings")
    ropes = {
        kind: rope_of([both.nested(kind), c.nested("rope_scaling")], head_dim, length, theta, share=share)
        for kind, theta in thetas.items()
    }
    both.finish_nested("a model with a rope for each kind of layer")
    scale = c.float("attention_value_scale", 1.0 if "attention_value_scale" in c.config else 0.707)

    def attention(window: int | None) -> Attention:
        kv_heads = c.int("num_key_value_heads")
        return Attention(
            heads=heads,
            kv_heads=kv_heads if window is None else 2 * kv_heads,
            head_dim=head_dim,
            rope=ropes[GLOBAL if window is None else LOCAL],
            window=window,
            values=Values(dim=c.int("v_head_dim", 128), scale=scale),
            scores=Scores(sinks=window is not None),
            bias="qkv" if c.bool("attention_bias", False) else "",
        )

    window = c.int("sliding_window", 129)
    if c.int("sliding_window_size", None) is not None:  # of those before the query
        window = c.int("sliding_window_size") + 1
    local = pattern(c, "hybrid_layer_pattern", [int(i > 0 and (i + 1) % 6 != 0) for i in range(depth)])
    windows = layer_windows(c, window, lambda i: local[i] == 1)
    sparse = pattern(c, "moe_layer_freq", [0] + [1] * (depth - 1))
    kinds = c.list("mlp_layer_types", [SPARSE if at else DENSE for at in sparse])
    if len(kinds) != depth or any(kind not in (DENSE, SPARSE) for kind in kinds):
        raise ValueError(f"config field 'mlp_layer_types' does not fit {depth} layers: {kinds!r:.80}")
    mlps = {
        DENSE: GatedMLP(ffn=c.int("intermediate_size")),
        SPARSE: replace(read_experts(c.over(NO_GROUPS)), shared=None),
    }
    norm, modules = RMSNorm(eps=c.float("rms_norm_eps", c.float("layernorm_epsilon", 1e-5))), c.int(COUNTED, 0)
    return Spec(
        **read_common(c),
        attention=shortest(tuple(map(attention, windows))),
        mlp=shortest(tuple(mlps[kind] for kind in kinds)),
        block=pre_norm(norm),
        final_norm=norm,
        mtp=Unchained(depth=modules, attention=attention(window), mlp=mlps[DENSE]) if modules else None,
    )


def pattern(c: Fields, name: str, default: list[int]) -> list[int]:
    """Whether each layer is of the second kind, 0 or 1."""
    found: list[int] = c.list(name, default)
    if len(found) != len(default) or any(at not in (0, 1) for at in found):
        raise ValueError(f"config field {name!r} must be {len(default)} of 0 and 1, not {found!r:.80}")
    return found


def only_published(c: Fields, heads: int, head_dim: int) -> None:
    """Refuses windowed layers that differ from those that see all by more than the published ones do."""
    kv_heads, value_dim = c.int("num_key_value_heads"), c.int("v_head_dim", 128)
    for name, value in (
        ("swa_num_attention_heads", heads),
        ("swa_num_key_value_heads", 2 * kv_heads),
        ("swa_head_dim", head_dim),
        ("swa_v_head_dim", value_dim),
        ("add_swa_attention_sink_bias", True),
        ("add_full_attention_sink_bias", False),
    ):
        c.only(name, value)


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    layers, mlps = [layer.attention for layer in spec.layers], [layer.mlp for layer in spec.layers]
    any_layer, moe = layers[0], next((mlp for mlp in mlps if isinstance(mlp, MoE)), None)
    ropes = {LOCAL if layer.window else GLOBAL: layer.rope for layer in layers}
    share, window = any_layer.rope.dim / any_layer.head_dim, next((at.window for at in layers if at.window), 129)
    routed = {} if moe is None else write_experts(moe)
    routed.pop("n_shared_experts", None)
    return write_common(spec) | {
        "num_attention_heads": any_layer.heads,
        "num_key_value_heads": any_layer.kv_heads // (2 if any_layer.window else 1),
        "head_dim": any_layer.head_dim,
        "v_head_dim": any_layer.values.dim,
        "attention_value_scale": any_layer.values.scale,
        "sliding_window": window,
        "sliding_window_size": window - 1,
        "layer_types": layer_types(spec),
        **write_ropes(ropes, share, dialect),
        "attention_bias": bool(any_layer.bias),
        "intermediate_size": next((mlp.ffn for mlp in mlps if isinstance(mlp, GatedMLP)), 16_384),
        "mlp_layer_types": [SPARSE if isinstance(mlp, MoE) else DENSE for mlp in mlps],
        **({COUNTED: spec.mtp.depth} if spec.mtp else {}),
        **routed,
        "rms_norm_eps": spec.final_norm.eps,
    }


def write_ropes(ropes: dict[str, Rope], share: float, dialect: int) -> dict[str, Any]:
    part = {"partial_rotary_factor": share}
    if dialect >= 5:
        return {"rope_parameters": {kind: rope_parameters(rope) | part for kind, rope in ropes.items()}}
    return {THETAS[kind]: rope.theta for kind, rope in ropes.items()} | part


Sizes = tuple[int, int, int]


def size(width: int, ffn: int, depth: int, heads: int, kv_heads: int, dims: Sizes, window: int, moe: Sizes) -> Spec:
    """dims: of a key, of a value, rotated.  moe: experts, choices, ffn."""
    norm, (head_dim, value_dim, rotated), (experts, top_k, expert_ffn) = RMSNorm(eps=1e-5), dims, moe
    router = Router(top_k=top_k, score="sigmoid", bias=True)
    common: dict[str, Any] = {"heads": heads, "head_dim": head_dim, "values": Values(dim=value_dim, scale=0.707)}
    everywhere = Attention(**common, kv_heads=kv_heads, rope=Rope(dim=rotated, theta=5e6))
    local = Attention(**common, kv_heads=2 * kv_heads, rope=Rope(dim=rotated), window=window, scores=Scores(sinks=True))
    return Spec(
        vocab=152_576,
        width=width,
        depth=depth,
        attention=tuple(everywhere if i == 0 or (i + 1) % 6 == 0 else local for i in range(depth)),
        mlp=(GatedMLP(ffn=ffn), MoE(experts=experts, ffn=expert_ffn, router=router), ...),
        block=pre_norm(norm),
        final_norm=norm,
        max_length=131_072,
        bos_id=1,
    )


# The class defaults, which are those of the published model; published: its positions and modules. The nano is for
# laptops.
NANO = size(128, 320, 6, 4, 1, (48, 32, 16), 65, (16, 4, 64))
FLASH = size(4096, 16_384, 48, 64, 4, (192, 128, 64), 129, (256, 8, 2048)).replace(max_length=262_144)
SIZES = {
    "mimo-v2-flash": FLASH.replace(mtp=Unchained(depth=3, attention=FLASH.attention[1], mlp=FLASH.mlp[0])),
    "mimo-v2-nano": NANO.replace(vocab=257, bos_id=256, eos_ids=(256,)),
}

FAMILY = Family(
    name="mimo_v2_flash",
    architecture="MiMoV2FlashForCausalLM",
    read=read,
    write=write,
    fixed=PLAIN,
    weights=WEIGHTS,
    fused=IN_MEMORY,
    inert=frozenset({"attention_chunk_size", "hybrid_block_size"}),
    counted=COUNTED,
    presets=presets("mimo_v2_flash", SIZES),
)
