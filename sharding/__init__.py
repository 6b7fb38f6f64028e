"""The ground floor: meshes, and the one table that says which mesh axes each logical axis is spread over."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checking import check as check


def __getattr__(name: str) -> Any:
    """`archzoo.sharding.check`, loaded when first used."""
    if name != "check":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .checking import check

    return check
