"""What must not grow: a window's step time with the length, compilation with the depth. python benchmarks/scaling.py

window: a Gemma 3-style model whose layers all have a window of 512; a train step on one row of 16,384 tokens over one
on 4,096, four times as many. depth: lowering and compiling a train step and a decode step of 61 layers over 4, for
DeepSeek-V3 (3 dense layers, then experts) and Llama at tiny width; every time anew, with all caches off."""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

from harness import Row, Worker, arguments, interleave, parsed, records, report, spread
from models import MODELS, Config

SHORT, LONG, WINDOW = 4096, 16384, 512
SHALLOW, DEEP = 4, 61
PARTS = ("window", "depth")

WINDOWED: Config = MODELS["gemma3"] | {
    "num_hidden_layers": 4,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention"] * 4,
}
TINY: dict[str, Config] = {
    "llama": MODELS["llama"] | {"hidden_size": 64, "intermediate_size": 128, "head_dim": 8, "vocab_size": 512},
    "deepseek_v3": MODELS["deepseek_v3"]
    | {
        "hidden_size": 64,
        "intermediate_size": 128,
        "moe_intermediate_size": 32,
        "q_lora_rank": 32,
        "kv_lora_rank": 16,
        "n_routed_experts": 8,
        "first_k_dense_replace": 3,
        "vocab_size": 512,
    },
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parsed(parser)
    report("scaling", "What must not grow", rows(options), keep=not options.quick)


def rows(options: Any) -> Iterator[Row]:
    if "window" in options.parts:
        task = {"what": "train", "config": WINDOWED, "batch": 1, "steps": 1}
        tasks = {str(length): task | {"length": length} for length in (SHORT, LONG)}
        yield grown(f"window {WINDOW}: step at {LONG:,} over {SHORT:,} tokens", tasks, options.pairs, 4.5)
    if "depth" in options.parts:
        for model, config in TINY.items():
            for step in ("train", "decode"):
                task = {"what": "compilation", "step": step}
                depths = {str(n): task | {"config": config | {"num_hidden_layers": n}} for n in (SHALLOW, DEEP)}
                yield grown(f"{model}: compile {step}, {DEEP} over {SHALLOW} layers", depths, options.pairs, 1.3)


def grown(name: str, tasks: dict[str, dict[str, Any]], pairs: int, most: float) -> Row:
    """Seconds of the second task over those of the first."""
    with ExitStack() as stack:
        sides = {key: stack.enter_context(closing(Worker("side_archzoo.py", task))) for key, task in tasks.items()}
        seconds = interleave(sides, pairs)
        small, large = seconds
        return Row(
            name=name,
            values=[b / a for a, b in zip(seconds[small], seconds[large], strict=True)],
            target=most,
            at_most=True,
            ours=f"{spread(seconds[large])} s",
            against=small,
            theirs=f"{spread(seconds[small])} s",
            sides=records(sides, seconds, small, large),
        )


if __name__ == "__main__":
    main()
