"""Where Gemma 4's tensors lie: a dense layer's, those beside experts, and those of per-layer embeddings."""

from .family import ATTENTION, EMBEDDINGS, HEAD_NORMS, MLP, SANDWICH_NORMS
from .weights import rows

LAYER = "model.layers.{l}."
WEIGHTS = (
    EMBEDDINGS
    + ATTENTION
    + HEAD_NORMS
    + MLP
    + SANDWICH_NORMS
    + tuple(row._replace(parameters=(row.parameters[0].replace("mlp/", "mlp/dense/"),)) for row in MLP)
    + rows(
        (LAYER + "layer_scalar", "1", "scale_1"),
        (LAYER + "pre_feedforward_layernorm.weight", "D", "mlp/dense_before/scale_D"),
        (LAYER + "post_feedforward_layernorm_1.weight", "D", "mlp/dense_after/scale_D"),
        (LAYER + "pre_feedforward_layernorm_2.weight", "D", "mlp/experts_before/scale_D"),
        (LAYER + "post_feedforward_layernorm_2.weight", "D", "mlp/experts_after/scale_D"),
        (LAYER + "post_feedforward_layernorm.weight", "D", "mlp/after/scale_D"),
        (LAYER + "router.proj.weight", "X D", "mlp/experts/router/w_DX"),
        (LAYER + "router.scale", "D", "mlp/experts/router/scale_D"),
        (LAYER + "router.per_expert_scale", "X", "mlp/experts/router/gain_X"),
        (LAYER + "experts.gate_up_proj", "X [F F] D", "mlp/experts/w_gate_XFD", "mlp/experts/w_up_XFD"),
        (LAYER + "experts.down_proj", "X D F", "mlp/experts/w_down_XDF"),
        (LAYER + "per_layer_input_gate.weight", "P D", "own_gate_DP"),
        (LAYER + "per_layer_projection.weight", "D P", "own_out_PD"),
        (LAYER + "post_per_layer_input_norm.weight", "D", "own_after/scale_D"),
        ("model.embed_tokens_per_layer.weight", "V (N P)", "per_layer/embed_VNP"),
        ("model.per_layer_model_projection.weight", "(N P) D", "per_layer/w_DNP"),
        ("model.per_layer_projection_norm.weight", "P", "per_layer/norm/scale_P"),
    )
)
