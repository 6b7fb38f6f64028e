"""Multi-token prediction: DeepSeek-V3 (DeepSeek-AI 2024), section 2.2, eqs. 21-25.

Module k reads what module k-1 made of token i (the first one, what the model's head reads), and the token k places on:

    h'_i = w [norm(Emb(t_(i+k))); norm(h_i)]        h_i = norm(layer(h'))_i         (eqs. 21-22)

It predicts token i+k+1 with the model's own embedding and head. Modules are trained beside the model, and left out when
it generates. As in the published checkpoints, the embedding is the first half of the pair, and the model hands on, as
each module does, its states after their last norm (unchained.py, unnormed.py: modules that read states before it).

Dimensions: B batch, L length, D width, I a pair of widths.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from .dense import attach, project, weight
from .execution import Execution
from .norms import Norm
from .spec import Context, require

AXES = {"I": "pair", "D": "width"}


@dataclass(frozen=True, kw_only=True)
class MTP:
    """`depth` modules one after another, each with a layer of its own.

    block, attention, mlp: of that layer.  norm: of the pair's halves and of what the layer gives. None: as in the
    model's last layer, and its last norm.
    """

    depth: int = 1
    block: Any = None
    attention: Any = None
    mlp: Any = None
    norm: Norm | None = None

    before_norm: ClassVar[bool] = False
    """Whether they read what the model's last norm reads, rather than what it gives."""

    own_norm: ClassVar[bool] = True
    """Whether what a module gives has a norm of its own, rather than the model's last one."""

    def __post_init__(self) -> None:
        require(self, self.depth > 0, "depth", "it must be positive; a model without these modules has no MTP")

    def filled(self, **defaults: Any) -> "MTP":
        """The same, with these for what is None."""
        return replace(self, **{name: value for name, value in defaults.items() if getattr(self, name) is None})

    def reads(self, states: Sequence[jax.Array]) -> jax.Array:
        """What the next module reads of the model's states and those of the modules before it."""
        return states[-1]

    def shell(self, execution: Execution) -> nn.Module:
        """One module; the spec has to be `filled`."""
        return MTPShell(self, execution)


class MTPShell(nn.Module):
    spec: MTP
    execution: Execution

    @nn.compact
    def __call__(
        self, token_BLD: jax.Array, hidden_BLD: jax.Array, context: Context
    ) -> tuple[jax.Array, dict[str, Any]]:
        s, norm = self.spec, self.spec.norm
        assert norm is not None

        def normed(name: str, x_BLD: jax.Array) -> jax.Array:
            y_BLD: jax.Array = attach(self, norm.shell(self.execution), name)(x_BLD)
            return y_BLD

        pair = normed("norm_token", token_BLD), normed("norm_hidden", hidden_BLD)
        width = hidden_BLD.shape[-1]
        w_ID = weight(self, "w_ID", {"I": 2 * width, "D": width}, "I", self.execution)
        x_BLD = project("BLI,ID->BLD", jnp.concatenate(pair, axis=-1), w_ID)
        layer = attach(self, s.block.shell(self.execution, s.attention, s.mlp), "layer")
        x_BLD, _, aux = layer(x_BLD, context, None)
        raw = {BEFORE_NORM: x_BLD} if s.before_norm else {}
        return normed(LAST_NORM, x_BLD), {"layer": aux} | raw


LAST_NORM = "final_norm"
"""Of the model and of a module, in their parameters."""

BEFORE_NORM = "before_norm"
"""What a last norm read, the model's or a module's, among the auxiliary statistics where modules read that."""


def handed_on(hidden_BLD: jax.Array, aux: Mapping[str, Any]) -> jax.Array:
    """What modules read of what `Decoder.hidden`, or a module, gave."""
    state_BLD: jax.Array = aux.get(BEFORE_NORM, hidden_BLD)
    return state_BLD


def ahead(x_BL: jax.Array, places: int) -> jax.Array:
    """What is so many places on in the row; zeros at its end."""
    return jnp.pad(x_BL[:, places:], ((0, 0), (0, min(places, x_BL.shape[1]))))


def reaches(segments_BL: jax.Array, places: int) -> jax.Array:
    """bool [batch, length]: whether the token so many places on is one of the same document."""
    return (segments_BL > 0) & (ahead(segments_BL, places) == segments_BL)
