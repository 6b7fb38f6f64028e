"""The reader of compiled programs sees what no device should hold, and counts products; by programs made by hand."""

from typing import NamedTuple

import pytest

from archzoo.sharding.rules import Rules

from .held import Signs, arrays, flops, too_much

SIGNS = Signs(layers=5, experts=24, vocab=88, ffn=17, tokens=7)


class Leaf(NamedTuple):
    axes: tuple[str, ...]
    shape: tuple[int, ...]


LEAVES = (
    Leaf(("layers", "width", "ffn"), (5, 64, 128)),
    Leaf(("layers", "width"), (5, 64)),
    Leaf(("layers", "experts", "ffn", "width"), (5, 24, 136, 64)),
    Leaf(("vocab", "width"), (88, 64)),
)
SIZES = {"fsdp": 4, "expert": 2, "tensor": 2}
"""The device's own parts: [5, 16, 64], [5, 16], [5, 12, 68, 16] and [44, 16]."""

PROGRAM = """HloModule jit_step

%add (x: f32[], y: f32[]) -> f32[] {{
  ROOT %sum = f32[] add(%x, %y)
}}

%fused (p: f32[5,16,64]) -> f32[5,16,64] {{
  ROOT %inside = f32[5,64,128]{{2,1,0}} broadcast(%p), dimensions={{}}
}}

%body (p: (s32[], f32[5,16,64])) -> (s32[], f32[5,16,64]) {{
  %made = {made}
  ROOT %t = (s32[], f32[5,16,64]{{2,1,0}}) tuple(%i, %x)
}}

%c (p: (s32[], f32[5,16,64])) -> pred[] {{
  ROOT %less = pred[] compare(%i, %n), direction=LT
}}

ENTRY %main (a: f32[5,16,64]) -> f32[5,16,64] {{
  %w = (s32[], f32[5,16,64]) while(%t), condition=%c, body=%body, backend_config={{"known_trip_count":{{"n":"5"}}}}
  ROOT %f = f32[5,16,64]{{2,1,0}} fusion(%x), kind=kLoop, calls=%fused
}}
"""


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        ("f32[5,64,128]{2,1,0} all-gather(%x), dimensions={1}", "more of a stack"),
        ("f32[5,64,64]{2,1,0} all-to-all(%x), dimensions={1}", "more of a stack"),
        ("f32[5,8192]{1,0} reshape(%x)", "more of a stack"),
        ("(f32[5,16,64]{2,1,0}, bf16[5,64,128]{2,1,0}) all-gather-start(%x), dimensions={1}", "more of a stack"),
        ("f32[5,64]{1,0} all-gather(%x), dimensions={1}", "more of a stack"),
        ("f32[24,68,64]{2,1,0} all-reduce(%x), to_apply=%add", "all experts"),
        ("f32[24,17,16]{2,1,0} copy(%x)", "all experts"),
        ("f32[88,16]{1,0} collective-permute(%x)", "the whole vocabulary"),
        ("f32[112,88]{1,0} dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}", "the whole vocabulary"),
    ],
)
def test_what_no_device_should_hold_is_seen(made: str, reason: str) -> None:
    (found,) = too_much(PROGRAM.format(made=made), LEAVES, Rules(), SIZES, SIGNS)
    assert found.startswith(reason)


@pytest.mark.parametrize(
    "made",
    [
        "f32[5,16,64]{2,1,0} copy(%x)",  # the device's own
        "f32[5,12,68,16]{3,2,1,0} copy(%x)",
        "f32[64,128]{1,0} all-gather(%x), dimensions={0}",  # one layer
        "f32[12,68,64]{2,1,0} all-gather(%x), dimensions={2}",  # its own experts of one layer
        "f32[5,112,64]{2,1,0} copy(%x)",  # what layers keep of tokens
        "s32[5,8192]{1,0} copy(%x)",  # indices
        "f32[112,24]{1,0} copy(%x)",  # scores of experts
        "f32[44,64]{1,0} all-gather(%x), dimensions={1}",  # its own part of the vocabulary
    ],
)
def test_what_a_device_works_with_passes(made: str) -> None:
    assert too_much(PROGRAM.format(made=made), LEAVES, Rules(), SIZES, SIGNS) == []


def test_where_an_axis_is_not_cut_all_of_it_may_be_there() -> None:
    for made in ("f32[88,16]{1,0} copy(%x)", "f32[24,136,16]{2,1,0} copy(%x)"):
        assert too_much(PROGRAM.format(made=made), LEAVES, Rules(), {"fsdp": 4}, SIGNS) == []


def test_what_is_inside_of_a_fusion_is_no_array() -> None:
    found = dict(arrays(PROGRAM.format(made="f32[3]{0} copy(%x)")))
    assert "copy made" in found
    assert "broadcast inside" not in found


def test_products_count_as_often_as_they_run() -> None:
    made = (
        "f32[112,64]{1,0} parameter(0)\n  %w = f32[64,136]{1,0} parameter(1)\n"
        "  %d = f32[112,136]{1,0} dot(%made, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}\n"
        "  %e = f32[112,112]{1,0} dot(f32[112,64]{1,0} %made, f32[112,64]{1,0} %made), lhs_contracting_dims={1}, "
        "rhs_contracting_dims={1}"
    )
    assert flops(PROGRAM.format(made=made), 17) == (5 * 2 * 112 * 112 * 64, 5 * 2 * 112 * 136 * 64)
