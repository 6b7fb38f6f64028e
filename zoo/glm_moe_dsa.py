"""GLM-5 (GLM team 2026, arXiv 2602.15763): DeepSeek-V3.2's architecture with other numbers, and an indexer that pairs
neighbouring dimensions where it rotates. Layers may take over what an earlier one's indexer chose."""

from dataclasses import replace
from typing import Any

from ..layers.decoder import Spec
from ..layers.indexer import Borrowed
from ..layers.latent import LatentAttention
from ..layers.mtp import MTP
from ..layers.rope import Rope
from . import deepseek_v3, deepseek_v32
from .deepseek import experts
from .family import FUSED_EXPERTS, Family, presets, shortest
from .fields import Fields

FULL, SHARED = "full", "shared"
CLASS_DEFAULTS = {"n_group": 1, "topk_group": 1, "rms_norm_eps": 1e-5}


def read(c: Fields) -> Spec:
    c = c.over(CLASS_DEFAULTS)
    c.only("indexer_rope_interleave", True)
    spec = deepseek_v32.read_indexed(c, interleaved=True, heads=32)
    kinds, attention = read_indexers(c, spec.depth), spec.attention[0]
    if SHARED not in kinds:
        return spec
    lending = replace(attention, indexer=replace(attention.indexer, lends=True))
    borrowing = replace(attention, indexer=Borrowed(top_k=attention.indexer.top_k))
    mtp = None if spec.mtp is None else replace(spec.mtp, attention=attention)  # borrows from none
    return spec.replace(attention=shortest(tuple(lending if kind == FULL else borrowing for kind in kinds)), mtp=mtp)


def read_indexers(c: Fields, depth: int) -> list[str]:
    """Of each layer, whether it has an indexer: as a list, as letters, or every so many layers from a first one on."""
    every, first = c.int("index_topk_freq", 1, least=1), c.int("index_skip_topk_offset", 2)
    kinds = [SHARED if max(i - first + 1, 0) % every else FULL for i in range(depth)]
    letters = c.get("index_topk_pattern", None)
    kinds = kinds if letters is None else [{"F": FULL, "S": SHARED}.get(letter, letter) for letter in letters]
    kinds = list(c.list("indexer_types", kinds))
    if len(kinds) != depth or not set(kinds) <= {FULL, SHARED} or kinds[0] != FULL:
        raise ValueError(
            f"config field 'indexer_types' must be {depth} of {FULL!r}, first, and {SHARED!r}, not {kinds!r:.80}"
        )
    return kinds


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    kinds = [SHARED if isinstance(layer.attention.indexer, Borrowed) else FULL for layer in spec.layers]
    return deepseek_v32.write(spec, dialect) | ({"indexer_types": kinds} if SHARED in kinds else {})


def size(spec: Spec, heads: int, dim: int, top_k: int, **fields: Any) -> Spec:
    spec = deepseek_v32.indexed(spec, heads, dim, top_k, interleaved=True)
    eps = {"block.before.eps": 1e-5, "final_norm.eps": 1e-5}
    return spec.replace(eps, vocab=154_880, max_length=202_752, **fields)


LATENT = LatentAttention(
    heads=64, nope_dim=192, value_dim=256, kv_rank=512, q_rank=2048, rope=Rope(dim=64, theta=1e6, interleaved=True)
)
EXPERTS = experts(256, 8, 2048, groups=None, scale=2.5)
GLM5 = deepseek_v3.model(LATENT, dense=3, ffn=12288, moe=EXPERTS, width=6144, depth=78).replace(mtp=MTP())

# Class defaults, but for the rope's base and the ids of special tokens.
FAMILY = Family(
    name="glm_moe_dsa",
    architecture="GlmMoeDsaForCausalLM",
    read=read,
    write=write,
    weights=deepseek_v32.WEIGHTS,
    fused=FUSED_EXPERTS,
    presets=presets(
        "glm_moe_dsa",
        {
            "glm-5": size(GLM5, 32, 128, 2048, bos_id=None, eos_ids=(154_820, 154_827, 154_829), pad_id=154_820),
            "glm-5-nano": size(deepseek_v3.NANO.replace(**{"mlp.router.groups": None}), 8, 32, 256).replace(
                vocab=257, max_length=4096, bos_id=256, eos_ids=(256,)
            ),
        },
    ),
)
