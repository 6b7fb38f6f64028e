"""dots.llm1."""

from typing import Any

from .common import COMMON, FIVE, FOUR, YARN, dense, routed

DOTS1 = COMMON | {"architectures": ["Dots1ForCausalLM"], "model_type": "dots1"}

CONFIGS: dict[str, dict[str, Any]] = {
    "dots1_two_shared": DOTS1
    | FOUR
    | dense(48, 56, 3, 4, 4, 94, head_dim=14)
    | routed(10, 3, 12, shared=2, dense_layers=1, groups=1, kept=1, scale=2.5)
    | {"max_window_layers": 3, "moe_layer_freq": 1, "rope_theta": 10000000, "sliding_window": None},
    "dots1_windows_gqa_bias_groups": DOTS1
    | FIVE
    | dense(36, 40, 4, 6, 2, 105)
    | routed(9, 2, 16, shared=1, dense_layers=2, groups=3, kept=2, scale=1.7, norm=False)
    | {
        "attention_bias": True,
        "layer_types": ["full_attention", "sliding_attention", "full_attention", "sliding_attention"],
        "rope_parameters": YARN | {"rope_theta": 1000.0},
        "sliding_window": 5,
    },
    "dots1_late_windows_no_dense_tied": DOTS1
    | FOUR
    | dense(40, 44, 3, 5, 1, 68, head_dim=12)
    | routed(6, 4, 20, shared=1, dense_layers=0, groups=1, kept=1, scale=1.0, norm=False)
    | {"max_window_layers": 1, "rope_theta": 100.0, "sliding_window": 7, "tie_word_embeddings": True},
}
