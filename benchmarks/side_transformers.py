"""Hugging Face transformers on PyTorch, as a side of a comparison (worker.py).

Training: forward, backward, gradient clipping and a fused AdamW, the fastest PyTorch has. task["compile"] wraps the
model in torch.compile; task["attention"] and task["experts"] choose among transformers' implementations, task["cache"]
among generate's caches. With a static cache, "compile" is generate's own compilation of the decode step."""

from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, CompileConfig

from worker import Run, Task, serve


def model_of(task: Task) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(**task["config"])
    more = {"experts_implementation": task["experts"]} if task.get("experts") else {}
    return AutoModelForCausalLM.from_config(
        config, attn_implementation=task.get("attention", "sdpa"), dtype=torch.float32, **more
    )


def train(task: Task, model: Any) -> tuple[Run, dict[str, Any]]:
    batch, length = task["batch"], task["length"]
    model.train()
    forward = torch.compile(model) if task.get("compile") else model
    decaying = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decaying, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        lr=1e-4,
        betas=(0.9, 0.95),
        fused=True,
    )
    tokens = torch.randint(3, model.config.vocab_size, (batch, length), generator=torch.manual_seed(0))

    def run() -> None:
        for _ in range(task["steps"]):
            loss = forward(input_ids=tokens, labels=tokens, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        assert torch.isfinite(loss)

    return run, {"tokens": task["steps"] * batch * length}


def decode(task: Task, model: Any) -> tuple[Run, dict[str, Any]]:
    model.eval()
    shape = (task["batch"], task["length"])
    prompts = torch.randint(3, model.config.vocab_size, shape, generator=torch.manual_seed(0))
    more: dict[str, Any] = {"cache_implementation": task["cache"]} if task.get("cache") else {}
    if task.get("compile") and task.get("cache") == "static":
        more["compile_config"] = CompileConfig(mode="default", fullgraph=False)
        more["compile_config"]._compile_all_devices = True  # or generate would compile on accelerators only
    elif task.get("compile"):
        model.forward = torch.compile(model.forward, dynamic=True)

    def run() -> None:
        with torch.inference_mode():
            out = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=task["new"],
                min_new_tokens=task["new"],
                do_sample=False,
                **more,
            )
        assert out.shape[1] == task["length"] + task["new"]

    return run, {"tokens": task["batch"] * task["new"]}


def build(task: Task) -> tuple[Run, dict[str, Any]]:
    model = model_of(task)
    run, facts = {"train": train, "decode": decode}[task["what"]](task, model)
    # A tied head is there once, and a selection bias, which nothing trains by gradients, is a buffer.
    weights = [*model.parameters(), *(b for name, b in model.named_buffers() if name.endswith("correction_bias"))]
    return run, facts | {
        "parameters": sum(w.numel() for w in weights),
        "versions": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    serve(build)
