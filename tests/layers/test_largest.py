"""The largest entries by maxima are those of a sort, and under a mesh they are found without gathering rows."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archzoo.layers.largest import by_maxima


@pytest.mark.parametrize("k", [1, 3, 8])
def test_maxima_give_what_a_sort_gives_also_of_equal_entries(k: int) -> None:
    x_TX = jax.random.randint(jax.random.key(k), (64, 12), 0, 6).astype(jnp.float32).at[:, 10:].set(-jnp.inf)
    for got, wanted in zip(by_maxima(x_TX, k), jax.lax.top_k(x_TX, k), strict=True):
        np.testing.assert_array_equal(got, wanted)
        assert got.dtype == wanted.dtype


PROGRAM = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from archzoo.layers.largest import top_k
from archzoo.sharding.rules import make_mesh
mesh = make_mesh(fsdp=2, expert=2)
rows = NamedSharding(mesh, P(("fsdp", "expert")))
x = jax.ShapeDtypeStruct((32, 4, 16), jnp.float32, sharding=rows)
def of_tokens(choose):
    return jax.jit(lambda x: choose(x.reshape(128, 16), 4)[1], out_shardings=rows).lower(x).compile().as_text()
with jax.set_mesh(mesh):
    print("all-gather" in of_tokens(jax.lax.top_k), "all-gather" in of_tokens(top_k))
"""


def test_rows_stay_on_their_devices(on_devices: Callable[..., str]) -> None:
    sorted_, maxima = on_devices(4, "-c", PROGRAM).split()
    assert maxima == "False"
    assert sorted_ == "True"  # when this fails, `lax.top_k` will do
