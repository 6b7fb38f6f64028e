"""Rows of a table by token id.

Dimensions: V vocab."""

import jax
import jax.numpy as jnp

from .execution import Execution


def look_up(table_V: jax.Array, ids: jax.Array, execution: Execution) -> jax.Array:
    """table [vocab, ...] at int ids [...]: [..., ...]; an id beyond the table reads its nearest row.

    On Neuron the ids themselves are clipped, as a gather out of bounds is an error there when it runs.
    """
    if execution.target == "neuron":
        ids = jnp.clip(ids, 0, table_V.shape[0] - 1)
    return jnp.take(table_V, ids, axis=0, mode="clip")
