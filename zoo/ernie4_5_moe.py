"""ERNIE 4.5, text (Baidu ERNIE team 2025, technical report): grouped-query attention with interleaved rope; after a few
dense layers, experts behind a softmax router with a selection bias, beside shared ones. Beside the model, a module of
multi-token prediction, whose layer is like the model's first (ERNIE's own code)."""

from typing import Any

from ..layers.attention import Attention
from ..layers.block import pre_norm
from ..layers.decoder import Spec
from ..layers.mlp import GatedMLP
from ..layers.moe import MoE
from ..layers.norms import RMSNorm
from ..layers.rope import Rope
from ..layers.router import Router
from ..layers.unnormed import Unnormed
from .deepseek import SHARED
from .family import ATTENTION, EMBEDDINGS, EXPERTS, FUSED_EXPERTS, MLP, PRE_NORMS, Family, presets, tailed
from .fields import Fields, read_common, read_rope, write_common, write_rope
from .weights import of_modules, rows

FIXED = {
    "hidden_act": "silu",
    "moe_norm_min": 1e-12,  # below what a sum of chosen probabilities can be
    "use_bias": False,  # it would be in every projection, the head's too; none is published
    "moe_gate": "topk",
    "moe_use_aux_free": True,
}


COUNTED = "num_nextn_predict_layers"


def read(c: Fields) -> Spec:
    heads, depth = c.int("num_attention_heads", least=1), c.int("num_hidden_layers")
    head_dim = c.int("head_dim", c.int("hidden_size") // heads)
    norm = RMSNorm(eps=c.float("rms_norm_eps", 1e-5))
    ffn, shared = c.int("moe_intermediate_size", 1536), c.int("moe_num_shared_experts", 2)
    moe = MoE(
        experts=c.int("moe_num_experts", 64),
        ffn=ffn,
        router=Router(top_k=c.int("moe_k", 6), bias=True),
        shared=GatedMLP(ffn=ffn * shared) if shared else None,
    )
    plain = GatedMLP(ffn=c.int("intermediate_size"))
    first, every = c.int("moe_layer_start_index", 1), c.int("moe_layer_interval", 1, least=1)
    last = c.int("moe_layer_end_index", -1, least=-1)
    last = depth - 1 if last == -1 else last
    mlp = [plain if (i + 1) % every or not first <= i <= last else moe for i in range(depth)]
    attention = Attention(
        heads=heads,
        kv_heads=c.int("num_key_value_heads", 4),
        head_dim=head_dim,
        rope=read_rope(c.over({"rope_theta": 500_000.0}), head_dim, interleaved=True),
    )
    return Spec(
        **read_common(c, tied=True),
        attention=attention,
        mlp=tailed(mlp),
        block=pre_norm(norm),
        final_norm=norm,
        mtp=Unnormed(attention=attention, mlp=mlp[0]) if c.int(COUNTED, 0) == 1 else None,  # of more, none is published
    )


def write(spec: Spec, dialect: int) -> dict[str, Any]:
    attention, mlps = spec.attention[0], [layer.mlp for layer in spec.layers]
    sparse = [i for i, mlp in enumerate(mlps) if isinstance(mlp, MoE)]
    moe, plain = mlps[sparse[0]], next((mlp for mlp in mlps if isinstance(mlp, GatedMLP)), None)
    return write_common(spec) | {
        **({COUNTED: spec.mtp.depth} if spec.mtp else {}),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        **write_rope(attention.rope, dialect),
        "intermediate_size": 12288 if plain is None else plain.ffn,
        "moe_intermediate_size": moe.ffn,
        "moe_num_experts": moe.experts,
        "moe_k": moe.router.top_k,
        "moe_num_shared_experts": moe.shared.ffn // moe.ffn if moe.shared else 0,
        "moe_layer_start_index": sparse[0],
        "moe_layer_end_index": sparse[-1],
        "moe_layer_interval": sparse[1] - sparse[0] if len(sparse) > 1 else 1,
        "rms_norm_eps": spec.final_norm.eps,
    }


STATICS = rows(("model.layers.{l}.mlp.moe_statics.e_score_correction_bias", "() X", "mlp/router/bias_X"))
FUSED_STATICS = rows(("model.layers.{l}.mlp.gate.moe_statics.e_score_correction_bias", "() X", "mlp/router/bias_X"))

MODULE = rows(
    ("model.mtp_emb_norm.{m}.weight", "D", "mtp_{m}/norm_token/scale_D"),
    ("model.mtp_hidden_norm.{m}.weight", "D", "mtp_{m}/norm_hidden/scale_D"),
    ("model.mtp_linear_proj.{m}.weight", "D I", "mtp_{m}/w_ID"),
)
MODULE += of_modules(
    PRE_NORMS + ATTENTION + MLP + EXPERTS + SHARED[1:] + STATICS, ("model.layers.{l}.", "model.mtp_block.{m}.")
)


def model(width: int, depth: int, ffn: int, heads: int, kv_heads: int, experts: int, top_k: int, inner: int) -> Spec:
    norm, dim = RMSNorm(eps=1e-5), width // heads
    moe = MoE(experts=experts, ffn=inner, router=Router(top_k=top_k, bias=True), shared=GatedMLP(ffn=2 * inner))
    rope = Rope(dim=dim, theta=500_000.0, interleaved=True)
    return Spec(
        vocab=103_424,
        width=width,
        depth=depth,
        attention=Attention(heads=heads, kv_heads=kv_heads, head_dim=dim, rope=rope),
        mlp=(GatedMLP(ffn=ffn), moe, ...),
        block=pre_norm(norm),
        final_norm=norm,
        tied=True,
        max_length=131_072,
        bos_id=1,
        eos_ids=(2,),
        pad_id=0,
    )


# Sizes and token ids are the class defaults of transformers, which names this model; published: the module.
A3B = model(2560, 28, 12288, 20, 4, 64, 6, 1536)
FAMILY = Family(
    name="ernie4_5_moe",
    architecture="Ernie4_5_MoeForCausalLM",
    read=read,
    write=write,
    fixed=FIXED,
    weights=EMBEDDINGS + PRE_NORMS + ATTENTION + MLP + EXPERTS + SHARED[1:] + STATICS + MODULE,
    counted=COUNTED,
    fused=FUSED_EXPERTS + FUSED_STATICS,
    inert=frozenset({"moe_capacity", "hidden_dropout_prob", "attention_probs_dropout_prob"}),
    presets=presets(
        "ernie4_5_moe",
        {
            "ernie4.5-21b-a3b": A3B.replace(mtp=Unnormed(attention=A3B.attention[0], mlp=A3B.mlp[0])),
            "ernie4.5-moe-nano": model(128, 4, 320, 4, 2, 16, 4, 64).replace(
                vocab=257, max_length=4096, bos_id=256, eos_ids=(256,), pad_id=None
            ),
        },
    ),
)
