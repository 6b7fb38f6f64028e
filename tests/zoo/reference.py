"""What transformers makes of a checkpoint: the reference of every family. Needs the parity extra."""

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

Array = np.ndarray[Any, Any]


def library() -> Any:
    """transformers, silenced and on one thread: its models here are tiny, and threads would fight with those of XLA."""
    import transformers

    torch.set_num_threads(1)

    quiet: Any = transformers.logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    return transformers


def build(config: Mapping[str, Any], **options: Any) -> Any:
    """The model that transformers makes of a config, with its own initial weights."""
    fields = {key: value for key, value in copy.deepcopy(dict(config)).items() if key != "architectures"}
    hf = library()
    return hf.AutoModelForCausalLM.from_config(hf.AutoConfig.for_model(**fields), **options)


def published_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a checkpoint in its published layout, as transformers itself would save them."""
    with tempfile.TemporaryDirectory() as folder:
        build(config).save_pretrained(folder)
        with safe_open(Path(folder) / "model.safetensors", framework="numpy") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118


def load(directory: Path, dtype: str = "float32") -> Any:
    """The model of a directory, by the plainest code that transformers has.

    Raises ValueError unless every tensor finds its place.
    """
    model, report = library().AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=getattr(torch, dtype),
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
    )
    if any(report.values()):
        raise ValueError(f"{directory}: transformers says {report}")
    return model.eval()


@torch.no_grad()
def logits(model: Any, tokens: Array) -> Array:
    """float64 [batch, length, vocab], computed in the model's dtype."""
    found: Array = model(input_ids=torch.as_tensor(tokens), use_cache=False).logits.double().numpy()
    return found


@torch.no_grad()
def greedy(model: Any, prompts: Array, new: int) -> tuple[Array, Array]:
    """The best token each step, int32 [batch, new], and by how much its logit beats the second; without a cache."""
    tokens, margins = torch.as_tensor(prompts), []
    for _ in range(new):
        best = model(input_ids=tokens, use_cache=False).logits[:, -1].float().topk(2)
        margins.append(best.values[:, 0] - best.values[:, 1])
        tokens = torch.cat([tokens, best.indices[:, :1]], dim=1)
    return tokens[:, prompts.shape[1] :].numpy().astype(np.int32), torch.stack(margins, dim=1).numpy()
