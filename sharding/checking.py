"""What of a program the Neuron compiler would refuse, found on any machine: the program is lowered to StableHLO for the
platform and its operations are held against a table of rules.

Codes and remedies: AWS Neuron SDK 2.32 documentation, error codes of the compiler (2026). The check is a conservative
proxy: what it passes may still not compile, and what it warns of may. Indices of gathers count as within bounds where
that follows from how they are made (ranges.py)."""

import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from .loops import is_counted
from .ranges import Program, indices_within

PROXY = "a conservative proxy, not proof: only the Neuron compiler decides"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing to change. severity: error, or warning where compilers accept it so far.  source: file:line of the
    Python that made the operation.
    """

    code: str
    severity: str
    op: str
    source: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.severity} {self.code}: {self.op} at {self.source}: {self.remedy}"

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """ops: names of operations, none for all.  found: whether one of them breaks the rule."""

    code: str
    ops: tuple[str, ...] = ()
    found: Callable[[Any, Program], bool] = lambda op, program: True
    remedy: str
    severity: str = "error"


def check(fn: Callable[..., Any], *shapes: Any, target: str = "neuron", mesh: Any = None) -> list[Finding]:
    """What `target` would refuse of fn(*shapes); nothing is compiled or allocated, and no device is needed.

    fn: a function, or one jitted already.  shapes: trees of arrays or ShapeDtypeStructs, whose shardings count.
    mesh: a Mesh or AbstractMesh that fn is lowered under, of any size. Raises ValueError for a target without rules.
    """
    import jax

    if target not in TARGETS:
        raise ValueError(f"nothing is known of what {target!r} refuses; check takes target={', '.join(TARGETS)}")
    jitted = fn if hasattr(fn, "trace") else jax.jit(fn)
    abstract = getattr(mesh, "abstract_mesh", mesh)
    with nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(abstract):
        traced = jitted.trace(*shapes)
        try:
            lowered = traced.lower(lowering_platforms=(target,))
        except (NotImplementedError, ValueError) as error:  # JAX itself has no way to say this for the platform
            return [_not_lowered(error)]
    return found_in(Program(lowered.compiler_ir("stablehlo")), TARGETS[target])


def _not_lowered(error: Exception) -> Finding:
    message = " ".join(str(error).split())
    remedy = "JAX cannot lower it for the platform: no host callbacks, no linear algebra of LAPACK"
    return Finding(code="EVRF015", severity="error", op=message, source="unknown", remedy=remedy)


def found_in(program: Program, rules: tuple[Rule, ...]) -> list[Finding]:
    """The findings in a lowered program, each once, in the program's order."""
    findings: dict[Finding, None] = {}
    for op in program.operations:
        for rule in rules:
            if (not rule.ops or op.name in rule.ops) and rule.found(op, program):
                name, source = _named(op), _source(op, program)
                findings[
                    Finding(code=rule.code, severity=rule.severity, op=name, source=source, remedy=rule.remedy)
                ] = None
    return list(findings)


def _named(op: Any) -> str:
    """The operation's name, and what it calls."""
    for attribute in ("callee", "call_target_name"):
        if attribute in op.attributes:
            return f"{op.name} {str(op.attributes[attribute]).strip('@').strip(chr(34))}"
    return str(op.name)


def _source(op: Any, program: Program) -> str:
    """file:line of the innermost frame that JAX keeps, else that of what the operation is part of, or of its caller."""
    seen: set[str] = set()
    while op is not None and op.name != "builtin.module":
        if at := re.search(r'"([^"]+)":(\d+):\d+', str(op.location)):
            return f"{at[1]}:{at[2]}"
        if op.name == "func.func":
            name = op.attributes["sym_name"].value
            callers = program.callers.get(name, ())
            if name in seen or not callers:
                break
            seen.add(name)
            op = callers[0]
        else:
            op = op.parent
    return "unknown"


# --- predicates ------------------------------------------------------------------------------------------------------


def _types(op: Any) -> list[str]:
    """The element types of what the operation takes and gives."""
    return [program_type for value in (*op.operands, *op.results) if (program_type := element(value))]


def element(value: Any) -> str:
    """The element type of a value, as MLIR writes it: f32, i64, ui32; nothing for a token."""
    return str(getattr(value.type, "element_type", ""))


def is_integer(name: str) -> bool:
    return re.fullmatch(r"u?i\d+", name) is not None


def _of_types(*names: str) -> Callable[[Any, Program], bool]:
    return lambda op, program: any(name in kind for kind in map(element, op.results) for name in names)


def _integers(op: Any, program: Program) -> bool:
    return any(map(is_integer, _types(op)))


def _has_dynamic_shape(op: Any, program: Program) -> bool:
    return any(not getattr(value.type, "has_static_shape", True) for value in op.results)


def _body(op: Any) -> list[Any]:
    """The operations of an operation's only region."""
    return [inner.operation for inner in op.regions[0].blocks[0].operations]


def _odd_comparator(op: Any, program: Program) -> bool:
    """Whether a sort compares by anything but one comparison of its arguments as they are."""
    body, block = _body(op), op.regions[0].blocks[0]
    compared = [inner for inner in body if inner.name == "stablehlo.compare"]
    if len(body) != 2 or len(compared) != 1:
        return True
    direction = str(compared[0].attributes["comparison_direction"])
    arguments = list(block.arguments)
    return not re.search(r"\b(LE|GE|LT|GT)\b", direction) or any(v not in arguments for v in compared[0].operands)


def _combines_integers(op: Any, program: Program) -> bool:
    """Whether a scatter does more than write, to integers or truth values."""
    body = _body(op)
    writes = len(body) == 1 and list(body[-1].operands) == [op.regions[0].blocks[0].arguments[-1]]
    return not writes and is_integer(element(op.results[0]))


def _dilated(op: Any, program: Program) -> bool:
    names = ("window_dilations", "base_dilations")
    return any(int(n) != 1 for name in names if name in op.attributes for n in op.attributes[name])


def _foreign_call(op: Any, program: Program) -> bool:
    name = op.attributes["call_target_name"].value
    return not name.startswith(("AwsNeuron", "Sharding", "SPMD", "xla.sdy"))


def _calls(*names: str) -> Callable[[Any, Program], bool]:
    """Whether a call is of one of these functions of jax.random, which lowering names after them."""
    return lambda op, program: op.attributes["callee"].value.lstrip("_").startswith(names)


def _other_algorithm(op: Any, program: Program) -> bool:
    return "DEFAULT" not in str(op.attributes["rng_algorithm"])


def _wide_constant(op: Any, program: Program) -> bool:
    """Whether a constant needs 64 bits."""
    low, high = program.range(op.results[0])
    return element(op.results[0]) in ("i64", "ui64") and not (low >= -(2**31) and high < 2**32)


# --- the table -------------------------------------------------------------------------------------------------------

UNSUPPORTED = ("cholesky", "fft", "triangular_solve", "infeed", "outfeed", "send", "recv", "rng", "eig")
DYNAMIC = frozenset(
    f"stablehlo.dynamic_{name}" for name in ("broadcast_in_dim", "conv", "gather", "iota", "pad", "reshape")
)

NEURON = (
    Rule(
        code="EUOC002",
        ops=tuple(f"stablehlo.{name}" for name in UNSUPPORTED),
        remedy="the operator does not exist there; write it in products, sums and fixed-length loops",
    ),
    Rule(
        code="EMOD025",
        found=lambda op, program: op.name in DYNAMIC or _has_dynamic_shape(op, program),
        remedy="give every dimension a size: pad to a few fixed shapes",
    ),
    Rule(
        code="control-flow",
        ops=("stablehlo.case", "stablehlo.if"),
        remedy="compute both and choose with jnp.where; lax.cond and lax.switch do not compile",
    ),
    Rule(
        code="trip-count",
        ops=("stablehlo.while",),
        found=lambda op, program: not is_counted(op, program),
        remedy="use lax.scan or lax.fori_loop of a fixed length, with a mask of what is done",
    ),
    Rule(
        code="EVRF019",
        ops=("stablehlo.reduce", "stablehlo.reduce_window"),
        found=lambda op, program: len(op.results) > 1,
        remedy="reduce one array at a time; argmax is the max, a comparison with it and the min of an iota",
    ),
    Rule(code="EVRF004", found=_of_types("complex"), remedy="use real and imaginary parts, as cos and sin"),
    Rule(code="EVRF005", found=_of_types("f64"), remedy="use float32"),
    Rule(
        code="EVRF051/052",
        found=_of_types("f8E4M3FN", "FNUZ", "f8E4M3B11"),
        remedy="trn1 and trn2 have float8 e4m3 and e5m2 without fn; use bfloat16",
    ),
    Rule(
        code="EVRF006",
        ops=("stablehlo.rng_bit_generator",),
        found=_other_algorithm,
        remedy="draw with jax.random keys of impl='rbg', whose generator is the default algorithm",
    ),
    Rule(
        code="EVRF006",
        ops=("func.call",),
        found=_calls("threefry", "randint"),
        remedy="draw with keys of impl='rbg' that were split or folded before the program; floor(uniform * n) "
        "for randint",
    ),
    Rule(
        code="EVRF013",
        ops=("chlo.top_k",),
        found=lambda op, program: is_integer(element(op.operands[0])),
        remedy="take top_k of float32",
    ),
    Rule(
        code="sort-comparator",
        ops=("stablehlo.sort",),
        found=_odd_comparator,
        remedy="sort integers, or use lax.top_k: only a plain <, <=, > or >= of the keys compiles",
    ),
    Rule(
        code="EVRF016/060",
        ops=("stablehlo.scatter",),
        found=_combines_integers,
        remedy="scatter-add and its like take float32; integers can only be set",
    ),
    Rule(
        code="EVRF031/056",
        ops=("stablehlo.gather", "stablehlo.scatter"),
        found=lambda op, program: not indices_within(op, program),
        remedy="clip the indices themselves, jnp.clip(i, 0, n - 1): one out of bounds is an error when run",
    ),
    Rule(
        code="EVRF035",
        ops=("stablehlo.dot_general", "stablehlo.dot"),
        found=_integers,
        severity="warning",
        remedy="multiply matrices in float32 or bfloat16",
    ),
    Rule(
        code="EVRF061/063",
        ops=("stablehlo.all_reduce", "stablehlo.reduce_scatter"),
        found=_integers,
        severity="warning",
        remedy="reduce over devices in float32",
    ),
    Rule(
        code="EVRF062",
        ops=("stablehlo.power",),
        found=_of_types("i64"),
        remedy="take integer powers in 32 bits",
    ),
    Rule(code="ESFH002", ops=("stablehlo.constant",), found=_wide_constant, remedy="keep constants within 32 bits"),
    Rule(
        code="ESFH002",
        found=_of_types("i64"),
        severity="warning",
        remedy="use 32-bit integers; what jax.random makes inside is known to pass",
    ),
    Rule(
        code="EVRF015",
        ops=("stablehlo.custom_call",),
        found=_foreign_call,
        remedy="no custom calls but AwsNeuron*: no host callbacks, no linear algebra of LAPACK, no kernels of GPUs",
    ),
    Rule(
        code="EVRF017/018",
        ops=("stablehlo.reduce_window",),
        found=_dilated,
        remedy="take windows without dilation; slice with a stride instead",
    ),
)
"""What the Neuron compiler refuses, as far as its documentation says."""

TARGETS: Mapping[str, tuple[Rule, ...]] = {"neuron": NEURON}
