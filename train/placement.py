"""Where a run's arrays lie: its mesh, the shardings of state and batch, and several processes as one run.

Every process makes the same batches (rows are slices of memory) and places its own devices' part: so batches, and the
position that is saved, do not depend on how many processes or devices there are.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ..layers.accounting import axes, leaves
from ..layers.decoder import Spec
from ..sharding.mesh import Array, fitting_mesh
from ..sharding.rules import Rules, rules_by_name
from .optimizer import Optimizer
from .step import State, state_shapes, state_shardings

BATCH = ("batch", "length")


class Placement(NamedTuple):
    """A mesh and the rules by which arrays are spread over it."""

    mesh: Mesh
    rules: Rules

    def state(self, spec: Spec, optimizer: Optimizer) -> State:
        """The shardings of a training state."""
        return state_shardings(spec, optimizer, self.mesh, self.rules)

    def params(self, spec: Spec) -> Any:
        """The shardings of the parameters."""
        return self.rules.shardings(axes(spec), self.mesh)

    @property
    def batch(self) -> NamedSharding:
        """The sharding of each array of a batch."""
        return NamedSharding(self.mesh, self.rules.partition(BATCH, self.mesh))

    @property
    def whole(self) -> NamedSharding:
        """The sharding of what every device holds."""
        return NamedSharding(self.mesh, PartitionSpec())


def place(
    spec: Spec, mesh: str, rules: str, batch: int, length: int, devices: Sequence[jax.Device] | None = None
) -> Placement:
    """The mesh that the text asks for (sharding/mesh.py), over all devices of all processes, with the rules of a name.

    batch, length: rows and tokens of what a step takes at a time. Raises ValueError, with numbers and a mesh that
    works, where the batch or a parameter does not divide.
    """
    named = rules_by_name(rules)
    return Placement(fitting_mesh(mesh, spread(spec, batch, length), named, devices), named)


def spread(spec: Spec, batch: int, length: int) -> list[Array]:
    """What a mesh has to divide: a batch [rows, length], and the parameters."""
    parameters = [Array("/".join(leaf.path), leaf.axes, leaf.shape) for leaf in leaves(spec)]
    return [Array("the batch", BATCH, (batch, length)), *parameters]


@contextmanager
def in_force(placement: Placement | None) -> Iterator[None]:
    """The placement's mesh as the one that functions are traced for."""
    if placement is None:
        yield
    else:
        with jax.set_mesh(placement.mesh):
            yield


def placed(batch: Mapping[str, Any], placement: Placement | None) -> Mapping[str, Any]:
    """A batch [rows, length] with each device's part on it; as it is where there is no mesh."""
    if placement is None:
        return batch
    sharding = placement.batch
    return {name: jax.make_array_from_callback(np.shape(x), sharding, x.__getitem__) for name, x in batch.items()}


def shapes_on(spec: Spec, optimizer: Optimizer, placement: Placement | None) -> State:
    """The state as ShapeDtypeStructs, with their shardings under a mesh: what `checkpoint.restore` fills."""
    shapes = state_shapes(spec, optimizer)
    if placement is None:
        return shapes
    held: State = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        placement.state(spec, optimizer),
    )
    return held


# --- processes -------------------------------------------------------------------------------------------------------


def connect(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Joins the processes of a run, before anything else is done with JAX. What is None is detected (Slurm, Open MPI,
    Kubernetes).

    coordinator: HOST:PORT of process 0. Raises ValueError for what does not fit, or cannot be detected.
    """
    given = {"--coordinator": coordinator, "--processes": processes, "--process-id": process}
    missing = [name for name, value in given.items() if value is None]
    if coordinator is not None and missing:
        raise ValueError(f"--coordinator {coordinator} needs {' and '.join(missing)} too")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise ValueError(f"--process-id is {process}; of --processes {processes} it is 0 to {processes - 1}")
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the processes of this run did not find each other: {reason}; "
            "give --coordinator HOST:PORT --processes N --process-id I"
        ) from error


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Whether it is true in any process; all must ask."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))
