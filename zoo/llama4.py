"""Llama 4, text (Meta 2025): three layers in chunks with rope to one that sees all without it, late queries sharpened;
QK-norm after rope, without parameters; a token's best expert reads it times its score, beside a shared one."""

from typing import Any

from ..layers.attention import Attention, Scores
from ..layers.block import pre_norm
from ..layers.chunked import ChunkedAttention
from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from ..layers.moe import MoE
from ..layers.norms import L2Norm, QKNorm, RMSNorm
from ..layers.rope import Rope
from ..layers.router import Router
from ..layers.scaled_input import ScaledInputExpert
from ..layers.temperature import Temperature
from .family import ATTENTION, EMBEDDINGS, PLAIN, PRE_NORMS, Family, Wrapper, presets, shortest
from .fields import GLOBAL, Fields, read_common, read_rope, write_common, write_rope
from .weights import rows

CHUNKED = "chunked_attention"
LEFT_OUT = ("vision_model.", "multi_modal_projector.")


def read(c: Fields) -> Spec:
    c = c.over({"rope_theta": 500_000.0, "max_position_embeddings": 131_072})
    heads, depth = c.int("num_attention_heads", 40, least=1), c.int("num_hidden_layers")
    head_dim, interval = c.int("head_dim", 128), c.int("no_rope_layer_interval", 4, least=1)
    norm = RMSNorm(eps=c.float("rms_norm_eps", 1e-5))
    roped = c.list("no_rope_layers", []) or [int((i + 1) % interval != 0) for i in range(depth)]  # 1: with rope
    kinds = c.list("layer_types", [CHUNKED if has_rope else GLOBAL for has_rope in roped])
    chunk = c.int("attention_chunk_size", 8192)
    if len(roped) != depth or len(kinds) != depth or any(kind not in (CHUNKED, GLOBAL) for kind in kinds):
        raise ValueError(f"config fields 'no_rope_layers' and 'layer_types' do not fit {depth} layers: {kinds!r:.80}")
    qk_norm = QKNorm(norm=L2Norm(eps=norm.eps), after_rope=True) if c.bool("use_qk_norm", True) else None
    temperature = Temperature(length=c.int("floor_scale", 8192), strength=c.float("attn_scale", 0.1), first=1)
    tuned = c.bool("attn_temperature_tuning", True)

    def attention(has_rope: int, kind: str) -> Attention:
        cls, window = (ChunkedAttention, chunk) if kind == CHUNKED else (Attention, None)
        return cls(
            heads=heads,
            kv_heads=c.int("num_key_value_heads", heads),
            head_dim=head_dim,
            rope=read_rope(c, head_dim, interleaved=True) if has_rope else None,
            window=window,
            qk_norm=qk_norm if has_rope else None,
            scores=Scores(temperature=temperature if tuned and not has_rope else None),
            bias="qkvo" if c.bool("attention_bias", False) else "",
        )

    step, dense = c.int("interleave_moe_layer_step", 1, least=1), GatedMLP(ffn=c.int("intermediate_size_mlp", 16_384))
    routed, ffn = c.list("moe_layers", list(range(step - 1, depth, step))), c.int("intermediate_size", 8192)
    moe = experts(c.int("num_local_experts", 16), ffn, c.int("num_experts_per_tok", 1))
    return Spec(
        **read_common(c),
        attention=shortest(tuple(attention(*layer) for layer in zip(roped, kinds, strict=True))),
        mlp=shortest(tuple(moe if i in routed else dense for i in range(depth))),
        block=pre_norm(norm),
        final_norm=norm,
    )


def experts(count: int, ffn: int, top_k: int = 1) -> MoE:
    router = Router(top_k=top_k, score="sigmoid", renormalise=False)
    return MoE(experts=count, ffn=ffn, router=router, shared=GatedMLP(ffn=ffn), expert=ScaledInputExpert())


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    layers, mlps = [layer.attention for layer in spec.layers], [layer.mlp for layer in spec.layers]
    any_layer = layers[0]
    with_rope = next((layer for layer in layers if layer.rope), None)
    moe = next((mlp for mlp in mlps if isinstance(mlp, MoE)), experts(16, 8192))
    found = [layer.scores.temperature for layer in layers if layer.scores.temperature]
    temperature = found[0] if found else Temperature(length=8192, first=1)
    return write_common(spec) | {
        "num_attention_heads": any_layer.heads,
        "num_key_value_heads": any_layer.kv_heads,
        "head_dim": any_layer.head_dim,
        **write_rope(with_rope.rope if with_rope else Rope(dim=any_layer.head_dim, theta=500_000.0), dialect),
        "no_rope_layers": [int(layer.rope is not None) for layer in layers],
        "layer_types": [CHUNKED if isinstance(layer, ChunkedAttention) else GLOBAL for layer in layers],
        "attention_chunk_size": next((layer.window for layer in layers if layer.window), 8192),
        "use_qk_norm": with_rope is None or with_rope.qk_norm is not None,
        "attn_temperature_tuning": bool(found),
        "floor_scale": temperature.length,
        "attn_scale": temperature.strength,
        "attention_bias": bool(any_layer.bias),
        "intermediate_size": moe.ffn,
        "intermediate_size_mlp": next((mlp.ffn for mlp in mlps if isinstance(mlp, GatedMLP)), 16_384),
        "moe_layers": [i for i, mlp in enumerate(mlps) if isinstance(mlp, MoE)],
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.router.top_k,
        "rms_norm_eps": spec.final_norm.eps,
    }


# Experts are published as [in, out].
FEED_FORWARD = rows(
    ("model.layers.{l}.feed_forward.gate_proj.weight", "F D", "mlp/w_gate_DF"),
    ("model.layers.{l}.feed_forward.up_proj.weight", "F D", "mlp/w_up_DF"),
    ("model.layers.{l}.feed_forward.down_proj.weight", "D F", "mlp/w_down_FD"),
    ("model.layers.{l}.feed_forward.router.weight", "X D", "mlp/router/w_DX"),
    ("model.layers.{l}.feed_forward.experts.gate_up_proj", "X D [F F]", "mlp/w_gate_XFD", "mlp/w_up_XFD"),
    ("model.layers.{l}.feed_forward.experts.down_proj", "X F D", "mlp/w_down_XDF"),
    ("model.layers.{l}.feed_forward.shared_expert.gate_proj.weight", "F D", "mlp/shared/w_gate_DF"),
    ("model.layers.{l}.feed_forward.shared_expert.up_proj.weight", "F D", "mlp/shared/w_up_DF"),
    ("model.layers.{l}.feed_forward.shared_expert.down_proj.weight", "D F", "mlp/shared/w_down_FD"),
)


def size(width: int, depth: int, sizes: dict[str, Any], chunk: int, mlp: Any, qk_norm: QKNorm | None) -> Spec:
    norm, rope = RMSNorm(eps=1e-5), Rope(dim=sizes["head_dim"], theta=500_000.0, interleaved=True)
    local = ChunkedAttention(**sizes, rope=rope, window=chunk, qk_norm=qk_norm)
    everywhere = Attention(**sizes, scores=Scores(temperature=Temperature(length=chunk, first=1)))
    return Spec(
        vocab=202_048,
        width=width,
        depth=depth,
        attention=(local,) * 3 + (everywhere,),
        mlp=mlp,
        block=pre_norm(norm),
        final_norm=norm,
        max_length=131_072,
        bos_id=1,
        eos_ids=(2,),
    )


# Published: the sizes of layers, experts and vocabulary. Class defaults: token ids, max_length, rope (unstretched).
LARGE, SMALL = {"heads": 40, "kv_heads": 8, "head_dim": 128}, {"heads": 6, "kv_heads": 2, "head_dim": 32}
L2 = QKNorm(norm=L2Norm(eps=1e-5), after_rope=True)
NANO = size(192, 8, SMALL, 64, experts(8, 256), L2)
SIZES = {
    "llama4-scout": size(5120, 48, LARGE, 8192, experts(16, 8192), L2),
    "llama4-maverick": size(5120, 48, LARGE, 8192, (GatedMLP(ffn=16_384), experts(128, 8192)), None),
    "llama4-nano": NANO.replace(vocab=257, bos_id=256, eos_ids=(256,)),
}

FAMILY = Family(
    name="llama4_text",
    architecture="Llama4ForCausalLM",
    read=read,
    write=write,
    fixed=PLAIN | {"router_jitter_noise": 0.0},
    weights=EMBEDDINGS + PRE_NORMS + ATTENTION + FEED_FORWARD,
    inert=frozenset({"for_llm_compressor"}),
    wrapper=Wrapper(model_type="llama4", prefixes={"language_model.": ""}, left_out=LEFT_OUT),
    presets=presets("llama4_text", SIZES),
)
