"""OLMo Hybrid (Ai2 2026): three Gated DeltaNet layers, normalised before, to one of OLMo 2's attention, normalised
after.
"""

from typing import Any

from ..layers.attention import Attention
from ..layers.block import inner_post_norm, pre_norm
from ..layers.decoder import Spec
from ..layers.delta import GatedDelta
from ..layers.mlp import GatedMLP
from ..layers.norms import QKNorm, RMSNorm
from ..layers.rope import Rope
from .family import ATTENTION, EMBEDDINGS, MLP, PLAIN, POST_NORMS, PRE_NORMS, WIDTH_NORMS, Family, presets, shortest
from .fields import Fields, read_common, read_rope, write_common, write_rope
from .hybrid import CONVOLUTION, DECAY, FULL, LINEAR, mixers, read_delta, read_kinds, write_delta, write_kinds
from .weights import rows

OUT_NORM = RMSNorm(eps=1e-5)
"""Of the delta rule's output, whatever the config says of the others."""


def read(c: Fields) -> Spec:
    width, heads = c.int("hidden_size"), c.int("num_attention_heads", least=1)
    norm = RMSNorm(eps=c.float("rms_norm_eps", 1e-6))
    key_dim = int(0.75 * width / c.int("linear_num_key_heads", heads, least=1))
    delta = read_delta(
        c,
        OUT_NORM,
        reach=2.0 if c.bool("linear_allow_neg_eigval", True) else 1.0,
        num_key_heads=heads,
        num_value_heads=heads,
        key_head_dim=key_dim,
        value_head_dim=2 * c.int("linear_key_head_dim", key_dim),
        conv_kernel_dim=4,
    )
    attention = Attention(
        heads=heads,
        kv_heads=c.int("num_key_value_heads", heads),
        head_dim=width // heads,
        rope=read_any_rope(c, width // heads),
        qk_norm=QKNorm(norm=norm, over="width"),
        bias="qkvo" if c.bool("attention_bias", False) else "",
    )
    layers = {LINEAR: (delta, pre_norm(norm)), FULL: (attention, inner_post_norm(norm))}
    attentions, blocks = zip(*(layers[kind] for kind in read_kinds(c, every=4)), strict=True)
    return Spec(
        **read_common(c),
        attention=shortest(attentions),
        mlp=GatedMLP(ffn=c.int("intermediate_size")),
        block=shortest(blocks),
        final_norm=norm,
    )


def read_any_rope(c: Fields, head_dim: int) -> Rope | None:
    """None where the theta is given as null: the released models have no rope."""
    spellings = [c.config, c.config.get("rope_parameters") or {}, c.config.get("rope_scaling") or {}]
    rope = read_rope(c, head_dim)
    return None if any(spelling.get("rope_theta", 0) is None for spelling in spellings) else rope


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    delta, attention = mixers(spec, GatedDelta)
    no_theta = {"rope_theta": None}
    no_rope = {"rope_parameters": no_theta | {"rope_type": "default"}} if dialect >= 5 else no_theta
    return write_common(spec) | {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        **(no_rope if attention.rope is None else write_rope(attention.rope, dialect)),
        "attention_bias": bool(attention.bias),
        **write_delta(delta),
        "linear_allow_neg_eigval": delta.reach == 2.0,
        "layer_types": write_kinds(spec, GatedDelta),
        "intermediate_size": spec.mlp[0].ffn,
        "rms_norm_eps": spec.final_norm.eps,
    }


def size(width: int, ffn: int, depth: int, heads: int) -> Spec:
    norm = RMSNorm(eps=1e-6)
    key_dim, qk_norm = 3 * width // (4 * heads), QKNorm(norm=norm, over="width")
    delta = GatedDelta(
        key_heads=heads, value_heads=heads, key_dim=key_dim, value_dim=2 * key_dim, reach=2.0, norm=OUT_NORM
    )
    attention = Attention(heads=heads, kv_heads=heads, head_dim=width // heads, qk_norm=qk_norm)
    return Spec(
        vocab=100_352,
        width=width,
        depth=depth,
        attention=(delta,) * 3 + (attention,),
        mlp=GatedMLP(ffn=ffn),
        block=(pre_norm(norm),) * 3 + (inner_post_norm(norm),),
        final_norm=norm,
        max_length=65_536,
        eos_ids=(100_257,),
        pad_id=100_277,
    )


PROJECTIONS = rows(
    ("model.layers.{l}.linear_attn.q_proj.weight", "(K E) D", "attention/w_q_DKE"),
    ("model.layers.{l}.linear_attn.k_proj.weight", "(K E) D", "attention/w_k_DKE"),
    ("model.layers.{l}.linear_attn.v_proj.weight", "(K G U) D", "attention/w_v_DKGU"),
    ("model.layers.{l}.linear_attn.a_proj.weight", "(K G) D", "attention/w_step_DKG"),
    ("model.layers.{l}.linear_attn.b_proj.weight", "(K G) D", "attention/w_rate_DKG"),
    ("model.layers.{l}.linear_attn.g_proj.weight", "(K G U) D", "attention/w_gate_DKGU"),
    ("model.layers.{l}.linear_attn.q_conv1d.weight", "(K E) () T", "attention/conv_q_KET"),
    ("model.layers.{l}.linear_attn.k_conv1d.weight", "(K E) () T", "attention/conv_k_KET"),
    ("model.layers.{l}.linear_attn.v_conv1d.weight", "(K G U) () T", "attention/conv_v_KGUT"),
    ("model.layers.{l}.linear_attn.o_norm.weight", "U", "attention/out_norm/scale_U"),
    ("model.layers.{l}.linear_attn.o_proj.weight", "D (K G U)", "attention/w_out_KGUD"),
)

PUBLISHED_NORMS = rows(
    ("model.layers.{l}.attention_layer_norm.weight", "D", "attention_before/scale_D"),
    ("model.layers.{l}.feedforward_layer_norm.weight", "D", "mlp_before/scale_D"),
)

FAMILY = Family(
    name="olmo_hybrid",
    architecture="OlmoHybridForCausalLM",
    read=read,
    write=write,
    fixed=PLAIN,
    weights=EMBEDDINGS + ATTENTION + WIDTH_NORMS + PROJECTIONS + DECAY + PUBLISHED_NORMS + POST_NORMS + MLP,
    fused=CONVOLUTION + PRE_NORMS,
    inert=frozenset(f"linear_{name}" for name in ("a_log_min", "a_log_max", "dt_min", "dt_max", "dt_init_floor")),
    presets=presets(
        "olmo_hybrid",
        {
            # All numbers are the defaults of transformers' class, which names this size, but the rope that it was
            # released without.
            "olmo-hybrid-7b": size(3840, 11008, 32, 30),
            "olmo-hybrid-nano": size(192, 512, 8, 6).replace(vocab=257, bos_id=256, eos_ids=(256,), pad_id=None),
        },
    ),
)
