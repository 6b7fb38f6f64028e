"""The gallery is what the zoo says it is."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

from archzoo.zoo import listed
from archzoo.zoo.registry import FAMILIES

DOCS = Path(__file__).parents[2] / "docs"
CONTENT = 830
"""As wide as GitHub shows a page."""


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


def test_the_table_of_presets_is_what_the_specs_say() -> None:
    assert listed.HELD.read_text() == listed.text(), "run docs/make_gallery.py"


def test_lines_of_a_page_that_changed_are_made_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right, held = listed.rows(), json.loads(listed.HELD.read_text())
    held["families"]["olmo2"] |= {"digest": "of another page", "lines": [{"name": "no such preset"}]}
    (tmp_path / "listed.json").write_text(json.dumps(held))
    monkeypatch.setattr(listed, "HELD", tmp_path / "listed.json")
    assert listed.rows() == right


@pytest.mark.parametrize("name", FAMILIES)
def test_a_picture_is_svg_and_nothing_leaves_it(name: str) -> None:
    root = ElementTree.parse(DOCS / "gallery" / f"{name}.svg").getroot()
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    boxes = list(root.iter("{http://www.w3.org/2000/svg}rect"))
    assert len(boxes) > 3
    assert width <= CONTENT
    for box in boxes:
        x, y = float(box.get("x", 0)), float(box.get("y", 0))
        assert x >= 0
        assert y >= 0
        assert x + float(box.attrib["width"]) <= width
        assert y + float(box.attrib["height"]) <= height
