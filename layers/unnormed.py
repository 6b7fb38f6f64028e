"""Multi-token prediction whose states have no norm of their own: ERNIE 4.5 (Baidu ERNIE team 2025).

As in mtp.py, but what is handed on, by the model and by each module, are states before a norm, and the head reads each
module's through the model's last norm.

Dimensions: those of mtp.py.
"""

from dataclasses import dataclass
from typing import ClassVar

from .mtp import AXES as AXES
from .mtp import MTP


@dataclass(frozen=True, kw_only=True)
class Unnormed(MTP):
    """`depth` modules one after another, which end with the model's last norm."""

    before_norm: ClassVar[bool] = True
    own_norm: ClassVar[bool] = False
