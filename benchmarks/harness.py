"""Interleaved comparisons: A B A B ..., medians, quartiles and the ratio, as a table, JSON and a picture.

Sides are callables that give seconds: functions in this process, or workers in processes and environments of their own
(worker.py), which all get the same process environment. A ratio is taken within a pair of neighbouring runs, so that
what the machine does meanwhile happens to both.

A benchmark (train.py and its like) makes `Row`s and hands them to `report`, which prints them, and keeps them in
results/<name>-jax<version>.json and as a picture (picture.py). A run of some models leaves the others' rows in both."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from picture import draw

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
PAIRS = 7

PLAIN = {
    "OMP_NUM_THREADS": str(os.cpu_count()),
    "MKL_NUM_THREADS": str(os.cpu_count()),
    "JAX_PLATFORMS": "cpu",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
ALLOCATOR = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {"hugetlb": 1, "mmap_max": 0, "trim_threshold": 1 << 37, "arena_max": 1}.items()
)
ENVIRONMENT = PLAIN | {"GLIBC_TUNABLES": ALLOCATOR}
"""What every side runs under: as many threads as there are cores, and a malloc that uses huge pages and keeps them."""

Side = Callable[[], float]
"""One run; its seconds."""


# --- sides -----------------------------------------------------------------------------------------------------------


class SideError(RuntimeError):
    """A side that could not do its task. Its text is the reason in one line; `log` is the end of what it printed."""

    def __init__(self, reason: str, log: str = "") -> None:
        super().__init__(reason)
        self.log = log
        if log:
            self.add_note(log)


class Worker:
    """A side in a process of its own. Raises SideError with what it said if it cannot build its task."""

    def __init__(
        self,
        script: str,
        task: Mapping[str, Any],
        python: str | Path = sys.executable,
        environment: Mapping[str, str] = ENVIRONMENT,
    ) -> None:
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        inherited = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
        try:
            self.process = subprocess.Popen(
                [str(python), str(FOLDER / script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                text=True,
                env={**inherited, **environment},
            )
        except FileNotFoundError:
            raise SideError(f"not installed, there is no {python}: run benchmarks/peers.sh") from None
        self.facts = self._ask(json.dumps(task))

    def __call__(self) -> float:
        return float(self._ask("run")["seconds"])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()

    def _ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        found: dict[str, Any] = json.loads(answer) if answer else {}
        if answer and "failed" not in found:
            return found
        self.process.kill()
        code = self.process.wait()
        self.log.seek(0)
        said = [line.rstrip() for line in self.log if line.strip()]
        self.close()
        reason = str(found.get("failed") or (said[-1] if said else f"it ended with exit status {code}"))
        if "ModuleNotFoundError" in reason and self.process.args[0] != sys.executable:  # type: ignore[index]
            reason += f" in {self.process.args[0]}: run benchmarks/peers.sh"  # type: ignore[index]
        raise SideError(reason.splitlines()[0][:300], "\n".join(said[-20:]))


def interleave(sides: Mapping[str, Side], pairs: int = PAIRS) -> dict[str, list[float]]:
    """Seconds of each side, `pairs` times in turn, after one run of each that does not count."""
    for side in sides.values():
        side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(pairs):
        for name, side in sides.items():
            seconds[name].append(side())
    return seconds


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) < 2:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


@dataclass
class Chosen:
    """The fastest of a peer's ways to do a task, ready to run; `tried` has what each took, or why it failed."""

    worker: Worker
    way: str
    seconds: float
    first_seconds: float
    tried: dict[str, float | str]


def fastest(
    script: str,
    task: Mapping[str, Any],
    ways: Mapping[str, Mapping[str, Any]],
    python: str | Path = sys.executable,
    mallocs: Mapping[str, Mapping[str, str]] = {"": ENVIRONMENT},
) -> Chosen:
    """Tries every way (what it adds to the task), the best of three runs each, and then the best way with the other
    mallocs, which must be 3% faster to count. Raises SideError if all fail."""
    tried: dict[str, float | str] = {}
    labels: dict[str, str] = {}
    firsts: dict[str, float] = {}  # of the first time, when nothing was compiled yet
    best: Chosen | None = None
    failure = SideError(f"{script} was given no way to try")
    (usual, first), *others = mallocs.items()

    def attempt(way: str, malloc: str, environment: Mapping[str, str], margin: float) -> None:
        nonlocal best, failure
        label = ", ".join(filter(None, (way, malloc)))
        labels[label] = way
        try:
            worker = Worker(script, {**task, **ways[way]}, python, environment)
            seconds = min(worker(), worker(), worker())
        except SideError as error:
            tried[label], failure = str(error), error
            print(f"  {script}, {label}: {error}", file=sys.stderr)
            return
        tried[label] = seconds
        print(f"  {script}, {label}: {seconds:.3f} s", file=sys.stderr)
        if best and seconds > best.seconds * margin:
            return worker.close()
        if best:
            best.worker.close()
        firsts.setdefault(way, worker.facts["first_seconds"])
        best = Chosen(worker, label, seconds, firsts[way], tried)

    for way in ways:
        attempt(way, usual, first, 1)
    if best is None:
        raise failure
    way = labels[best.way]
    for malloc, environment in others:
        attempt(way, malloc, environment, 0.97)
    return best


# --- rows ------------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One line of a table: a number a pair of runs, and the target of their median.

    unit: x of a ratio, % of a fraction, s of seconds.  at_most: whether the target is a ceiling.  ours, against,
    theirs: what the numbers come from, in words.  failed: why there are none.  sides: what each took and said.
    """

    name: str
    values: list[float] = field(default_factory=list)
    unit: str = "x"
    target: float | None = None
    stretch: float | None = None
    at_most: bool = False
    ours: str = ""
    against: str = ""
    theirs: str = ""
    failed: str = ""
    sides: dict[str, Any] = field(default_factory=dict)

    def met(self) -> bool | None:
        """Whether the median reaches the target; None where there is none."""
        if self.target is None or not self.values:
            return None
        middle = quartiles(self.values)[1]
        return middle <= self.target if self.at_most else middle >= self.target


def show(value: float, unit: str) -> str:
    """A number in its unit: 1.25x, 82%, 0.14 s."""
    if unit == "%":
        return f"{100 * value:.{0 if value >= 0.1 else 1}f}%"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:.{digits}f}{'x' if unit == 'x' else ' ' + unit}"


def rate(worker: Worker, seconds: Sequence[float]) -> list[float]:
    """Tokens a second of each run."""
    return [worker.facts["tokens"] / s for s in seconds]


def versus(
    name: str,
    sides: Mapping[str, Worker | Chosen],
    seconds: Mapping[str, list[float]],
    peer: str,
    target: float | None,
    stretch: float | None = None,
) -> Row:
    """The row of archzoo's tokens a second over a peer's. Says where they do not have the same number of parameters."""
    ours, chosen = worker_of(sides["archzoo"]), sides[peer]
    theirs, way = worker_of(chosen), getattr(chosen, "way", "")
    our_rate, their_rate = rate(ours, seconds["archzoo"]), rate(theirs, seconds[peer])
    more = theirs.facts["parameters"] - ours.facts["parameters"]
    notes = [peer, way, f"{more:+,} parameters" if more else ""]
    return Row(
        name=name,
        values=[a / b for a, b in zip(our_rate, their_rate, strict=True)],
        target=target,
        stretch=stretch,
        ours=f"{spread(our_rate)} tok/s",
        against=", ".join(filter(None, notes)),
        theirs=f"{spread(their_rate)} tok/s",
        sides=records(sides, seconds, "archzoo", peer),
    )


def records(sides: Mapping[str, Any], seconds: Mapping[str, list[float]], *names: str) -> dict[str, dict[str, Any]]:
    """What JSON keeps of these sides: seconds, facts, and how a peer's way was chosen."""
    found = {}
    for name in names:
        worker = worker_of(sides[name])
        found[name] = {"seconds": seconds[name], "facts": worker.facts}
        if isinstance(sides[name], Chosen):
            found[name] |= {"way": sides[name].way, "tried": sides[name].tried}
    return found


def worker_of(side: Any) -> Worker:
    worker: Worker = side.worker if isinstance(side, Chosen) else side
    return worker


def spread(values: Sequence[float]) -> str:
    """The median and quartiles in words."""
    low, middle, high = (f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 3}f}" for value in quartiles(values))
    return f"{middle} ({low}-{high})"


# --- the command line ------------------------------------------------------------------------------------------------


def arguments(doc: str | None, models: Iterable[str] = (), peers: Iterable[str] = ()) -> argparse.ArgumentParser:
    """--pairs and --quick, and where there are any --models and --peers, with --python-<peer> for each peer."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"runs of each side that count, default {PAIRS}")
    parser.add_argument("--quick", action="store_true", help="two pairs, and nothing is written: does it work?")
    if models := list(models):
        parser.add_argument(
            "--models", nargs="+", choices=models, default=models, metavar="MODEL", help=", ".join(models)
        )
    if peers := list(peers):
        parser.add_argument("--peers", nargs="*", choices=peers, default=peers, metavar="PEER", help=", ".join(peers))
    for peer in peers:
        usual = FOLDER.parent / ".venv-peers" / peer / "bin" / "python"
        parser.add_argument(f"--python-{peer}", default=usual, metavar="PATH", help="default .venv-peers/.../python")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options, with what --quick stands for."""
    options = parser.parse_args()
    options.pairs = 2 if options.quick else options.pairs
    if options.pairs < 1:
        parser.error("--pairs must be positive")
    return options


@contextmanager
def compiler_cache() -> Iterator[None]:
    """Where torch.compile keeps what it compiled, for this run only: first runs then really compile."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        yield


def report(name: str, title: str, rows: Iterable[Row], keep: bool = True) -> None:
    """Says each row as it comes, keeps it, and prints the table of all of them, also of a run that was interrupted."""
    console = Console(width=None if sys.stdout.isatty() else 170)
    done: list[Row] = []
    try:
        for row in rows:
            done.append(row)
            console.print(f"{row.name}: {row.failed or show(quartiles(row.values)[1], row.unit)}", highlight=False)
            if keep:
                _keep(name, title, row)
    finally:
        if done:
            console.print(_table(title, done))
            console.print(_footer(done), style="dim", highlight=False)


def machine() -> dict[str, Any]:
    """What a number depends on besides the code."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": version("jax"),
        "environment": ENVIRONMENT,
    }


def _keep(name: str, title: str, row: Row) -> None:
    """Adds or replaces the row in the results of this machine and jax; those of another machine are dropped."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}-jax{version('jax')}.json"
    held = json.loads(file.read_text()) if file.exists() else {}
    rows = held["rows"] if held.get("machine") == machine() else {}
    rows[row.name] = {key: value for key, value in asdict(row).items() if key != "name"}
    file.write_text(json.dumps({"title": title, "machine": machine(), "rows": rows}, indent=1) + "\n")
    below = f"jax {version('jax')}, Python {platform.python_version()}, {os.cpu_count()} cores of {machine()['cpu']}"
    file.with_suffix(".svg").write_text(draw(title, below, [Row(name, **held) for name, held in rows.items()]))


def _footer(rows: Sequence[Row]) -> str:
    """What the numbers depend on: the machine, the versions, and the environment of every side."""
    facts = [side.get("facts", {}) for row in rows for side in row.sides.values()]
    versions = dict.fromkeys(held["versions"] for held in facts if "versions" in held)
    whole = machine()
    lines = [f"{whole['cores']} cores of {whole['cpu']}, Python {whole['python']}", *versions]
    if not any(facts):  # no workers, but commands as a user runs them
        return "; ".join(lines)
    same = " ".join(f"{name}={ENVIRONMENT[name]}" for name in ("OMP_NUM_THREADS", "JAX_PLATFORMS", "GLIBC_TUNABLES"))
    return "; ".join(lines) + f"\nevery side: {same}; plain malloc: without the last"


def _table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", pad_edge=False, box=None, padding=(0, 2, 0, 0))
    for heading in ("", "archzoo", "against", "", "median", "quartiles", "target", ""):
        table.add_column(heading, justify="right" if heading in ("median", "target") else "left")
    for row in rows:
        if row.failed:
            table.add_row(row.name, row.ours, row.against, f"[yellow]{row.failed}[/]")
            continue
        low, middle, high = (show(value, row.unit) for value in quartiles(row.values))
        bound = "<=" if row.at_most else ">="
        target = f"{bound} {show(row.target, row.unit)}" if row.target is not None else ""
        target += f" ({show(row.stretch, row.unit)})" if row.stretch is not None else ""
        verdict = {True: "[green]met[/]", False: "[yellow]short[/]", None: ""}[row.met()]
        table.add_row(row.name, row.ours, row.against, row.theirs, middle, f"{low}-{high}", target, verdict)
    return table
