"""Granite 3 (IBM 2024): Llama with four multipliers in the manner of muP (Yang et al. 2022, arXiv 2203.03466): of
embeddings, of attention scores, of what joins the residual, of logits.
"""

from typing import Any

from ..layers.attention import Attention, Scores
from ..layers.block import pre_norm
from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from ..layers.norms import RMSNorm
from ..layers.rope import Rope
from .family import ATTENTION, EMBEDDINGS, MLP, PLAIN, PRE_NORMS, Family, presets
from .fields import Fields, read_common, read_rope, write_common, write_heads, write_rope


def read(c: Fields) -> Spec:
    heads = c.int("num_attention_heads", least=1)
    head_dim = c.int("head_dim", c.int("hidden_size") // heads)
    norm = RMSNorm(eps=c.float("rms_norm_eps", 1e-6))
    return Spec(
        **read_common(c),
        **read_multipliers(c),
        attention=Attention(
            heads=heads,
            kv_heads=c.int("num_key_value_heads", heads),
            head_dim=head_dim,
            rope=read_rope(c, head_dim),
            scores=Scores(scale=c.float("attention_multiplier", 1.0)),
            bias="qkvo" if c.bool("attention_bias", False) else "",
        ),
        mlp=GatedMLP(ffn=c.int("intermediate_size"), bias=c.bool("mlp_bias", False)),
        block=pre_norm(norm, scale=c.float("residual_multiplier", 1.0)),
        final_norm=norm,
    )


def read_multipliers(c: Fields) -> dict[str, Any]:
    """Of embeddings and logits; Granite divides the latter."""
    divisor = c.float("logits_scaling", 1.0)
    if divisor == 0:
        raise ValueError("config field 'logits_scaling' is 0; logits are divided by it")
    return {"embedding_scale": c.float("embedding_multiplier", 1.0), "logit_scale": 1 / divisor}


def write_multipliers(spec: Spec) -> dict[str, float]:
    divisor = 1 / spec.logit_scale
    rounded = round(divisor, 10)  # 1 / (1 / x) may miss x by a bit
    return {
        "embedding_multiplier": spec.embedding_scale,
        "attention_multiplier": spec.layers[0].attention.scores.scale,
        "residual_multiplier": spec.layers[0].block.scale,
        "logits_scaling": rounded if rounded and 1 / rounded == spec.logit_scale else divisor,
    }


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    attention, mlp = spec.attention[0], spec.mlp[0]
    return write_common(spec) | {
        **write_heads(spec),
        **write_rope(attention.rope, dialect),
        **write_multipliers(spec),
        "attention_bias": bool(attention.bias),
        "intermediate_size": mlp.ffn,
        "mlp_bias": mlp.bias,
        "rms_norm_eps": spec.final_norm.eps,
    }


def size(width: int, ffn: int, depth: int, heads: int, kv_heads: int, divisor: float) -> Spec:
    norm, dim = RMSNorm(eps=1e-5), width // heads
    rope = Rope(dim=dim)
    return Spec(
        vocab=49_152,
        width=width,
        depth=depth,
        attention=Attention(heads=heads, kv_heads=kv_heads, head_dim=dim, rope=rope, scores=Scores(scale=1 / dim)),
        mlp=GatedMLP(ffn=ffn),
        block=pre_norm(norm, scale=0.22),
        final_norm=norm,
        tied=True,
        embedding_scale=12.0,
        logit_scale=1 / divisor,
        bos_id=0,
        eos_ids=(0,),
        pad_id=0,
    )


# Published numbers, those of the base models.
SIZES = {
    "granite3.0-2b": size(2048, 8192, 40, 32, 8, divisor=8),
    "granite3.0-8b": size(4096, 12800, 40, 32, 8, divisor=16),
    "granite3-nano": size(192, 512, 6, 6, 2, divisor=4).replace(vocab=257, bos_id=256, eos_ids=(256,), pad_id=None),
}

FAMILY = Family(
    name="granite",
    architecture="GraniteForCausalLM",
    read=read,
    write=write,
    fixed=PLAIN,
    weights=EMBEDDINGS + PRE_NORMS + ATTENTION + MLP,
    presets=presets("granite", SIZES),
)
