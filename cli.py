"""The command line: archzoo list, show, diff, train, plan, check, generate, export, import. Each --help has an example.

A MODEL is a preset's name, a run of `archzoo train`, a Hugging Face directory, or a spec in a JSON file. Exit codes:
0 done, 1 failed, 2 wrong usage. The rooms, and JAX with them, are imported by the command that needs them."""

import argparse
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .train.models import Model

Command = Callable[[argparse.Namespace], None]


COMPUTES = ("train", "generate")


def run() -> int:
    """The program `archzoo`: `main`, with the allocator set up for the commands that compute."""
    from .train.allocator import restart

    if sys.argv[1:2] and sys.argv[1] in COMPUTES:
        restart()
    return main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code. A user's mistake is one line on stderr."""
    options = parser().parse_args(arguments)
    warnings.showwarning = lambda message, *_, **__: print(f"archzoo: note: {message}", file=sys.stderr)
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return _fail("interrupted")
    except (ValueError, OSError) as error:
        return _fail(_one_line(error))
    return 0


def _fail(message: str) -> int:
    print(f"archzoo: {message}", file=sys.stderr)
    return 1


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        named = f"{error.filename}: " if error.filename else ""
        return f"{named}{error.strerror}"
    return " ".join(str(error).split())


# --- looking ---------------------------------------------------------------------------------------------------------


def list_models(options: argparse.Namespace) -> None:
    from .zoo.amounts import amount
    from .zoo.listed import rows as listed

    rows = _summaries(options) if options.models else listed()
    families = sorted({row["family"] for row in rows})
    rows = [row for row in rows if options.family in ("", row["family"])]
    if not rows:
        raise ValueError(f"no model is of family {options.family!r}; families: {', '.join(families)}")
    if options.sort not in rows[0]:
        raise ValueError(f"cannot sort by {options.sort!r}; columns: {', '.join(rows[0])}")
    rows = [row for row in rows if all(_holds(row, condition) for condition in options.where or ())]
    rows = rows if options.sort == "family" else sorted(rows, key=lambda row: row[options.sort])
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    told: dict[str, Callable[[Any], str]] = {
        **dict.fromkeys(("name", "family", "attention", "mlp", "router", "norm"), str),
        **dict.fromkeys(("parameters", "active"), amount),
        **dict.fromkeys(("layers", "context"), "{:,}".format),
    }
    columns = ("name", "family", "parameters", "active", "layers", "attention", "mlp", "router", "norm", "context")
    table = [[*(told[c](row[c]) for c in columns), f"{row['cache_bytes_per_token']:,}"] for row in rows]
    _print_table((*columns, "B/token"), table)


def _summaries(options: argparse.Namespace) -> list[dict[str, Any]]:
    from .zoo.describe import summary

    return [summary(name, _open(name, options).spec) for name in options.models]


def _holds(row: dict[str, Any], condition: str) -> bool:
    """Whether a line of the table meets COLUMN~TEXT, COLUMN=TEXT, COLUMN<NUMBER or COLUMN>NUMBER, where 7B is 7e9."""
    parts = re.fullmatch(r"(\w+)([~=<>])(.+)", condition)
    if not parts or parts[1] not in row:
        raise ValueError(
            f"--where {condition!r} is not COLUMN~TEXT, COLUMN=TEXT, COLUMN<NUMBER or COLUMN>NUMBER; "
            f"columns: {', '.join(row)}"
        )
    value, how, wanted = row[parts[1]], parts[2], parts[3]
    if how in "~=":
        return wanted.lower() in str(value).lower() if how == "~" else wanted == str(value)
    number = re.fullmatch(r"([\d.]+(?:e\d+)?)([kMBT]?)", wanted)
    if not number or isinstance(value, str):
        raise ValueError(
            f"--where {condition!r}: {how} compares a column of numbers with a number, as in parameters{how}7B"
        )
    bound = float(number[1]) * {"": 1, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}[number[2]]
    return bool(value < bound if how == "<" else value > bound)


def show(options: argparse.Namespace) -> None:
    from .zoo.describe import details, drawn

    model = _open(options.model, options)
    if options.svg:
        from pathlib import Path

        from .zoo.diagram import diagram

        Path(options.svg).write_text(diagram(model.name, model.spec))
        print(options.svg)
    elif options.json:
        print(json.dumps(details(model.name, model.spec, options.length), indent=1))
    elif options.spec:
        print(model.spec.to_json())
    else:
        print(drawn(model.name, model.spec, options.length))


def diff(options: argparse.Namespace) -> None:
    from .zoo.amounts import amount
    from .zoo.describe import NUMBERS, difference

    found = difference(_open(options.a, options).spec, _open(options.b, options).spec)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    table = [[aspect, *values] for aspect, values in found["words"].items()]
    if options.fields:
        table += [[path, *(_shown(value) for value in values)] for path, values in found["fields"].items()]
    for name, (a, b) in found["numbers"].items():
        table.append([NUMBERS[name], amount(a), f"{amount(b)} ({b / a:.3g}x)" if a else amount(b)])
    _print_table(("", options.a, options.b), table, wrap=True)


def _shown(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 36 else text[:33] + "..."


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], wrap: bool = False) -> None:
    """A table that fits a terminal and stays whole in a pipe."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(*(Column(name, no_wrap=not wrap) for name in columns), box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 240).print(table)


# --- models ----------------------------------------------------------------------------------------------------------


def _open(name: str, options: argparse.Namespace) -> "Model":
    from .train.models import open_model

    return open_model(name, _changes(getattr(options, "set", None)), getattr(options, "text_only", False))


def _changes(assignments: Sequence[str] | None) -> dict[str, Any]:
    """PATH=VALUE pairs, the values in JSON where they are any."""
    changes = {}
    for assignment in assignments or ():
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set takes PATH=VALUE, not {assignment!r}; `archzoo show MODEL --json` lists the paths")
        try:
            changes[path] = json.loads(text)
        except json.JSONDecodeError:
            changes[path] = text
        if isinstance(changes[path], list):
            changes[path] = tuple(changes[path])
    return changes


def _with_params(model: "Model") -> Any:
    if not model.trained:
        print(f"archzoo: note: {model.name} is a preset; its parameters are freshly initialised", file=sys.stderr)
    return model.load()


def generate(options: argparse.Namespace) -> None:
    from .layers.decoding import generate as generate_tokens
    from .layers.execution import Execution

    model = _open(options.model, options)
    tokenizer = model.text()
    prompts = options.prompt or [sys.stdin.read()]
    if not all(prompts):
        raise ValueError("the prompt is empty; pass --prompt TEXT, or text on stdin")
    continued = generate_tokens(
        model.spec,
        _with_params(model),
        [tokenizer.encode(prompt) for prompt in prompts],
        options.tokens,
        temperature=options.temperature,
        stop=() if options.no_stop else None,
        seed=options.seed,
        execution=Execution(dtype=options.dtype),
    )
    for prompt, row in zip(prompts, continued, strict=True):
        ends = [i for i, token in enumerate(row) if token in model.spec.eos_ids] if not options.no_stop else []
        text = tokenizer.decode(row[: ends[0]] if ends else row)
        print(json.dumps({"prompt": prompt, "text": text, "tokens": row.tolist()}) if options.json else prompt + text)


def _on_host() -> None:
    """Leaves accelerators alone: what only moves parameters between files needs the host's memory, and a model that
    many devices share may be more than one of them holds.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"


def export(options: argparse.Namespace) -> None:
    _on_host()
    from .zoo.configs import spec_to_hf
    from .zoo.huggingface import save_hf

    model = _open(options.model, options)
    spec_to_hf(model.spec)  # what Hugging Face cannot hold is refused before anything is read
    params = _cast(_with_params(model), options.dtype)
    save_hf(options.out, model.spec, params, model.tokenizer() if model.trained else None)
    print(f"wrote {options.out}: {model.spec.param_count():,} parameters")


def import_(options: argparse.Namespace) -> None:
    _on_host()
    from pathlib import Path

    import jax.numpy as jnp

    from .train.checkpoint import Saver, latest
    from .train.step import State

    model = _open(options.model, options)
    out = Path(options.out) / "checkpoints"
    if latest(out):
        raise FileExistsError(f"{options.out} already holds a run; choose another folder")
    params = _cast(model.load(), "float32")
    tokenizer = model.tokenizer()
    with Saver(out, model.spec, tokenizer.files if tokenizer else {}, {"imported": options.model}) as saver:
        saver.save(State(params, (), jnp.int32(0)), {})
    print(f"wrote {options.out}: {model.spec.param_count():,} parameters")


def _cast(params: Any, dtype: str | None) -> Any:
    import jax

    return params if dtype is None else jax.tree.map(lambda leaf: leaf.astype(dtype), params)


# --- training --------------------------------------------------------------------------------------------------------


def train(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from .layers.execution import Execution
    from .train.loop import Interrupted, Settings, placement_of, resumable
    from .train.loop import train as run
    from .train.optimizer import Optimizer
    from .train.placement import connect, is_first
    from .train.progress import progress

    target = options.target or (resumable(options.resume)[1].execution.target if options.resume else "auto")
    if target == "neuron":
        _on_neuron(options)
    if options.distributed or options.coordinator or options.processes or options.process_id is not None:
        _own_stdout()
        connect(options.coordinator, options.processes, options.process_id)
    if options.resume:
        if options.model:
            raise ValueError("--resume takes the model and its settings from the run; leave MODEL out")
        out, (spec, settings) = options.resume, resumable(options.resume)
        settings = settings if options.mesh is None else replace(settings, mesh=options.mesh)
        settings = settings if options.rules is None else replace(settings, rules=options.rules)
        microbatches = options.microbatches or settings.execution.microbatches
        settings = replace(settings, execution=replace(settings.execution, target=target, microbatches=microbatches))
        more: dict[str, Any] = {"resume": True}
    else:
        if not options.model:
            raise ValueError("which model? archzoo train MODEL, or archzoo train --resume RUN")
        model = _open(options.model, options)
        out, spec = options.out or os.path.join("runs", os.path.basename(os.path.normpath(model.name))), model.spec
        peak = 1e-4 if model.trained else 4e-3
        settings = Settings(
            optimizer=Optimizer(
                steps=options.steps,
                name=options.optimizer,
                learning_rate=peak if options.learning_rate is None else options.learning_rate,
                schedule=options.schedule,
                weight_decay=options.weight_decay,
            ),
            data=tuple(options.data or ()),
            tokenizer=options.tokenizer,
            length=options.length,
            batch=options.batch,
            accumulate=options.accumulate,
            seed=options.seed,
            execution=Execution(
                dtype=options.dtype, target=target, remat=options.remat, microbatches=options.microbatches
            ),
            evals=options.evals,
            saves=options.saves,
            mesh=options.mesh or "",
            rules=options.rules or "default",
        )
        placement = placement_of(spec, settings) if model.trained else None
        more = {"params": model.load(*(placement or ())), "tokenizer": model.text()} if model.trained else {}
    try:
        with progress(settings.optimizer.steps, quiet=options.json or not is_first()) as report:
            summary = run(spec, settings, out, report=report, **more)
    except Interrupted as stopped:
        raise ValueError(str(stopped)) from None
    if not is_first():
        return
    if options.json:
        print(json.dumps(summary))
        return
    print(
        f"held-out {summary['heldout_nats']:.4f} nats a token, {summary['bits_per_byte']:.4f} bits a byte "
        f"(unigram {summary['unigram_nats']:.4f} nats); {summary['tokens']:,} tokens in {summary['seconds']:.0f} s\n"
        f"{out}: summary.json, metrics.jsonl, loss.svg, checkpoints/"
    )


def _on_neuron(options: argparse.Namespace) -> None:
    """Readies this process for Trainium, or says what is missing, before anything else is done."""
    from .sharding.mesh import parse_mesh
    from .sharding.neuron import Processes, local_devices, prepare

    mesh = parse_mesh(options.mesh) if options.mesh not in (None, "", "auto") else {}
    processes = None
    if options.processes and options.process_id is not None and options.coordinator:
        host = options.coordinator.rpartition(":")[0]
        processes = Processes(count=options.processes, index=options.process_id, devices=local_devices(), host=host)
    elif options.distributed and "NEURON_PJRT_PROCESS_INDEX" not in os.environ:
        raise ValueError(
            "target neuron: --distributed says nothing to the Neuron runtime; "
            "give --coordinator HOST:PORT --processes N --process-id I"
        )
    prepare(mesh, processes)


def check(options: argparse.Namespace) -> None:
    from .layers.execution import Execution
    from .sharding.checking import PROXY
    from .sharding.checking import check as findings_of
    from .train.programs import on_no_devices, programs
    from .zoo.registry import MODELS

    if bool(options.models) == options.all:
        raise ValueError("which model? archzoo check MODEL ..., or archzoo check --all for every preset")
    execution = Execution(dtype=options.dtype, target=options.target)
    rows, refused = [], 0
    for name in MODELS if options.all else options.models:
        spec = _open(name, options).spec
        sizes = options.batch, min(options.length, spec.max_length)
        placement = on_no_devices(spec, options.mesh, options.rules, *sizes) if options.mesh else None
        found = {
            program: findings_of(function, *shapes, target=options.target, mesh=placement and placement.mesh)
            for program, (function, shapes) in programs(spec, execution, *sizes, placement).items()
        }
        errors = {program: sum(f.severity == "error" for f in each) for program, each in found.items()}
        refused += sum(errors.values())
        rows.append({"model": name, "programs": {p: [f.to_dict() for f in each] for p, each in found.items()}})
        if not options.json:
            told = (f"{program} {'REFUSED' if count else 'passes'}" for program, count in errors.items())
            print(f"{name}: {', '.join(told)}")
            for finding in dict.fromkeys(finding for each in found.values() for finding in each):
                print(f"  {finding}")
    if options.json:
        print(json.dumps({"target": options.target, "mesh": options.mesh, "note": PROXY, "models": rows}, indent=1))
    else:
        print(f"this is {PROXY}")
    if refused:
        raise ValueError(f"{refused} operations would be refused by {options.target}")


def plan(options: argparse.Namespace) -> None:
    from .train.noise import hushed

    with hushed():
        _plan(options)


def _plan(options: argparse.Namespace) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"  # the compiler for GPUs needs none, and must not look for one
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from .train.estimate import decode
    from .train.frontier import picture
    from .train.plan import REMATS, default, job_of, planned, search
    from .train.planned import COLUMNS, decode_page, page, rows
    from .train.progress import counted

    model = _open(options.model, options)
    sized = options.on, options.nodes, options.batch, options.length
    job = job_of(model.spec, *sized, rules=options.rules, dtype=options.dtype, dispatch=options.dispatch)
    if options.decode:
        found: Any = decode(model.spec, *sized, options.dtype)
        print(json.dumps(found, indent=1) if options.json else decode_page(model.name, found))
        return
    remats = (options.remat,) if options.remat else REMATS
    if options.search:
        with counted(quiet=options.json) as report:
            found = search(job, options.most, not options.no_compile, remats, report)
        if options.svg:
            title = f"{model.name} on {options.nodes} x {options.on}"
            with open(options.svg, "w", encoding="utf-8") as file:
                file.write(picture(title, found))
        if options.json:
            print(json.dumps(found, indent=1))
        else:
            _print_table(COLUMNS, rows(found))
        return
    from .sharding.mesh import parse_mesh

    sizes = parse_mesh(options.mesh) if options.mesh not in (None, "auto") else None
    chosen = default(job, remats, sizes, options.accumulate)
    found = planned(chosen, not options.no_compile)
    print(json.dumps(found, indent=1) if options.json else page(model.name, found))


def _own_stdout() -> None:
    """What libraries below Python print goes to stderr, so that stdout stays the program's own: Gloo prints there."""
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)


# --- the parser ------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="archzoo", description="Modern LLM architectures as pure functions, in JAX.")
    top.add_argument("--version", action="version", version=f"archzoo {_version()}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Command, about: str, example: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=about, description=about, epilog=f"example: archzoo {example}")
        made.set_defaults(run=run)
        return made

    def model(of: argparse.ArgumentParser, *names: str) -> None:
        for name in names:
            of.add_argument(
                name, metavar=name.upper(), help="a preset, a run, a Hugging Face directory, or a spec's JSON file"
            )
        of.add_argument(
            "--set", action="append", metavar="PATH=VALUE", help="change a preset's spec, as in attention.window=512"
        )
        of.add_argument("--text-only", action="store_true", help="of a multimodal checkpoint, the language model")

    def as_json(of: argparse.ArgumentParser) -> None:
        of.add_argument("--json", action="store_true", help="print JSON")

    made = command("list", list_models, "Models as a table.", "list --family gemma3_text --sort parameters")
    made.add_argument(
        "models", nargs="*", metavar="MODEL", help="these only; presets, runs or Hugging Face directories"
    )
    made.add_argument("--family", default="", help="presets of one family")
    made.add_argument("--sort", default="family", metavar="COLUMN", help="a column, as --json names it")
    made.add_argument(
        "--where",
        action="append",
        metavar="CONDITION",
        help="only these: attention~MLA, router~sigmoid, family=llama, parameters<10B, cache_bytes_per_token<50k",
    )
    as_json(made)

    made = command("show", show, "One model: its blocks, parameters, FLOPs and cache.", "show deepseek-v3")
    model(made, "model")
    made.add_argument("--length", type=int, default=4096, help="tokens to count FLOPs and cache for (default: 4096)")
    made.add_argument("--spec", action="store_true", help="print the spec as JSON, to edit and train")
    made.add_argument("--svg", metavar="FILE", help="draw the blocks as a picture")
    as_json(made)

    made = command("diff", diff, "What differs between two models.", "diff olmo2-7b llama3.1-8b")
    model(made, "a", "b")
    made.add_argument("--fields", action="store_true", help="also every field of the specs that differs")
    as_json(made)

    made = command("train", train, "Train a model on text.", "train deepseek-v3-nano --data my/texts --steps 1000")
    made.add_argument(
        "model", nargs="?", metavar="MODEL", help="a preset or spec to initialise, or a trained model to go on with"
    )
    made.add_argument(
        "--set", action="append", metavar="PATH=VALUE", help="change a preset's spec, as in attention.window=512"
    )
    made.add_argument("--resume", metavar="RUN", help="go on with a run that was stopped, in its folder")
    made.add_argument("--out", metavar="FOLDER", help="where to (default: runs/MODEL)")
    sources = "files or folders of text, .jsonl, .parquet, or a Hugging Face dataset name"
    standard = "the source text of Python's standard library"
    made.add_argument("--data", nargs="+", metavar="SOURCE", help=f"{sources} (default: {standard})")
    made.add_argument("--tokenizer", default="bytes", help="bytes, bpe:SIZE (trained on the data), or a tokenizer.json")
    for name, kind, default, about in (
        ("steps", int, 320, "optimizer steps"),
        ("batch", int, 8, "rows a step"),
        ("length", int, 256, "tokens a row"),
        ("accumulate", int, 1, "take a batch in this many parts"),
        ("weight-decay", float, 0.1, "of matrices"),
        ("seed", int, 0, "of initialisation and shuffling"),
        ("evals", int, 5, "evaluations during the run"),
        ("saves", int, 2, "checkpoints during the run"),
    ):
        made.add_argument(f"--{name}", type=kind, default=default, help=f"{about} (default: {default})")
    made.add_argument(
        "--learning-rate", type=float, help="at its peak (default: 4e-3, or 1e-4 to go on with a trained model)"
    )
    made.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    made.add_argument("--schedule", choices=("wsd", "cosine"), default="wsd")
    made.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the computation; parameters are float32"
    )
    made.add_argument(
        "--remat",
        choices=("none", "dots", "full"),
        default="none",
        help="what the backward pass recomputes",
    )
    made.add_argument(
        "--mesh", metavar="MESH", help='spread over all devices: "auto", or sizes such as fsdp=4,expert=2 (see README)'
    )
    made.add_argument("--rules", metavar="NAME", help="by which table: default, groups, data, zero or heads")
    made.add_argument(
        "--microbatches",
        type=int,
        metavar="M",
        help="with stage=S in the mesh, in how many parts a batch goes through its stages (default: up to 4 a stage)",
    )
    made.add_argument("--coordinator", metavar="HOST:PORT", help="of several processes as one run: where process 0 is")
    made.add_argument("--processes", type=int, metavar="N", help="how many there are")
    made.add_argument("--process-id", type=int, metavar="I", help="which one this is, from 0")
    made.add_argument(
        "--distributed", action="store_true", help="several processes that Slurm, Open MPI or Kubernetes started"
    )
    as_json(made)

    made.add_argument(
        "--target", choices=("auto", "cpu", "gpu", "neuron"), help="what to run on; neuron sets up Trainium's runtime"
    )

    made = command(
        "check",
        check,
        "What of a model's programs Trainium's compiler would refuse.",
        "check deepseek-v3 --mesh fsdp=64",
    )
    made.add_argument("models", nargs="*", metavar="MODEL", help="presets, runs, Hugging Face directories or specs")
    made.add_argument("--all", action="store_true", help="every preset")
    made.add_argument("--set", action="append", metavar="PATH=VALUE", help="change a preset's spec")
    made.add_argument("--target", choices=("neuron",), default="neuron")
    made.add_argument("--mesh", metavar="MESH", help="train on this mesh, which need not exist, as in fsdp=16,tensor=4")
    made.add_argument("--rules", metavar="NAME", default="default", help="by which table (default: default)")
    made.add_argument("--batch", type=int, default=64, help="rows (default: 64)")
    made.add_argument("--length", type=int, default=128, help="tokens a row (default: 128)")
    made.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the computation")
    as_json(made)

    made = command(
        "plan",
        plan,
        "Compile a train step for a cluster you do not have: memory, collectives, a bound on speed.",
        "plan deepseek-v3 --on p5en.48xlarge --nodes 32 --batch 2048 --length 4096",
    )
    model(made, "model")
    made.add_argument("--on", metavar="INSTANCE", required=True, help="as AWS spells it, as in p5en.48xlarge")
    made.add_argument("--nodes", type=int, default=1, help="how many of them (default: 1)")
    made.add_argument("--batch", type=int, default=64, help="rows a step (default: 64)")
    made.add_argument("--length", type=int, default=4096, help="tokens a row (default: 4096)")
    made.add_argument("--mesh", metavar="MESH", help="as in fsdp=32,expert=8 (default: by arithmetic)")
    made.add_argument("--accumulate", type=int, help="take a batch in this many parts (default: by arithmetic)")
    made.add_argument("--remat", choices=("none", "dots", "full"), help="what is recomputed (default: by arithmetic)")
    made.add_argument("--rules", metavar="NAME", default="default", help="by which table (default: default)")
    made.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the computation")
    made.add_argument("--dispatch", choices=("auto", "dense", "grouped", "capacity"), default="auto")
    made.add_argument(
        "--decode", action="store_true", help="decode instead of training: --batch rows of --length tokens"
    )
    made.add_argument("--search", action="store_true", help="compare meshes, recomputation and parts of the batch")
    made.add_argument("--most", type=int, default=20, metavar="N", help="of a search, compile N plans (default: 20)")
    made.add_argument("--svg", metavar="FILE", help="of a search, a picture: memory against time")
    made.add_argument("--no-compile", action="store_true", help="arithmetic alone, in a second")
    as_json(made)

    made = command("generate", generate, "Continue a text.", "generate runs/demo --prompt 'def main('")
    model(made, "model")
    made.add_argument("--prompt", action="append", metavar="TEXT", help="may be given several times (default: stdin)")
    made.add_argument("--tokens", type=int, default=64, help="how many more (default: 64)")
    made.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default: 0)")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--no-stop", action="store_true", help="go on after an end-of-text token")
    made.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    as_json(made)

    made = command("export", export, "Write a model as a Hugging Face directory.", "export runs/demo runs/demo/export")
    model(made, "model")
    made.add_argument("out", metavar="FOLDER")
    made.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the tensors (default: as they are)"
    )

    made = command(
        "import", import_, "Make a run of a Hugging Face directory, to train.", "import Llama-3.2-1B runs/llama"
    )
    model(made, "model")
    made.add_argument("out", metavar="FOLDER")
    return top


def _version() -> str:
    from . import __version__

    return __version__


if __name__ == "__main__":
    sys.exit(run())
