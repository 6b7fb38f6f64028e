"""Reading a Hugging Face config so that no field is overlooked: what a family reads is mapped, the rest must be known
to be inert.

Two dialects are read and written. transformers 4 spells rope as `rope_theta` and `rope_scaling`, transformers 5 as
one dict `rope_parameters`."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from functools import partial
from typing import Any, TypeVar

from ..layers.mtp import MTP
from ..layers.rope import Linear, Llama3, LongRope, Proportional, Rope, Yarn

Config = Mapping[str, Any]
T = TypeVar("T")

_INERT = """
_name_or_path architectures auto_map dtype torch_dtype transformers_version model_type use_cache initializer_range
output_router_logits router_aux_loss_coef aux_loss_alpha seq_aux pretraining_tp ep_size return_dict
output_attentions output_hidden_states cache_implementation num_nextn_predict_layers num_mtp_layers
quantization_config is_encoder_decoder tokenizer_class task_specific_params problem_type chunk_size_feed_forward
id2label label2id _attn_implementation _attn_implementation_autoset unsloth_fixed max_length min_length do_sample
temperature top_k top_p
"""
INERT = frozenset(_INERT.split())
"""Fields of any family that do not change the mathematics of a forward pass (quantisation is undone when tensors
are read).
"""

_REQUIRED: Any = object()


class Fields:
    """A config whose fields are taken by name and type; remembers which were, so that `finish` can refuse the
    others.

    within: the field that holds this config, with a dot, for one inside another.
    """

    def __init__(self, config: Config, within: str = "") -> None:
        self.config = config
        self.within = within
        self.taken: set[str] = set()

    def get(self, name: str, default: Any = _REQUIRED) -> Any:
        """The value as it stands; a null counts as absent. Raises ValueError if it is required and absent."""
        self.taken.add(name)
        value = self.config.get(name)
        if value is None and default is _REQUIRED:
            raise ValueError(f"config field {self.within + name!r} is missing")
        return default if value is None else value

    def int(self, name: str, default: Any = _REQUIRED, least: Any = 0) -> Any:
        kind = f"an integer of at least {least}"
        return self._typed(name, default, kind, lambda value: type(value) is int and value >= least)

    def float(self, name: str, default: Any = _REQUIRED) -> Any:
        value = self._typed(name, default, "a finite number", _is_finite)
        return float(value) if type(value) is int else value

    def bool(self, name: str, default: Any = _REQUIRED) -> Any:
        return self._typed(name, default, "true or false", lambda value: type(value) is bool)

    def list(self, name: str, default: Any = _REQUIRED) -> Any:
        return self._typed(name, default, "a list", lambda value: isinstance(value, list | tuple))

    def floats(self, name: str, default: Any = _REQUIRED) -> Any:
        kind = "a list of finite numbers"
        value = self._typed(name, default, kind, lambda value: isinstance(value, list) and all(map(_is_finite, value)))
        return tuple(map(float, value))

    def nested(self, name: str) -> "Fields":
        """The config inside this field, empty if there is none."""
        value = self._typed(name, {}, "an object", lambda value: isinstance(value, Mapping))
        return Fields(value, f"{self.within}{name}.")

    def only(self, name: str, allowed: Any) -> None:
        """Refuses any value but this one, the default: others would change the mathematics."""
        if self.get(name, allowed) != allowed:
            raise ValueError(self._unsupported(name, repr(allowed)))

    def choice(self, name: str, default: str, allowed: Iterable[str]) -> str:
        value = self.get(name, default)
        if value not in tuple(allowed):
            raise ValueError(self._unsupported(name, ", ".join(allowed)))
        return str(value)

    def over(self, defaults: Config) -> "Fields":
        """The same config with defaults for what it leaves out; what is taken counts for both."""
        fields = Fields({**defaults, **{k: v for k, v in self.config.items() if v is not None or k not in defaults}})
        fields.taken = self.taken
        return fields

    def ids(self, name: str) -> tuple[Any, ...]:
        """A token id, a list of them, or none."""
        value = self.get(name, ())
        ids = tuple(value) if isinstance(value, list | tuple) else (value,)
        if not all(type(item) is int for item in ids):
            raise ValueError(f"config field {name!r} is {value!r:.80}; it takes a token id or a list of them")
        return ids

    def finish(self, inert: frozenset[str], ignore: tuple[str, ...] = ()) -> None:
        """Refuses the fields that were neither taken nor are inert nor ignored."""
        for name in self.config:
            if name not in self.taken and name not in inert and name not in ignore:
                raise ValueError(
                    f"config field {name!r} ({self.config[name]!r:.60}) is unknown and may change the mathematics; "
                    f"if it does not, pass ignore=({name!r},)"
                )

    def finish_nested(self, kind: str) -> None:
        """Refuses the fields of a nested config that were not taken and are not null; `kind` says what it describes."""
        for name, value in self.config.items():
            if name not in self.taken and value is not None:
                raise ValueError(f"config field {self.within + name!r} ({value!r:.60}) is not one that {kind} takes")

    def _typed(self, name: str, default: Any, kind: str, holds: Callable[[Any], Any]) -> Any:
        value = self.get(name, default)
        if value is not default and not holds(value):
            raise ValueError(f"config field {self.within + name!r} is {value!r:.80}; it takes {kind}")
        return value

    def _unsupported(self, name: str, supported: str) -> str:
        value = self.config[name]
        return f"config field {self.within + name!r} is {value!r:.80}, which is not supported; supported: {supported}"


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


# --- what all families spell alike -----------------------------------------------------------------------------------


def read_common(c: Fields, tied: bool = False) -> dict[str, Any]:
    """The Spec fields that every config has."""
    pad = c.ids("pad_token_id")
    return {
        "vocab": c.int("vocab_size"),
        "width": c.int("hidden_size"),
        "depth": c.int("num_hidden_layers"),
        "max_length": c.int("max_position_embeddings"),
        "tied": c.bool("tie_word_embeddings", tied),
        "bos_id": next(iter(c.ids("bos_token_id")), None),
        "eos_ids": c.ids("eos_token_id"),
        "pad_id": pad[0] if pad else None,
    }


Names = Mapping[str, str | tuple[str, Any]]
"""Fields of a layer's spec -> their names in a config, each with what it is where the config leaves it out, if that may
be.
"""

_READERS: dict[Any, Callable[..., Any]] = {
    int: Fields.int,
    int | None: Fields.int,
    float: Fields.float,
    bool: Fields.bool,
}


def read_part(c: Fields, cls: Callable[..., T], names: Names, **more: Any) -> T:
    """A layer's spec, of what the config says under these names and of `more`."""
    types = {f.name: f.type for f in fields(cls)}  # type: ignore[arg-type]
    said = {ours: (theirs,) if isinstance(theirs, str) else theirs for ours, theirs in names.items()}
    return cls(**{ours: _READERS[types[ours]](c, *field) for ours, field in said.items()}, **more)


def write_part(part: Any, names: Names) -> dict[str, Any]:
    """The inverse of `read_part`: what of a layer's spec a config says."""
    return {theirs if isinstance(theirs, str) else theirs[0]: getattr(part, ours) for ours, theirs in names.items()}


ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "silu": "silu"}
"""Hugging Face's names of activations, and ours."""


def read_activation(c: Fields, name: str, default: str) -> str:
    return ACTIVATIONS[c.choice(name, default, ACTIVATIONS)]


def write_activation(activation: Any) -> str:
    return next(name for name, ours in ACTIVATIONS.items() if ours == activation)


def read_prediction(c: Fields) -> MTP | None:
    """The modules of multi-token prediction that a config counts, in transformers 4's spelling or 5's."""
    count = c.int("num_nextn_predict_layers", c.int("num_mtp_layers", 0))
    c.only("num_mtp_layers", count)
    return MTP(depth=count) if count else None


def write_common(spec: Any) -> dict[str, Any]:
    eos = spec.eos_ids
    return {
        "vocab_size": spec.vocab,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.depth,
        "max_position_embeddings": spec.max_length,
        "tie_word_embeddings": spec.tied,
        "bos_token_id": spec.bos_id,
        "eos_token_id": list(eos) if len(eos) > 1 else eos[0] if eos else None,
        "pad_token_id": spec.pad_id,
    }


def write_heads(spec: Any) -> dict[str, Any]:
    """How many heads the first layer's attention has, and their size where it does not follow from the width."""
    attention = spec.layers[0].attention
    found = {"num_attention_heads": attention.heads, "num_key_value_heads": attention.kv_heads}
    follows = attention.head_dim == spec.width // attention.heads
    return found if follows else found | {"head_dim": attention.head_dim}


# --- layers of several kinds -----------------------------------------------------------------------------------------

LOCAL, GLOBAL = "sliding_attention", "full_attention"


def layer_kinds(c: Fields, name: str, usual: Sequence[str], known: Collection[str]) -> tuple[str, ...]:
    """The kind of each layer, one of those known: `usual` where the config does not say."""
    depth = c.int("num_hidden_layers")
    kinds = c.list(name, usual)
    if len(kinds) != depth or any(kind not in known for kind in kinds):
        words = " and ".join(map(repr, known))
        raise ValueError(f"config field {name!r} must be {depth} of {words}, not {kinds!r:.80}")
    return tuple(kinds)


def layer_windows(c: Fields, window: int | None, local: Callable[[int], bool]) -> list[int | None]:
    """The window of each layer, None for one that sees all: as `layer_types` says, else where `local` of its depth."""
    depth = c.int("num_hidden_layers")
    kinds = c.list("layer_types", [LOCAL if local(i) else GLOBAL for i in range(depth)])
    known = all(kind in (LOCAL, GLOBAL) for kind in kinds)
    if len(kinds) != depth or not known or (LOCAL in kinds and window is None):
        raise ValueError(
            f"config field 'layer_types' does not fit {depth} layers with sliding_window {window}: {kinds!r:.80}"
        )
    return [window if kind == LOCAL else None for kind in kinds]


def layer_types(spec: Any) -> list[str]:
    return [LOCAL if layer.attention.window else GLOBAL for layer in spec.layers]


# --- rope ------------------------------------------------------------------------------------------------------------

SCALINGS: dict[str, tuple[type, dict[str, str]]] = {
    "linear": (Linear, {"factor": "factor"}),
    "llama3": (
        Llama3,
        {
            "factor": "factor",
            "low": "low_freq_factor",
            "high": "high_freq_factor",
            "original_length": "original_max_position_embeddings",
        },
    ),
    "yarn": (
        Yarn,
        {
            "factor": "factor",
            "original_length": "original_max_position_embeddings",
            "fast": "beta_fast",
            "slow": "beta_slow",
            "mscale": "mscale",
            "mscale_all_dim": "mscale_all_dim",
            "attention_factor": "attention_factor",
            "truncate": "truncate",
        },
    ),
    "proportional": (Proportional, {"share": "partial_rotary_factor", "factor": "factor"}),
    "longrope": (
        LongRope,
        {
            "short": "short_factor",
            "long": "long_factor",
            "factor": "factor",
            "original_length": "original_max_position_embeddings",
            "attention_factor": "attention_factor",
        },
    ),
}
"""rope_type -> the scaling's class, and its fields -> their names in Hugging Face's configs."""


def read_rope(c: Fields, dim: int, *, interleaved: bool = False, share: float | None = None) -> Rope:
    """The rope of a config that has one for all layers, in either dialect.

    share: how much of a head of `dim` dimensions is rotated where `partial_rotary_factor` does not say; None for
    families that rotate all of it."""
    spellings = [c.nested("rope_parameters"), c.nested("rope_scaling")]
    theta, share = c.float("rope_theta", 10_000.0), None if share is None else c.float("partial_rotary_factor", share)
    return rope_of(spellings, dim, c.int("max_position_embeddings"), theta, interleaved=interleaved, share=share)


def rope_of(
    spellings: Sequence[Fields],
    dim: int,
    max_length: int,
    theta: float,
    *,
    interleaved: bool = False,
    share: float | None = None,
) -> Rope:
    """The Rope that these configs describe, of which some or all may be empty; `share` as for `read_rope`.

    Raises ValueError where two disagree, or for a field that the rope_type does not take."""

    def rotated(p: Fields) -> int:
        if p.config.get("rope_type") == "proportional":  # whose own share is of the frequencies
            return dim
        if share is None:
            p.only("partial_rotary_factor", 1.0)
            return dim
        return int(dim * p.float("partial_rotary_factor", share))

    found = {p.within[:-1]: _scaled(p, rotated(p), max_length, theta, interleaved) for p in spellings if p.config}
    if len(set(found.values())) > 1:
        raise ValueError(f"config fields {' and '.join(map(repr, found))} describe different ropes; keep one")
    if found:
        return next(iter(found.values()))
    return Rope(dim=rotated(Fields({})), theta=theta, interleaved=interleaved)


def _scaled(p: Fields, dim: int, max_length: int, theta: float, interleaved: bool) -> Rope:
    kind = p.choice("type", "default", ("default", *SCALINGS))
    kind = p.choice("rope_type", kind, ("default", *SCALINGS))
    theta, scaling = p.float("rope_theta", theta), None
    if kind != "default":
        cls, names = SCALINGS[kind]
        defaults = {f.name: _REQUIRED if f.default is MISSING else f.default for f in fields(cls)}
        defaults |= {"original_length": max_length} if "original_length" in defaults else {}
        if kind == "longrope":  # without a factor, what the model takes is told by its length
            defaults["factor"] = max_length / p.int(names["original_length"], max_length, least=1)
        kinds: dict[Any, Callable[..., Any]] = {
            int: partial(p.int, least=1),
            bool: p.bool,
            tuple[float, ...]: p.floats,
        }
        readers: dict[str, Callable[..., Any]] = {f.name: kinds.get(f.type, p.float) for f in fields(cls)}
        scaling = cls(**{name: readers[name](names[name], default) for name, default in defaults.items()})
    p.finish_nested(f"rope_type {kind!r}")
    return Rope(dim=dim, theta=theta, scaling=scaling, interleaved=interleaved)


def read_ropes(c: Fields, dim: int, thetas: Mapping[str, tuple[str, float]]) -> dict[str, Rope]:
    """The rope of each kind of layer: under its name in `rope_parameters`, or in the words of transformers 4, in which
    only the first kind's can be stretched.

    thetas: by kind, the field that says theta in those words, and what it is where nothing does."""
    both, older = c.nested("rope_parameters"), [c.nested("rope_scaling")]
    ropes = {}
    for kind, (name, usual) in thetas.items():
        spellings, older = [both.nested(kind), *older], []
        ropes[kind] = rope_of(spellings, dim, c.int("max_position_embeddings"), c.float(name, usual))
    both.finish_nested("a model with a rope for each kind of layer")
    return ropes


def write_rope(rope: Rope, dialect: int, head_dim: int | None = None) -> dict[str, Any]:
    """The config fields of a rope that holds for all layers; head_dim: of families that may rotate a part of it."""
    share = {} if head_dim is None else {"partial_rotary_factor": rope.dim / head_dim}
    if dialect >= 5:
        return {"rope_parameters": rope_parameters(rope) | share}
    scaling = rope_parameters(rope)
    theta = scaling.pop("rope_theta")
    return {"rope_theta": theta, "rope_scaling": None if rope.scaling is None else scaling, **share}


def rope_parameters(rope: Rope) -> dict[str, Any]:
    """The dict that describes a rope in transformers 5; fields at their defaults are left out where those are None or
    True.
    """
    for kind, (cls, names) in SCALINGS.items():
        if isinstance(rope.scaling, cls):
            values = {field: getattr(rope.scaling, name) for name, field in names.items()}
            values = {field: list(value) if isinstance(value, tuple) else value for field, value in values.items()}
            kept = {field: value for field, value in values.items() if value is not None and value is not True}
            return {"rope_type": kind, "rope_theta": rope.theta} | kept
    return {"rope_type": "default", "rope_theta": rope.theta}
