"""What a program may run on, as figures with their sources: AWS instances with GPUs, Trainium, Inferentia or CPUs.

Figures are what vendors publish for dense arithmetic, before any loss; what is not published is worked out here and
called an estimate. Links are one way: vendors add both directions up. Prices are on demand, Linux, us-east-1 (an
UltraServer's: of a capacity block), and change: pass your own to what takes one. A figure that was found at no source
that could be looked up again is called unverified."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple


class Figure(NamedTuple):
    """A number, where it is from, the month it was looked up, whether it is an estimate instead of published, and
    whether nobody has seen it at its source since."""

    value: float
    source: str
    date: str
    estimate: bool = False
    unverified: bool = False


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One node.

    chip: what its devices are.  platform: gpu, neuron or cpu.  devices: how many a node has.  gpu: its name in
    targets.py where a program can be compiled for it.  memory: bytes a device.  bandwidth: bytes a second to that
    memory.  flops: FLOP/s a device by type.  link: bytes a second that a device sends to others of its node, None for
    one device.
    network: bytes a second that the node sends to other nodes.  price: USD an hour for the node, None where none is
    published."""

    chip: str
    platform: str
    devices: int
    memory: Figure
    bandwidth: Figure
    flops: Mapping[str, Figure]
    network: Figure
    link: Figure | None = None
    price: Figure | None = None
    gpu: str | None = None

    def figures(self) -> dict[str, Figure]:
        """All its figures by name."""
        found: dict[str, Figure] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Figure):
                found[field.name] = value
            elif isinstance(value, Mapping):
                found |= {f"{field.name}.{name}": figure for name, figure in value.items()}
        return found


GIB, GB = 2**30, 10**9
EC2 = "aws.amazon.com/ec2/instance-types"
PRICES = "aws.amazon.com/ec2/pricing/on-demand, us-east-1, Linux"
BLOCKS = "aws.amazon.com/ec2/capacityblocks/pricing, US East (Dallas)"
THIRD = "instances.vantage.sh and lists of third parties that agree, us-east-1, Linux"
NEURON = "awsdocs-neuron.readthedocs-hosted.com, about-neuron/arch/neuron-hardware"
TARGETS = "openxla/xla, xla/backends/gpu/target_config/specs"
NVIDIA = "NVIDIA data sheet"
BRIEF = "NVIDIA Blackwell architecture brief, as glennklockwood.com/garden quotes it, dense"
INTEL = "Intel data sheet: cores, clock and channels"
TRAINIUM, TRAINIUM2, TRAINIUM3 = (47.5e12, 190e12, 190e12), (181e12, 667e12, 1299e12), (183e12, 671e12, 2517e12)
"""FLOP/s of a chip in float32, bfloat16 and float8."""
SEEN, PRICED = "2026-08", "2026-09"


def _seen(value: float, source: str) -> Figure:
    return Figure(value, source, SEEN)


def _guess(value: float, how: str) -> Figure:
    return Figure(value, how, SEEN, estimate=True)


def _efa(gigabits: float, source: str = EC2) -> Figure:
    return _seen(gigabits * GB / 8, source)


def _hopper(memory: int, bandwidth: float) -> dict[str, object]:
    sheet = f"{NVIDIA}, H100 and H200 SXM, dense"
    return {
        "platform": "gpu",
        "devices": 8,
        "memory": _seen(memory, TARGETS),
        "bandwidth": _seen(bandwidth, f"{NVIDIA}, SXM"),
        "flops": {"float32": _seen(67e12, sheet), "bfloat16": _seen(989e12, sheet), "float8": _seen(1979e12, sheet)},
        "link": _seen(450e9, f"{NVIDIA}, NVLink 4: 900 GB/s both ways"),
        "network": _efa(3200),
    }


def _blackwell(
    float32: float, bfloat16: float, memory: int, network: float, source: str, **more: object
) -> dict[str, object]:
    return {
        "platform": "gpu",
        "memory": _seen(memory, TARGETS),
        "bandwidth": _seen(8.0e12, f"{NVIDIA}, HBM3e"),
        "flops": {
            "float32": _seen(float32, source),
            "bfloat16": _seen(bfloat16, source),
            "float8": _seen(2 * bfloat16, source),
        },
        "link": _seen(900e9, f"{NVIDIA}, NVLink 5: 1,800 GB/s both ways"),
        "network": _efa(network),
        **more,
    }


def _trainium(
    memory: int, bandwidth: float, flops: tuple[float, float, float], link: float, network: Figure
) -> dict[str, object]:
    """flops: float32, bfloat16 and float8. link: bytes a second, both ways."""
    return {
        "platform": "neuron",
        "memory": _seen(memory, NEURON),
        "bandwidth": _seen(bandwidth, NEURON),
        "flops": dict(zip(("float32", "bfloat16", "float8"), (_seen(each, NEURON) for each in flops), strict=True)),
        "link": _guess(link / 2, f"half of {link / 1e9:,.0f} GB/s a chip ({NEURON}), if that is both ways"),
        "network": network,
    }


def _cpu(cores: int, amx: float, avx: float, memory: int, bandwidth: float, gigabits: float) -> dict[str, object]:
    return {
        "platform": "cpu",
        "devices": 1,
        "memory": _seen(memory, EC2),
        "bandwidth": _guess(bandwidth, f"{INTEL}"),
        "flops": {
            "float32": _guess(cores * 64 * avx * GB, f"{INTEL}: {cores} cores, 64 a cycle (AVX-512) at {avx} GHz"),
            "bfloat16": _guess(cores * 1024 * amx * GB, f"{INTEL}: {cores} cores, 1,024 a cycle (AMX) at {amx} GHz"),
        },
        "network": _efa(gigabits),
    }


def _price(value: float, source: str = PRICES, date: str = PRICED) -> Figure:
    return _seen(value, source)._replace(date=date)


_H200_MEMORY = 151_397_597_184

# Chips share figures; the helpers above only spell those out, so their types are those of Instance's fields.
_ROWS: dict[str, dict[str, object]] = {
    "p5.48xlarge": {**_hopper(84_942_979_072, 3.35e12), "chip": "H100", "gpu": "h100", "price": _price(55.04)},
    "p5en.48xlarge": {**_hopper(_H200_MEMORY, 4.8e12), "chip": "H200", "gpu": "h200", "price": _price(63.30)},
    "p6-b200.48xlarge": {
        **_blackwell(80e12, 2250e12, 191_514_411_008, 3200, f"{BRIEF}, HGX B200", devices=8, chip="B200", gpu="b200"),
        "price": _price(113.93),
    },
    "p6-b300.48xlarge": {
        **_blackwell(75e12, 2250e12, 297_021_865_984, 6400, f"{BRIEF}, HGX B300", devices=8, chip="B300", gpu="b300"),
        "price": _price(142.42),
    },
    "u-p6e-gb200x72": {
        **_blackwell(
            90e12,
            2500e12,
            197_897_748_480,
            28800,
            f"{BRIEF}, GB200; 72 of them are the 360 PF in FP8 of {EC2}",
            devices=72,
            chip="GB200",
            gpu="gb200",
        ),
        "price": _price(761.90, BLOCKS),
    },
    "trn1.32xlarge": {
        **_trainium(32 * GIB, 820 * GIB, TRAINIUM, 384e9, _efa(800)),
        "chip": "Trainium",
        "devices": 16,
        "price": _price(21.50, THIRD),
    },
    "trn2.48xlarge": {
        **_trainium(96 * GIB, 2.9e12, TRAINIUM2, 1024e9, _efa(3200)),
        "chip": "Trainium2",
        "devices": 16,
        "price": _price(35.76, THIRD, "2026-02"),
    },
    "trn2u.ultraserver": {
        **_trainium(96 * GIB, 2.9e12, TRAINIUM2, 1280e9, _guess(1.6e12, "4 instances of 3,200 Gbit/s")),
        "chip": "Trainium2",
        "devices": 64,
    },
    "trn3.ultraserver": {
        **_trainium(144 * GIB, 4.9e12, TRAINIUM3, 2048 * GIB, _efa(28800, f"{NEURON}, Trn3 Gen2")),
        "chip": "Trainium3",
        "devices": 144,
    },
    "inf2.48xlarge": {
        **_trainium(32 * GIB, 820 * GIB, TRAINIUM, 192 * GIB, _efa(100)),
        "chip": "Inferentia2",
        "devices": 12,
        "price": _price(12.98, THIRD),
    },
    "c7i.48xlarge": {
        **_cpu(96, 2.6, 2.5, 384 * GIB, 614.4e9, 50),
        "chip": "Sapphire Rapids",
        "price": _price(8.568, THIRD),
    },
    "c8i.48xlarge": {
        **_cpu(96, 2.8, 2.7, 384 * GIB, 691.2e9, 75),
        "chip": "Granite Rapids",
        "price": _price(9.0, "5% above c7i.48xlarge")._replace(estimate=True, unverified=True),
    },
    "r7i.48xlarge": {
        **_cpu(96, 2.6, 2.5, 1536 * GIB, 614.4e9, 50),
        "chip": "Sapphire Rapids",
        "price": _price(12.70, THIRD),
    },
}

INSTANCES: Mapping[str, Instance] = {name: Instance(**row) for name, row in _ROWS.items()}  # type: ignore[arg-type]
"""By name, as AWS spells it; UltraServers, which are no instance type, by what they are made of."""


def instance(name: str) -> Instance:
    """The row of that name. Raises ValueError naming the nearest."""
    if name not in INSTANCES:
        near = difflib.get_close_matches(name, INSTANCES, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"no such instance: {name!r}{hint} There are {', '.join(INSTANCES)}")
    return INSTANCES[name]
