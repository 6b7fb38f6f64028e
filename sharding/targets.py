"""The hardware that a program can be compiled for from a machine that has none of it.

XLA compiles for a GPU from a description of it (a `GpuTargetConfigProto`), with the CUDA plugin's compiler and no CUDA
installation: the partitioned program, its memory and its kernels are those of the real device; its speed stays
unknown, and so does what autotuning would choose. The numbers are those of XLA's own descriptions (openxla/xla,
xla/backends/gpu/target_config/specs, compared in 2026-11)."""

import os
from dataclasses import dataclass
from importlib import metadata
from typing import Any

PLUGIN = "jax-cuda12-plugin"


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU. capability: major and minor; memory, l2: bytes; bandwidth: bytes a second; clock: GHz."""

    name: str
    capability: tuple[int, int]
    cores: int
    memory: int
    bandwidth: int
    l2: int
    clock: float


GPUS = {
    "h100": Gpu(
        name="NVIDIA H100 80GB HBM3",
        capability=(9, 0),
        cores=132,
        memory=84_942_979_072,
        bandwidth=3_352_000_000_000,
        l2=52_428_800,
        clock=1.98,
    ),
    "h200": Gpu(
        name="NVIDIA H200",
        capability=(9, 0),
        cores=132,
        memory=151_397_597_184,
        bandwidth=4_800_000_000_000,
        l2=52_428_800,
        clock=1.98,
    ),
    "b200": Gpu(
        name="NVIDIA B200",
        capability=(10, 0),
        cores=148,
        memory=191_514_411_008,
        bandwidth=7_672_320_000_000,
        l2=132_644_864,
        clock=1.965,
    ),
    "b300": Gpu(
        name="NVIDIA B300",
        capability=(10, 3),
        cores=158,
        memory=297_021_865_984,
        bandwidth=7_936_000_000_000,
        l2=135_528_448,
        clock=1.965,
    ),
    "gb200": Gpu(
        name="NVIDIA GB200",
        capability=(10, 0),
        cores=152,
        memory=197_897_748_480,
        bandwidth=7_928_000_000_000,
        l2=135_528_448,
        clock=2.062,
    ),
}


def target_config(gpu: Gpu) -> str:
    """The GPU as the text of a `GpuTargetConfigProto`."""
    major, minor = gpu.capability
    return f"""
    gpu_device_info {{
      threads_per_block_limit: 1024
      threads_per_warp: 32
      shared_memory_per_block: 49152
      shared_memory_per_core: 233472
      shared_memory_per_block_optin: 232448
      threads_per_core_limit: 2048
      registers_per_core_limit: 65536
      registers_per_block_limit: 65536
      fpus_per_core: 128
      core_count: {gpu.cores}
      block_dim_limit_x: 2147483647
      block_dim_limit_y: 65535
      block_dim_limit_z: 65535
      memory_bandwidth: {gpu.bandwidth}
      l2_cache_size: {gpu.l2}
      clock_rate_ghz: {gpu.clock}
      device_memory_size: {gpu.memory}
      cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: ACCELERATED_FEATURES }}
      device_vendor: "NVIDIA Corporation"
      name: "{gpu.name}"
      driver_version: "13.0.0"
      runtime_version: "12.8.0"
      compile_time_toolkit_version: "12.8.0"
      dnn_version: "9.10.0"
    }}
    platform_name: "CUDA"
    dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
    device_description_str: "{gpu.name}"
    """


def topology(gpu: str, *, slices: int = 1, hosts: int = 1, per_host: int = 1) -> Any:
    """Devices to build a mesh of and compile for without having them: `topology("h100", per_host=8).devices`.

    JAX itself must run on the CPU (`JAX_PLATFORMS=cpu`); lower with `lowering_platforms=("cuda",)`, under
    `jax.set_mesh`. Raises ValueError for an unknown GPU, and where the plugin's compiler is missing or not of JAX's
    version."""
    from jax.experimental import topologies

    if gpu not in GPUS:
        raise ValueError(f"no such GPU: {gpu!r}; there are {', '.join(GPUS)}")
    try:
        installed = metadata.version(PLUGIN)
    except metadata.PackageNotFoundError:
        raise ValueError(
            f"compiling for {gpu} needs the compiler in {PLUGIN}, which is not installed: pip install 'archzoo[aot]'"
        ) from None
    if installed != (needed := metadata.version("jaxlib")):
        raise ValueError(
            f"{PLUGIN} is {installed} and jaxlib {needed}; they must be the same: "
            f"pip install jax-cuda12-plugin=={needed} jax-cuda12-pjrt=={needed}"
        )
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")  # there is no driver to check
    shape = f"{slices}x{hosts}x{per_host}"
    return topologies.get_topology_desc(
        platform="cuda", topology_name=gpu, topology=shape, target_config=target_config(GPUS[gpu])
    )
