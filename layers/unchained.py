"""Multi-token prediction without a chain: MiMo-V2-Flash (Xiaomi 2025), three modules that each read the model itself.

    h'_i = w [norm(Emb(t_(i+k))); norm(x_i)]        x what the model's last norm reads, for every k

So module k does not need what module k-1 made, only the token that it guessed. All else is as in mtp.py.

Dimensions: those of mtp.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax

from .mtp import AXES as AXES
from .mtp import MTP


@dataclass(frozen=True, kw_only=True)
class Unchained(MTP):
    """`depth` modules beside one another, which read the model's states before its last norm."""

    before_norm: ClassVar[bool] = True

    def reads(self, states: Sequence[jax.Array]) -> jax.Array:
        return states[0]
