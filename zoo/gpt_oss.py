"""gpt-oss (OpenAI 2025, arXiv 2508.10925): grouped-query attention with sinks, every other layer through a window;
clamped gated experts; biases everywhere.
"""

from dataclasses import replace
from typing import Any

from ..layers.attention import Attention, Scores
from ..layers.block import pre_norm
from ..layers.bounded import Clamped
from ..layers.decoder import Spec
from ..layers.expert import GatedExpert
from ..layers.moe import MoE
from ..layers.norms import RMSNorm
from ..layers.rope import Rope, Yarn
from ..layers.router import Router
from .family import ATTENTION, EMBEDDINGS, PLAIN, PRE_NORMS, Family, presets, shortest
from .fields import Fields, layer_types, layer_windows, read_common, read_rope, write_common, write_rope
from .weights import rows

CLASS_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 4096,
    "truncate": False,
}
"""The rope of configs that say nothing of it, or null."""


def read(c: Fields) -> Spec:
    has_rope = c.config.get("rope_parameters") or c.config.get("rope_scaling")
    c = c.over({"rope_theta": 150_000.0} if has_rope else {"rope_theta": 150_000.0, "rope_scaling": CLASS_ROPE})
    heads, head_dim = c.int("num_attention_heads", 64, least=1), c.int("head_dim", 64)
    top_k = c.int("num_experts_per_tok", 4)
    c.only("experts_per_token", top_k)
    norm = RMSNorm(eps=c.float("rms_norm_eps", 1e-5))

    def attention(window: int | None) -> Attention:
        return Attention(
            heads=heads,
            kv_heads=c.int("num_key_value_heads", 8),
            head_dim=head_dim,
            rope=read_rope(c, head_dim),
            window=window,
            bias="qkvo" if c.bool("attention_bias", True) else "",
            scores=Scores(sinks=True),
        )

    layers = [attention(window) for window in layer_windows(c, c.int("sliding_window", 128), lambda i: i % 2 == 0)]
    clamped = Clamped(alpha=c.float("swiglu_alpha", 1.702), limit=c.float("swiglu_limit", 7.0))
    mlp = MoE(
        experts=c.int("num_local_experts", c.int("num_experts", 128)),
        ffn=c.int("intermediate_size", 2880),
        router=Router(top_k=top_k, logit_bias=True),
        expert=GatedExpert(activation=clamped, bias=True),
    )
    return Spec(**read_common(c), attention=shortest(tuple(layers)), mlp=mlp, block=pre_norm(norm), final_norm=norm)


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    attention, mlp = spec.attention[0], spec.mlp[0]
    rope = write_rope(attention.rope, dialect)
    if dialect < 5 and rope["rope_scaling"] is None:
        rope["rope_scaling"] = {"rope_type": "default"}  # null would be read as YaRN
    windows = [layer.attention.window for layer in spec.layers]
    return write_common(spec) | {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "sliding_window": next((window for window in windows if window), 128),
        "layer_types": layer_types(spec),
        **rope,
        "attention_bias": bool(attention.bias),
        "intermediate_size": mlp.ffn,
        "num_local_experts": mlp.experts,
        "num_experts_per_tok": mlp.router.top_k,
        "swiglu_alpha": mlp.expert.activation.alpha,
        "swiglu_limit": mlp.expert.activation.limit,
        "rms_norm_eps": spec.final_norm.eps,
    }


# Published as [in, out], gate and up in turns.
CLAMPED = rows(
    ("model.layers.{l}.self_attn.sinks", "(K G)", "attention/sinks_KG"),
    ("model.layers.{l}.mlp.router.weight", "X D", "mlp/router/w_DX"),
    ("model.layers.{l}.mlp.router.bias", "X", "mlp/router/b_X"),
    ("model.layers.{l}.mlp.experts.gate_up_proj", "X D (F [() ()])", "mlp/w_gate_XFD", "mlp/w_up_XFD"),
    ("model.layers.{l}.mlp.experts.gate_up_proj_bias", "X (F [() ()])", "mlp/b_gate_XF", "mlp/b_up_XF"),
    ("model.layers.{l}.mlp.experts.down_proj", "X F D", "mlp/w_down_XDF"),
    ("model.layers.{l}.mlp.experts.down_proj_bias", "X D", "mlp/b_down_XD"),
)


def size(
    width: int, ffn: int, depth: int, heads: int, kv_heads: int, head_dim: int, experts: int, window: int = 128
) -> Spec:
    norm = RMSNorm(eps=1e-5)
    yarn = Yarn(factor=32.0, original_length=4096, truncate=False)
    expert = GatedExpert(activation=Clamped(), bias=True)
    everywhere = Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        rope=Rope(dim=head_dim, theta=150_000.0, scaling=yarn),
        bias="qkvo",
        scores=Scores(sinks=True),
    )
    return Spec(
        vocab=201_088,
        width=width,
        depth=depth,
        attention=(replace(everywhere, window=window), everywhere),
        mlp=MoE(experts=experts, ffn=ffn, router=Router(top_k=4, logit_bias=True), expert=expert),
        block=pre_norm(norm),
        final_norm=norm,
        max_length=131_072,
        eos_ids=(200_002,),
        pad_id=199_999,
    )


# Published numbers, all of them.
SIZES = {
    "gpt-oss-20b": size(2880, 2880, 24, 64, 8, 64, 32),
    "gpt-oss-120b": size(2880, 2880, 36, 64, 8, 64, 128),
    "gpt-oss-nano": size(192, 96, 6, 6, 2, 32, 16, window=64).replace(
        vocab=257, bos_id=256, eos_ids=(256,), pad_id=None
    ),
}

FAMILY = Family(
    name="gpt_oss",
    architecture="GptOssForCausalLM",
    read=read,
    write=write,
    fixed=PLAIN,
    weights=EMBEDDINGS + PRE_NORMS + ATTENTION + CLAMPED,
    inert=frozenset({"initial_context_length"}),  # what YaRN's original length says again
    presets=presets("gpt_oss", SIZES),
)
