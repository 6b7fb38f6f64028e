"""Every figure of the hardware table has a source, a date and a plausible size, and is consistent with its fellows."""

import re

import pytest

from archzoo.sharding.hardware import INSTANCES, instance
from archzoo.sharding.targets import GPUS

PLAUSIBLE = {
    "memory": (2**35, 2**41),
    "bandwidth": (1e11, 1e13),
    "flops": (1e12, 1e16),
    "link": (5e10, 2e12),
    "network": (1e9, 1e13),
    "price": (5, 1000),
}


@pytest.mark.parametrize("name", INSTANCES)
def test_each_figure_has_a_source_and_a_date(name: str) -> None:
    row = INSTANCES[name]
    figures = row.figures()
    assert {"memory", "bandwidth", "network", "flops.float32", "flops.bfloat16"} <= set(figures)
    for what, figure in figures.items():
        least, most = PLAUSIBLE[what.partition(".")[0]]
        assert least <= figure.value <= most, what
        assert len(figure.source) > 8, what
        assert re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", figure.date), what
    assert (row.link is None) == (row.devices == 1)
    assert row.flops["bfloat16"].value > row.flops["float32"].value


@pytest.mark.parametrize("name", [name for name, row in INSTANCES.items() if row.gpu])
def test_what_is_compiled_for_is_what_is_planned_with(name: str) -> None:
    row = INSTANCES[name]
    assert row.gpu is not None
    gpu = GPUS[row.gpu]
    assert gpu.memory == row.memory.value
    assert abs(gpu.bandwidth / row.bandwidth.value - 1) < 0.05


def test_an_unknown_instance_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"p5en\.48xlarg'; did you mean p5en\.48xlarge\?"):
        instance("p5en.48xlarg")
