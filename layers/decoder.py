"""The decoder: token ids to logits through blocks over depth, and the Spec that says what is computed.

Layers of one kind are stacked and run as a scan, one per run of the depth pattern (pattern.py), so compile time grows
with the number of different layers, not with depth. Parameters of layer `p` of run `r` are `run_r/layer_p/...`, with
a leading axis over its repeats.

Dimensions: B batch, L length, D width, V vocab, R repeats of a run.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from ..sharding.rules import constrain
from .accounting import DEPTH, Part, active_param_count, flops_per_token, param_count
from .block import PARTS
from .cache import after, store
from .dense import attach
from .execution import REMAT, Execution
from .lookup import look_up
from .mtp import BEFORE_NORM, LAST_NORM, MTP, MTPShell, ahead, handed_on, reaches
from .norms import Norm, RMSNorm
from .pattern import Run, deepest, expand, runs
from .pipeline import stages
from .spec import Context, from_plain, of_model, parse_json, paths, replace, require, to_plain
from .stack import among_stages, by_position, lending, scanned

AXES = {"D": "width", "V": "vocab"}


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a Hugging Face config said: its family, the transformers version whose dialect it speaks, and its text."""

    family: str
    dialect: int = 4
    config: str = "{}"


class Layer(NamedTuple):
    block: Any
    attention: Any
    mlp: Any


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A language model as data: mathematics only.

    attention, mlp, block: patterns over depth (pattern.py) of layer specs; a single spec stands for a pattern of one.
    embedding_scale, logit_scale: multiply the embedded tokens and the logits.
    logit_softcap: logits, scaled, become softcap * tanh(logits / softcap).
    per_layer: what each layer reads of a token besides the residual (per_layer.py), None for nothing.
    mtp: modules of multi-token prediction (mtp.py), trained beside the model.
    max_length: the longest sequence it takes.  eos_ids: tokens that end a text.
    hf: where a Hugging Face config was read; it does not take part in comparisons.
    """

    vocab: int
    width: int
    depth: int
    attention: Any
    mlp: Any
    block: Any
    final_norm: Norm = RMSNorm()
    tied: bool = False
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    mtp: MTP | None = None
    per_layer: Any = None
    max_length: int = 4096
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    hf: Origin | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in ("vocab", "width", "depth", "max_length"):
            require(self, getattr(self, name) > 0, name, "it must be positive")
        for name in Layer._fields:
            pattern = getattr(self, name)
            object.__setattr__(self, name, pattern if isinstance(pattern, tuple) else (pattern,))
            layers = [entry for entry in getattr(self, name) if entry is not Ellipsis]
            require(self, all(map(is_dataclass, layers)), name, "it takes layer specs, or a tuple of them")
            expand(getattr(self, name), self.depth)
        streams = {getattr(layer.block, "streams", 1) for layer in self.layers}
        require(self, len(streams) == 1, "block", "as many streams run through all layers (hyper.py)")

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layer at each depth."""
        model = {"width": self.width, "vocab": self.vocab}
        patterns = (expand(of_model(getattr(self, name), model), self.depth) for name in Layer._fields)
        return tuple(Layer(*layer) for layer in zip(*patterns, strict=True))

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The depth as scans (pattern.py)."""
        return runs(self.layers)

    @cached_property
    def predictor(self) -> MTP | None:
        """`mtp` with what it leaves open as in the last layer."""
        if self.mtp is None:
            return None
        filled = self.mtp.filled(**self.layers[-1]._asdict(), norm=self.final_norm)
        return of_model(filled, {"width": self.width, "vocab": self.vocab})

    @property
    def part(self) -> Part:
        """Whose the parameters are, by their place in the tree."""

        def of_layer(layer: Any) -> Part:
            return Part(layer.block, {name: Part(getattr(layer, name)) for name in PARTS})

        parts = {}
        for r, run in enumerate(self.runs):
            repeats = DEPTH[0 if r == deepest(self.runs) else 1]
            parts[f"run_{r}"] = Part(run, {f"layer_{p}": of_layer(x) for p, x in enumerate(run.period)}, (repeats,))
        if self.predictor is not None:
            module = Part(self.predictor, {"layer": of_layer(self.predictor)}, beside=True)
            parts |= {f"mtp_{k}": module for k in range(self.predictor.depth)}
        return Part(self, {**parts, "close": Part(self.layers[-1].block)})

    @property
    def shapes(self) -> Any:
        """The parameter tree as ShapeDtypeStructs; nothing is allocated."""
        return param_shapes(self)

    def replace(self, changes: Mapping[str, Any] | None = None, /, **more: Any) -> "Spec":
        """This spec with fields set by path: `replace(depth=4)`, `replace(**{"attention.window": 512, "mlp[1].ffn":
        64})`.
        """
        return replace(self, {**(changes or {}), **more})

    def paths(self) -> dict[str, Any]:
        """Every path that `replace` takes, and the value there."""
        return {path: value for path, value in paths(self).items() if not path.startswith("hf")}

    def to_json(self) -> str:
        return json.dumps(to_plain(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Spec":
        """The inverse of `to_json`. Raises ValueError naming what it does not know."""
        spec = from_plain(parse_json(text))
        if not isinstance(spec, cls):
            raise ValueError(f"the JSON holds a {type(spec).__name__}, not a Spec")
        return spec

    def param_count(self, mtp: bool = False) -> int:
        """How many parameters the model has, from their shapes; router biases included, multi-token prediction if
        asked.
        """
        return param_count(self, mtp)

    def active_param_count(self) -> int:
        """Parameters a token uses: all but the routed experts it does not select."""
        return active_param_count(self)

    def flops_per_token(self, length: int) -> float:
        """Forward matmul FLOPs a token, 2 a multiply-add, averaged over the positions of a causal sequence of this
        length.
        """
        return flops_per_token(self, length)

    def cache_bytes(self, batch: int = 1, length: int = 4096, dtype: str = "bfloat16") -> int:
        """Bytes that `init_cache` allocates."""
        shapes = cache_shapes(self, batch, length, dtype)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


# --- parameters ------------------------------------------------------------------------------------------------------


def _init(spec: Spec, rngs: Any) -> Any:
    execution, tokens_BL = Execution(dispatch="dense"), jnp.zeros((1, 1), jnp.int32)
    variables = nn.Module.init(Decoder(spec, execution), rngs, tokens_BL)
    if spec.predictor is None:
        return variables
    x_BLD = jnp.zeros((1, 1, spec.width), jnp.float32)
    context = Context(tokens_BL, None, tokens_BL, tokens_BL[0], None)
    modules = {}
    for k in range(spec.predictor.depth):
        keys = jax.tree.map(lambda key, k=k: jax.random.fold_in(key, k), rngs)
        drawn = spec.predictor.shell(execution).init(keys, x_BLD, x_BLD, context)["params"]
        own = spec.predictor.own_norm
        modules[f"mtp_{k}"] = {name: at for name, at in drawn.items() if own or name != LAST_NORM}
    return {"params": {**variables["params"], **modules}}


# Every parameter draws its own random numbers, which XLA takes half a second each to optimise and a millisecond to
# run.
_compiled_init = jax.jit(_init, static_argnums=0, compiler_options={"xla_backend_optimization_level": 1})


@cache
def param_shapes(spec: Spec) -> Any:
    """The parameter tree as ShapeDtypeStructs; nothing is allocated."""
    return jax.eval_shape(lambda key: _init(spec, key), jax.random.key(0))["params"]


# --- caches ----------------------------------------------------------------------------------------------------------


def cache_shapes(spec: Spec, batch: int, length: int, dtype: str = "bfloat16") -> Any:
    """The cache tree of `init_cache` as ShapeDtypeStructs."""

    def stacked(layer: Any, repeats: int) -> dict[str, jax.ShapeDtypeStruct]:
        entries = layer.cache(batch, length, jnp.dtype(dtype))
        return {name: jax.ShapeDtypeStruct((repeats, *entry.shape), entry.dtype) for name, entry in entries.items()}

    tree: dict[str, Any] = {
        "end": jax.ShapeDtypeStruct((), jnp.int32),
        "pad_B": jax.ShapeDtypeStruct((batch,), jnp.int32),
    }
    for r, run in enumerate(spec.runs):
        tree[f"run_{r}"] = {
            f"layer_{p}": {part: stacked(getattr(layer, part), run.repeats) for part in PARTS}
            for p, layer in enumerate(run.period)
        }
    return tree


def init_cache(
    spec: Spec, batch: int, length: int, dtype: str = "bfloat16", pad_B: jax.Array | None = None
) -> dict[str, Any]:
    """An empty cache for `length` tokens a row; windowed layers allocate their window, latent attention its latents.

    pad_B: int32 [batch], how many of the first tokens of each row will be padding: prompts of unequal length are
    right-aligned."""
    tree: dict[str, Any] = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), cache_shapes(spec, batch, length, dtype)
    )
    return tree if pad_B is None else tree | {"pad_B": jnp.asarray(pad_B, jnp.int32)}


def document_positions(segments_BL: jax.Array) -> jax.Array:
    """int32 [batch, length]: each token's index in its document, for documents packed one after another."""
    index_L = jnp.arange(segments_BL.shape[1], dtype=jnp.int32)
    starts = jnp.pad(segments_BL[:, 1:] != segments_BL[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return index_L - jax.lax.cummax(jnp.where(starts, index_L, 0), axis=1)


def _written(held: Any, new: Any, end: jax.Array) -> Any:
    """The cache entries of a run with the new tokens' in them; one without a slot axis S in its name is replaced, as
    far as what replaces it goes: into an empty cache a layer may write less than it holds.
    """

    def written(name: str, entry: jax.Array, tokens: jax.Array) -> jax.Array:
        axis = name.rpartition("_")[2].find("S")
        if axis >= 0:
            return store(entry, tokens, end, 1 + axis)
        tokens = tokens.astype(entry.dtype)
        whole = tokens.shape == entry.shape
        return tokens if whole else jax.lax.dynamic_update_slice(entry, tokens, (0,) * entry.ndim)

    return {
        layer: {
            part: {name: written(name, entry, new[layer][part][name]) for name, entry in entries.items()}
            for part, entries in parts.items()
        }
        for layer, parts in held.items()
    }


def _room(cache: Any) -> int:
    """For how many tokens it was made, as far as layers that keep all of them tell."""
    axes = [
        (leaf.shape, path[-1].key.rpartition("_")[2].find("S"))
        for path, leaf in jax.tree_util.tree_leaves_with_path(cache)
    ]
    return max((shape[1 + axis] for shape, axis in axes if axis >= 0), default=0)


# --- the model -------------------------------------------------------------------------------------------------------


def embedded(spec: Spec, embed_VD: jax.Array, tokens_BL: jax.Array, execution: Execution) -> jax.Array:
    """What the first layer reads [batch, length, width]."""
    # Whole along its width, as what is looked up is: the partitioner would gather tokens of all devices to spread that.
    table_VD = constrain(embed_VD, execution.rules, "vocab")
    x_BLD = look_up(table_VD, tokens_BL, execution).astype(execution.dtype)
    return x_BLD * jnp.asarray(spec.embedding_scale, execution.dtype)


def unembed(spec: Spec, params: Any, hidden: jax.Array, execution: Execution) -> jax.Array:
    """float32 logits [..., vocab] of what the last norm gave [..., width]."""
    x = hidden.reshape(-1, spec.width)
    name, contracted = ("embed_VD", 1) if spec.tied else ("head_DV", 0)
    w = params[name].astype(execution.dtype)
    logits = jax.lax.dot_general(x, w, (((1,), (contracted,)), ((), ())), preferred_element_type=jnp.float32)
    return capped(logits * spec.logit_scale, spec.logit_softcap).reshape(*hidden.shape[:-1], spec.vocab)


def capped(logits: jax.Array, softcap: float | None) -> jax.Array:
    return logits if softcap is None else softcap * jnp.tanh(logits / softcap)


class Decoder(nn.Module):
    """`init(key, tokens)["params"]`, `apply({"params": params}, tokens, ...)`: both pure."""

    spec: Spec
    execution: Execution = Execution()

    @nn.nowrap
    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """{"params": ...} from a key.

        Compiled once a spec, and only the initialisers: the values of tokens do not matter.
        """
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(rngs))
        return (_init if traced else _compiled_init)(self.spec, rngs)

    def __call__(
        self, tokens_BL: jax.Array, segment_ids: jax.Array | None = None, positions: jax.Array | None = None
    ) -> jax.Array:
        """int [batch, length] -> float32 logits [batch, length, vocab].

        segment_ids: int32 [batch, length], which packed document a token belongs to, 0 for padding; tokens see their
        own document only. positions: int32 [batch, length], default the index in the document. Raises ValueError if
        length exceeds spec.max_length."""
        hidden_BLD, _ = self.hidden(tokens_BL, segment_ids, positions)
        return unembed(self.spec, self.variables["params"], hidden_BLD, self.execution)

    def hidden(
        self, tokens_BL: jax.Array, segment_ids: jax.Array | None = None, positions: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, Any]]:
        """What the head reads [batch, length, width], and the layers' auxiliary statistics, by run, layer and part
        (router.py).
        """
        length = tokens_BL.shape[1]
        if length > self.spec.max_length:
            raise ValueError(
                f"a sequence of {length} tokens is longer than the model takes: "
                f"spec.max_length is {self.spec.max_length}"
            )
        slots_L = jnp.arange(length, dtype=jnp.int32)
        if positions is None:
            plain = jnp.broadcast_to(slots_L, tokens_BL.shape)
            positions = plain if segment_ids is None else document_positions(segment_ids)
        x_BLD, _, aux = self._stack(
            tokens_BL, Context(positions, segment_ids, tokens_BL, slots_L, None), None, keep=False
        )
        return x_BLD, aux

    def predict(
        self,
        tokens_BL: jax.Array,
        hidden_BLD: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
    ) -> tuple[tuple[jax.Array, ...], dict[str, Any]]:
        """What the head reads of each module of multi-token prediction, and their auxiliary statistics; `hidden_BLD`
        is what `hidden` gave (mtp.py, `handed_on`).

        At place i, the module with index k reads token i + k + 1 and predicts the one after. Where that token is not of
        the same document, the place counts as padding, and what it holds means nothing."""
        params, predictor = self.variables["params"], self.spec.predictor
        if predictor is None:
            raise ValueError("this model has no multi-token prediction: spec.mtp is None")
        module = nn.remat(MTPShell, policy=REMAT[self.execution.remat])(predictor, self.execution, parent=None)
        segments_BL = jnp.ones_like(tokens_BL) if segment_ids is None else segment_ids
        positions = document_positions(segments_BL) if positions is None else positions
        slots_L = jnp.arange(tokens_BL.shape[1], dtype=jnp.int32)
        states, predicted, aux = [hidden_BLD], [], {}
        for k in range(predictor.depth):
            next_BL = ahead(tokens_BL, k + 1)
            held_BL = jnp.where(reaches(segments_BL, k + 1), segments_BL, 0)
            x_BLD = embedded(self.spec, params["embed_VD"], next_BL, self.execution)
            context = Context(positions, held_BL, next_BL, slots_L, None)
            own = {LAST_NORM: params[LAST_NORM], **params[f"mtp_{k}"]}
            x_BLD, aux[f"mtp_{k}"] = module.apply({"params": own}, x_BLD, predictor.reads(states), context)
            predicted.append(x_BLD)
            states.append(handed_on(x_BLD, aux[f"mtp_{k}"]))
        return tuple(predicted), aux

    def extend(
        self, tokens_BL: jax.Array, cache: dict[str, Any], empty: bool = False
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Logits of the tokens that follow those in the cache, and the cache with them: prefill and decode.

        empty: the caller's word that the cache holds nothing yet; prefill then spends nothing on its slots. The cache
        must have room."""
        hidden_BLD, cache = self.extend_hidden(tokens_BL, cache, empty)
        return unembed(self.spec, self.variables["params"], hidden_BLD, self.execution), cache

    def extend_hidden(
        self, tokens_BL: jax.Array, cache: dict[str, Any], empty: bool = False
    ) -> tuple[jax.Array, dict[str, Any]]:
        """`extend` up to what the head reads: who wants the last token's logits alone calls `unembed` on that one."""
        slots_L = cache["end"] + jnp.arange(tokens_BL.shape[1], dtype=jnp.int32)
        positions_BL = slots_L[None] - cache["pad_B"][:, None]
        context = Context(positions_BL, None, tokens_BL, slots_L, cache["pad_B"], room=_room(cache))
        x_BLD, entries, _ = self._stack(tokens_BL, context, None if empty else cache, keep=True)
        end = cache["end"] + tokens_BL.shape[1]
        written = {run: _written(cache[run], new, after(end, x_BLD)) for run, new in entries.items()}
        return x_BLD, {**written, "end": end, "pad_B": cache["pad_B"]}

    @nn.compact
    def _stack(
        self, tokens_BL: jax.Array, context: Context, held: Any, keep: bool
    ) -> tuple[jax.Array, dict[str, Any], dict[str, Any]]:
        spec, execution = self.spec, self.execution
        embed_VD = self.param("embed_VD", nn.initializers.normal(0.02), (spec.vocab, spec.width), jnp.float32)
        if not spec.tied:
            self.param("head_DV", nn.initializers.normal(0.02), (spec.width, spec.vocab), jnp.float32)
        x_BLD = constrain(embedded(spec, embed_VD, tokens_BL, execution), execution.rules, "batch", "length")
        own_NBLP: Any = None
        if spec.per_layer is not None:
            own_NBLP = attach(self, spec.per_layer.shell(execution, spec.depth), "per_layer")(x_BLD, tokens_BL)
        first, last = spec.layers[0].block, spec.layers[-1].block
        x_BLD = first.open(x_BLD) if hasattr(first, "open") else x_BLD
        entries: dict[str, Any] = {}
        aux: dict[str, Any] = {}
        for r, run in enumerate(spec.runs):
            name = f"run_{r}"
            if r == deepest(spec.runs) and held is None and not keep and stages(execution.rules) > 1:
                given = context if own_NBLP is None else context._replace(own_BLP=own_NBLP)
                params = self.variables["params"][name]
                x_BLD, aux[name] = among_stages(run, params, x_BLD, given, execution)
                continue
            layers, own = attach(self, scanned(run, execution, keep), name), by_position(own_NBLP, run)
            # What the run lends anew travels with x, for its next repeat to borrow.
            names = {getattr(layer.attention, "lends", "") for layer in run.period}
            carried = {of: value for of, value in (context.lent or {}).items() if of in names}
            (x_BLD, carried), (entries[name], aux[name], lent) = layers(
                (x_BLD, carried), None if held is None else held[name], own, context
            )
            context = lending(context, carried | jax.tree.map(lambda leaf: leaf[-1], lent))
        x_BLD = attach(self, last.close(), "close")(x_BLD) if hasattr(last, "close") else x_BLD
        if spec.predictor is not None and spec.predictor.before_norm:
            aux[BEFORE_NORM] = x_BLD
        return attach(self, spec.final_norm.shell(execution), "final_norm")(x_BLD), entries, aux
