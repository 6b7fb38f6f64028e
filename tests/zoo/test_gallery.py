"""The gallery is what the zoo says it is."""

import importlib.util
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from archzoo.zoo.registry import FAMILIES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def made() -> ModuleType:
    described = importlib.util.spec_from_file_location("make_gallery", DOCS / "make_gallery.py")
    assert described is not None
    assert described.loader is not None
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


def test_it_was_written_after_the_last_change(made: ModuleType) -> None:
    held = {path.name: path.read_text() for path in (DOCS / "gallery").iterdir()}
    assert held == made.files(), "run docs/make_gallery.py"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_picture_is_svg_and_nothing_leaves_it(name: str) -> None:
    root = ElementTree.parse(DOCS / "gallery" / f"{name}.svg").getroot()
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    boxes = list(root.iter("{http://www.w3.org/2000/svg}rect"))
    assert len(boxes) > 3
    for box in boxes:
        x, y = float(box.get("x", 0)), float(box.get("y", 0))
        assert x >= 0
        assert y >= 0
        assert x + float(box.attrib["width"]) <= width
        assert y + float(box.attrib["height"]) <= height
