"""On a mesh, parameters are allocated sharded and filled in place, and come back as they were.

On four devices of a CPU, which take a process of their own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from safetensors.numpy import load_file, save_file

from . import agreement
from .cases import CASES, GOLDENS
from .test_goldens import fuse

PROGRAM = """
import sys
import jax
import numpy as np
from archzoo import Rules, load_hf, make_mesh, save_hf
from archzoo.layers.accounting import leaves
from archzoo.zoo import huggingface

published, fused, out = sys.argv[1:]
mesh, fill = make_mesh(fsdp=2, expert=2), huggingface._fill

def places(leaf):
    return [shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards]

def watched(leaf, piece, index):
    before = places(leaf)
    filled = fill(leaf, piece, index)
    assert places(filled) == before, "not in place"
    return filled

spec, plain = load_hf(published)
huggingface._fill = watched
for directory in (published, fused):
    _, params = load_hf(directory, mesh=mesh)
    flat = {tuple(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    for leaf in leaves(spec):
        assert flat[leaf.path].sharding.spec == Rules().partition(leaf.axes, mesh), leaf.path
    jax.tree.map(np.testing.assert_array_equal, params, plain)
split = flat["run_0", "layer_1", "mlp", "w_gate_XFD"].addressable_shards[0].data.shape
assert split == (1, 6, 12, 32), split

piece, held = huggingface._piece, len(jax.live_arrays())

def counted(leaf, index):
    found = piece(leaf, index)
    assert len(jax.live_arrays()) == held, "more on the devices than before"
    return found

huggingface._piece = counted
save_hf(out, spec, params)
"""


def test_a_sharded_import_is_in_place_and_comes_back(tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == "deepseek_v3_kimi")
    published, fused, out = tmp_path / "published", tmp_path / "fused", tmp_path / "out"
    case.write(published, json.loads((GOLDENS / f"{case.name}.json").read_text())["tensors"])
    fused.mkdir()
    (fused / "config.json").write_text(json.dumps(case.config))
    save_file(fuse(load_file(published / "model.safetensors")), fused / "model.safetensors")
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(published), str(fused), str(out)],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert agreement.tensor_differences(published, out) == []
