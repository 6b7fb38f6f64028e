"""Depth cut among stages: what divides, what is refused, and what is traced. That it trains as one device does is in
tests/sharding/test_stages.py.
"""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType

from archzoo.layers.attention import Attention
from archzoo.layers.block import pre_norm
from archzoo.layers.decoder import Decoder, Spec, init_cache
from archzoo.layers.execution import Execution
from archzoo.layers.lent import NormedAttention
from archzoo.layers.mlp import GatedMLP
from archzoo.layers.norms import RMSNorm
from archzoo.layers.pipeline import microbatches, stages
from archzoo.layers.rope import Rope
from archzoo.sharding.mesh import misfit, parse_mesh
from archzoo.sharding.rules import Rules
from archzoo.train.placement import spread

SPEC = Spec(
    vocab=16,
    width=8,
    depth=4,
    attention=Attention(heads=2, kv_heads=2, head_dim=4, rope=Rope(dim=4)),
    mlp=GatedMLP(ffn=8),
    block=pre_norm(RMSNorm()),
    max_length=8,
)


@pytest.mark.parametrize(
    ("mesh", "rows", "asked", "cut"),
    [
        ("stage=2", 16, None, 8),  # four a stage
        ("stage=2", 64, None, 8),
        ("stage=2", 12, None, 6),  # what comes next below that divides
        ("stage=4", 4, None, 4),
        ("stage=2,fsdp=4", 16, None, 4),
        ("stage=2,tensor=4", 16, None, 8),  # tensor devices share no rows
        ("stage=2", 16, 16, 16),
        ("stage=2", 16, 2, 2),
    ],
)
def test_microbatches_are_a_multiple_of_the_stages_that_divides_the_rows(
    mesh: str, rows: int, asked: int | None, cut: int
) -> None:
    assert microbatches(asked, rows, Rules(), parse_mesh(mesh)) == cut


@pytest.mark.parametrize(
    ("mesh", "rows", "asked", "message"),
    [
        ("stage=2", 16, 3, "microbatches is 3: 2 stages, with 16 rows for each pipeline, take 2, 4, 8, 16"),
        ("stage=2,data=2", 16, 16, "microbatches is 16: 2 stages, with 8 rows for each pipeline, take 2, 4, 8"),
        ("stage=4,fsdp=2", 12, None, "12 rows does not divide among 2 pipelines of 4 stages; make it a multiple of 8"),
    ],
)
def test_microbatches_that_do_not_divide_are_refused(mesh: str, rows: int, asked: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        microbatches(asked, rows, Rules(), parse_mesh(mesh))


@pytest.mark.parametrize(
    ("depth", "sizes", "fits"), [(4, {"stage": 2}, True), (4, {"stage": 4}, True), (6, {"stage": 4}, False)]
)
def test_repeats_divide_by_the_stages(depth: int, sizes: dict[str, int], fits: bool) -> None:
    wrong = misfit(sizes, spread(SPEC.replace(depth=depth), 16, 8), Rules())
    assert (wrong is None) == fits
    assert fits or "its axis layers of 6 does not divide by stage=4" in str(wrong)


def traced(spec: Spec, mesh: str, method: str = "hidden", **execution: Any) -> str:
    """What a pass over a batch is on a mesh whose devices need not be here."""
    sizes = parse_mesh(mesh)
    model = Decoder(spec, Execution(rules=Rules(), **execution))
    tokens_BL = jnp.zeros((16, 8), jnp.int32)
    more = (init_cache(spec, 16, 8, "float32"),) if method == "extend" else ()
    abstract = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    with jax.sharding.use_abstract_mesh(abstract):
        run = jax.make_jaxpr(lambda params: model.apply({"params": params}, tokens_BL, *more, method=method))
        return str(run(spec.shapes))


def test_a_stage_axis_makes_a_pipeline_and_no_other_axis_does() -> None:
    assert "ppermute" in traced(SPEC, "stage=2,fsdp=2")
    assert "ppermute" not in traced(SPEC, "fsdp=4")
    assert "ppermute" not in traced(SPEC, "stage=1,fsdp=4")
    assert stages(None) == 1


def test_microbatches_plus_stages_less_one_are_the_ticks() -> None:
    assert "length=11" in traced(SPEC, "stage=4", microbatches=8)
    assert "length=5" in traced(SPEC, "stage=2", microbatches=4)


def test_a_run_of_its_own_keeps_its_rows_spread_over_stages() -> None:
    """Layers outside the deepest run are no part of the pipeline: the same rows are there on every mesh."""
    dense = SPEC.replace(mlp=(GatedMLP(ffn=16), GatedMLP(ffn=8), ...), depth=5)
    assert [run.repeats for run in dense.runs] == [1, 4]
    assert traced(dense, "stage=4").count("ppermute") == 1


def test_decoding_has_no_pipeline() -> None:
    assert "ppermute" not in traced(SPEC, "stage=2", method="extend")


def test_layers_that_hand_on_are_refused() -> None:
    kinds = {"heads": 2, "kv_heads": 2, "head_dim": 4, "rope": Rope(dim=4)}
    lending = NormedAttention(**kinds, lends="keys")
    borrowing = NormedAttention(**kinds, borrows="keys")
    spec = SPEC.replace(attention=(lending, borrowing))
    with pytest.raises(ValueError, match="stages: layers of this model hand keys to others"):
        traced(spec, "stage=2")
