"""Collectives are read out of a program as often as it runs them, with their bytes and among the devices they join:
against counts by hand, of texts in each notation and of a program compiled for eight virtual devices."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from archzoo.sharding.hlo import Collective, collectives, shape_bytes
from archzoo.sharding.plan import fingerprint

NODES = [0, 0, 0, 0, 1, 1, 1, 1]
"""Two nodes of four."""

LOOP = """HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%inner (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %x = f32[8,16]{1,0} get-tuple-element(%p), index=1
  %r = f32[8,16]{1,0} all-reduce(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %t = (s32[], f32[8,16]{1,0}) tuple(%i, %r)
}

%outer (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %w = (s32[], f32[8,16]{1,0}) while(%p), condition=%c, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  %g = (bf16[8,16]{1,0}, bf16[64,16]{1,0}) all-gather-start(%x), replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %d = (s32[], f32[8,16]{1,0}) tuple(%i, %x)
}

%open (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  ROOT %x = f32[2,16]{1,0} reduce-scatter(%y), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}, to_apply=%add
}

ENTRY %main (a: f32[8,16]) -> f32[8,16] {
  %w = (s32[], f32[8,16]{1,0}) while(%t), condition=%c, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  %u = (s32[], f32[8,16]{1,0}) while(%t), condition=%c, body=%open
  ROOT %p = f32[8,16]{1,0} collective-permute(%x), source_target_pairs={{0,1},{4,5}}
}
"""


def test_loops_multiply_what_is_in_them() -> None:
    found = {one.kind: one for one in collectives(LOOP, NODES)}
    assert found == {
        "all-reduce": Collective("all-reduce", 8 * 16 * 4, 15, 4, 1),
        "all-gather": Collective("all-gather", 64 * 16 * 2, 5, 8, 2),
        "reduce-scatter": Collective("reduce-scatter", 4 * 2 * 16 * 4, 1, 4, 2, certain=False),
        "collective-permute": Collective("collective-permute", 8 * 16 * 4, 1, 2, 1),
    }


@pytest.mark.parametrize(
    ("groups", "size", "nodes"),
    [
        ("{{0,1},{2,3},{4,5},{6,7}}", 2, 1),
        ("{{0,4},{1,5},{2,6},{3,7}}", 2, 2),
        ("{}", 8, 2),
        ("[4,2]<=[8]", 2, 1),
        ("[4,2]<=[2,4]T(1,0)", 2, 2),
        ("[2,4]<=[2,2,2]T(1,0,2)", 4, 2),
        ("mesh['a'=2,'b'=4] {'a'}", 2, 2),
        ("mesh['a'=2,'b'=4] {'b'}", 4, 1),
        ("mesh['a'=2,'b'=4] {'a','b'}", 8, 2),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", 2, 2),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", 4, 1),
        ("mesh['a'=8] {'a':(1)2}", 2, 2),
        ("mesh['a'=8] {'a':(2)4}", 4, 1),
    ],
)
def test_groups_are_read_in_every_notation(groups: str, size: int, nodes: int) -> None:
    text = (
        f"ENTRY %main (a: f32[8]) -> f32[8] {{\n  ROOT %r = f32[8] all-reduce(%a), replica_groups={groups}, x=1\n}}\n"
    )
    (found,) = collectives(text, NODES)
    assert (found.size, found.nodes) == (size, nodes)


def test_bytes_of_every_type() -> None:
    assert shape_bytes("(bf16[8,128]{1,0}, f32[], /*index=2*/s4[3]{0}, f8e4m3fn[5]{0}, pred[7]{0}, s64[2]{0})") == (
        2048 + 4 + 2 + 5 + 7 + 16
    )


def test_a_ring_sends_what_it_must() -> None:
    """Twice the array, less the own part, in an all-reduce; between nodes a device sends its share of a node's."""
    assert Collective("all-reduce", 800, 1, 8, 1).traffic() == (1400, 0)
    near, far = Collective("all-gather", 800, 1, 8, 2).traffic()
    assert (near, far) == (800 * 3 / 4, 800 / 2 / 4)
    assert Collective("all-to-all", 800, 1, 8, 2).traffic() == (300, 400)
    assert Collective("collective-permute", 800, 1, 2, 2).traffic() == (0, 800)


def test_what_is_no_program_is_refused() -> None:
    with pytest.raises(ValueError, match="ENTRY"):
        collectives("module @jit_step {}", NODES)


PROGRAM = """
import dataclasses, json, jax, jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P
from archzoo.sharding.hlo import collectives
mesh = jax.make_mesh((2, 4), ("fsdp", "expert"), axis_types=(AxisType.Auto,) * 2)

def own(x):
    def body(x, _):
        x = jax.lax.psum(x, "fsdp")
        x = jax.lax.all_to_all(x, "expert", 0, 0, tiled=True) * 2
        return jax.lax.pcast(x, "fsdp", to="varying"), None
    x, _ = jax.lax.scan(body, x, None, length=7)
    return jax.lax.all_gather(x, "expert", tiled=True) @ jnp.ones((16, 16))

with jax.set_mesh(mesh):
    spread = jax.shard_map(own, in_specs=P(("fsdp", "expert")), out_specs=P(("fsdp", "expert")), check_vma=True)
    text = jax.jit(spread).lower(jnp.ones((64, 16))).compile().as_text()
found = collectives(text, [0, 0, 0, 0, 1, 1, 1, 1])
print(json.dumps([dataclasses.astuple(one) for one in found]))
"""


def test_a_compiled_program_is_read_as_it_was_written(on_devices: Callable[..., str]) -> None:
    found: dict[str, Any] = {row[0]: row[1:] for row in json.loads(on_devices(8, "-c", PROGRAM).splitlines()[-1])}
    part = int(np.prod((8, 16))) * 4
    assert found["all-reduce"] == [part, 7, 2, 2, True]
    assert found["all-to-all"] == [part, 7, 4, 1, True]
    assert found["all-gather"] == [4 * part, 1, 4, 1, True]


def test_a_fingerprint_is_of_the_instructions_and_not_of_their_source_lines() -> None:
    line = '%a = f32[2]{{0}} add(%b, %c), metadata={{op_name="add" source_line={}}}'
    assert fingerprint(line.format(1)) == fingerprint(line.format(2))
    assert fingerprint(line.format(1)) != fingerprint(line.format(1).replace("add(", "multiply("))
