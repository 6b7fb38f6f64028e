"""A layer with one mixer adds it to the residual, whichever it is, and refuses two or none."""

from typing import Any

import jax
import numpy as np
import pytest

from archzoo.layers.attention import Attention
from archzoo.layers.block import pre_norm
from archzoo.layers.decoder import Spec
from archzoo.layers.mlp import GatedMLP
from archzoo.layers.norms import RMSNorm
from archzoo.layers.single import Absent, Single

from .conftest import MODEL, close, forward, params_of, tokens_of

ATTENTION, MLP, NORM = Attention(heads=2, kv_heads=1, head_dim=8), GatedMLP(ffn=12), RMSNorm(eps=1e-5)
SINGLE = Spec(
    vocab=30,
    width=16,
    depth=4,
    attention=(ATTENTION, Absent()),
    mlp=(Absent(), MLP),
    block=Single(before=NORM),
    final_norm=NORM,
)


def test_attention_and_mlp_by_turns_are_a_pre_norm_model() -> None:
    pairs = SINGLE.replace(depth=2, attention=ATTENTION, mlp=MLP, block=pre_norm(NORM))
    params = params_of(SINGLE)
    attention, mlp = params["run_0"]["layer_0"], params["run_0"]["layer_1"]
    layer: dict[str, Any] = {"attention": attention["attention"], "mlp": mlp["mlp"]}
    layer |= {"attention_before": attention["before"], "mlp_before": mlp["before"]}
    paired = {name: leaf for name, leaf in params.items() if name != "run_0"} | {"run_0": {"layer_0": layer}}
    tokens = tokens_of(SINGLE, 2, 7)
    close(forward(SINGLE, params, tokens), forward(pairs, paired, tokens), MODEL)
    assert SINGLE.param_count() == pairs.param_count() == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert SINGLE.cache_bytes(1, 8) == pairs.cache_bytes(1, 8)
    assert np.isclose(SINGLE.flops_per_token(8), pairs.flops_per_token(8))


@pytest.mark.parametrize(("attention", "mlp"), [(ATTENTION, MLP), (Absent(), Absent())], ids=["two", "none"])
def test_two_mixers_or_none_are_refused(attention: Any, mlp: Any) -> None:
    with pytest.raises(ValueError, match=r"takes attention or an MLP and an Absent other, not [02]"):
        _ = SINGLE.replace(attention=attention, mlp=mlp).shapes
