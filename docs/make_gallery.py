"""Writes gallery/, a page and a picture for every family of the zoo, and the table of `archzoo list`, from the presets.
python docs/make_gallery.py"""

import inspect
import re
import sys
from pathlib import Path

from archzoo.layers.decoder import Spec
from archzoo.zoo import listed
from archzoo.zoo.amounts import amount
from archzoo.zoo.describe import aspects, difference, summary
from archzoo.zoo.diagram import diagram
from archzoo.zoo.family import Family
from archzoo.zoo.registry import FAMILIES

FOLDER = Path(__file__).parent / "gallery"
ABOUT = (
    "Every family of the zoo; written by `docs/make_gallery.py`.",
    "How each compares with transformers: [parity](../parity.md).",
)
NUMBERS = ("parameters", "active", "layers", "width", "context")


def flagship(family: Family) -> str:
    """The preset that its page names first."""
    return next(iter(family.presets))


def alike(a: Spec, b: Spec) -> float:
    """How much two models have in common: the share of words in which they are told, whatever the numbers."""
    ours, theirs = (
        {re.sub(r"\d+", "#", w) for told in aspects(s).values() for w in re.split("[,;] ", told)} for s in (a, b)
    )
    return len(ours & theirs) / len(ours | theirs)


def nearest(family: Family) -> Family:
    """The family whose flagship is told most alike."""
    others = [other for other in FAMILIES.values() if other.name != family.name]
    own = family.presets[flagship(family)]
    return max(others, key=lambda other: alike(own, other.presets[flagship(other)]))


def page(family: Family) -> str:
    module, name, relative = inspect.getmodule(family.read), flagship(family), nearest(family)
    assert module is not None
    spec, other = family.presets[name], flagship(relative)
    told = difference(spec, relative.presets[other])
    file = Path(str(module.__file__)).name
    lines = [f"# {family.name}", "", " ".join((module.__doc__ or "").split()), "", f"![{name}]({family.name}.svg)", ""]
    lines += ["| preset | parameters | active | layers | width | context | cache, bytes a token |", "| --- " * 7 + "|"]
    for preset, size in family.presets.items():
        line = summary(preset, size)
        numbers = [amount(line[key]) if line[key] > 10**6 else f"{line[key]:,}" for key in NUMBERS]
        lines.append(f"| {preset} | {' | '.join(numbers)} | {line['cache_bytes_per_token']:,} |")
    lines += ["", f"Nearest relative: [{relative.name}]({relative.name}.md).", ""]
    lines += [f"| | {name} | {other} |", "| --- | --- | --- |"]
    lines += [f"| {what} | {ours} | {theirs} |" for what, (ours, theirs) in told["words"].items() if what != "order"]
    lines += ["", f"## [zoo/{file}](../../zoo/{file})", "", "```python", inspect.getsource(module).rstrip(), "```", ""]
    return "\n".join(lines)


def contents() -> str:
    lines = [
        "# Gallery",
        "",
        *ABOUT,
        "",
    ]
    lines += ["| family | flagship | parameters | active | attention | MLP | norms |", "| --- " * 7 + "|"]
    for family in FAMILIES.values():
        line = summary(flagship(family), family.presets[flagship(family)])
        told = [amount(line["parameters"]), amount(line["active"]), line["attention"], line["mlp"], line["norm"]]
        lines.append(f"| [{family.name}]({family.name}.md) | {line['name']} | {' | '.join(told)} |")
    return "\n".join([*lines, ""])


def files() -> dict[str, str]:
    """Every file of the gallery, by name."""
    found = {"README.md": contents()}
    for family in FAMILIES.values():
        name = flagship(family)
        found |= {f"{family.name}.md": page(family), f"{family.name}.svg": diagram(name, family.presets[name])}
    return found


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    made = files()
    for stale in {path.name for path in FOLDER.iterdir()} - set(made):
        (FOLDER / stale).unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text)
    listed.HELD.write_text(listed.text())
    print(f"{len(made)} files in {FOLDER}, and {listed.HELD}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
