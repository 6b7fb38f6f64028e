"""AWS Trainium as a platform of JAX: whether its plug-in is installed, and the environment that it reads.

Names and values: AWS Neuron SDK 2.32 documentation, "JAX NeuronX plugin setup" and "Neuron runtime configuration"
(2026). What a user has set stays. JAX reads all of it when it starts its devices, so `prepare` comes before."""

import importlib.util
import os
import pkgutil
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

INSTALL = "pip install jax-neuronx[stable] --extra-index-url=https://pip.repos.neuron.amazonaws.com"
PACKAGES = ("jax-neuronx", "libneuronxla")
"""On the public index these names are placeholders, which install and hold nothing."""

RUNTIME_PORT = 41_000
"""Where the first process's runtime waits for the others; JAX's coordinator has a port of its own."""

SETTINGS = {
    "NEURON_CC_FLAGS": "--model-type transformer --target trn2 --distribution-strategy llm-training "
    "--enable-mixed-precision-accumulation -O1",
    "NEURON_RT_STOCHASTIC_ROUNDING_EN": "1",
    "NEURON_LOGICAL_NC_CONFIG": "2",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
}
"""Of every run. Two physical cores make a device, as is usual on trn2; rbg is the generator that the chip has."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """A run of several processes: how many, which of them this is, devices of each, and the first one's host."""

    count: int
    index: int
    devices: int
    host: str

    def __post_init__(self) -> None:
        if self.count < 1 or self.devices < 1:
            raise ValueError(
                f"Processes needs count and devices of at least 1, not count={self.count} and devices={self.devices}"
            )
        if not 0 <= self.index < self.count:
            raise ValueError(f"Processes.index is {self.index}: of {self.count} processes it is 0 to {self.count - 1}")


def environment(mesh: Mapping[str, int] | None = None, processes: Processes | None = None) -> dict[str, str]:
    """What a run sets. mesh: axis -> size; fsdp above 1 lets gathers of weights overlap with products."""
    values = dict(SETTINGS)
    if (mesh or {}).get("fsdp", 1) > 1:
        values["NEURON_FSDP"] = "1"
    if processes is not None and processes.count > 1:
        values["NEURON_PJRT_PROCESSES_NUM_DEVICES"] = ",".join([str(processes.devices)] * processes.count)
        values["NEURON_PJRT_PROCESS_INDEX"] = str(processes.index)
        values["NEURON_RT_ROOT_COMM_ID"] = f"{processes.host}:{RUNTIME_PORT}"
    return values


def prepare(
    mesh: Mapping[str, int] | None = None,
    processes: Processes | None = None,
    environ: MutableMapping[str, str] | None = None,
) -> None:
    """Sets `environment` where nothing is set, for JAX to start its devices on Neuron.

    Raises OSError where the plug-in is missing, or is the public index's placeholder: nothing is changed then.
    """
    reason = missing()
    if reason is not None:
        raise OSError(f"target neuron: {reason}; on a Neuron instance: {INSTALL}")
    environ = os.environ if environ is None else environ
    for name, value in environment(mesh, processes).items():
        environ.setdefault(name, value)
    if environ is os.environ:
        import jax  # may be imported already, and then has read what it takes from the environment

        configuration: Any = jax.config
        configuration.update("jax_default_prng_impl", environ["JAX_DEFAULT_PRNG_IMPL"])


def local_devices(places: str = "/dev") -> int:
    """How many devices this machine shows: four a chip of trn2 with two cores each; a trn2.48xlarge's where none is
    seen.
    """
    chips = sum(re.fullmatch(r"neuron\d+", name) is not None for name in os.listdir(places))
    return 4 * (chips or 16)


def missing() -> str | None:
    """Why JAX has no Neuron plug-in, in words; None where it has one.

    It has one if it would find one: an entry point, or a module in `jax_plugins`. The names of packages say nothing, as
    placeholders have them too.
    """
    for name in PACKAGES:
        if _is_placeholder(name):
            return f"the installed {name} is the public index's placeholder, not the plug-in"
    entries = metadata.entry_points(group="jax_plugins")
    if any("neuron" in f"{entry.name} {entry.value}".lower() for entry in entries) or _in_namespace():
        return None
    installed = [name for name in PACKAGES if _distribution(name) is not None]
    if installed:
        return f"{' and '.join(installed)} brought no plug-in that JAX finds"
    return "the JAX plug-in for Neuron is not installed"


def _distribution(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None


def _is_placeholder(name: str) -> bool:
    """Whether an installed package says so itself."""
    found = _distribution(name)
    if found is None:
        return False
    told = found.read_text("METADATA") or found.read_text("PKG-INFO") or ""
    return re.search(r"wrong[ _-]?package|placeholder", told, re.IGNORECASE) is not None


def _in_namespace() -> bool:
    found = importlib.util.find_spec("jax_plugins")
    places = list(found.submodule_search_locations or ()) if found is not None else []
    return any("neuron" in module.name.lower() for module in pkgutil.iter_modules(places))
