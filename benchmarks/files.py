"""Files against a plain copy: python benchmarks/files.py [--gigabytes 1] [--models llama qwen3_moe] [--pairs 7]

Import (load_hf), export (save_hf), and checkpoints saved and restored, of parameters alone and with AdamW's moments, in
turn with a copy of as many bytes (shutil.copyfile) and with transformers. What is written is on the disk when the clock
stops (fsync), the copy's too. What is read lies in the page cache, of all sides; the copy that a read is compared with
is not waited for until it is on the disk. Before each run what the disk still has to write is waited for.

Memory: how far a process's resident size rose at most in its first run, once a tiny model had everything imported and
compiled; of what is read that includes the arrays that were read, of what is written it comes on top of them.

Writes results/files.json; what a run leaves out stays in it as it was."""

import argparse
import json
import mmap
import os
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

from harness import FOLDER, PAIRS, Side, Worker, interleave, quartiles

RESULTS = FOLDER / "results" / "files.json"

COMMON = {
    "vocab_size": 32000,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": COMMON
    | {
        "model_type": "llama",
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "mlp_bias": False,
    },
    "qwen3_moe": COMMON
    | {
        "model_type": "qwen3_moe",
        "hidden_size": 512,
        "intermediate_size": 1024,
        "moe_intermediate_size": 128,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    },
}
"""One of large tensors, nine a layer, and one of small ones, 393 a layer; as deep as the size asked for needs."""

TINY = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 16}


class Operation(NamedTuple):
    """What is compared: our side, the peer's, whether it writes, and whether AdamW's moments are there too."""

    ours: str
    peer: str | None = None
    writes: bool = False
    optimizer: bool = False


OPERATIONS = {
    "import": Operation("load_hf", "from_pretrained"),
    "export": Operation("save_hf", "save_pretrained", writes=True),
    "restore": Operation("restore"),
    "save": Operation("save", writes=True),
    "restore with AdamW": Operation("restore", optimizer=True),
    "save with AdamW": Operation("save", writes=True, optimizer=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of parameters")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--folder", help="where to put temporary files")
    options = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for model in options.models:
            made = make(model, int(options.gigabytes * 1e9), Path(folder) / model)
            for name in options.operations:
                found[f"{model}: {name}"] = result = compare(made, OPERATIONS[name], options.pairs)
                print("\n".join(lines(f"{model}: {name}", result)), flush=True)
            shutil.rmtree(Path(folder) / model)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


def make(model: str, size: int, folder: Path) -> dict[str, Any]:
    """A task with a model of that size and its checkpoints, and tiny ones of the same kind."""
    config, tasks = MODELS[model], []
    small = {field: value for field, value in TINY.items() if field in config}
    for name, wanted, more in (("tiny", 0, small), ("whole", size, {})):
        place = folder / name
        task = {"model": str(place / "model"), "checkpoints": str(place / "checkpoints"), "out": str(place / "out")}
        with closing(
            Worker("side_files.py", task | {"side": "make", "bytes": wanted, "config": config | more})
        ) as made:
            tasks.append(task | {key: made.facts[key] for key in ("sizes", "parameters", "depth", "versions")})
    return tasks[1] | {"tiny": tasks[0]}


def compare(made: dict[str, Any], operation: Operation, pairs: int) -> dict[str, Any]:
    """Seconds of each side in turn, and what memory it took."""
    size = made["sizes"]["state" if operation.optimizer else "params"]
    task = made | {"sync": operation.writes, "optimizer": operation.optimizer}
    task["copies"] = round(size / made["sizes"]["params"])
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(closing(Worker("side_files.py", task | {"side": name})))
            for name in ("copy", operation.ours, operation.peer)
            if name
        }
        seconds = interleave({name: fresh(worker, task["out"], 2 * size) for name, worker in workers.items()}, pairs)
    sides = {
        name: {"seconds": seconds[name], "peak": worker.facts["peak"], "bytes": worker.facts.get("bytes", size)}
        for name, worker in workers.items()
    }
    about = {name: made[name] for name in ("parameters", "depth", "versions")}
    return {"bytes": size, "writes": operation.writes, **about, "sides": sides}


def fresh(worker: Worker, out: str, size: int) -> Side:
    """The worker's run into an empty folder, with nothing left for the disk to write and `size` bytes touched."""

    def run() -> float:
        shutil.rmtree(out, ignore_errors=True)
        os.sync()
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()
        return worker()

    return run


def lines(name: str, result: dict[str, Any]) -> Iterator[str]:
    """A table: seconds, bandwidth, its ratio to the copy's (the median of the pairs'), and memory over the bytes."""
    yield f"{name}, {result['bytes'] / 1e9:.3f} GB"
    copied = result["sides"]["copy"]
    for side, found in result["sides"].items():
        low, middle, high = quartiles(found["seconds"])
        per_byte = zip(copied["seconds"], found["seconds"], strict=True)
        ratio = statistics.median(c / s for c, s in per_byte) * found["bytes"] / copied["bytes"]
        peak = (found["peak"] + (result["bytes"] if result["writes"] and side != "copy" else 0)) / result["bytes"]
        rate = found["bytes"] / middle / 1e9
        timed = f"{middle:7.3f} s ({low:.3f} to {high:.3f}) {rate:6.2f} GB/s"
        yield f"  {side:16} {timed} {ratio:7.0%} of the copy, memory {peak:5.2f}x"


if __name__ == "__main__":
    main()
