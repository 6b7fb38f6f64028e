"""DeepSeek-V4 (DeepSeek-AI 2026): hyper-connections around attention to a window and to compressed runs of tokens, all
of them or those an indexer chooses, and around experts, in the first layers looked up in a table of tokens."""

from dataclasses import replace
from typing import Any

from ..layers.bounded import Bounded
from ..layers.compressed import Chooser, CompressedAttention, Compressor
from ..layers.decoder import Spec
from ..layers.expert import GatedExpert
from ..layers.hashed import HashRouter
from ..layers.hyper import HyperConnections
from ..layers.mlp import GatedMLP
from ..layers.moe import MoE
from ..layers.norms import RMSNorm
from ..layers.rope import Rope, Yarn
from ..layers.router import Router
from .deepseek_v4_hub import as_written
from .deepseek_v4_names import IN_MEMORY, WRITTEN
from .family import PLAIN, Family, presets, shortest
from .fields import (
    Fields,
    Names,
    layer_kinds,
    read_common,
    read_part,
    rope_of,
    rope_parameters,
    write_common,
    write_part,
)

LOCAL, SPARSE, HEAVY = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
EVERY = {SPARSE: 4, HEAVY: 128}
OLD_EVERY = {"compress_rate_csa": SPARSE, "compress_rate_hca": HEAVY}
OLD_KINDS = {0: LOCAL, 4: SPARSE, 128: HEAVY}
HASHED, ROUTED = "hash_moe", "moe"
SCORES = {"sqrtsoftplus": "sqrt_softplus", "sigmoid": "sigmoid", "softmax": "softmax"}

ATTENTION: Names = {
    "heads": ("num_attention_heads", 64),
    "groups": ("o_groups", 8),
    "head_dim": "head_dim",
    "q_rank": ("q_lora_rank", 1024),
    "out_rank": ("o_lora_rank", 1024),
    "window": ("sliding_window", 128),
}
CHOOSER: Names = {"heads": ("index_n_heads", 64), "dim": ("index_head_dim", 128), "top_k": ("index_topk", 512)}
STREAMS: Names = {"streams": ("hc_mult", 4), "steps": ("hc_sinkhorn_iters", 20), "eps": ("hc_eps", 1e-6)}
ROUTER: Names = {"top_k": ("num_experts_per_tok", 6), "scale": ("routed_scaling_factor", 1.5)}
FIXED = PLAIN | {"attention_bias": False, "mlp_bias": False, "num_key_value_heads": 1}
FIXED |= {"n_shared_experts": 1, "norm_topk_prob": True, "router_jitter_noise": 0.0, "topk_method": "noaux_tc"}
CLASS = {"vocab_size": 129280, "hidden_size": 4096, "num_hidden_layers": 43, "head_dim": 512}
CLASS |= {"max_position_embeddings": 1048576, "bos_token_id": 0, "eos_token_id": 1}


def read(c: Fields) -> Spec:
    c = c.over(CLASS)
    depth, every = c.int("num_hidden_layers"), read_rates(c)
    old = [OLD_KINDS.get(ratio, str(ratio)) for ratio in c.list("compress_ratios", [])][:depth]
    usual = [HEAVY if i < 2 or i % 2 == 0 else SPARSE for i in range(depth)]
    kinds = layer_kinds(c, "layer_types", old or usual, (LOCAL, *EVERY))
    hashed = min(c.int("num_hash_layers", 3), depth)
    mlps = layer_kinds(c, "mlp_layer_types", [HASHED] * hashed + [ROUTED] * (depth - hashed), (HASHED, ROUTED))
    norm, (main, compressed) = RMSNorm(eps=c.float("rms_norm_eps", 1e-6)), read_ropes(c)
    local = read_part(c, CompressedAttention, ATTENTION, rope=main, norm=norm)
    sparse = Compressor(every=every[SPARSE], overlap=True, chooser=read_part(c, Chooser, CHOOSER))
    attentions = {
        LOCAL: local,
        SPARSE: replace(local, rope=compressed, compressor=sparse),
        HEAVY: replace(local, rope=compressed, compressor=Compressor(every=every[HEAVY])),
    }
    experts = read_experts(c)
    return Spec(
        **read_common(c),
        attention=shortest([attentions[kind] for kind in kinds]),
        mlp=shortest([experts[kind] for kind in mlps]),
        block=read_part(c, HyperConnections, STREAMS, norm=norm, norm_eps=norm.eps),
        final_norm=norm,
    )


def read_rates(c: Fields) -> dict[str, int]:
    """How many tokens become an entry, in the spelling of transformers or in an older one, which comes first."""
    rates = c.nested("compress_rates")
    found = {kind: rates.int(kind, usual, least=1) for kind, usual in EVERY.items()}
    rates.finish_nested("a model of these layers")
    return found | {kind: c.int(name, found[kind], least=1) for name, kind in OLD_EVERY.items()}


def read_ropes(c: Fields) -> tuple[Rope, Rope]:
    """That of windows alone, and that of layers with compressed entries, where YaRN does not scale cos and sin."""
    head_dim, longest, both = c.int("head_dim"), c.int("max_position_embeddings"), c.nested("rope_parameters")
    share = c.float("partial_rotary_factor", c.int("qk_rope_head_dim", head_dim // 8) / head_dim)
    c.only("qk_rope_head_dim", int(head_dim * share))
    thetas = c.float("rope_theta", 1e4), c.float("compress_rope_theta", 1.6e5)
    if "main" in both.config:
        named = [[both.nested(name)] for name in ("main", "compress")]
        both.finish_nested("a model with two ropes")
    else:
        flat = both, c.nested("rope_scaling")
        named = [[], [Fields({k: v for k, v in p.config.items() if k != "rope_theta"}, p.within) for p in flat]]
    main, compressed = (
        rope_of(given, head_dim, longest, theta, interleaved=True, share=share)
        for given, theta in zip(named, thetas, strict=True)
    )
    if not named[0] and isinstance(compressed.scaling, Yarn) and compressed.scaling.attention_factor is None:
        compressed = replace(compressed, scaling=replace(compressed.scaling, attention_factor=1.0))
    return main, compressed


def read_experts(c: Fields) -> dict[str, MoE]:
    score = SCORES[c.choice("scoring_func", "sqrtsoftplus", SCORES)]
    ffn, gate = c.int("moe_intermediate_size", 2048), Bounded(limit=c.float("swiglu_limit", 10.0))
    routed = MoE(
        experts=c.int("n_routed_experts", 256),
        ffn=ffn,
        router=read_part(c, Router, ROUTER, score=score, bias=True),
        shared=GatedMLP(ffn=ffn, activation=gate),
        expert=GatedExpert(activation=gate),
    )
    return {ROUTED: routed, HASHED: replace(routed, router=read_part(c, HashRouter, ROUTER, score=score))}


def kind_of(attention: CompressedAttention) -> str:
    return LOCAL if attention.compressor is None else SPARSE if attention.compressor.chooser else HEAVY


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    of = {kind_of(layer.attention): layer.attention for layer in reversed(spec.layers)}
    attention, moe = spec.layers[0].attention, spec.layers[0].mlp
    compressed = of.get(SPARSE) or of.get(HEAVY)
    main = of[LOCAL].rope if LOCAL in of else Rope(dim=attention.rope.dim, interleaved=True)
    return write_common(spec) | {
        **write_part(attention, ATTENTION),
        "layer_types": [kind_of(layer.attention) for layer in spec.layers],
        "compress_rates": {kind: of[kind].compressor.every if kind in of else usual for kind, usual in EVERY.items()},
        **(write_part(of[SPARSE].compressor.chooser, CHOOSER) if SPARSE in of else {}),
        "mlp_layer_types": [HASHED if isinstance(layer.mlp.router, HashRouter) else ROUTED for layer in spec.layers],
        "moe_intermediate_size": moe.ffn,
        "n_routed_experts": moe.experts,
        "scoring_func": next(name for name, score in SCORES.items() if score == moe.router.score),
        **write_part(moe.router, ROUTER),
        "swiglu_limit": moe.expert.activation.limit,
        **write_part(spec.block[0], STREAMS),
        "rms_norm_eps": spec.final_norm.eps,
        **write_ropes(main, compressed.rope if compressed else replace(main, theta=1.6e5), attention.head_dim, dialect),
    }


def write_ropes(main: Rope, compressed: Rope, head_dim: int, dialect: int) -> dict[str, Any]:
    share, long = {"partial_rotary_factor": main.dim / head_dim}, rope_parameters(compressed)
    if dialect >= 5:
        return share | {"rope_parameters": {"main": rope_parameters(main) | share, "compress": long | share}}
    thetas = {"rope_theta": main.theta, "compress_rope_theta": long.pop("rope_theta")}
    return share | thetas | {"rope_scaling": long if compressed.scaling else None, "qk_rope_head_dim": compressed.dim}


NANO = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 32, "q_lora_rank": 64}
NANO |= {"o_groups": 2, "o_lora_rank": 48, "moe_intermediate_size": 64, "n_routed_experts": 16, "hc_mult": 2}
NANO |= {"num_experts_per_tok": 4, "index_n_heads": 8, "index_head_dim": 16, "index_topk": 64, "sliding_window": 64}
NANO |= {"vocab_size": 257, "bos_token_id": 256, "eos_token_id": 256, "max_position_embeddings": 4096}
KINDS = {"num_hash_layers": 1, "qk_rope_head_dim": 16, "compress_rate_hca": 16, "compress_ratios": [0, 4, 128, 4]}
STRETCHED = {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 65_536}
FLASH = {"rope_scaling": STRETCHED, "compress_ratios": [0, 0, *[4, 128] * 20, 4]}

# The size is the class defaults of transformers, which name this model; published: YaRN and the kinds of the layers.
FAMILY = Family(
    name="deepseek_v4",
    architecture="DeepseekV4ForCausalLM",
    read=read,
    write=write,
    fixed=FIXED,
    weights=WRITTEN,
    fused=IN_MEMORY,
    renamed=as_written,
    inert=frozenset({"expert_dtype"}),
    presets=presets(
        "deepseek_v4",
        {
            "deepseek-v4-flash": read(Fields(FLASH)),
            "deepseek-v4-nano": read(Fields(NANO | KINDS)),
        },
    ),
)
