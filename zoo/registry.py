"""The families of the zoo and their models: add a page, then a line here."""

from collections.abc import Mapping
from types import MappingProxyType

from ..layers.decoder import Spec
from . import deepseek_v3, gemma3, llama, olmo2, qwen3
from .family import Family

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.name: family
        for family in (llama.FAMILY, olmo2.FAMILY, gemma3.FAMILY, qwen3.DENSE, qwen3.MOE, deepseek_v3.FAMILY)
    }
)
"""By Hugging Face model_type."""

MODELS: Mapping[str, Spec] = MappingProxyType(
    {name: spec for family in FAMILIES.values() for name, spec in family.presets.items()}
)
"""By name, family-size in lower case; sizes for a laptop end in -nano."""
