"""The families of the zoo and their models: add a page, then a line here."""

from collections.abc import Mapping
from types import MappingProxyType

from ..layers.decoder import Spec
from . import (
    apertus,
    cohere2,
    deepseek_v2,
    deepseek_v3,
    deepseek_v4,
    deepseek_v32,
    dots1,
    ernie4_5_moe,
    exaone4,
    flex_olmo,
    gemma2,
    gemma3,
    gemma4,
    glm4,
    glm4_moe,
    glm4_moe_lite,
    glm_moe_dsa,
    gpt_oss,
    granite,
    granitemoe,
    hunyuan_v1_moe,
    kimi_linear,
    llama,
    llama4,
    longcat_flash,
    mimo_v2_flash,
    minimax_m2,
    ministral3,
    mistral,
    mistral4,
    mixtral,
    nemotron_h,
    olmo2,
    olmo3,
    olmo_hybrid,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_5,
    qwen3_moe,
    qwen3_next,
    seed_oss,
    smollm3,
)
from .family import Family

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.name: family
        for family in (
            llama.FAMILY,
            olmo2.FAMILY,
            gemma3.FAMILY,
            gemma4.FAMILY,
            qwen3.FAMILY,
            qwen3_moe.FAMILY,
            deepseek_v3.FAMILY,
            deepseek_v32.FAMILY,
            deepseek_v4.FAMILY,
            glm_moe_dsa.FAMILY,
            mistral.FAMILY,
            qwen2.FAMILY,
            deepseek_v2.FAMILY,
            glm4_moe.FAMILY,
            glm4_moe_lite.FAMILY,
            phi3.FAMILY,
            seed_oss.FAMILY,
            smollm3.FAMILY,
            granite.FAMILY,
            cohere2.FAMILY,
            exaone4.FAMILY,
            minimax_m2.FAMILY,
            ernie4_5_moe.FAMILY,
            hunyuan_v1_moe.FAMILY,
            longcat_flash.FAMILY,
            gemma2.FAMILY,
            olmo3.FAMILY,
            glm4.FAMILY,
            mixtral.FAMILY,
            qwen2_moe.FAMILY,
            dots1.FAMILY,
            flex_olmo.FAMILY,
            granitemoe.FAMILY,
            apertus.FAMILY,
            gpt_oss.FAMILY,
            llama4.FAMILY,
            mimo_v2_flash.FAMILY,
            ministral3.FAMILY,
            mistral4.FAMILY,
            kimi_linear.FAMILY,
            nemotron_h.FAMILY,
            olmo_hybrid.FAMILY,
            qwen3_next.FAMILY,
            qwen3_5.DENSE,
            qwen3_5.MOE,
        )
    }
)
"""By Hugging Face model_type."""

MODELS: Mapping[str, Spec] = MappingProxyType(
    {name: spec for family in FAMILIES.values() for name, spec in family.presets.items()}
)
"""By name, family-size in lower case; sizes for a laptop end in -nano."""
