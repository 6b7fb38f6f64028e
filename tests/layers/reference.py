"""What the layers must compute, in float64 NumPy, written from the papers and slow on purpose: loops over heads,
tokens and experts.

Specs are read as data; nothing here calls the code under test but `Spec.layers`, `Spec.runs` and the rope frequencies
of the plain formula. Names follow the files of layers/.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from archzoo.layers.attention import Attention
from archzoo.layers.chunked import ChunkedAttention
from archzoo.layers.decoder import Spec
from archzoo.layers.latent import LatentAttention
from archzoo.layers.mlp import GatedMLP
from archzoo.layers.moe import MoE
from archzoo.layers.norms import L2Norm, LayerNorm, Norm, RMSNorm
from archzoo.layers.rope import Rope
from archzoo.layers.router import Router

Array = Any  # of NumPy, float64 unless it says otherwise
Params = Mapping[str, Any]


def f64(x: Any) -> Array:
    return np.asarray(x, np.float64)


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


# --- norms -----------------------------------------------------------------------------------------------------------


def rms_norm(x: Array, scale: Array | float, eps: float, axes: int = 1) -> Array:
    over = tuple(range(-axes, 0))
    return x / np.sqrt(np.mean(x**2, axis=over, keepdims=True) + eps) * scale


def layer_norm(x: Array, scale: Array, bias: Array | float, eps: float, axes: int = 1) -> Array:
    over = tuple(range(-axes, 0))
    centred = x - x.mean(axis=over, keepdims=True)
    return centred / np.sqrt(x.var(axis=over, keepdims=True) + eps) * scale + bias


def norm(spec: Norm | None, p: Params, x: Array) -> Array:
    """The norm with its parameters, over as many axes as its scale has."""
    if spec is None:
        return x
    if isinstance(spec, L2Norm):
        return rms_norm(x, 1.0, spec.eps)
    (scale,) = (f64(v) for name, v in p.items() if name.startswith("scale_"))
    if isinstance(spec, RMSNorm):
        return rms_norm(x, 1 + scale if spec.zero_centred else scale, spec.eps, scale.ndim)
    assert isinstance(spec, LayerNorm)
    biases = [f64(v) for name, v in p.items() if name.startswith("bias_")]
    return layer_norm(x, scale, biases[0] if spec.bias else 0.0, spec.eps, scale.ndim)


# --- rope ------------------------------------------------------------------------------------------------------------


def rotate(x: Array, positions_BL: Array, rope: Rope) -> Array:
    """Unstretched rope on x [B, L, ..., E]: each pair is a complex number, turned by position * theta^(-2i/dim)."""
    x = x.copy()
    for i in range(rope.dim // 2):
        a, b = (2 * i, 2 * i + 1) if rope.interleaved else (i, i + rope.dim // 2)
        angle = positions_BL * rope.theta ** (-2 * i / rope.dim)
        turn = np.exp(1j * angle).reshape(*angle.shape, *(1,) * (x.ndim - 3))
        z = (x[..., a] + 1j * x[..., b]) * turn
        x[..., a], x[..., b] = z.real, z.imag
    return x


# --- attention -------------------------------------------------------------------------------------------------------


def seen(length: int, window: int | None = None, segments_BL: Array | None = None) -> Array:
    """bool [B or 1, L, L]: which keys a query sees."""
    t, s = np.arange(length)[:, None], np.arange(length)[None, :]
    mask = (s <= t) & (t - s < (window or length))
    return mask[None] if segments_BL is None else mask & (segments_BL[:, :, None] == segments_BL[:, None, :])


def attend(
    q_BLHE: Array,
    k_BMKE: Array,
    v_BMKU: Array,
    seen_BLM: Array,
    scale: float,
    softcap: float | None,
    sinks_H: Array | None = None,
) -> Array:
    """[B, L, H, U]: query head h reads key-value head h // (H / K), one head and one query at a time; a sink is a key
    whose value is nothing.
    """
    batch, length, heads = q_BLHE.shape[:3]
    group = heads // k_BMKE.shape[2]
    out = np.zeros((batch, length, heads, v_BMKU.shape[-1]))
    for b in range(batch):
        mask = seen_BLM[b % len(seen_BLM)]
        for h in range(heads):
            for t in range(length):
                scores = k_BMKE[b, mask[t], h // group] @ q_BLHE[b, t, h] * scale
                scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
                scores = scores if sinks_H is None else np.append(scores, sinks_H[h])
                out[b, t, h] = softmax(scores)[: mask[t].sum()] @ v_BMKU[b, mask[t], h // group]
    return out


def attention(spec: Attention, p: Params, x_BLD: Array, positions_BL: Array, segments_BL: Array | None = None) -> Array:
    q = np.einsum("bld,dkge->blkge", x_BLD, f64(p["wq_DKGE"])) + (f64(p["bq_KGE"]) if "q" in spec.bias else 0)
    k = np.einsum("bld,dke->blke", x_BLD, f64(p["wk_DKE"])) + (f64(p["bk_KE"]) if "k" in spec.bias else 0)
    u, values = ("E", 1.0) if spec.values is None else ("U", spec.values.scale)
    v = np.einsum("bld,dke->blke", x_BLD, f64(p[f"wv_DK{u}"])) + (f64(p[f"bv_K{u}"]) if "v" in spec.bias else 0)
    if spec.qk_norm is not None and not spec.qk_norm.after_rope:
        q, k = (norm(spec.qk_norm.norm, p.get(f"{n}_norm", {}), y) for n, y in (("q", q), ("k", k)))
    if spec.rope is not None:
        q, k = rotate(q, positions_BL, spec.rope), rotate(k, positions_BL, spec.rope)
    if spec.qk_norm is not None and spec.qk_norm.after_rope:
        q, k = (norm(spec.qk_norm.norm, p.get(f"{n}_norm", {}), y) for n, y in (("q", q), ("k", k)))
    q = q.reshape(*x_BLD.shape[:2], spec.heads, spec.head_dim)
    if (t := spec.scores.temperature) is not None:
        q = q * (1 + t.strength * np.log(1 + (positions_BL + t.first) // t.length))[:, :, None, None]
    mask = seen(x_BLD.shape[1], spec.window, segments_BL)
    if isinstance(spec, ChunkedAttention):
        chunk_BL = positions_BL // spec.window
        mask = mask & (chunk_BL[:, :, None] == chunk_BL[:, None, :])
    sinks = f64(p["sinks_KG"]).ravel() if spec.scores.sinks else None
    scale = spec.head_dim**-0.5 if spec.scores.scale is None else spec.scores.scale
    out = attend(q, k, v * values, mask, scale, spec.scores.softcap, sinks)
    if spec.gate:
        gate = np.einsum("bld,dkgu->blkgu", x_BLD, f64(p[f"wg_DKG{u}"]))
        out = out / (1 + np.exp(-gate.reshape(out.shape)))
    wo = f64(p[f"wo_KG{u}D"]).reshape(spec.heads, v.shape[-1], -1)
    return np.einsum("blhe,hed->bld", out, wo) + (f64(p["bo_D"]) if "o" in spec.bias else 0)


def latent_attention(
    spec: LatentAttention, p: Params, x_BLD: Array, positions_BL: Array, segments_BL: Array | None = None
) -> Array:
    """DeepSeek-V3 eqs. 1-11: keys and values of each head read out of the normed latent, one rotated key for all."""
    if spec.q_rank is None:
        q = np.einsum("bld,dhp->blhp", x_BLD, f64(p["wq_DHP"]))
    else:
        q = norm(spec.norm, p["q_norm"], x_BLD @ f64(p["wq_down_DQ"]))
        q = np.einsum("blq,qhp->blhp", q, f64(p["wq_up_QHP"]))
    down = x_BLD @ f64(p["wkv_down_DT"])
    latent, rotated = norm(spec.norm, p["kv_norm"], down[..., : spec.kv_rank]), down[..., spec.kv_rank :]
    rotated = rotate(rotated, positions_BL, spec.rope)
    q = np.concatenate([q[..., : spec.nope_dim], rotate(q[..., spec.nope_dim :], positions_BL, spec.rope)], axis=-1)
    k = np.stack(
        [np.concatenate([latent @ f64(p["wk_CHN"])[:, h], rotated], axis=-1) for h in range(spec.heads)], axis=2
    )
    v = np.stack([latent @ f64(p["wv_CHV"])[:, h] for h in range(spec.heads)], axis=2)
    scale = (spec.nope_dim + spec.rope.dim) ** -0.5
    out = attend(q, k, v, seen(x_BLD.shape[1], None, segments_BL), scale, None)
    return np.einsum("blhv,hvd->bld", out, f64(p["wo_HVD"]))


# --- feed-forward ----------------------------------------------------------------------------------------------------


def gated_mlp(p: Params, x: Array) -> Array:
    """SwiGLU, without biases."""
    return silu(x @ f64(p["w_gate_DF"])) * (x @ f64(p["w_up_DF"])) @ f64(p["w_down_FD"])


def route(spec: Router, logits_X: Array, bias_X: Array | None) -> tuple[list[int], Array, Array]:
    """One token's chosen experts, best first, their weights, and all scores."""
    scores = softmax(logits_X) if spec.score == "softmax" else 1 / (1 + np.exp(-logits_X))
    choice = scores + (0 if bias_X is None else bias_X)
    allowed = set(range(len(scores)))
    if (groups := spec.groups) is not None:
        members = np.split(np.arange(len(scores)), groups.count)
        best = {i: sum(sorted(choice[group])[-groups.best :]) for i, group in enumerate(members)}
        allowed = {int(x) for i in sorted(best, key=lambda i: -best[i])[: groups.kept] for x in members[i]}
    experts = sorted(allowed, key=lambda x: -choice[x])[: spec.top_k]
    weights = scores[experts]
    return experts, (weights / weights.sum() if spec.renormalise else weights) * spec.scale, scores


def experts_sum(x_TD: Array, experts_TK: Array, weights_TK: Array, gate: Array, up: Array, down: Array) -> Array:
    """Each token through its own experts, one at a time."""
    y = np.zeros_like(x_TD)
    for t, x in enumerate(x_TD):
        for expert, weight in zip(experts_TK[t], weights_TK[t], strict=True):
            y[t] += weight * (down[expert] @ (silu(gate[expert] @ x) * (up[expert] @ x)))
    return y


def experts_gradients(
    dy_TD: Array, x_TD: Array, experts_TK: Array, weights_TK: Array, gate: Array, up: Array, down: Array
) -> dict[str, Array]:
    """The gradients of sum(dy * experts_sum(...)), by hand."""
    d = {"x": np.zeros_like(x_TD), "weights": np.zeros_like(weights_TK)}
    d |= {"gate": np.zeros_like(gate), "up": np.zeros_like(up), "down": np.zeros_like(down)}
    for t, x in enumerate(x_TD):
        for k, e in enumerate(experts_TK[t]):
            g, u = gate[e] @ x, up[e] @ x
            d["weights"][t, k] = dy_TD[t] @ (down[e] @ (silu(g) * u))
            dh = weights_TK[t, k] * (dy_TD[t] @ down[e])
            sigmoid = 1 / (1 + np.exp(-g))
            dg, du = dh * u * sigmoid * (1 + g * (1 - sigmoid)), dh * silu(g)
            d["down"][e] += weights_TK[t, k] * np.outer(dy_TD[t], silu(g) * u)
            d["gate"][e] += np.outer(dg, x)
            d["up"][e] += np.outer(du, x)
            d["x"][t] += dg @ gate[e] + du @ up[e]
    return d


def moe(spec: MoE, p: Params, x_BLD: Array) -> Array:
    x_TD = x_BLD.reshape(-1, x_BLD.shape[-1])
    bias = f64(p["router"]["bias_X"]) if spec.router.bias else None
    routed = [route(spec.router, logits, bias)[:2] for logits in x_TD @ f64(p["router"]["w_DX"])]
    experts, weights = np.array([e for e, _ in routed]), np.array([w for _, w in routed])
    y = experts_sum(x_TD, experts, weights, *(f64(p[f"w_{n}"]) for n in ("gate_XFD", "up_XFD", "down_XDF")))
    return (y + (gated_mlp(p["shared"], x_TD) if spec.shared else 0)).reshape(x_BLD.shape)


# --- the decoder -----------------------------------------------------------------------------------------------------


def layer(spec: Any, p: Params, x_BLD: Array, positions_BL: Array, segments_BL: Array | None) -> Array:
    if isinstance(spec, GatedMLP):
        return gated_mlp(p, x_BLD)
    if isinstance(spec, MoE):
        return moe(spec, p, x_BLD)
    kind = attention if isinstance(spec, Attention) else latent_attention
    return kind(spec, p, x_BLD, positions_BL, segments_BL)


def decoder(spec: Spec, params: Params, tokens_BL: Array, segments_BL: Array | None = None) -> Array:
    """float64 logits [B, L, V]; positions count within a document."""
    positions = np.broadcast_to(np.arange(tokens_BL.shape[1]), tokens_BL.shape).copy()
    if segments_BL is not None:
        for row, segments in zip(positions, segments_BL, strict=True):
            row -= np.array([list(segments).index(s) for s in segments])
    x = f64(params["embed_VD"])[tokens_BL] * spec.embedding_scale
    for r, run in enumerate(spec.runs):
        for repeat in range(run.repeats):
            for position, (block, *parts) in enumerate(run.period):
                p = _pass(params[f"run_{r}"][f"layer_{position}"], repeat)
                for name, part in zip(("attention", "mlp"), parts, strict=True):
                    y = norm(block.before, p.get(f"{name}_before", {}), x)
                    y = layer(part, p[name], y, positions, segments_BL)
                    y = norm(block.after, p.get(f"{name}_after", {}), y)
                    x = norm(block.outer, p.get(f"{name}_outer", {}), x + y * block.scale)
    x = norm(spec.final_norm, params.get("final_norm", {}), x)
    logits = x @ (f64(params["embed_VD"]).T if spec.tied else f64(params["head_DV"])) * spec.logit_scale
    return logits if spec.logit_softcap is None else spec.logit_softcap * np.tanh(logits / spec.logit_softcap)


def _pass(tree: Any, repeat: int) -> Any:
    return {k: _pass(v, repeat) for k, v in tree.items()} if isinstance(tree, Mapping) else f64(tree)[repeat]


def correction_index(dim: int, theta: float, length: int, turns: float) -> float:
    """Where, between the dimensions, rope turns so many times in `length` positions: by bisection."""
    low, high = -1e3, 1e3
    for _ in range(200):
        middle = (low + high) / 2
        too_fast = math.log(length / (2 * math.pi)) - 2 * middle / dim * math.log(theta) > math.log(turns)
        low, high = (middle, high) if too_fast else (low, middle)
    return low
