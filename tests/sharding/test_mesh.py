"""A mesh is read as it is written, and refused with numbers and one that works where it does not fit."""

import re

import jax
import pytest

from archzoo.sharding.mesh import Array, choose_sizes, fitting_mesh, misfit, parse_mesh, written
from archzoo.sharding.rules import RULES, Rules, rules_by_name

BATCH = Array("the batch", ("batch", "length"), (8, 32))
DENSE = Array("wq_DKGE", ("width", "kv_heads", "q_per_kv", "head_dim"), (32, 2, 4, 8))
EXPERTS = Array("w_up_XFD", ("experts", "ffn", "width"), (8, 16, 32))
LARGE = Array("embed_VD", ("vocab", "width"), (131072, 4096))


def test_a_mesh_is_read_as_it_is_written() -> None:
    sizes = parse_mesh(" fsdp=4, expert=2")
    assert sizes == {"fsdp": 4, "expert": 2}
    assert parse_mesh(written(sizes)) == sizes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fsdp", "'fsdp' is not AXIS=SIZE"),
        ("fsdp=0", "'fsdp=0' is not AXIS=SIZE"),
        ("fsdp=-2", "is not AXIS=SIZE"),
        ("model=2", "unknown axis 'model'; the mesh axes are data, fsdp"),
        ("fsdp=2,fsdp=2", "axis 'fsdp' is given twice"),
    ],
)
def test_what_is_no_mesh_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_mesh(text)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"tensor": 4}, r"wq_DKGE \(32, 2, 4, 8\): its axis kv_heads of 2 does not divide by tensor=4"),
        ({"data": 2, "fsdp": 8}, r"the batch \(8, 32\): its axis batch of 8 does not divide by data=2 x fsdp=8"),
        ({"sequence": 3}, "its axis length of 32 does not divide by sequence=3"),
    ],
)
def test_what_does_not_divide_is_named(sizes: dict[str, int], message: str) -> None:
    found = misfit(sizes, [BATCH, DENSE], Rules())
    assert found is not None
    assert re.search(message, found)


def test_few_key_heads_divide_by_groups() -> None:
    assert misfit({"tensor": 4}, [BATCH, DENSE], rules_by_name("groups")) is None


@pytest.mark.parametrize(
    ("devices", "arrays", "chosen"),
    [
        (8, [BATCH, DENSE], {"data": 8}),
        (8, [BATCH, DENSE, LARGE], {"fsdp": 8}),
        (8, [BATCH, DENSE, EXPERTS], {"expert": 8}),
        (16, [BATCH, DENSE], {"data": 8, "sequence": 2}),
        (1, [BATCH], {"data": 1}),
    ],
)
def test_auto_follows_from_the_shapes(devices: int, arrays: list[Array], chosen: dict[str, int]) -> None:
    assert choose_sizes(devices, arrays, Rules()) == chosen


def test_what_auto_chooses_for_many_devices_fits() -> None:
    chosen = choose_sizes(1024, [BATCH._replace(shape=(512, 4096)), DENSE, LARGE, EXPERTS], Rules())
    assert chosen is not None
    product = 1
    for size in chosen.values():
        product *= size
    assert product == 1024


def test_a_mesh_of_other_devices_is_refused_with_one_that_works() -> None:
    with pytest.raises(ValueError, match=r"mesh fsdp=3 needs 3 devices, but there are 1; a mesh that works: data=1"):
        fitting_mesh("fsdp=3", [BATCH], Rules(), jax.devices()[:1])


def test_where_no_mesh_works_auto_says_why() -> None:
    odd = Array("the batch", ("batch", "length"), (3, 5))
    assert choose_sizes(2, [odd], Rules()) is None
    assert choose_sizes(2, [odd, DENSE], Rules()) == {"tensor": 2}
    assert choose_sizes(5, [odd, DENSE], Rules(length=None)) is None


def test_unknown_rules_are_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="no sharding rules are called 'zerro'; there are default, groups, data, zero"):
        rules_by_name("zerro")
    assert RULES["default"] == Rules()
