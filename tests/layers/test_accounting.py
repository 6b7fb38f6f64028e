"""Counts equal sums done by hand, and every parameter knows its axes, its inputs and its outputs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from archzoo.layers.accounting import axes, input_axes, is_matrix, is_vocab, leaves, output_axes, tree_of
from archzoo.layers.attention import Attention
from archzoo.layers.block import pre_norm, sandwich_norm
from archzoo.layers.decoder import Spec, param_shapes
from archzoo.layers.execution import Execution
from archzoo.layers.latent import LatentAttention
from archzoo.layers.mlp import GatedMLP
from archzoo.layers.moe import MoE
from archzoo.layers.norms import LayerNorm, QKNorm, RMSNorm
from archzoo.layers.rope import Rope
from archzoo.layers.router import Router

from .conftest import SPECS

V, D = 100, 32
ATTENTION = Attention(heads=4, kv_heads=2, head_dim=8, rope=Rope(dim=8), qk_norm=QKNorm(), bias="qkvo")
LATENT = LatentAttention(heads=4, nope_dim=6, value_dim=5, kv_rank=12, rope=Rope(dim=2), q_rank=10)
MLP = GatedMLP(ffn=48)
MOE = MoE(experts=8, ffn=16, router=Router(top_k=3, bias=True), shared=GatedMLP(ffn=20))


def spec(**fields: Any) -> Spec:
    return Spec(
        **{
            "vocab": V,
            "width": D,
            "depth": 2,
            "attention": ATTENTION,
            "mlp": MLP,
            "block": pre_norm(RMSNorm()),
            **fields,
        }
    )


# --- counts by hand: of one layer, the weights that multiply and all the rest ----------------------------------------

WQ, WK, WO = D * 4 * 8, D * 2 * 8, 4 * 8 * D
ATTENTION_WEIGHTS = WQ + 2 * WK + WO
ATTENTION_OTHERS = (4 * 8 + 2 * 2 * 8 + D) + 2 * 8  # biases of q, k, v, o; norms of one head
LATENT_WEIGHTS = D * 10 + 10 * 4 * 8 + D * (12 + 2) + 12 * 4 * 6 + 12 * 4 * 5 + 4 * 5 * D
LATENT_OTHERS = 10 + 12
MLP_WEIGHTS = 3 * D * 48
EXPERT, SHARED, ROUTER = 3 * D * 16, 3 * D * 20, D * 8
NORMS = 2 * D


def mean_keys(length: int, window: int | None = None) -> float:
    return sum(min(t + 1, window or length) for t in range(length)) / length


CASES = {
    "dense": (spec(), 2 * (ATTENTION_WEIGHTS + MLP_WEIGHTS), 2 * (ATTENTION_OTHERS + NORMS), 0, 2 * 2 * (8 + 8) * 4),
    "latent": (
        spec(attention=LATENT),
        2 * (LATENT_WEIGHTS + MLP_WEIGHTS),
        2 * (LATENT_OTHERS + NORMS),
        0,
        2 * 2 * (6 + 2 + 5) * 4,
    ),
    "moe": (
        spec(mlp=(MLP, MOE, ...), depth=3),
        3 * ATTENTION_WEIGHTS + MLP_WEIGHTS + 2 * (3 * EXPERT + SHARED + ROUTER),
        3 * (ATTENTION_OTHERS + NORMS) + 2 * 8,
        2 * (8 - 3) * EXPERT,
        3 * 2 * (8 + 8) * 4,
    ),
}
"""Per case: the spec; weights that multiply a token; scales and biases; weights of experts it does not choose; FLOPs of
scores and values for each key that a query sees."""


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_counts_equal_those_by_hand(case: str, tied: bool) -> None:
    one, multiplied, others, unchosen, a_key = CASES[case]
    one = one.replace(tied=tied)
    tables = V * D * (1 if tied else 2)
    assert one.active_param_count() == multiplied + others + tables + D
    assert one.param_count() == multiplied + others + unchosen + tables + D
    assert one.flops_per_token(16) == 2 * (multiplied + V * D) + a_key * mean_keys(16)


def test_a_window_saves_the_flops_of_the_keys_it_hides() -> None:
    local = spec().replace(**{"attention.window": 4})
    saved = 2 * (2 * 2 * 8 * 4) * (mean_keys(16) - mean_keys(16, 4))
    assert spec().flops_per_token(16) - local.flops_per_token(16) == pytest.approx(saved)


@pytest.mark.parametrize("name", SPECS)
def test_the_count_is_the_sum_of_the_leaves(name: str) -> None:
    shapes = param_shapes(SPECS[name])
    assert SPECS[name].param_count() == sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", SPECS)
def test_every_parameter_has_an_axis_for_each_dimension(name: str) -> None:
    def check(leaf: jax.ShapeDtypeStruct, names: tuple[str | None, ...]) -> None:
        assert len(leaf.shape) == len(names)
        assert None not in names

    jax.tree.map(check, param_shapes(SPECS[name]), axes(SPECS[name]))


# --- axes ------------------------------------------------------------------------------------------------------------

TABLE: dict[str, tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]] = {
    # parameter: logical axes after "layers", and of a matrix its input and output axes (0 is "layers")
    "attention/wq_DKGE": (("width", "kv_heads", "q_per_kv", "head_dim"), (1,), (2, 3, 4)),
    "attention/wk_DKE": (("width", "kv_heads", "head_dim"), (1,), (2, 3)),
    "attention/wv_DKE": (("width", "kv_heads", "head_dim"), (1,), (2, 3)),
    "attention/wo_KGED": (("kv_heads", "q_per_kv", "head_dim", "width"), (1, 2, 3), (4,)),
    "attention/bq_KGE": (("kv_heads", "q_per_kv", "head_dim"), (), ()),
    "attention/bk_KE": (("kv_heads", "head_dim"), (), ()),
    "attention/bv_KE": (("kv_heads", "head_dim"), (), ()),
    "attention/bo_D": (("width",), (), ()),
    "attention/q_norm/scale_KGE": (("kv_heads", "q_per_kv", "head_dim"), (), ()),
    "attention/k_norm/scale_KE": (("kv_heads", "head_dim"), (), ()),
    "attention/wq_DHP": (("width", "heads", "head_dim"), (1,), (2, 3)),
    "attention/wq_down_DQ": (("width", "q_rank"), (1,), (2,)),
    "attention/wq_up_QHP": (("q_rank", "heads", "head_dim"), (1,), (2, 3)),
    "attention/wkv_down_DT": (("width", "latent_dim"), (1,), (2,)),
    "attention/wk_CHN": (("kv_rank", "heads", "nope_dim"), (1,), (2, 3)),
    "attention/wv_CHV": (("kv_rank", "heads", "value_dim"), (1,), (2, 3)),
    "attention/wo_HVD": (("heads", "value_dim", "width"), (1, 2), (3,)),
    "attention/q_norm/scale_Q": (("q_rank",), (), ()),
    "attention/kv_norm/scale_C": (("kv_rank",), (), ()),
    "mlp/w_gate_DF": (("width", "ffn"), (1,), (2,)),
    "mlp/w_up_DF": (("width", "ffn"), (1,), (2,)),
    "mlp/w_down_FD": (("ffn", "width"), (1,), (2,)),
    "mlp/b_gate_F": (("ffn",), (), ()),
    "mlp/b_up_F": (("ffn",), (), ()),
    "mlp/b_down_D": (("width",), (), ()),
    "mlp/w_gate_XFD": (("experts", "ffn", "width"), (3,), (2,)),
    "mlp/w_up_XFD": (("experts", "ffn", "width"), (3,), (2,)),
    "mlp/w_down_XDF": (("experts", "width", "ffn"), (3,), (2,)),
    "mlp/router/w_DX": (("width", "routes"), (1,), (2,)),
    "mlp/router/bias_X": (("routes",), (), ()),
    "mlp/shared/w_gate_DF": (("width", "ffn"), (1,), (2,)),
    "mlp/shared/w_up_DF": (("width", "ffn"), (1,), (2,)),
    "mlp/shared/w_down_FD": (("ffn", "width"), (1,), (2,)),
    "attention_before/scale_D": (("width",), (), ()),
    "attention_before/bias_D": (("width",), (), ()),
    "attention_after/scale_D": (("width",), (), ()),
    "attention_after/bias_D": (("width",), (), ()),
    "mlp_before/scale_D": (("width",), (), ()),
    "mlp_before/bias_D": (("width",), (), ()),
    "mlp_after/scale_D": (("width",), (), ()),
    "mlp_after/bias_D": (("width",), (), ()),
}

EVERYTHING = spec(
    depth=4,
    attention=(
        Attention(heads=4, kv_heads=2, head_dim=8, qk_norm=QKNorm(over="width"), bias="qkvo"),
        LATENT,
        LatentAttention(heads=4, nope_dim=6, value_dim=5, kv_rank=12, rope=Rope(dim=2)),
    ),
    mlp=(GatedMLP(ffn=48, bias=True), MOE),
    block=sandwich_norm(LayerNorm()),
    final_norm=LayerNorm(),
)


def test_every_kind_of_parameter_has_the_axes_of_the_table() -> None:
    found = {}
    for leaf in leaves(EVERYTHING):
        if leaf.path[0].startswith("run_"):
            name, matrix = "/".join(leaf.path[2:]), is_matrix(leaf)
            assert leaf.axes[0] == "layers"
            ends = (input_axes(leaf), output_axes(leaf)) if matrix else ((), ())
            found[name] = (leaf.axes[1:], *ends)
            assert not is_vocab(leaf)
    assert found == TABLE


def test_tables_and_last_norm_are_not_stacked() -> None:
    tree = axes(EVERYTHING)
    assert tree["embed_VD"] == ("vocab", "width")
    assert tree["head_DV"] == ("width", "vocab")
    assert tree["final_norm"] == {"scale_D": ("width",), "bias_D": ("width",)}
    by_path = {leaf.path: leaf for leaf in leaves(EVERYTHING)}
    embed, head = by_path["embed_VD",], by_path["head_DV",]
    assert [(is_matrix(t), is_vocab(t), input_axes(t), output_axes(t)) for t in (embed, head)] == [
        (True, True, (0,), (1,))
    ] * 2
    assert not is_matrix(by_path["final_norm", "scale_D"])


def test_a_parameter_belongs_to_the_spec_that_declared_it() -> None:
    owners = {"/".join(leaf.path[-2:]): leaf.owner for leaf in leaves(spec(mlp=MOE))}
    assert owners["shared/w_up_DF"] == MOE.shared
    assert owners["mlp/w_up_XFD"] == MOE
    assert owners["router/w_DX"] == MOE.router
    assert owners["attention/wq_DKGE"] == ATTENTION


def test_a_tree_of_values_has_the_shape_of_the_parameters() -> None:
    one = SPECS["latent"]
    sizes = tree_of(one, lambda leaf: math.prod(leaf.shape))
    assert sizes == jax.tree.map(lambda leaf: math.prod(leaf.shape), param_shapes(one))


# --- a block of one's own --------------------------------------------------------------------------------------------

AXES = {"D": "width"}


@dataclass(frozen=True)
class Gated:
    """x + gate * attention(x) + gate * mlp(x): a parallel block that owns a parameter itself."""

    def shell(self, execution: Execution, attention: Any, mlp: Any) -> nn.Module:
        return GatedShell(execution, attention, mlp)


class GatedShell(nn.Module):
    execution: Execution
    attention_spec: Any
    mlp_spec: Any

    @nn.compact
    def __call__(self, x_BLD: Any, context: Any, cache: Mapping[str, Any] | None) -> tuple[Any, Any, Any]:
        gate_D = self.param("gate_D", nn.initializers.zeros, x_BLD.shape[-1:], jnp.float32)
        y_BLD, entries, aux = x_BLD, {}, {}
        for name, layer in (("attention", self.attention_spec), ("mlp", self.mlp_spec)):
            shell = layer.shell(self.execution).clone(parent=self, name=name)
            out, entries[name], aux[name] = shell(x_BLD, context, None if cache is None else cache[name])
            y_BLD = y_BLD + gate_D * out
        return y_BLD, entries, aux


def test_a_block_may_own_parameters_itself() -> None:
    one = spec(block=Gated())
    assert one.param_count() == 2 * (ATTENTION_WEIGHTS + ATTENTION_OTHERS + MLP_WEIGHTS + D) + 2 * V * D + D
    layer = axes(one)["run_0"]["layer_0"]
    assert layer["gate_D"] == ("layers", "width")
    assert layer["attention"]["bo_D"] == ("layers", "width")
    (gate,) = (leaf for leaf in leaves(one) if leaf.path[-1] == "gate_D")
    assert gate.owner == Gated()
    assert not is_matrix(gate)
