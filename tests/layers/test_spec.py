"""A spec survives JSON, is edited by path, and refuses what cannot be in one line that names it."""

import dataclasses
import json
import sys
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import pytest

from archzoo.layers.attention import Attention
from archzoo.layers.block import pre_norm
from archzoo.layers.decoder import Origin, Spec
from archzoo.layers.execution import Execution
from archzoo.layers.latent import LatentAttention
from archzoo.layers.mlp import GatedMLP
from archzoo.layers.moe import MoE
from archzoo.layers.norms import L2Norm, LayerNorm, QKNorm, RMSNorm
from archzoo.layers.rope import Linear, Llama3, Rope, Yarn
from archzoo.layers.router import Groups, Router

from .conftest import SPECS


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """A layer spec that this package has never heard of."""

    taps: int
    norm: RMSNorm = RMSNorm()


LOCAL = Attention(heads=8, kv_heads=2, head_dim=8, rope=Rope(dim=8), window=16)
GLOBAL = Attention(heads=8, kv_heads=2, head_dim=8, rope=Rope(dim=8, theta=1e6))
LATENT = LatentAttention(heads=4, nope_dim=8, value_dim=8, kv_rank=8, rope=Rope(dim=4))
DENSE = GatedMLP(ffn=32)
MOE = MoE(experts=8, ffn=16, router=Router(top_k=2), shared=GatedMLP(ffn=16))


def spec(**fields: Any) -> Spec:
    given = {"attention": (LOCAL, LOCAL, GLOBAL), "mlp": (DENSE, MOE, ...), "block": pre_norm(RMSNorm()), **fields}
    return Spec(**{"vocab": 100, "width": 32, "depth": 6, **given})


# --- JSON ------------------------------------------------------------------------------------------------------------

SCALINGS = (
    None,
    Linear(factor=2.0),
    Llama3(factor=8.0),
    Yarn(factor=4.0, original_length=64, mscale=0.7, truncate=False),
)
VARIED = {
    **SPECS,
    "patterns": spec(),
    "scalings": spec(
        attention=tuple(dataclasses.replace(LOCAL, rope=Rope(dim=8, scaling=scaling)) for scaling in SCALINGS)
    ),
    "norms": spec(
        attention=(
            dataclasses.replace(LOCAL, qk_norm=QKNorm(norm=L2Norm(), over="width")),
            dataclasses.replace(LOCAL, qk_norm=QKNorm(norm=LayerNorm(eps=1e-3, bias=False))),
            dataclasses.replace(LATENT, q_rank=8),
        ),
        mlp=MoE(experts=8, ffn=16, router=Router(top_k=2, groups=Groups(count=4, kept=2), bias=True)),
        final_norm=LayerNorm(),
    ),
    "ids": spec(bos_id=1, eos_ids=(2, 3), pad_id=0, tied=True, logit_softcap=30.0, embedding_scale=32**0.5),
    "own": spec(attention=Convolution(taps=4), mlp=(DENSE, Convolution(taps=2, norm=RMSNorm(eps=1e-4)))),
}


@pytest.mark.parametrize("name", VARIED)
def test_a_spec_survives_json(name: str) -> None:
    again = Spec.from_json(VARIED[name].to_json())
    assert again == VARIED[name]
    assert hash(again) == hash(VARIED[name])
    assert again.to_json() == VARIED[name].to_json()


def test_json_is_plain_and_keeps_where_the_spec_came_from() -> None:
    origin = Origin(family="llama", dialect=5, config='{"model_type": "llama"}')
    one = spec(hf=origin)
    assert Spec.from_json(one.to_json()).hf == origin
    assert one == spec()
    assert hash(one) == hash(spec())
    assert json.loads(one.to_json())["mlp"][-1] == "..."


def test_a_users_module_may_be_called_like_one_of_ours() -> None:
    """`attention.py` beside a script defines its own Attention: JSON must bring back theirs."""
    module = ModuleType("attention")
    theirs = dataclasses.make_dataclass("Attention", [("taps", int)], frozen=True, kw_only=True)
    theirs.__module__ = "attention"
    module.Attention = theirs  # type: ignore[attr-defined]
    sys.modules["attention"] = module
    try:
        one = spec(attention=(theirs(taps=3), LOCAL))
        assert Spec.from_json(one.to_json()) == one
    finally:
        del sys.modules["attention"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d["mlp"].__setitem__(0, {"ffn": 32}), r"spec\.mlp\[0\] has no 'type'"),
        (
            lambda d: d["block"].__setitem__(0, {"type": "os:PathLike"}),
            r"spec\.block\[0\] has type 'os:PathLike'.*import",
        ),
        (lambda d: d["block"].__setitem__(0, {"type": "nowhere:Block"}), r"spec\.block\[0\] has type 'nowhere:Block'"),
        (lambda d: d["attention"][1].update(colour=3), r"spec\.attention\[1\]: .*unknown fields \['colour'\]"),
        (lambda d: d["attention"][0].pop("heads"), r"spec\.attention\[0\]: .*lacks \['heads'\]"),
        (lambda d: d["attention"][2]["rope"].update(dim=7), r"Rope\.dim is 7"),
        (lambda d: d["attention"][2].update(heads="8"), r"spec\.attention\[2\]: .*Attention"),
        (lambda d: d.update(width=[32]), r"spec: .*Spec"),
    ],
)
def test_json_that_is_not_a_spec_is_refused_with_its_place(edit: Any, message: str) -> None:
    plain = json.loads(spec().to_json())
    edit(plain)
    with pytest.raises(ValueError, match=message) as refusal:
        Spec.from_json(json.dumps(plain))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[]", "holds a tuple, not a Spec")])
def test_text_that_is_not_a_spec_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Spec.from_json(text)


# --- paths -----------------------------------------------------------------------------------------------------------


def test_a_field_is_set_by_its_name() -> None:
    assert spec().replace(depth=2, attention=GLOBAL) == spec(depth=2, attention=GLOBAL)


def test_a_path_sets_every_entry_of_a_pattern_that_has_it() -> None:
    changed = spec().replace(**{"attention.window": 4})
    assert [layer.window for layer in changed.attention] == [4, 4, 4]
    changed = spec().replace(**{"mlp.router.top_k": 3})  # only the MoE has a router, and the dots stay
    assert changed.mlp == (DENSE, dataclasses.replace(MOE, router=Router(top_k=3)), ...)


def test_an_index_sets_one_entry() -> None:
    changed = spec().replace(**{"attention[1].window": 4, "mlp[1].shared.ffn": 8, "attention[0]": LATENT})
    assert changed.attention == (LATENT, dataclasses.replace(LOCAL, window=4), GLOBAL)
    assert changed.mlp[1].shared == GatedMLP(ffn=8)
    assert spec(mlp=DENSE).replace(**{"mlp.ffn": 8}).mlp == (GatedMLP(ffn=8),)


def test_changes_that_only_fit_together_are_made_together() -> None:
    """6 heads do not divide into 2 groups of 4, nor 4 heads by 6: neither order of one at a time would do."""
    one = spec(attention=Attention(heads=4, kv_heads=4, head_dim=8))
    changed = one.replace(**{"attention.heads": 6, "attention.kv_heads": 6})
    assert changed.attention == (Attention(heads=6, kv_heads=6, head_dim=8),)
    changed = spec().replace(**{"mlp[1].experts": 2, "mlp[1].router.top_k": 1}, depth=3)
    assert (changed.depth, changed.mlp[1].experts, changed.mlp[1].router.top_k) == (3, 2, 1)


def test_a_path_reaches_into_what_the_same_call_put_there() -> None:
    changed = spec().replace(**{"attention": (GLOBAL, LATENT), "attention.rope.theta": 5.0})
    assert [layer.rope.theta for layer in changed.attention] == [5.0, 5.0]


@pytest.mark.parametrize(
    "path",
    [
        "windows",
        "attention.windows",
        "attention[9].window",
        "mlp[0].router.top_k",
        "depth.x",
        "layers",
        "param_count",
        "",
    ],
)
def test_a_path_that_matches_nothing_is_refused_with_those_there_are(path: str) -> None:
    with pytest.raises(ValueError, match="matches nothing") as refusal:
        spec().replace({path: 3})
    message = str(refusal.value)
    assert message.startswith(repr(path))
    assert all(name in message for name in ("attention[0].window", "mlp[1].router.top_k", "block.before.eps", "depth"))


def test_a_replaced_value_is_checked_like_any_other() -> None:
    with pytest.raises(ValueError, match=r"Attention\.window is 0"):
        spec().replace(**{"attention.window": 0})
    with pytest.raises(ValueError, match=r"Attention.*window.*'wide'"):
        spec().replace(**{"attention.window": "wide"})


def test_every_listed_path_can_be_set() -> None:
    for name in ("patterns", "norms", "full", "latent"):
        one = VARIED[name]
        for path, value in one.paths().items():
            assert one.replace({path: value}) == one, path


def test_paths_name_single_entries_without_an_index() -> None:
    paths = spec(attention=GLOBAL).paths()
    assert paths["attention.rope.theta"] == 1e6
    assert paths["mlp[1].router.top_k"] == 2
    assert not any(path.startswith("hf") for path in paths)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(dataclasses.replace, LOCAL, heads=7), r"Attention\.heads is 7: .*multiple of kv_heads, which is 2"),
        (partial(dataclasses.replace, LOCAL, kv_heads=0), r"Attention\.kv_heads is 0: it must be positive"),
        (partial(dataclasses.replace, LOCAL, head_dim=-8), r"Attention\.head_dim is -8"),
        (partial(dataclasses.replace, LOCAL, window=0), r"Attention\.window is 0: it must be positive, or None"),
        (partial(dataclasses.replace, LOCAL.scores, softcap=0.0), r"Scores\.softcap is 0\.0"),
        (partial(dataclasses.replace, LOCAL, bias="qz"), r"Attention\.bias is 'qz': it takes letters of 'qkvo'"),
        (
            partial(dataclasses.replace, LOCAL, rope=Rope(dim=10)),
            r"Attention\.rope\.dim is 10: it cannot exceed head_dim, which is 8",
        ),
        (partial(dataclasses.replace, LATENT, kv_rank=0), r"LatentAttention\.kv_rank is 0"),
        (partial(dataclasses.replace, LATENT, q_rank=0), r"LatentAttention\.q_rank is 0: .*or None"),
        (partial(spec, depth=0), r"Spec\.depth is 0: it must be positive"),
        (partial(spec, vocab=-1), r"Spec\.vocab is -1"),
        (partial(spec, mlp=(...,)), r"a pattern needs at least one entry"),
        (partial(spec, attention=()), r"a pattern needs at least one entry"),
        (partial(Execution, dtype="fp8"), r"Execution\.dtype is 'fp8'; it takes float32, bfloat16, float16"),
        (partial(Execution, target="tpu"), r"Execution\.target is 'tpu'; it takes auto, cpu, gpu, neuron"),
        (partial(Execution, remat="some"), r"Execution\.remat is 'some'; it takes none, dots, full"),
        (
            partial(Execution, dispatch="best"),
            r"Execution\.dispatch is 'best'; it takes auto, dense, grouped, capacity",
        ),
        (partial(Execution, unroll=0), r"unroll >= 1 .*not 0 and 2\.0"),
        (partial(Execution, capacity=0.0), r"capacity > 0, not 1 and 0\.0"),
    ],
)
def test_what_cannot_be_is_refused_by_field_and_value(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        build()
    assert "\n" not in str(refusal.value)


def test_specs_are_equal_and_hash_by_what_they_compute() -> None:
    assert {spec(), spec(), spec(depth=6)} == {spec()}
    assert spec(depth=5) != spec()
    assert spec(mlp=DENSE) == spec(mlp=(DENSE,))
