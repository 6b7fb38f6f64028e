"""Reading a Hugging Face config so that no field is overlooked: what a family reads is mapped, the rest must be known
to be inert.

Two dialects are read and written. transformers 4 spells rope as `rope_theta` and `rope_scaling`, transformers 5 as
one dict `rope_parameters`."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from ..layers.rope import Linear, Llama3, Rope, Yarn

T = TypeVar("T", int, float, bool, str)
Config = Mapping[str, Any]

INERT = frozenset(
    """_name_or_path architectures auto_map dtype torch_dtype transformers_version model_type use_cache
    initializer_range output_router_logits router_aux_loss_coef aux_loss_alpha seq_aux pretraining_tp ep_size
    return_dict output_attentions output_hidden_states cache_implementation num_nextn_predict_layers num_mtp_layers
    quantization_config is_encoder_decoder tokenizer_class task_specific_params problem_type chunk_size_feed_forward
    id2label label2id _attn_implementation _attn_implementation_autoset unsloth_fixed max_length min_length do_sample
    temperature top_k top_p""".split()
)
"""Fields of any family that do not change the mathematics of a forward pass (quantisation is undone when tensors
are read).
"""

_REQUIRED: Any = object()


class Fields:
    """A config whose fields are taken by name and type; remembers which were, so that `finish` can refuse the
    others.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.taken: set[str] = set()

    def get(self, name: str, default: Any = _REQUIRED) -> Any:
        """The value as it stands; a null counts as absent. Raises ValueError if it is required and absent."""
        self.taken.add(name)
        value = self.config.get(name)
        if value is None and default is _REQUIRED:
            raise ValueError(f"config field {name!r} is missing")
        return default if value is None else value

    def int(self, name: str, default: Any = _REQUIRED) -> Any:
        return self._typed(name, default, "an integer", lambda value: type(value) is int)

    def float(self, name: str, default: Any = _REQUIRED) -> Any:
        value = self._typed(name, default, "a number", lambda value: type(value) in (int, float))
        return float(value) if type(value) is int else value

    def bool(self, name: str, default: Any = _REQUIRED) -> Any:
        return self._typed(name, default, "true or false", lambda value: type(value) is bool)

    def only(self, name: str, *allowed: Any) -> None:
        """Refuses any value but these, the first of which is the default: others would change the mathematics."""
        value = self.get(name, allowed[0])
        if value not in allowed:
            raise ValueError(f"config field {name!r} is {value!r}, which is not supported; supported: {allowed[0]!r}")

    def choice(self, name: str, default: str, allowed: Iterable[str]) -> str:
        value = str(self.get(name, default))
        if value not in allowed:
            raise ValueError(
                f"config field {name!r} is {value!r}, which is not supported; supported: {', '.join(allowed)}"
            )
        return value

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
            raise ValueError(f"config field {name!r} is {value!r}; it takes a token id or a list of them")
        return ids

    def finish(self, inert: frozenset[str], ignore: tuple[str, ...] = ()) -> None:
        """Refuses the fields that were neither taken nor are inert nor ignored."""
        for name in self.config:
            if name not in self.taken and name not in inert and name not in ignore:
                raise ValueError(
                    f"config field {name!r} ({self.config[name]!r:.60}) is unknown and may change the mathematics; "
                    f"if it does not, pass ignore=({name!r},)"
                )

    def _typed(self, name: str, default: Any, kind: str, holds: Callable[[Any], Any]) -> Any:
        value = self.get(name, default)
        if value is not default and not holds(value):
            raise ValueError(f"config field {name!r} is {value!r}; it takes {kind}")
        return value


# --- what all families spell alike
# --------------------------------------------------------------------------------------


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


# --- rope
# ---------------------------------------------------------------------------------------------------------------

SCALINGS: dict[str, tuple[type, dict[str, str]]] = {
    "linear": (Linear, {"factor": "factor"}),
    "llama3": (
        Llama3,
        {
            "factor": "factor",
            "low_freq_factor": "low",
            "high_freq_factor": "high",
            "original_max_position_embeddings": "original_length",
        },
    ),
    "yarn": (
        Yarn,
        {
            "factor": "factor",
            "original_max_position_embeddings": "original_length",
            "beta_fast": "fast",
            "beta_slow": "slow",
            "mscale": "mscale",
            "mscale_all_dim": "mscale_all_dim",
            "attention_factor": "attention_factor",
            "truncate": "truncate",
        },
    ),
}
"""rope_type -> the scaling's class, and its Hugging Face fields -> the class's fields."""


def read_rope(c: Fields, dim: int, *, interleaved: bool = False) -> Rope:
    """The rope of a config that has one, in either dialect."""
    parameters = c.get("rope_parameters", None)
    theta, scaling = c.float("rope_theta", 10_000.0), c.get("rope_scaling", None)
    if parameters is not None:
        return rope_of(parameters, dim, c.int("max_position_embeddings"), "rope_parameters", theta, interleaved)
    return rope_of(scaling or {}, dim, c.int("max_position_embeddings"), "rope_scaling", theta, interleaved)


def rope_of(
    parameters: Config, dim: int, max_length: int, where: str, theta: float = 10_000.0, interleaved: bool = False
) -> Rope:
    """A Rope from the dict that describes it. Raises ValueError naming a key that is not supported."""
    if not isinstance(parameters, Mapping):
        raise ValueError(f"config field {where!r} is {parameters!r}; it takes an object")
    keys = {k: v for k, v in parameters.items() if v is not None and k not in ("rope_type", "type")}
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    theta = float(keys.pop("rope_theta", theta))
    dim = int(dim * keys.pop("partial_rotary_factor", 1.0))
    if kind == "default":
        keys.pop("original_max_position_embeddings", None)
        names: dict[str, str] = {}
    elif kind in SCALINGS:
        names = SCALINGS[kind][1]
        if "original_length" in names.values():
            keys.setdefault("original_max_position_embeddings", max_length)
    else:
        raise ValueError(f"config field {where!r} has rope_type {kind!r}; supported: default, {', '.join(SCALINGS)}")
    unknown = sorted(keys.keys() - names.keys())
    if unknown:
        raise ValueError(f"config field {where!r} has {unknown[0]!r}, which rope_type {kind!r} does not take")
    scaling = None
    if kind != "default":
        cls = SCALINGS[kind][0]
        if "factor" not in keys:
            raise ValueError(f"config field {where!r} has no 'factor', which rope_type {kind!r} needs")
        floats = {f.name for f in fields(cls) if "float" in str(f.type)}
        values = {names[key]: value for key, value in keys.items()}
        scaling = cls(**{name: float(v) if name in floats else v for name, v in values.items()})
    return Rope(dim=dim, theta=theta, scaling=scaling, interleaved=interleaved)


def write_rope(rope: Rope, dialect: int) -> dict[str, Any]:
    """The config fields of a rope whose theta and scaling hold for all layers."""
    if dialect >= 5:
        return {"rope_parameters": rope_parameters(rope)}
    scaling = rope_parameters(rope)
    return {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": None if rope.scaling is None else scaling}


def rope_parameters(rope: Rope) -> dict[str, Any]:
    """The dict that describes a rope in transformers 5."""
    for kind, (cls, names) in SCALINGS.items():
        if isinstance(rope.scaling, cls):
            values = {key: getattr(rope.scaling, name) for key, name in names.items()}
            defaults = {names_: None for names_ in names} | {"truncate": True}
            kept = {key: value for key, value in values.items() if value != defaults[key]}
            return {"rope_type": kind, "rope_theta": rope.theta} | kept
    return {"rope_type": "default", "rope_theta": rope.theta}
