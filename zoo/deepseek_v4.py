"""DeepSeek-V4 (DeepSeek-AI 2026): hyper-connections around attention to a window and to compressed runs of tokens, all
of them or those an indexer chooses, and around experts, in the first layers looked up in a table of tokens."""

from dataclasses import replace
from typing import Any

from ..layers.bounded import BoundedExpert, BoundedMLP
from ..layers.compressed import Chooser, CompressedAttention, Compressor
from ..layers.decoder import Spec
from ..layers.hashed import HashRouter
from ..layers.hyper import HyperConnections
from ..layers.moe import MoE
from ..layers.norms import RMSNorm
from ..layers.rope import Rope, Yarn
from ..layers.router import Router
from .family import FUSED_EXPERTS, Family, presets
from .fields import Fields, read_common, rope_of, rope_parameters, write_common
from .gemma3 import shortest
from .weights import rows

LOCAL, SPARSE, HEAVY = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
EVERY = {SPARSE: 4, HEAVY: 128}
OLD_EVERY = {"compress_rate_csa": SPARSE, "compress_rate_hca": HEAVY}
OLD_KINDS = {0: LOCAL, 4: SPARSE, 128: HEAVY}
HASHED, ROUTED = "hash_moe", "moe"
SCORES = {"sqrtsoftplus": "sqrt_softplus", "sigmoid": "sigmoid", "softmax": "softmax"}
DEFAULTS = {
    "vocab_size": 129280,
    "hidden_size": 4096,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 43,
    "num_attention_heads": 64,
    "head_dim": 512,
    "q_lora_rank": 1024,
    "num_experts_per_tok": 6,
    "n_routed_experts": 256,
    "max_position_embeddings": 1048576,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "sliding_window": 128,
    "o_groups": 8,
    "o_lora_rank": 1024,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def read(c: Fields) -> Spec:
    c = c.over(DEFAULTS)
    fixed = {"attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0, "hidden_act": "silu"}
    fixed |= {"num_key_value_heads": 1, "n_shared_experts": 1, "norm_topk_prob": True, "router_jitter_noise": 0.0}
    for name, value in (fixed | {"topk_method": "noaux_tc"}).items():
        c.only(name, value)
    depth, every = c.int("num_hidden_layers"), read_rates(c)
    old = [OLD_KINDS.get(ratio, str(ratio)) for ratio in c.list("compress_ratios", [])][:depth]
    usual = [HEAVY if i < 2 or i % 2 == 0 else SPARSE for i in range(depth)]
    kinds = read_kinds(c, "layer_types", old or usual, (LOCAL, SPARSE, HEAVY))
    hashed = min(c.int("num_hash_layers", 3), depth)
    mlps = read_kinds(c, "mlp_layer_types", [HASHED] * hashed + [ROUTED] * (depth - hashed), (HASHED, ROUTED))
    norm, (main, compressed) = RMSNorm(eps=c.float("rms_norm_eps", 1e-6)), read_ropes(c)
    local = CompressedAttention(
        heads=c.int("num_attention_heads"),
        groups=c.int("o_groups"),
        head_dim=c.int("head_dim"),
        q_rank=c.int("q_lora_rank"),
        out_rank=c.int("o_lora_rank"),
        rope=main,
        window=c.int("sliding_window"),
        norm=norm,
    )
    chooser = Chooser(heads=c.int("index_n_heads"), dim=c.int("index_head_dim"), top_k=c.int("index_topk"))
    sparse = Compressor(every=every[SPARSE], overlap=True, chooser=chooser)
    attentions = {
        LOCAL: local,
        SPARSE: replace(local, rope=compressed, compressor=sparse),
        HEAVY: replace(local, rope=compressed, compressor=Compressor(every=every[HEAVY])),
    }
    streams, steps, eps = c.int("hc_mult"), c.int("hc_sinkhorn_iters"), c.float("hc_eps", 1e-6)
    experts = read_experts(c)
    return Spec(
        **read_common(c),
        attention=shortest(tuple(attentions[kind] for kind in kinds)),
        mlp=shortest(tuple(experts[kind] for kind in mlps)),
        block=HyperConnections(norm=norm, streams=streams, steps=steps, eps=eps, norm_eps=norm.eps),
        final_norm=norm,
    )


def read_kinds(c: Fields, name: str, usual: list[str], known: tuple[str, ...]) -> list[str]:
    kinds, depth = c.list(name, usual), c.int("num_hidden_layers")
    if len(kinds) != depth or not set(kinds) <= set(known):
        raise ValueError(f"config field {name!r} must be {depth} of {', '.join(known)}, not {kinds!r:.80}")
    return list(kinds)


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
    score, scale = SCORES[c.choice("scoring_func", "sqrtsoftplus", SCORES)], c.float("routed_scaling_factor", 1.5)
    top_k, ffn, limit = c.int("num_experts_per_tok"), c.int("moe_intermediate_size"), c.float("swiglu_limit", 10.0)
    table = HashRouter(top_k=top_k, vocab=c.int("vocab_size"), score=score, scale=scale)
    routers: dict[str, Router | HashRouter] = {
        HASHED: table,
        ROUTED: Router(top_k=top_k, score=score, bias=True, scale=scale),
    }
    shared, expert = BoundedMLP(ffn=ffn, limit=limit), BoundedExpert(limit=limit)
    count = c.int("n_routed_experts")
    return {
        kind: MoE(experts=count, ffn=ffn, router=router, shared=shared, expert=expert)
        for kind, router in routers.items()
    }


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    of: dict[str, CompressedAttention] = {}
    for layer in reversed(spec.layers):
        compressor = layer.attention.compressor
        of[LOCAL if compressor is None else SPARSE if compressor.chooser else HEAVY] = layer.attention
    kinds = {attention: kind for kind, attention in of.items()}
    attention, moe, block = spec.layers[0].attention, spec.layers[0].mlp, spec.block[0]
    compressed = of.get(SPARSE) or of.get(HEAVY)
    main = of[LOCAL].rope if LOCAL in of else Rope(dim=attention.rope.dim, interleaved=True)
    long = compressed.rope if compressed else replace(main, theta=1.6e5)
    chooser = of[SPARSE].compressor.chooser if SPARSE in of else Chooser(heads=64, dim=128, top_k=512)  # type: ignore[union-attr]
    share = {"partial_rotary_factor": attention.rope.dim / attention.head_dim}
    ropes: dict[str, Any] = {
        "rope_parameters": {"main": rope_parameters(main) | share, "compress": rope_parameters(long) | share}
    }
    if dialect < 5:
        scaling = {k: v for k, v in rope_parameters(long).items() if k != "rope_theta"}
        ropes = {"rope_theta": main.theta, "rope_scaling": scaling if long.scaling else None}
        ropes |= {"compress_rope_theta": long.theta, "qk_rope_head_dim": long.dim}
    return write_common(spec) | {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": 1,
        "head_dim": attention.head_dim,
        "q_lora_rank": attention.q_rank,
        "o_groups": attention.groups,
        "o_lora_rank": attention.out_rank,
        "sliding_window": attention.window,
        "layer_types": [kinds[layer.attention] for layer in spec.layers],
        "compress_rates": {k: of[k].compressor.every if k in of else usual for k, usual in EVERY.items()},  # type: ignore[union-attr]
        "index_n_heads": chooser.heads,  # type: ignore[union-attr]
        "index_head_dim": chooser.dim,  # type: ignore[union-attr]
        "index_topk": chooser.top_k,  # type: ignore[union-attr]
        "mlp_layer_types": [HASHED if isinstance(layer.mlp.router, HashRouter) else ROUTED for layer in spec.layers],
        "moe_intermediate_size": moe.ffn,
        "n_routed_experts": moe.experts,
        "n_shared_experts": 1,
        "num_experts_per_tok": moe.router.top_k,
        "scoring_func": next(name for name, score in SCORES.items() if score == moe.router.score),
        "norm_topk_prob": True,
        "routed_scaling_factor": moe.router.scale,
        "swiglu_limit": moe.expert.limit,
        "hc_mult": block.streams,
        "hc_sinkhorn_iters": block.steps,
        "hc_eps": block.eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rms_norm_eps": spec.final_norm.eps,
        **share,
        **ropes,
    }


TOP = rows(
    ("model.embed_tokens.weight", "V D", "embed_VD"),
    ("model.norm.weight", "D", "final_norm/scale_D"),
    ("model.hc_head.hc_fn", "X (N D)", "close/read/w_NDX"),
    ("model.hc_head.hc_base", "X", "close/read/bias_X"),
    ("model.hc_head.hc_scale", "G", "close/read/gain_G"),
)

_NAMES = (
    ("attn_norm.weight", "input_layernorm.weight", "D", "attention_before/scale_D"),
    ("ffn_norm.weight", "post_attention_layernorm.weight", "D", "mlp_before/scale_D"),
    *(
        (f"hc_{part}_{old}", f"{part}_hc.{old}", layout, f"{ours}_streams/{name}")
        for part, ours in (("attn", "attention"), ("ffn", "mlp"))
        for old, layout, name in (("fn", "X (N D)", "w_NDX"), ("base", "X", "bias_X"), ("scale", "G", "gain_G"))
    ),
    ("attn.wq_a.weight", "self_attn.q_a_proj.weight", "Q D", "attention/wq_down_DQ"),
    ("attn.q_norm.weight", "self_attn.q_a_norm.weight", "Q", "attention/q_norm/scale_Q"),
    ("attn.wq_b.weight", "self_attn.q_b_proj.weight", "(K G E) Q", "attention/wq_up_QKGE"),
    ("attn.wkv.weight", "self_attn.kv_proj.weight", "E D", "attention/wk_DE"),
    ("attn.norm.weight", "self_attn.kv_norm.weight", "E", "attention/k_norm/scale_E"),
    ("attn.wo_a.weight", "self_attn.o_a_proj.weight", "(K C) (G E)", "attention/wo_down_KGEC"),
    ("attn.wo_b.weight", "self_attn.o_b_proj.weight", "D A", "attention/wo_up_AD"),
    ("attn.attn_sink", "self_attn.sinks", "(K G)", "attention/sinks_KG"),
    *(
        (f"attn.{old}.{theirs}", f"self_attn.{new}.{now}", layout, f"attention/{ours}/{name}")
        for old, new, ours in (
            ("compressor", "compressor", "compressor"),
            ("indexer.compressor", "compressor.indexer", "index"),
        )
        for theirs, now, layout, name in (
            ("wkv.weight", "kv_proj.weight", "U D", "w_DU"),
            ("wgate.weight", "gate_proj.weight", "U D", "w_gate_DU"),
            ("ape", "position_bias", "T U", "bias_TU"),
            ("norm.weight", "kv_norm.weight", "E", "entry_norm/scale_E"),
        )
    ),
    ("attn.indexer.wq_b.weight", "self_attn.compressor.indexer.q_b_proj.weight", "(I E) Q", "attention/w_index_QIE"),
    (
        "attn.indexer.weights_proj.weight",
        "self_attn.compressor.indexer.scorer.weights_proj.weight",
        "I D",
        "attention/w_index_DI",
    ),
    ("ffn.gate.weight", "mlp.gate.weight", "X D", "mlp/router/w_DX"),
    ("ffn.gate.bias", "mlp.gate.e_score_correction_bias", "X", "mlp/router/bias_X"),
    ("ffn.gate.tid2eid", "mlp.gate.tid2eid", "V K", "mlp/router/table_VK"),
    ("ffn.shared_experts.w1.weight", "mlp.shared_experts.gate_proj.weight", "F D", "mlp/shared/w_gate_DF"),
    ("ffn.shared_experts.w3.weight", "mlp.shared_experts.up_proj.weight", "F D", "mlp/shared/w_up_DF"),
    ("ffn.shared_experts.w2.weight", "mlp.shared_experts.down_proj.weight", "D F", "mlp/shared/w_down_FD"),
)
"""Names in a layer as published and as transformers has them in memory, layout, parameter."""

EXPERTS = rows(
    ("model.layers.{l}.ffn.experts.{e}.w1.weight", "F D", "mlp/w_gate_XFD"),
    ("model.layers.{l}.ffn.experts.{e}.w3.weight", "F D", "mlp/w_up_XFD"),
    ("model.layers.{l}.ffn.experts.{e}.w2.weight", "D F", "mlp/w_down_XDF"),
)
PUBLISHED, IN_MEMORY = (
    rows((head, "V D", "head_DV"), *((f"model.layers.{{l}}.{names[which]}", *names[2:]) for names in _NAMES))
    for which, head in enumerate(("head.weight", "lm_head.weight"))
)

NANO = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 32, "q_lora_rank": 64}
NANO |= {"o_groups": 2, "o_lora_rank": 48, "moe_intermediate_size": 64, "n_routed_experts": 16, "hc_mult": 2}
NANO |= {"num_experts_per_tok": 4, "index_n_heads": 8, "index_head_dim": 16, "index_topk": 64, "sliding_window": 64}
NANO |= {"vocab_size": 257, "bos_token_id": 256, "eos_token_id": 256, "max_position_embeddings": 4096}
KINDS = {"num_hash_layers": 1, "qk_rope_head_dim": 16, "compress_rate_hca": 16, "compress_ratios": [0, 4, 128, 4]}
STRETCHED = {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 65_536}

# The size is the class defaults of transformers, which name this model; the factor of YaRN is stated there too, the
# original length follows from it and the longest sequence.
FAMILY = Family(
    name="deepseek_v4",
    architecture="DeepseekV4ForCausalLM",
    read=read,
    write=write,
    weights=TOP + PUBLISHED + EXPERTS,
    fused=IN_MEMORY + FUSED_EXPERTS,
    inert=frozenset({"expert_dtype"}),
    presets=presets(
        "deepseek_v4",
        {
            "deepseek-v4-flash": read(Fields({"rope_scaling": STRETCHED})),
            "deepseek-v4-nano": read(Fields(NANO | KINDS)),
        },
    ),
)
