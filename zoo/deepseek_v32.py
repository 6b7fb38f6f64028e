"""DeepSeek-V3.2 (DeepSeek-AI 2025, arXiv 2512.02556): DeepSeek-V3 whose queries attend to the tokens that a lightning
indexer chooses."""

from dataclasses import replace
from typing import Any

from ..layers.decoder import Spec
from ..layers.indexer import Indexer
from ..layers.mlp import GatedMLP
from ..layers.moe import MoE
from . import deepseek_v3
from .deepseek import LATENT, SHARED
from .family import EMBEDDINGS, EXPERTS, FUSED_EXPERTS, MLP, PRE_NORMS, PREDICTION, Family, presets
from .fields import Fields
from .weights import rows

DENSE, SPARSE, INDEXED = "dense", "sparse", "indexed_attention"


def read(c: Fields) -> Spec:
    return read_indexed(c, interleaved=False, heads=64)


def read_indexed(c: Fields, interleaved: bool, heads: int) -> Spec:
    """A DeepSeek-V3 with an indexer of so many heads, unless the config says otherwise, that pairs rotated dimensions
    so.
    """
    c.only("rope_interleave", True)
    c.only("mlp_bias", False)
    spec = deepseek_v3.read(c)
    c.only("layer_types", [INDEXED] * spec.depth)
    attention = spec.attention[0]
    indexer = Indexer(
        heads=c.int("index_n_heads", heads),
        dim=c.int("index_head_dim", 128),
        top_k=c.int("index_topk", 2048, least=1),
        rope=replace(attention.rope, interleaved=interleaved),
    )
    return spec.replace(attention=replace(attention, indexer=indexer), mlp=read_mlps(c, spec))


def read_mlps(c: Fields, spec: Spec) -> Any:
    """What first_k_dense_replace says, unless mlp_layer_types says which layers have experts."""
    kinds = c.list("mlp_layer_types", [])
    if kinds and (len(kinds) != spec.depth or not set(kinds) <= {DENSE, SPARSE}):
        raise ValueError(
            f"config field 'mlp_layer_types' must be {spec.depth} of {DENSE!r} and {SPARSE!r}, not {kinds!r:.80}"
        )
    dense, moe = GatedMLP(ffn=c.int("intermediate_size")), next(m for m in spec.mlp if isinstance(m, MoE))
    if kinds and kinds == sorted(kinds):
        return (*(dense,) * kinds.count(DENSE), moe, ...) if DENSE in kinds else moe
    return tuple(moe if kind == SPARSE else dense for kind in kinds) or spec.mlp


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    kinds = [SPARSE if isinstance(layer.mlp, MoE) else DENSE for layer in spec.layers]
    indexer, config = spec.attention[0].indexer, deepseek_v3.write(spec, dialect)
    config.pop("rope_interleave")  # always so
    return config | {
        "index_n_heads": indexer.heads,
        "index_head_dim": indexer.dim,
        "index_topk": indexer.top_k,
        **({} if kinds == sorted(kinds) else {"mlp_layer_types": kinds}),  # else the dense ones come first
    }


INDEXER = rows(
    ("model.layers.{l}.self_attn.indexer.wq_b.weight", "(I E) Q", "attention/indexer/wq_QIE"),
    ("model.layers.{l}.self_attn.indexer.wk.weight", "E D", "attention/indexer/wk_DE"),
    ("model.layers.{l}.self_attn.indexer.k_norm.weight", "E", "attention/indexer/k_norm/scale_E"),
    ("model.layers.{l}.self_attn.indexer.k_norm.bias", "E", "attention/indexer/k_norm/bias_E"),
    ("model.layers.{l}.self_attn.indexer.weights_proj.weight", "I D", "attention/indexer/weights_DI"),
)

WEIGHTS = EMBEDDINGS + PRE_NORMS + LATENT + INDEXER + MLP + EXPERTS + SHARED + PREDICTION


def indexed(spec: Spec, heads: int, dim: int, top_k: int, interleaved: bool = False) -> Spec:
    attention = spec.attention[0]
    rope = replace(attention.rope, interleaved=interleaved)
    indexer = Indexer(heads=heads, dim=dim, top_k=top_k, rope=rope)
    return spec.replace(attention=replace(attention, indexer=indexer))


NANO = indexed(deepseek_v3.NANO, heads=8, dim=32, top_k=256)
NANO = NANO.replace(vocab=257, max_length=4096, bos_id=256, eos_ids=(256,))

# The size is published: DeepSeek-V3's, with the indexer of the class defaults.
FAMILY = Family(
    name="deepseek_v32",
    architecture="DeepseekV32ForCausalLM",
    read=read,
    write=write,
    weights=WEIGHTS,
    fused=FUSED_EXPERTS,
    presets=presets(
        "deepseek_v32",
        {"deepseek-v3.2": indexed(deepseek_v3.V3, heads=64, dim=128, top_k=2048), "deepseek-v3.2-nano": NANO},
    ),
)
