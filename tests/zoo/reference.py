"""What transformers makes of a checkpoint: the reference of every family. Needs the parity extra."""

import copy
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
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

    _give_zero_experts_no_weights()
    _find_mistral4()
    _name_dense_mlps_as_published()
    quiet: Any = transformers.logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    return transformers


@cache
def _find_mistral4() -> None:
    """transformers has the language model of Mistral 4, but its auto class does not know it by itself."""
    from transformers import AutoModelForCausalLM
    from transformers.models.mistral4 import Mistral4Config, Mistral4ForCausalLM

    AutoModelForCausalLM.register(Mistral4Config, Mistral4ForCausalLM, exist_ok=True)


@cache
def _give_zero_experts_no_weights() -> None:
    """transformers makes gates for the experts of LongCat-Flash that compute nothing: no checkpoint has them, and no
    token reaches them.
    """
    from transformers.models.longcat_flash.modeling_longcat_flash import LongcatFlashExperts

    init = LongcatFlashExperts.__init__

    def without(self: Any, config: Any) -> None:
        init(self, config)
        self.gate_up_proj = torch.nn.Parameter(self.gate_up_proj[: self.num_routed_experts].detach().clone())

    LongcatFlashExperts.__init__ = without


@cache
def _name_dense_mlps_as_published() -> None:
    """Where transformers saves Kimi Linear it calls dense MLPs by the name that the checkpoints have for experts."""
    from transformers import conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    mapping = conversion_mapping.get_checkpoint_conversion_mapping("kimi_linear")
    kept = [rule for rule in mapping if "block_sparse_moe" not in str(rule.source_patterns)]
    names = ("gate", "experts", "shared_experts")
    renamed = [WeightRenaming(rf"\.block_sparse_moe\.{name}\.", rf"\.mlp\.{name}\.") for name in names]
    conversion_mapping.register_checkpoint_conversion_mapping("kimi_linear", renamed + kept, overwrite=True)


def _name_norms_as_published(kinds: Sequence[str]) -> None:
    """Where transformers saves OLMo Hybrid it also renames a norm of attention layers, as if they were linear ones."""
    from transformers import conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    mapping = conversion_mapping.get_checkpoint_conversion_mapping("olmo_hybrid")
    kept = [rule for rule in mapping if "layer_norm" not in str(rule.source_patterns)]
    names = {"attention_layer_norm": "input_layernorm", "feedforward_layer_norm": "post_attention_layernorm"}
    renamed = [
        WeightRenaming(rf"layers\.{layer}\.{published}", rf"layers\.{layer}\.{name}")
        for layer, kind in enumerate(kinds)
        for published, name in names.items()
        if kind == "linear_attention"
    ]
    conversion_mapping.register_checkpoint_conversion_mapping("olmo_hybrid", renamed + kept, overwrite=True)


def build(config: Mapping[str, Any], **options: Any) -> Any:
    """The model that transformers makes of a config, with its own initial weights."""
    fields = {key: value for key, value in copy.deepcopy(dict(config)).items() if key != "architectures"}
    hf = library()
    if config["model_type"] == "olmo_hybrid":
        _name_norms_as_published(config["layer_types"])
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
