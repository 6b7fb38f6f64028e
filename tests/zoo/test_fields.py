"""Configs are read by name and type: wrong types, unknown names and contradictions are refused, ropes go both ways."""

from typing import Any

import pytest

from archzoo.layers.attention import Attention
from archzoo.layers.hyper import HyperConnections
from archzoo.layers.latent import LatentAttention
from archzoo.layers.norms import RMSNorm
from archzoo.layers.rope import Linear, Llama3, Proportional, Rope, Yarn
from archzoo.zoo.configs import spec_from_hf, spec_to_hf
from archzoo.zoo.family import shortest
from archzoo.zoo.fields import (
    INERT,
    Fields,
    Names,
    layer_kinds,
    read_part,
    read_rope,
    read_ropes,
    write_part,
    write_rope,
)
from archzoo.zoo.registry import FAMILIES, MODELS

ROPES = [
    Rope(dim=8),
    Rope(dim=8, theta=500_000.0, scaling=Linear(factor=2.5)),
    Rope(dim=8, scaling=Llama3(factor=32.0)),
    Rope(dim=8, theta=1e6, scaling=Llama3(factor=8.0, low=0.5, high=3.0, original_length=64)),
    Rope(dim=8, scaling=Yarn(factor=4.0, original_length=128)),
    Rope(dim=8, scaling=Yarn(factor=40.0, original_length=64, fast=16.0, slow=2.0, mscale=0.7, mscale_all_dim=1.2)),
    Rope(dim=8, scaling=Yarn(factor=2.0, original_length=32, attention_factor=1.5, truncate=False)),
    Rope(dim=8, theta=1e6, scaling=Proportional(share=0.25)),
    Rope(dim=8, scaling=Proportional(share=0.5, factor=8.0)),
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


# --- what pages say as data ------------------------------------------------------------------------------------------

LATENT: Names = {"heads": "num_attention_heads", "nope_dim": "nope", "value_dim": ("v", 8), "kv_rank": "rank"}
LATENT |= {"q_rank": ("q_rank", None)}
STREAMS: Names = {"streams": ("hc_mult", 4), "eps": ("hc_eps", 1e-6)}


def test_a_part_is_read_by_the_names_of_its_fields_and_written_back() -> None:
    config = {"num_attention_heads": 2, "nope": 4, "rank": 5}
    latent = read_part(Fields(config), LatentAttention, LATENT, rope=Rope(dim=2))
    assert latent == LatentAttention(heads=2, nope_dim=4, value_dim=8, kv_rank=5, rope=Rope(dim=2))
    assert write_part(latent, LATENT) == config | {"v": 8, "q_rank": None}
    streams = read_part(Fields({"hc_eps": 1}), HyperConnections, STREAMS, norm=RMSNorm(eps=1e-3))
    assert (streams.streams, streams.eps, streams.norm.eps) == (4, 1.0, 1e-3)


def test_a_part_takes_fields_of_the_right_type_alone_and_counts_them_as_taken() -> None:
    c = Fields({"num_attention_heads": 2, "nope": 4, "rank": 5, "twist": 1})
    read_part(c, LatentAttention, LATENT, rope=Rope(dim=2))
    with pytest.raises(ValueError, match=r"'twist'.* is unknown"):
        c.finish(frozenset())
    with pytest.raises(ValueError, match="'nope' is 'four'; it takes an integer"):
        read_part(Fields({"num_attention_heads": 2, "nope": "four"}), LatentAttention, LATENT, rope=Rope(dim=2))
    with pytest.raises(ValueError, match="'hc_eps' is True; it takes a finite number"):
        read_part(Fields({"hc_eps": True}), HyperConnections, STREAMS)


def test_layers_are_of_known_kinds_one_each() -> None:
    c = Fields({"num_hidden_layers": 3, "kinds": ["a", "b", "a"], "few": ["a"], "odd": ["a", "b", ["a"]]})
    assert layer_kinds(c, "kinds", [], ("a", "b")) == ("a", "b", "a")
    assert layer_kinds(c, "absent", ["b"] * 3, ("a", "b")) == ("b", "b", "b")
    for name in ("few", "odd"):
        with pytest.raises(ValueError, match=f"'{name}' must be 3 of 'a' and 'b', not "):
            layer_kinds(c, name, [], ("a", "b"))


def test_each_kind_of_layer_has_a_rope_of_its_own_in_either_dialect() -> None:
    thetas = {"full": ("rope_theta", 1e6), "local": ("local_theta", 1e4)}
    stretched = {"full": Rope(dim=8, theta=5e5, scaling=Linear(factor=8.0)), "local": Rope(dim=8, theta=2e4)}
    length, linear = {"max_position_embeddings": 64}, {"rope_type": "linear", "factor": 8.0}
    old = length | {"rope_theta": 5e5, "local_theta": 2e4, "rope_scaling": linear}
    full, local = linear | {"rope_theta": 5e5}, {"rope_type": "default", "rope_theta": 2e4}
    new = length | {"rope_parameters": {"full": full, "local": local}}
    for config in (old, new):
        c = Fields(config)
        assert read_ropes(c, 8, thetas) == stretched
        c.finish(frozenset())
    assert read_ropes(Fields(length), 8, thetas) == {"full": Rope(dim=8, theta=1e6), "local": Rope(dim=8)}
    with pytest.raises(ValueError, match=r"'rope_parameters\.other'.* a rope for each kind of layer"):
        read_ropes(Fields(length | {"rope_parameters": {"other": full}}), 8, thetas)


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.fixed])
def test_a_field_that_takes_one_value_is_written_so_and_refused_otherwise(name: str) -> None:
    family = FAMILIES[name]
    spec = next(spec for preset, spec in MODELS.items() if preset in family.presets and preset.endswith("-nano"))
    config = spec_to_hf(spec)
    assert {field: config[field] for field in family.fixed} == family.fixed
    for field, value in family.fixed.items():
        other = 7 if value in (True, False, None) or isinstance(value, (int, float)) else "other"
        with pytest.raises(ValueError, match=f"config field '{field}' is {other!r}, which is not supported"):
            spec_from_hf(config | {field: other})


def test_the_shortest_pattern_repeats_to_the_same_layers() -> None:
    a, b = (Attention(heads=heads, kv_heads=1, head_dim=4) for heads in (1, 2))
    assert shortest([a, a, a]) == (a,)
    assert shortest((a, b, a, b, a)) == (a, b)
    assert shortest([a, a, b]) == (a, a, b)
