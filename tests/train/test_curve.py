"""The loss curve puts points where their numbers say."""

import xml.etree.ElementTree as ET

import pytest

from archzoo.train.curve import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, loss_curve, smoothed


def lines(svg: str) -> list[list[tuple[float, float]]]:
    found = [e.get("points", "") for e in ET.fromstring(svg).iter() if e.tag.endswith("polyline")]
    return [[(float(x), float(y)) for x, y in (point.split(",") for point in points.split())] for points in found]


def test_lower_losses_are_lower_and_later_steps_further_right() -> None:
    unigram, raw, mean, heldout = lines(loss_curve("run", [(1, 5.0), (2, 4.0), (3, 2.0)], [(3, 2.5)], 3.0))
    assert [x for x, _ in raw] == sorted(x for x, _ in raw)
    assert [y for _, y in raw] == sorted(y for _, y in raw)
    assert raw[-1][1] > heldout[0][1] > unigram[0][1]
    assert len(mean) == 3


def test_everything_lies_inside_the_frame() -> None:
    drawn = lines(loss_curve("run", [(i, 1e3 / i) for i in range(1, 200)], [(150, 8.0)], 3.3))
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for line in drawn for x, y in line)


def test_the_running_mean_is_of_the_points_behind() -> None:
    assert smoothed([(i, float(i)) for i in range(80)])[-1] == (79, 78.5)


def test_a_title_cannot_break_the_picture() -> None:
    assert "<b>&" in "".join(ET.fromstring(loss_curve("<b>&", [(1, 1.0)], [], 2.0)).itertext())


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one step"):
        loss_curve("run", [], [], 3.0)
