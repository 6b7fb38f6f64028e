"""Configs are read by name and type: wrong types, unknown names and contradictions are refused, ropes go both ways."""

from typing import Any

import pytest

from archzoo.layers.rope import Linear, Llama3, Rope, Yarn
from archzoo.zoo.fields import INERT, Fields, read_rope, write_rope

ROPES = [
    Rope(dim=8),
    Rope(dim=8, theta=500_000.0, scaling=Linear(factor=2.5)),
    Rope(dim=8, scaling=Llama3(factor=32.0)),
    Rope(dim=8, theta=1e6, scaling=Llama3(factor=8.0, low=0.5, high=3.0, original_length=64)),
    Rope(dim=8, scaling=Yarn(factor=4.0, original_length=128)),
    Rope(dim=8, scaling=Yarn(factor=40.0, original_length=64, fast=16.0, slow=2.0, mscale=0.7, mscale_all_dim=1.2)),
    Rope(dim=8, scaling=Yarn(factor=2.0, original_length=32, attention_factor=1.5, truncate=False)),
]


def rope_from(**fields: Any) -> Rope:
    c = Fields({"max_position_embeddings": 128, **fields})
    rope = read_rope(c, 8)
    c.finish(frozenset())
    return rope


@pytest.mark.parametrize("dialect", [4, 5])
@pytest.mark.parametrize("rope", ROPES, ids=str)
def test_a_rope_is_written_and_read_in_both_dialects(rope: Rope, dialect: int) -> None:
    written = write_rope(rope, dialect)
    assert set(written) == ({"rope_parameters"} if dialect == 5 else {"rope_theta", "rope_scaling"})
    assert rope_from(**written) == rope


@pytest.mark.parametrize("dialect", [4, 5])
def test_a_part_of_a_head_is_rotated_in_families_that_may(dialect: int) -> None:
    config = {"max_position_embeddings": 64, **write_rope(Rope(dim=6), dialect, head_dim=20)}
    assert read_rope(Fields(config), 20, share=0.5) == Rope(dim=6)
    plain = {key: value for key, value in config.items() if key == "max_position_embeddings"}
    assert read_rope(Fields(plain), 20, share=0.5) == Rope(dim=10)
    inside = plain | {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.2}}
    assert read_rope(Fields(inside | {"partial_rotary_factor": 0.7}), 20, share=1.0) == Rope(dim=4)


def test_the_older_name_of_the_rope_type_is_read() -> None:
    assert rope_from(rope_scaling={"type": "linear", "factor": 4}) == Rope(dim=8, scaling=Linear(factor=4.0))


def test_an_original_length_that_is_not_said_is_the_maximal_one() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0}
    assert rope_from(rope_scaling=yarn).scaling == Yarn(factor=4.0, original_length=128)


def test_a_theta_outside_holds_for_parameters_that_name_none() -> None:
    parameters = {"rope_type": "default"}
    assert rope_from(rope_parameters=parameters, rope_theta=5e5, rope_scaling=None) == Rope(dim=8, theta=5e5)


def test_two_spellings_of_one_rope_may_stand_side_by_side_but_not_contradict() -> None:
    scaling = {"rope_type": "linear", "factor": 4.0}
    both = {"rope_parameters": {**scaling, "rope_theta": 10_000.0}, "rope_scaling": scaling}
    assert rope_from(**both) == Rope(dim=8, scaling=Linear(factor=4.0))
    with pytest.raises(ValueError, match="'rope_parameters' and 'rope_scaling' describe different ropes"):
        rope_from(**{**both, "rope_scaling": {"rope_type": "linear", "factor": 2.0}})


@pytest.mark.parametrize(
    ("scaling", "words"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "'rope_scaling.rope_type' is 'dynamic', which is not supported"),
        ({"type": "longrope", "long_factor": [1.0]}, "'rope_scaling.short_factor' is missing"),
        ({"type": "longrope", "short_factor": [1.0, "2"]}, "takes a list of finite numbers"),
        ({"rope_type": ["yarn"]}, r"'rope_scaling.rope_type' is \['yarn'\]"),
        ({"rope_type": "linear"}, "'rope_scaling.factor' is missing"),
        ({"rope_type": "linear", "factor": "8"}, "'rope_scaling.factor' is '8'; it takes a finite number"),
        ({"rope_type": "linear", "factor": True}, "'rope_scaling.factor' is True; it takes a finite number"),
        ({"rope_type": "linear", "factor": 2.0, "beta_fast": 3}, "'rope_scaling.beta_fast'.*'linear' takes"),
        ({"rope_type": "llama3", "factor": 8.0, "long_factor": [1]}, "'rope_scaling.long_factor'.*'llama3' takes"),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32.5}, "takes an integer"),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 0}, "is 0; it takes an integer of"),
        ({"rope_type": "yarn", "factor": 4.0, "truncate": "no"}, "'rope_scaling.truncate' is 'no'; it takes true"),
        ({"rope_type": "yarn", "factor": 4.0, "mscale": "1"}, "'rope_scaling.mscale' is '1'; it takes a finite number"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "'rope_scaling.partial_rotary_factor' is 0.5"),
        ("linear", "'rope_scaling' is 'linear'; it takes an object"),
    ],
)
def test_a_rope_that_is_not_understood_is_refused_by_its_field(scaling: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rope_from(rope_scaling=scaling)


CONFIG: dict[str, Any] = {
    "endless": float("inf"),
    "none": float("nan"),
    "huge": 10**400,
    "one": 1,
    "half": 0.5,
    "yes": True,
    "word": "silu",
    "many": [1, 2],
    "inside": {"x": 1},
    "nothing": None,
}


@pytest.mark.parametrize(
    ("method", "good", "bad", "kind"),
    [
        (Fields.int, ["one"], ["half", "yes", "word", "many", "inside"], "an integer of at least 0"),
        (
            Fields.float,
            ["one", "half"],
            ["yes", "word", "many", "inside", "endless", "none", "huge"],
            "a finite number",
        ),
        (Fields.bool, ["yes"], ["one", "half", "word", "many", "inside"], "true or false"),
        (Fields.list, ["many"], ["one", "half", "yes", "word", "inside"], "a list"),
        (Fields.nested, ["inside"], ["one", "half", "yes", "word", "many"], "an object"),
        (Fields.ids, ["one", "many"], ["half", "yes", "word", "inside"], "a token id or a list of them"),
    ],
)
def test_a_field_of_the_wrong_type_is_refused_by_name(method: Any, good: list[str], bad: list[str], kind: str) -> None:
    for name in good:
        method(Fields(CONFIG), name)
    for name in bad:
        with pytest.raises(ValueError, match=f"config field {name!r} is .*; it takes {kind}"):
            method(Fields(CONFIG), name)


def test_a_field_that_is_absent_or_null_takes_its_default_or_is_missing() -> None:
    for name in ("nothing", "absent"):
        assert Fields(CONFIG).int(name, None) is None
        assert Fields(CONFIG).float(name, 2.0) == 2.0
        assert Fields(CONFIG).nested(name).config == {}
        assert Fields(CONFIG).ids(name) == ()
        with pytest.raises(ValueError, match=f"config field {name!r} is missing"):
            Fields(CONFIG).int(name)


def test_an_integer_below_the_least_is_refused() -> None:
    assert Fields({"heads": 1}).int("heads", least=1) == 1
    for value in (0, -3):
        with pytest.raises(ValueError, match=f"'heads' is {value}; it takes an integer of at least 1"):
            Fields({"heads": value}).int("heads", least=1)


def test_a_value_that_is_not_supported_is_refused_with_what_is() -> None:
    c = Fields(CONFIG)
    c.only("word", "silu")
    c.only("absent", 0.0)
    assert c.choice("word", "gelu", ("gelu", "silu")) == "silu"
    with pytest.raises(ValueError, match="'word' is 'silu', which is not supported; supported: 'gelu'"):
        c.only("word", "gelu")
    with pytest.raises(ValueError, match="'word' is 'silu', which is not supported; supported: gelu, relu"):
        c.choice("word", "gelu", ("gelu", "relu"))


def test_what_nobody_took_is_refused_unless_it_is_inert_or_ignored() -> None:
    c = Fields({"one": 1, "use_cache": True, "twist": [3]})
    c.int("one")
    with pytest.raises(ValueError, match=r"'twist' \(\[3\]\) is unknown.*pass ignore=\('twist',\)"):
        c.finish(INERT)
    c.finish(INERT, ignore=("twist",))


def test_what_is_taken_through_defaults_counts_as_taken() -> None:
    c = Fields({"one": 1, "two": None})
    with_defaults = c.over({"two": 2, "three": 3})
    assert [with_defaults.int(name) for name in ("one", "two", "three")] == [1, 2, 3]
    c.finish(frozenset())
