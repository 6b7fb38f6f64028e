"""Modules of multi-token prediction in NumPy, from the tensors of a published checkpoint, after what vLLM and SGLang do
with them: one document, float64, nothing of archzoo.

Dimensions: L length, D width, H heads, K key heads, E of a head.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Tensors = Mapping[str, Array]
Config = Mapping[str, Any]
Module = Callable[[Config, Tensors, int, Array, Array], Array]
"""(config, tensors, which module, embedded tokens [L, D], states [L, D]) -> what the head reads [L, D]."""


def linear(t: Tensors, name: str, x: Array) -> Array:
    y: Array = x @ t[f"{name}.weight"].T
    return y + t[f"{name}.bias"] if f"{name}.bias" in t else y


def normed(x: Array, scale: Array, eps: float) -> Array:
    y: Array = x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + eps) * scale
    return y


def sigmoid(x: Array) -> Array:
    y: Array = 1 / (1 + np.exp(-x))
    return y


def softmax(x: Array) -> Array:
    e: Array = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def gated(t: Tensors, name: str, x: Array) -> Array:
    gate = linear(t, f"{name}.gate_proj", x)
    return linear(t, f"{name}.down_proj", gate * sigmoid(gate) * linear(t, f"{name}.up_proj", x))


def squared(t: Tensors, name: str, x: Array) -> Array:
    return linear(t, f"{name}.down_proj", np.square(np.maximum(linear(t, f"{name}.up_proj", x), 0)))


def rotated(x_LHE: Array, dim: int, theta: float, interleaved: bool = False) -> Array:
    """The first `dim` of each head turned by its position: halves against each other, or neighbours."""
    angle = np.arange(len(x_LHE))[:, None, None] * theta ** (-np.arange(0, dim, 2) / dim)
    sin, cos, y = np.sin(angle), np.cos(angle), x_LHE.copy()
    first, second = (slice(0, dim, 2), slice(1, dim, 2)) if interleaved else (slice(dim // 2), slice(dim // 2, dim))
    a, b = x_LHE[..., first], x_LHE[..., second]
    y[..., first], y[..., second] = a * cos - b * sin, b * cos + a * sin
    return y


def attended(q_LHE: Array, k_LKE: Array, v_LKE: Array, window: int | None = None, sinks: Array | None = None) -> Array:
    """[L, H * E of a value]; `window` tokens are seen, the own one among them."""
    length, heads = q_LHE.shape[:2]
    k, v = (np.repeat(x, heads // x.shape[1], axis=1) for x in (k_LKE, v_LKE))
    scores = np.einsum("lhe,mhe->hlm", q_LHE, k) / np.sqrt(q_LHE.shape[-1])
    away = np.arange(length)[:, None] - np.arange(length)
    scores = np.where((away >= 0) & (away < (window or length)), scores, -np.inf)
    if sinks is not None:
        scores = np.concatenate([scores, np.broadcast_to(sinks[:, None, None], (heads, length, 1))], axis=-1)
    weights = softmax(scores)[..., :length]
    return np.einsum("hlm,mhe->lhe", weights, v).reshape(length, -1)


def split(x: Array, heads: int) -> Array:
    return x.reshape(len(x), heads, -1)


def routed(x: Array, chosen: Array, weights: Array, expert: Callable[[int, Array], Array]) -> Array:
    rows = [
        sum(w * expert(int(e), x[i : i + 1])[0] for e, w in zip(*pair, strict=True))
        for i, pair in enumerate(zip(chosen, weights, strict=True))
    ]
    return np.stack(rows)


def best(scores: Array, count: int) -> Array:
    return np.argsort(-scores, axis=-1)[:, :count]


# --- the families ----------------------------------------------------------------------------------------------------


def mimo_v2_flash(c: Config, t: Tensors, k: int, token: Array, state: Array) -> Array:
    p, eps = f"model.mtp.layers.{k}.", c.get("layernorm_epsilon", 1e-5)
    heads, kv_heads = c["swa_num_attention_heads"], c["swa_num_key_value_heads"]
    dim = int(c["swa_head_dim"] * c["partial_rotary_factor"])

    def norm(name: str, x: Array) -> Array:
        return normed(x, t[f"{p}{name}.weight"], eps)

    x = linear(t, f"{p}eh_proj", np.concatenate([norm("enorm", token), norm("hnorm", state)], axis=-1))
    y = norm("input_layernorm", x)
    q, key = (
        rotated(split(linear(t, f"{p}self_attn.{n}_proj", y), h), dim, c["swa_rope_theta"])
        for n, h in (("q", heads), ("k", kv_heads))
    )
    v = split(linear(t, f"{p}self_attn.v_proj", y), kv_heads) * c["attention_value_scale"]
    z = attended(q, key, v, c["sliding_window_size"] + 1, t[f"{p}self_attn.attention_sink_bias"])
    x = x + linear(t, f"{p}self_attn.o_proj", z)
    return norm("final_layernorm", x + gated(t, f"{p}mlp", norm("pre_mlp_layernorm", x)))


def ernie4_5_moe(c: Config, t: Tensors, k: int, token: Array, state: Array) -> Array:
    p, eps, heads, kv_heads = (
        f"model.mtp_block.{k}.",
        c["rms_norm_eps"],
        c["num_attention_heads"],
        c["num_key_value_heads"],
    )

    def norm(name: str, x: Array) -> Array:
        return normed(x, t[f"{name}.weight"], eps)

    pair = norm(f"model.mtp_emb_norm.{k}", token), norm(f"model.mtp_hidden_norm.{k}", state)
    x = linear(t, f"model.mtp_linear_proj.{k}", np.concatenate(pair, axis=-1))
    y = norm(f"{p}input_layernorm", x)
    q, key = (split(linear(t, f"{p}self_attn.{n}_proj", y), h) for n, h in (("q", heads), ("k", kv_heads)))
    q, key = (rotated(z, z.shape[-1], c["rope_theta"], interleaved=True) for z in (q, key))
    z = attended(q, key, split(linear(t, f"{p}self_attn.v_proj", y), kv_heads))
    x = x + linear(t, f"{p}self_attn.o_proj", z)
    return norm("model.norm", x + gated(t, f"{p}mlp", norm(f"{p}post_attention_layernorm", x)))


def qwen(c: Config, t: Tensors, k: int, token: Array, state: Array) -> Array:
    p, eps, heads, kv_heads = "mtp.layers.0.", c["rms_norm_eps"], c["num_attention_heads"], c["num_key_value_heads"]
    rope = c | c.get("rope_parameters", {})
    dim = int(c["head_dim"] * rope["partial_rotary_factor"])

    def norm(name: str, x: Array) -> Array:
        return normed(x, 1 + t[f"{name}.weight"], eps)

    pair = norm("mtp.pre_fc_norm_embedding", token), norm("mtp.pre_fc_norm_hidden", state)
    x = linear(t, "mtp.fc", np.concatenate(pair, axis=-1))
    y = norm(f"{p}input_layernorm", x)
    q, gate = np.split(split(linear(t, f"{p}self_attn.q_proj", y), heads), 2, axis=-1)
    key, v = (split(linear(t, f"{p}self_attn.{n}_proj", y), kv_heads) for n in "kv")
    q, key = (rotated(norm(f"{p}self_attn.{n}_norm", z), dim, rope["rope_theta"]) for n, z in (("q", q), ("k", key)))
    z = attended(q, key, v) * sigmoid(gate.reshape(len(x), -1))
    x = x + linear(t, f"{p}self_attn.o_proj", z)
    y = norm(f"{p}post_attention_layernorm", x)
    return norm("mtp.norm", x + (qwen_experts(c, t, f"{p}mlp.", y) if "num_experts" in c else gated(t, f"{p}mlp", y)))


def qwen_experts(c: Config, t: Tensors, p: str, y: Array) -> Array:
    chances = softmax(linear(t, f"{p}gate", y))
    chosen = best(chances, c["num_experts_per_tok"])
    weights = np.take_along_axis(chances, chosen, axis=-1)
    weights = weights / weights.sum(axis=-1, keepdims=True)
    own = routed(y, chosen, weights, lambda e, x: gated(t, f"{p}experts.{e}", x))
    return own + sigmoid(linear(t, f"{p}shared_expert_gate", y)) * gated(t, f"{p}shared_expert", y)


def longcat_flash(c: Config, t: Tensors, k: int, token: Array, state: Array) -> Array:
    p, eps, heads, width = f"model.mtp.layers.{k}.", c["rms_norm_eps"], c["num_attention_heads"], c["hidden_size"]
    nope, rope, rank = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["kv_lora_rank"]

    def norm(name: str, x: Array) -> Array:
        return normed(x, t[f"{name}.weight"], eps)

    def of_latent(name: str, x: Array) -> Array:
        """Norms of latents have an eps of their own, 1e-6, and are scaled to the width."""
        return normed(x, t[f"{p}self_attn.{name}.weight"], 1e-6) * np.sqrt(width / x.shape[-1])

    pair = norm(f"{p}enorm.m", token), norm(f"{p}hnorm.m", state)
    x = linear(t, f"{p}eh_proj", np.concatenate(pair, axis=-1))
    y = norm(f"{p}input_layernorm", x)
    q = split(
        linear(t, f"{p}self_attn.q_b_proj", of_latent("q_a_layernorm", linear(t, f"{p}self_attn.q_a_proj", y))), heads
    )
    down = linear(t, f"{p}self_attn.kv_a_proj_with_mqa", y)
    key = split(linear(t, f"{p}self_attn.kv_b_proj", of_latent("kv_a_layernorm", down[:, :rank])), heads)
    q = np.concatenate([q[..., :nope], rotated(q[..., nope:], rope, c["rope_theta"], interleaved=True)], axis=-1)
    shared = rotated(down[:, None, rank:], rope, c["rope_theta"], interleaved=True)
    keys = np.concatenate([key[..., :nope], np.repeat(shared, heads, axis=1)], axis=-1)
    x = x + linear(t, f"{p}self_attn.o_proj", attended(q, keys, key[..., nope:]))
    y = norm(f"{p}post_attention_layernorm", x)
    return norm("model.mtp.norm", x + gated(t, f"{p}transformer_layer.mlp", y))


def nemotron_h(c: Config, t: Tensors, k: int, token: Array, state: Array) -> Array:
    first, second, eps = "mtp.layers.0.", "mtp.layers.1.", c["layer_norm_epsilon"]

    def norm(name: str, x: Array) -> Array:
        return normed(x, t[f"{name}.weight"], eps)

    pair = norm(f"{first}enorm", token), norm(f"{first}hnorm", state)
    x = linear(t, f"{first}eh_proj", np.concatenate(pair, axis=-1))
    y, kv_heads = norm(f"{first}norm", x), c["num_key_value_heads"]
    q = split(linear(t, f"{first}mixer.q_proj", y), c["num_attention_heads"])
    key, v = (split(linear(t, f"{first}mixer.{n}_proj", y), kv_heads) for n in "kv")
    x = x + linear(t, f"{first}mixer.o_proj", attended(q, key, v))
    y, m = norm(f"{second}norm", x), f"{second}mixer."
    chances = sigmoid(linear(t, f"{m}gate", y))
    chosen = best(chances + t[f"{m}gate.e_score_correction_bias"], c["num_experts_per_tok"])
    weights = np.take_along_axis(chances, chosen, axis=-1)
    weights = weights / weights.sum(axis=-1, keepdims=True) * c["routed_scaling_factor"]
    narrow = linear(t, f"{m}fc1_latent_proj", y) if c["moe_latent_size"] else y
    own = routed(narrow, chosen, weights, lambda e, z: squared(t, f"{m}experts.{e}", z))
    own = linear(t, f"{m}fc2_latent_proj", own) if c["moe_latent_size"] else own
    return norm(f"{second}final_layernorm", x + own + squared(t, f"{m}shared_experts", y))


MODULES: Mapping[str, Module] = {
    "ernie4_5_moe": ernie4_5_moe,
    "longcat_flash": longcat_flash,
    "mimo_v2_flash": mimo_v2_flash,
    "nemotron_h": nemotron_h,
    "qwen3_5_moe_text": qwen,
    "qwen3_5_text": qwen,
    "qwen3_next": qwen,
}
