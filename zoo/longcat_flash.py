"""LongCat-Flash (Meituan LongCat team 2025, arXiv 2509.01322): each layer holds two latent attentions with corrected
scales and two dense MLPs, and beside them experts of which a third compute nothing. Beside the model, a module of
multi-token prediction whose layer has one attention and one dense MLP (names and order: vLLM and SGLang)."""

from dataclasses import replace
from typing import Any

from ..layers.block import pre_norm
from ..layers.corrected import CorrectedNorm
from ..layers.decoder import Spec
from ..layers.latent import LatentAttention
from ..layers.mlp import GatedMLP
from ..layers.moe import MoE
from ..layers.mtp import MTP
from ..layers.norms import RMSNorm
from ..layers.rope import Rope
from ..layers.router import Router
from ..layers.shortcut import Shortcut, ShortcutBlock
from .deepseek import LATENT, read_latent, write_latent
from .family import EMBEDDINGS, EXPERTS, FUSED_EXPERTS, MLP, PRE_NORMS, Family, presets
from .fields import Fields, read_common, write_common
from .weights import EMBEDDING_AGAIN, Row, of_modules, rows

COUNTED = "num_nextn_predict_layers"


def read(c: Fields) -> Spec:
    c.only("hidden_act", "silu")
    c.only("attention_method", "MLA")
    c.only("zero_expert_type", "identity")
    c.only("rope_interleave", True)
    c.only("router_bias", False)
    c.only("norm_topk_prob", False)
    for name in ("mla_scale_q_lora", "mla_scale_kv_lora"):
        c.only(name, True)
    depth = c.int("num_layers")
    c.only("num_hidden_layers", 2 * depth)  # transformers counts attentions
    c = c.over({"num_hidden_layers": 2 * depth, "rope_theta": 1e7})
    router = Router(top_k=c.int("moe_topk"), bias=True, renormalise=False, scale=c.float("routed_scaling_factor", 6.0))
    experts = MoE(
        experts=c.int("n_routed_experts"),
        identities=c.int("zero_expert_num", 0),
        ffn=c.int("expert_ffn_hidden_size"),
        router=router,
    )
    parts = read_latent(c), c.int("ffn_hidden_size"), experts
    spec = assembled(*parts, c.float("rms_norm_eps", 1e-5), **read_common(c) | {"depth": depth})
    return predicting(spec) if c.int(COUNTED, 0) == 1 else spec  # of more, none is published


def predicting(spec: Spec) -> Spec:
    """The model with its module."""
    return spec.replace(mtp=MTP(block=pre_norm(spec.final_norm), attention=spec.attention[0], mlp=spec.mlp[0].first))


def assembled(latent: LatentAttention, ffn: int, experts: MoE, eps: float, **common: Any) -> Spec:
    """The model of these parts, whose attention and dense MLP a layer has twice."""
    attention = replace(latent, norm=CorrectedNorm())
    dense, norm = GatedMLP(ffn=ffn), RMSNorm(eps=eps)
    return Spec(
        **common,
        attention=attention,
        mlp=Shortcut(first=dense, attention=attention, second=dense, experts=experts, norm=norm),
        block=ShortcutBlock(before=norm),
        final_norm=norm,
    )


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    latent, mlp = spec.attention[0], spec.mlp[0]
    fields = write_common(spec) | {
        **write_latent(latent, dialect),
        "num_layers": spec.depth,
        **({COUNTED: spec.mtp.depth} if spec.mtp else {}),
        "head_dim": latent.rope.dim,
        "ffn_hidden_size": mlp.first.ffn,
        "expert_ffn_hidden_size": mlp.experts.ffn,
        "n_routed_experts": mlp.experts.experts,
        "zero_expert_num": mlp.experts.identities,
        "moe_topk": mlp.experts.router.top_k,
        "routed_scaling_factor": mlp.experts.router.scale,
        "hidden_act": "silu",
        "rms_norm_eps": spec.final_norm.eps,
    }
    return {name: value for name, value in fields.items() if name not in ("num_hidden_layers", "rope_interleave")}


def placed(weights: tuple[Row, ...], name: tuple[str, str], parameters: tuple[str, str]) -> tuple[Row, ...]:
    """These rows with a part of the tensors' names and of the parameters' paths replaced."""
    return tuple(
        Row(row.name.replace(*name), row.layout, tuple(path.replace(*parameters) for path in row.parameters))
        for row in weights
    )


OWN_NAMES = rows(
    ("model.layers.{l}.input_layernorm.0.weight", "D", "attention_before/scale_D"),
    ("model.layers.{l}.post_attention_layernorm.0.weight", "D", "mlp/first_norm/scale_D"),
    ("model.layers.{l}.input_layernorm.1.weight", "D", "mlp/attention_norm/scale_D"),
    ("model.layers.{l}.post_attention_layernorm.1.weight", "D", "mlp/second_norm/scale_D"),
    ("model.layers.{l}.mlp.router.classifier.weight", "X D", "mlp/experts/router/w_DX"),
    ("model.layers.{l}.mlp.router.e_score_correction_bias", "X", "mlp/experts/router/bias_X"),
)
TWICE = (
    placed(LATENT, (".self_attn.", ".self_attn.0."), ("", ""))
    + placed(LATENT, (".self_attn.", ".self_attn.1."), ("attention/", "mlp/attention/"))
    + placed(MLP, (".mlp.", ".mlps.0."), ("mlp/", "mlp/first/"))
    + placed(MLP, (".mlp.", ".mlps.1."), ("mlp/", "mlp/second/"))
)

MODULE = rows(
    ("model.mtp.layers.{m}.enorm.m.weight", "D", "mtp_{m}/norm_token/scale_D"),
    ("model.mtp.layers.{m}.hnorm.m.weight", "D", "mtp_{m}/norm_hidden/scale_D"),
    ("model.mtp.layers.{m}.eh_proj.weight", "D I", "mtp_{m}/w_ID"),
    ("model.mtp.norm.weight", "D", "mtp_{m}/final_norm/scale_D"),
    ("model.mtp.embed_tokens.weight", "V D", EMBEDDING_AGAIN),
)
MODULE += of_modules(
    PRE_NORMS + LATENT + MLP, ("model.layers.{l}.", "model.mtp.layers.{m}."), (".mlp.", ".transformer_layer.mlp.")
)


def model(latent: LatentAttention, ffn: int, experts: MoE, width: int, depth: int) -> Spec:
    common: dict[str, Any] = {"vocab": 131_072, "max_length": 131_072, "bos_id": 1, "eos_ids": (2,)}
    return assembled(latent, ffn, experts, 1e-5, width=width, depth=depth, **common)


def zero_experts(count: int, identities: int, top_k: int, ffn: int) -> MoE:
    router = Router(top_k=top_k, bias=True, renormalise=False, scale=6.0)
    return MoE(experts=count, identities=identities, ffn=ffn, router=router)


ROPE = Rope(dim=64, theta=1e7, interleaved=True)
FLASH = LatentAttention(heads=64, nope_dim=128, value_dim=128, kv_rank=512, q_rank=1536, rope=ROPE)
SMALL = LatentAttention(heads=4, nope_dim=32, value_dim=32, kv_rank=48, q_rank=64, rope=Rope(dim=16, interleaved=True))
NANO = model(SMALL, 256, zero_experts(16, 8, 6, 64), width=128, depth=3)

# Sizes and token ids are the class defaults of transformers, which names this model; published: the module.
FAMILY = Family(
    name="longcat_flash",
    architecture="LongcatFlashForCausalLM",
    read=read,
    write=write,
    weights=EMBEDDINGS + OWN_NAMES + TWICE + placed(EXPERTS[1:], ("", ""), ("mlp/", "mlp/experts/")) + MODULE,
    counted=COUNTED,
    fused=placed(FUSED_EXPERTS, ("", ""), ("mlp/", "mlp/experts/")),
    presets=presets(
        "longcat_flash",
        {
            "longcat-flash-560b": predicting(
                model(FLASH, 12288, zero_experts(512, 256, 12, 2048), width=6144, depth=28)
            ),
            "longcat-flash-nano": NANO.replace(vocab=257, max_length=4096, bos_id=256, eos_ids=(256,)),
        },
    ),
)
