"""The presets' lines of `archzoo list`, from a file of the package: to list them takes no JAX and no tracing.

listed.json holds what `summary` (describe.py) says of every preset, and by a digest from which page. Lines of a page
that has changed since are made anew, and all of them are looked up anew once the registry has changed; a test holds
the file to the specs. `docs/make_gallery.py` writes it.
"""

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOM = Path(__file__).parent
HELD = ROOM / "listed.json"
REGISTRY = "registry.py"


def rows() -> list[dict[str, Any]]:
    """A line for each preset, in the order of the registry."""
    held = json.loads(HELD.read_text(encoding="utf-8"))
    current = {name: of["lines"] for name, of in held["families"].items() if of["digest"] == digest(of["page"])}
    if held["registry"] == digest(REGISTRY) and len(current) == len(held["families"]):
        return [line for lines in current.values() for line in lines]
    return [line for _, _, lines in _families(current) for line in lines]


def text() -> str:
    """What listed.json has to say."""
    families = {name: {"page": page, "digest": digest(page), "lines": lines} for name, page, lines in _families({})}
    return json.dumps({"registry": digest(REGISTRY), "families": families}, indent=0) + "\n"


def digest(file: str) -> str:
    """Of a file of this room, "" if it is not there."""
    path = ROOM / file
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.exists() else ""


def _families(known: Mapping[str, list[dict[str, Any]]]) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """Name, page and lines of every family; those that are not known are made."""
    from .describe import summary
    from .registry import FAMILIES

    for name, family in FAMILIES.items():
        lines = known.get(name) or [summary(preset, spec) for preset, spec in family.presets.items()]
        yield name, Path(inspect.getfile(family.read)).name, lines
