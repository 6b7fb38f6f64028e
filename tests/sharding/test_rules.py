"""The table turns logical axes into partitions, and refuses what it does not know or cannot do."""

import math
from dataclasses import fields
from typing import Any

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from archzoo.layers.accounting import DEPTH, axes, leaves
from archzoo.layers.attention import Attention
from archzoo.layers.block import pre_norm
from archzoo.layers.decoder import Spec, param_shapes
from archzoo.layers.latent import LatentAttention
from archzoo.layers.mlp import GatedMLP
from archzoo.layers.moe import MoE
from archzoo.layers.norms import QKNorm, RMSNorm
from archzoo.layers.rope import Rope
from archzoo.layers.router import Router
from archzoo.sharding.rules import MESH_AXES, Rules, make_mesh
from archzoo.zoo.registry import MODELS

FULL: Any = AbstractMesh((2, 2, 2, 2, 2, 1), MESH_AXES)
SMALL: Any = AbstractMesh((4, 2), ("fsdp", "tensor"))


@pytest.mark.parametrize(
    ("logical", "partition"),
    [
        (("layers", "width", "kv_heads", "q_per_kv", "head_dim"), P("stage", "fsdp", "tensor", None, None)),
        (("few_layers", "experts", "width", "ffn"), P(None, "expert", "fsdp", "tensor")),
        (("vocab", "width"), P("tensor", "fsdp")),
        (("layers", "q_rank", "heads", "head_dim"), P("stage", "fsdp", "tensor", None)),
        (("layers", "width", "q_rank"), P("stage", "fsdp", None)),
        (("kv_heads", "q_per_kv", "head_dim", "kv_rank"), P("tensor", None, None, "fsdp")),
        (("batch", "length"), P(("data", "fsdp", "expert", "stage"), "sequence")),
        ((None, "width"), P(None, "fsdp")),
        ((), P()),
    ],
)
def test_logical_axes_become_mesh_axes(logical: tuple[str | None, ...], partition: P) -> None:
    assert Rules().partition(logical, FULL) == partition


@pytest.mark.parametrize(
    ("logical", "partition"),
    [
        (("batch", "length"), P("fsdp", None)),
        (("experts", "width", "ffn"), P(None, "fsdp", "tensor")),
        (("heads", "value_dim"), P("tensor", None)),
    ],
)
def test_mesh_axes_that_the_mesh_lacks_drop_out(logical: tuple[str, ...], partition: P) -> None:
    assert Rules().partition(logical, SMALL) == partition


def test_a_changed_rule_changes_its_axis_only() -> None:
    rules = Rules(width=None, ffn=("fsdp", "tensor"))
    assert rules.partition(("width", "ffn"), FULL) == P(None, ("fsdp", "tensor"))
    assert rules.partition(("vocab", "width"), FULL) == P("tensor", None)
    assert rules != Rules()  # so that jit, which keys on it, compiles anew


def test_a_misspelt_logical_axis_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no sharding rule for logical axis 'widht'; the rules are .*batch, .*width"):
        Rules().partition(("widht", "ffn"), FULL)


def test_a_misspelt_mesh_axis_is_refused_where_the_table_is_made() -> None:
    with pytest.raises(ValueError, match=r"Rules\.ffn names mesh axis 'tensr'; the mesh axes are data, fsdp"):
        Rules(ffn=("fsdp", "tensr"))


@pytest.mark.parametrize("logical", [("heads", "ffn"), ("batch", "width"), ("width", "width")])
def test_a_mesh_axis_twice_in_one_array_is_refused(logical: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match=rf"would shard both '{logical[0]}' and '{logical[1]}'"):
        Rules().partition(logical, FULL)


def test_a_mesh_axis_twice_in_one_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="'fsdp' would shard both 'width' and 'width'"):
        Rules(width=("fsdp", "fsdp")).partition(("width",), FULL)


def test_a_clash_that_the_mesh_does_not_have_is_none() -> None:
    assert Rules(q_per_kv="stage", head_dim="stage").partition(("q_per_kv", "head_dim"), SMALL) == P(None, None)


# --- what the table is for

ROPE = Rope(dim=4)
MODEL = Spec(
    vocab=16,
    width=8,
    depth=2,
    attention=(
        Attention(heads=4, kv_heads=2, head_dim=4, rope=ROPE, qk_norm=QKNorm(over="width"), bias="qkvo"),
        LatentAttention(heads=2, nope_dim=4, value_dim=4, kv_rank=4, rope=ROPE, q_rank=4),
    ),
    mlp=(GatedMLP(ffn=8, bias=True), MoE(experts=4, ffn=8, router=Router(top_k=2, bias=True), shared=GatedMLP(ffn=8))),
    block=pre_norm(RMSNorm()),
)


def test_every_axis_of_every_parameter_has_a_rule_and_no_two_clash() -> None:
    partitions = jax.tree.map(
        lambda names: Rules().partition(names, FULL), axes(MODEL), is_leaf=lambda node: isinstance(node, tuple)
    )
    assert partitions["run_0"]["layer_1"]["mlp"]["w_up_XFD"] == P("stage", "expert", "tensor", "fsdp")
    assert set(jax.tree.leaves(axes(MODEL))) <= {field.name for field in fields(Rules)}


def test_shardings_are_a_tree_like_the_parameters() -> None:
    mesh = make_mesh(jax.devices()[:1], fsdp=1, tensor=1)
    shardings = Rules().shardings(axes(MODEL), mesh)
    assert str(jax.tree.structure(shardings)) == str(jax.tree.structure(param_shapes(MODEL)))
    assert shardings["embed_VD"] == NamedSharding(mesh, P("tensor", "fsdp"))


OVER_EIGHT: Any = AbstractMesh((8,), ("fsdp",))
LARGE = 2**20
"""Bytes of a layer, float32."""
WHOLE = ("table_VK", "b_gate_XF", "b_up_XF")
"""A table of numbers of experts, which no product reads, and biases of experts, which lie over expert and tensor."""


def whole(spec: Spec) -> list[str]:
    """Large parameters of which fsdp=8 leaves each device a copy, though one of their axes would divide."""
    found = []
    for leaf in leaves(spec):
        sizes = [size for axis, size in zip(leaf.axes, leaf.shape, strict=True) if axis not in DEPTH]
        large = 4 * math.prod(sizes) > LARGE and any(size % 8 == 0 for size in sizes)
        if large and not any(Rules().partition(leaf.axes, OVER_EIGHT)) and leaf.path[-1] not in WHOLE:
            found.append(f"{'/'.join(leaf.path)} {leaf.shape}")
    return found


@pytest.mark.parametrize("name", ["deepseek-v3", "gemma4-e4b", "kimi-linear-48b-a3b"])
def test_every_large_parameter_lies_over_fsdp(name: str) -> None:
    assert whole(MODELS[name]) == []


@pytest.mark.slow
def test_every_large_parameter_of_every_model_lies_over_fsdp() -> None:
    assert {name: found for name, spec in MODELS.items() if (found := whole(spec))} == {}


# --- meshes


def test_a_mesh_has_automatic_axes_in_the_order_given() -> None:
    mesh = make_mesh(jax.devices()[:1], tensor=1, data=1)
    assert mesh.axis_names == ("tensor", "data")
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
    assert mesh.devices.size == 1


def test_an_unknown_mesh_axis_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown mesh axis 'model'; the mesh axes are data, fsdp"):
        make_mesh(jax.devices()[:1], model=1)


@pytest.mark.parametrize("sizes", [{"fsdp": 2}, {"fsdp": 3, "tensor": 2}, {"data": 0}])
def test_sizes_that_do_not_multiply_to_the_devices_are_refused(sizes: dict[str, int]) -> None:
    product = sizes.get("fsdp", 1) * sizes.get("tensor", 1) * sizes.get("data", 1)
    with pytest.raises(ValueError, match=rf"needs {product} devices, but there are 1; a mesh that works: fsdp=1"):
        make_mesh(jax.devices()[:1], **sizes)
