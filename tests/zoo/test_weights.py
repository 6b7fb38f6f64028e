"""Weight maps: layouts split and join as they say, and each family's map covers every parameter exactly once."""

import math
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from archzoo import FAMILIES, MODELS
from archzoo.layers.accounting import leaves
from archzoo.zoo.weights import Entry, Part, entries, parse, rows

Array = np.ndarray[Any, Any]
NANO = [name for name in MODELS if name.endswith("-nano")]

SIZES = {"D": 5, "K": 2, "G": 3, "E": 4, "H": 3, "N": 2, "V": 7, "C": 6, "X": 4, "F": 5, "Q": 1}


def tensor_of(*axes: str) -> Array:
    """A tensor of these dimensions, each a product of letters, with a different number in each place."""
    shape = [math.prod(SIZES[letter] for letter in dimension) for dimension in axes]
    return np.arange(math.prod(shape), dtype=np.float32).reshape(shape)


def entry(layout: str, shape: tuple[int, ...], *parameters: str) -> Entry:
    parts = tuple(Part((axes,), (), axes, tuple(SIZES[a] for a in axes)) for axes in parameters)
    return Entry("tensor", layout, shape, parts)


def test_a_layout_is_read_into_its_dimensions() -> None:
    assert parse("(K G E) D") == ("KGED", ("",), "", ("KGE", "D"))
    assert parse("(H [N V]) C") == ("H", ("N", "V"), "C", ("H*", "C"))
    assert parse("[(K G E) (K E) (K E)] D") == ("", ("KGE", "KE", "KE"), "D", ("*", "D"))
    assert parse("X [F F] D") == ("X", ("F", "F"), "D", ("X", "*", "D"))


def test_merged_axes_are_told_apart() -> None:
    tensor = tensor_of("KGE", "D")
    (found,) = entry("(K G E) D", tensor.shape, "DKGE").split(tensor)
    for k, g, e in np.ndindex(2, 3, 4):
        np.testing.assert_array_equal(found[:, k, g, e], tensor[(k * 3 + g) * 4 + e])


def test_a_concatenation_inside_each_head_is_told_apart() -> None:
    tensor = np.arange(3 * 9 * 6, dtype=np.float32).reshape(27, 6)
    keys, values = entry("(H [N V]) C", tensor.shape, "CHN", "CHV").split(tensor)
    for h in range(3):
        np.testing.assert_array_equal(keys[:, h], tensor[9 * h : 9 * h + 2].T)
        np.testing.assert_array_equal(values[:, h], tensor[9 * h + 2 : 9 * h + 9].T)


def test_a_fused_projection_is_told_apart() -> None:
    tensor = np.arange(40 * 5, dtype=np.float32).reshape(40, 5)
    q, k, v = entry("[(K G E) (K E) (K E)] D", tensor.shape, "DKGE", "DKE", "DKE").split(tensor)
    np.testing.assert_array_equal(q, tensor[:24].reshape(2, 3, 4, 5).transpose(3, 0, 1, 2))
    np.testing.assert_array_equal(k, tensor[24:32].reshape(2, 4, 5).transpose(2, 0, 1))
    np.testing.assert_array_equal(v, tensor[32:].reshape(2, 4, 5).transpose(2, 0, 1))


def test_fused_experts_are_told_apart() -> None:
    tensor = np.arange(4 * 10 * 5, dtype=np.float32).reshape(4, 10, 5)
    gate, up = entry("X [F F] D", tensor.shape, "XDF", "XDF").split(tensor)
    np.testing.assert_array_equal(gate, tensor[:, :5].transpose(0, 2, 1))
    np.testing.assert_array_equal(up, tensor[:, 5:].transpose(0, 2, 1))


def test_parts_that_take_turns_are_told_apart() -> None:
    tensor = np.arange(4 * 5 * 10, dtype=np.float32).reshape(4, 5, 10)
    gate, up = entry("X D (F [() ()])", tensor.shape, "XFD", "XFD").split(tensor)
    np.testing.assert_array_equal(gate, tensor[:, :, ::2].transpose(0, 2, 1))
    np.testing.assert_array_equal(up, tensor[:, :, 1::2].transpose(0, 2, 1))


LAYOUTS = [
    *((f"({' '.join(order)}) D", "DKGE") for order in permutations("KGE")),
    ("D (K G E)", "KGED"),
    ("X", "X"),
    ("X Q D", "DXQ"),
    ("(H [N V]) C", "CHN", "CHV"),
    ("C ([N V] H)", "NCH", "VHC"),
    ("[(K G E) (K E) K] D", "DKGE", "EDK", "KD"),
    ("X [F F] D", "XDF", "FXD"),
    ("X D (F [() ()])", "XFD", "FDX"),
    ("D [F (N V) X]", "FD", "DVN", "XD"),
]


@pytest.mark.parametrize(("layout", "parameters"), [(layout, parameters) for layout, *parameters in LAYOUTS])
def test_join_is_the_inverse_of_split_and_split_copies_nothing(layout: str, parameters: list[str]) -> None:
    dimensions, alternatives = parse(layout).dimensions, parse(layout).alternatives
    joined = sum(math.prod(SIZES[a] for a in alternative) for alternative in alternatives)
    shape = tuple(math.prod(joined if a == "*" else SIZES[a] for a in dimension) for dimension in dimensions)
    tensor = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    one = entry(layout, shape, *parameters)
    pieces = one.split(tensor)
    assert [piece.shape for piece in pieces] == [part.shape for part in one.parts]
    assert all(np.shares_memory(piece, tensor) for piece in pieces)
    assert sum(piece.size for piece in pieces) == tensor.size
    np.testing.assert_array_equal(one.join(pieces), tensor)
    np.testing.assert_array_equal(one.join([np.asfortranarray(piece) for piece in pieces]), tensor)


@pytest.mark.parametrize("name", NANO)
def test_every_number_of_every_parameter_is_in_exactly_one_tensor(name: str) -> None:
    spec = MODELS[name]
    assert spec.hf is not None
    family = FAMILIES[spec.hf.family]
    fused = tuple(row for row in family.weights if row.parameters[0] not in str(family.fused)) + family.fused
    for weight_map in (family.weights, fused):
        seen = {leaf.path: np.zeros(leaf.shape, np.int8) for leaf in leaves(spec)}
        for found in entries(spec, weight_map).values():
            assert math.prod(found.shape) == sum(math.prod(part.shape) for part in found.parts)
            for part in found.parts:
                assert seen[part.path][part.place].shape == part.shape
                seen[part.path][part.place] += 1
        assert all((count == 1).all() for count in seen.values())


@pytest.mark.parametrize("name", ["gemma3-27b", "qwen3-235b-a22b", "deepseek-v3"])
def test_the_tensors_of_a_large_model_hold_as_many_numbers_as_it_has_parameters(name: str) -> None:
    spec = MODELS[name]
    assert spec.hf is not None
    found = entries(spec, FAMILIES[spec.hf.family].weights)
    assert sum(math.prod(entry.shape) for entry in found.values()) == spec.param_count(mtp=True)


def test_a_map_that_leaves_a_parameter_out_is_refused_by_its_name() -> None:
    spec = MODELS["llama3-nano"]
    without_norm = tuple(row for row in FAMILIES["llama"].weights if row.name != "model.norm.weight")
    with pytest.raises(ValueError, match="no tensor of this family holds the parameter final_norm/scale_D"):
        entries(spec, without_norm)


def test_a_map_that_names_a_parameter_twice_is_refused_by_both_names() -> None:
    spec = MODELS["llama3-nano"]
    twice = (*FAMILIES["llama"].weights, *rows(("norm.weight", "D", "final_norm/scale_D")))
    with pytest.raises(
        ValueError, match=r"'model.norm.weight' and 'norm.weight' are both mapped to final_norm/scale_D"
    ):
        entries(spec, twice)
