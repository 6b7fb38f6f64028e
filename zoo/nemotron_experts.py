"""The experts of Nemotron 3 (NVIDIA 2025), squared ReLUs behind DeepSeek-V3's router: as wide as the residual in the
smaller models, in a narrower space in the larger ones.
"""

from dataclasses import replace
from typing import Any

from ..layers.moe import MoE
from ..layers.narrow import NarrowMoE
from ..layers.plain import MLP, PlainExpert
from .deepseek import read_experts, write_experts
from .fields import Fields
from .weights import Row, rows

MIXER = "backbone.layers.{l}.mixer."

CLASS_EXPERTS = {
    "moe_intermediate_size": 7688,
    "n_group": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "routed_scaling_factor": 1.0,
    "topk_group": 1,
}


def read(c: Fields) -> MoE | NarrowMoE:
    experts = replace(read_experts(c.over(CLASS_EXPERTS)), expert=PlainExpert(), shared=None)
    bias, latent = c.bool("mlp_bias", False), c.int("moe_latent_size", None)
    shared = MLP(ffn=c.int("moe_shared_expert_intermediate_size", 7688), activation="relu2", bias=bias)
    if latent is None:
        return replace(experts, shared=shared)
    return NarrowMoE(width=latent, experts=experts, shared=shared, bias=bias)


def write(moe: Any) -> dict[str, Any]:
    narrow = isinstance(moe, NarrowMoE)
    return write_experts(replace(moe.experts if narrow else moe, shared=None)) | {
        "n_shared_experts": 1,
        "moe_shared_expert_intermediate_size": moe.shared.ffn,
        "moe_latent_size": moe.width if narrow else None,
    }


def _inside(of_experts: tuple[Row, ...]) -> tuple[Row, ...]:
    """Also where the experts are those of a NarrowMoE."""
    narrow = [row._replace(parameters=(row.parameters[0].replace("mlp/", "mlp/experts/"),)) for row in of_experts]
    return (*of_experts, *narrow)


ROWS = _inside(
    rows(
        (MIXER + "gate.weight", "X D", "mlp/router/w_DX"),
        (MIXER + "gate.e_score_correction_bias", "X", "mlp/router/bias_X"),
    )
)
ROWS += rows(
    (MIXER + "shared_experts.up_proj.weight", "F D", "mlp/shared/w_up_DF"),
    (MIXER + "shared_experts.up_proj.bias", "F", "mlp/shared/b_up_F"),
    (MIXER + "shared_experts.down_proj.weight", "D F", "mlp/shared/w_down_FD"),
    (MIXER + "shared_experts.down_proj.bias", "D", "mlp/shared/b_down_D"),
    (MIXER + "fc1_latent_proj.weight", "N D", "mlp/w_in_DN"),
    (MIXER + "fc1_latent_proj.bias", "N", "mlp/b_in_N"),
    (MIXER + "fc2_latent_proj.weight", "D N", "mlp/w_out_ND"),
    (MIXER + "fc2_latent_proj.bias", "D", "mlp/b_out_D"),
)
SINGLE = _inside(
    rows(
        (MIXER + "experts.{e}.up_proj.weight", "F D", "mlp/w_up_XFD"),
        (MIXER + "experts.{e}.down_proj.weight", "D F", "mlp/w_down_XDF"),
    )
)
STACKED = _inside(
    rows(
        (MIXER + "experts.up_proj", "X F D", "mlp/w_up_XFD"),
        (MIXER + "experts.down_proj", "X D F", "mlp/w_down_XDF"),
    )
)
