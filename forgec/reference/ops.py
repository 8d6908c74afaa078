"""The NumPy meaning of every op.

Arrays of one float type and the facts of the step go in, the arrays of the outputs come out. Fused ops are
the composition of what they replace; nothing is ever modified in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any

import numpy as np
import numpy.typing as npt

from forgec.errors import VerifyError
from forgec.ir import expert_ops, ops
from forgec.reference import experts
from forgec.reference.sampling import SamplerSettings, sample

__all__ = ["Array", "Step", "alibi_slopes", "evaluate"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Step:
    """The facts of one step: ``position`` of its first row, the ``row`` that SelectRow takes, the sampler and
    how many tokens it has sampled before (``index``)."""

    position: int = 0
    row: int = 0
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    index: int = 0


def evaluate(op: ops.Op, inputs: Sequence[Array], step: Step) -> tuple[Array, ...]:
    """The outputs of ``op`` in order; the caches as inputs hold the positions before the step."""
    return _evaluate(op, step, *inputs)


@singledispatch
def _evaluate(op: ops.Op, step: Step, *inputs: Array) -> tuple[Array, ...]:
    raise VerifyError(f"op '{type(op).__name__}' has no reference implementation")


@_evaluate.register
def _(
    op: ops.Embedding, step: Step, tokens: Array, weight: Array, positions: Array | None = None
) -> tuple[Array, ...]:
    y = weight[tokens] * weight.dtype.type(op.scale)
    return (y if positions is None else y + positions[step.position : step.position + len(tokens)],)


@_evaluate.register
def _(op: ops.RMSNorm, step: Step, x: Array, weight: Array) -> tuple[Array, ...]:
    mean = np.mean(np.square(x), axis=-1, keepdims=True)
    return (x / np.sqrt(mean + x.dtype.type(op.eps)) * weight,)


@_evaluate.register
def _(op: ops.LayerNorm, step: Step, x: Array, *parameters: Array) -> tuple[Array, ...]:
    centred = x - np.mean(x, axis=-1, keepdims=True)
    y = centred / np.sqrt(np.mean(np.square(centred), axis=-1, keepdims=True) + x.dtype.type(op.eps))
    roles = dict(zip(op.input_names[1:], parameters, strict=True))
    return (y * roles.get("weight", x.dtype.type(1)) + roles.get("bias", x.dtype.type(0)),)


@_evaluate.register
def _(op: ops.HeadNorm, step: Step, x: Array, weight: Array) -> tuple[Array, ...]:
    heads = x.reshape(len(x), op.heads, -1)
    norm = ops.LayerNorm(op.eps, weight=True, bias=False) if op.centred else ops.RMSNorm(op.eps)
    return (evaluate(norm, (heads, weight), step)[0].reshape(x.shape),)


@_evaluate.register
def _(op: ops.NormAdd, step: Step, residual: Array, x: Array, weight: Array) -> tuple[Array, ...]:
    return (residual + evaluate(op.norm, (x, weight), step)[0],)


@_evaluate.register
def _(op: ops.Linear, step: Step, x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, ...]:
    y = x @ weight.T
    return (y if bias is None else y + bias,)


@_evaluate.register
def _(op: ops.Rope, step: Step, x: Array, table: Array) -> tuple[Array, ...]:
    rows, half = len(x), op.dims // 2
    turned = x.reshape(rows, op.heads, op.head_length).copy()
    angles = table[step.position : step.position + rows, None, :]
    cos, sin = angles[..., 0], angles[..., 1]
    first = slice(0, op.dims, 2) if op.interleaved else slice(0, half)
    second = slice(1, op.dims, 2) if op.interleaved else slice(half, op.dims)
    a, b = turned[..., first].copy(), turned[..., second].copy()
    turned[..., first] = a * cos - b * sin
    turned[..., second] = a * sin + b * cos
    return (turned.reshape(x.shape),)


@_evaluate.register
def _(op: ops.KVAppend, step: Step, *inputs: Array) -> tuple[Array, ...]:
    def append(cache: Array, rows: Array) -> Array:
        added = rows.reshape(len(rows), op.kv_heads, -1).transpose(1, 0, 2)
        return np.concatenate([cache[:, : step.position], added], axis=1)

    half = len(inputs) // 2  # (k, k_cache), or (k, v, k_cache, v_cache)
    return tuple(append(cache, rows) for rows, cache in zip(inputs[:half], inputs[half:], strict=True))


@_evaluate.register
def _(op: ops.QK, step: Step, q: Array, k_cache: Array) -> tuple[Array, ...]:
    grouped = q.reshape(len(q), op.kv_heads, op.heads // op.kv_heads, op.head_length)
    scores = np.einsum("rgni,gji->gnrj", grouped, k_cache, optimize=True)
    return (scores.reshape(op.heads, len(q), k_cache.shape[1]),)


@_evaluate.register
def _(op: ops.Scale, step: Step, x: Array) -> tuple[Array, ...]:
    return (x * x.dtype.type(op.factor),)


@_evaluate.register
def _(op: ops.Mask, step: Step, scores: Array) -> tuple[Array, ...]:
    position = step.position + np.arange(scores.shape[1])[:, None]
    key = np.arange(scores.shape[2])[None, :]
    seen = np.ones((scores.shape[1], scores.shape[2]), bool)
    if op.causal:
        seen &= key <= position
    if op.window > 0:
        seen &= key > position - op.window
    if op.alibi > 0:
        slopes = alibi_slopes(len(scores), op.alibi).astype(scores.dtype)
        scores = scores + slopes[:, None, None] * (key - position).astype(scores.dtype)
    return (np.where(seen, scores, scores.dtype.type(-np.inf)),)


def alibi_slopes(heads: int, max_bias: float) -> npt.NDArray[np.float64]:
    """ALiBi's slope of every head, f64[heads], for any number of heads; see ``ops.Mask``."""
    whole = 1 << (heads.bit_length() - 1)
    head = np.arange(heads)
    return np.where(
        head < whole,
        2.0 ** (-max_bias * (head + 1) / whole),
        2.0 ** (-max_bias * (2 * (head - whole) + 1) / (2 * whole)),
    )


@_evaluate.register
def _(op: ops.SoftCap, step: Step, x: Array) -> tuple[Array, ...]:
    cap = x.dtype.type(op.cap)
    return (cap * np.tanh(x / cap),)


@_evaluate.register
def _(op: ops.Softmax, step: Step, x: Array, sinks: Array | None = None) -> tuple[Array, ...]:
    highest = np.max(x, axis=-1, keepdims=True)
    sink = np.full((), -np.inf, x.dtype) if sinks is None else sinks.reshape(-1, *[1] * (x.ndim - 1))
    highest = np.maximum(highest, sink)
    # A row of nothing but -inf has no distribution: subtracting 0 keeps it at exp(-inf) = 0 and not at NaN.
    zero = np.where(np.isneginf(highest), x.dtype.type(0), highest)
    exponentials = np.exp(x - zero)
    total = np.sum(exponentials, axis=-1, keepdims=True) + np.exp(sink - zero)
    return (exponentials / np.where(total == 0, x.dtype.type(1), total),)


@_evaluate.register
def _(op: ops.WeightedV, step: Step, weights: Array, v_cache: Array) -> tuple[Array, ...]:
    heads, rows, context = weights.shape
    grouped = weights.reshape(op.kv_heads, heads // op.kv_heads, rows, context)
    mixed = np.einsum("gnrj,gji->rgni", grouped, v_cache[..., : op.value_length], optimize=True)
    return (mixed.reshape(rows, heads * op.value_length),)


@_evaluate.register
def _(op: ops.Add, step: Step, a: Array, b: Array) -> tuple[Array, ...]:
    return (a + b,)


@_evaluate.register
def _(op: ops.Mul, step: Step, a: Array, b: Array) -> tuple[Array, ...]:
    return (a * b,)


@_evaluate.register
def _(op: ops.SiLU, step: Step, x: Array) -> tuple[Array, ...]:
    # x * sigmoid(x) with exp of negative numbers only, so that nothing overflows.
    decay = np.exp(-np.abs(x))
    return (x * np.where(x >= 0, 1 / (1 + decay), decay / (1 + decay)),)


@_evaluate.register
def _(op: ops.GELU, step: Step, x: Array) -> tuple[Array, ...]:
    inner = x.dtype.type(np.sqrt(2 / np.pi)) * (x + x.dtype.type(0.044715) * x * x * x)
    return (x * (1 + np.tanh(inner)) / 2,)


@_evaluate.register
def _(op: ops.SquaredReLU, step: Step, x: Array) -> tuple[Array, ...]:
    return (np.square(np.maximum(x, 0)),)


@_evaluate.register
def _(op: ops.Clamp, step: Step, x: Array) -> tuple[Array, ...]:
    limit = x.dtype.type(op.limit)
    return (np.clip(x, -limit, limit),)


@_evaluate.register
def _(op: ops.SelectRow, step: Step, x: Array) -> tuple[Array, ...]:
    return (x[step.row : step.row + 1],)


@_evaluate.register
def _(op: ops.Sample, step: Step, logits: Array) -> tuple[Array, ...]:
    return (np.array([sample(logits[0], step.sampler, step.index)], np.int32),)


@_evaluate.register
def _(op: ops.Attention, step: Step, *inputs: Array) -> tuple[Array, ...]:
    roles = dict(zip(op.input_names, inputs, strict=True))
    k_cache = roles["k_cache"]
    (scores,) = evaluate(ops.QK(op.heads, op.kv_heads, op.head_length), (roles["q"], k_cache), step)
    (scores,) = evaluate(ops.Scale(op.scale), (scores,), step)
    if op.softcap > 0:
        (scores,) = evaluate(ops.SoftCap(op.softcap), (scores,), step)
    (scores,) = evaluate(ops.Mask(op.causal, op.window, op.alibi), (scores,), step)
    sinks = (roles["sinks"],) if op.sinks else ()
    (weights,) = evaluate(ops.Softmax(op.sinks), (scores, *sinks), step)
    mix = ops.WeightedV(op.heads, op.kv_heads, op.v_length)
    return evaluate(mix, (weights, roles.get("v_cache", k_cache)), step)


@_evaluate.register
def _(op: ops.FusedLinear, step: Step, *inputs: Array) -> tuple[Array, ...]:
    roles = dict(zip(op.input_names, inputs, strict=True))
    x = _prologue(op.prologue, roles, step)
    products: list[Array] = []
    for segment in range(op.segments):
        bias = (roles[f"bias{segment}"],) if op.bias else ()
        products += evaluate(ops.Linear(), (x, roles[f"weight{segment}"], *bias), step)
    return _epilogue(op.epilogue, products, roles, step)


def _prologue(prologue: ops.Prologue, roles: dict[str, Array], step: Step) -> Array:
    parameters = [roles[role] for role in ("norm_weight", "norm_bias") if role in roles]
    if isinstance(prologue, ops.RMSNormPrologue):
        return evaluate(ops.RMSNorm(prologue.eps), (roles["x"], *parameters), step)[0]
    if isinstance(prologue, ops.LayerNormPrologue):
        norm = ops.LayerNorm(prologue.eps, prologue.weight, prologue.bias)
        return evaluate(norm, (roles["x"], *parameters), step)[0]
    return roles["x"]


def _epilogue(
    epilogue: ops.Epilogue, products: list[Array], roles: dict[str, Array], step: Step
) -> tuple[Array, ...]:
    if isinstance(epilogue, ops.RopeKV):
        if epilogue.then is not None:
            products = [evaluate(epilogue.then, (y,), step)[0] for y in products]
        return _rope_kv(epilogue, products, roles, step)
    if isinstance(epilogue, ops.Gated):
        (gate,) = evaluate(epilogue.activation, (products[0],), step)
        return evaluate(ops.Mul(), (gate, products[1]), step)
    if isinstance(epilogue, ops.NormResidual):
        norm = ops.NormAdd(ops.RMSNorm(epilogue.eps))
        return evaluate(norm, (roles["residual"], products[0], roles["post_norm"]), step)
    assert isinstance(epilogue, (ops.Store, ops.Residual))
    y = np.concatenate(products, axis=-1)
    if epilogue.then is not None:
        (y,) = evaluate(epilogue.then, (y,), step)
    return (y,) if isinstance(epilogue, ops.Store) else evaluate(ops.Add(), (roles["residual"], y), step)


def _rope_kv(e: ops.RopeKV, products: list[Array], roles: dict[str, Array], step: Step) -> tuple[Array, ...]:
    turned = []
    for role, heads, y in (("q_norm", e.heads, products[0]), ("k_norm", e.kv_heads, products[1])):
        if e.norm is not None:
            row = ops.RMSNorm(e.norm.eps)
            norm = row if e.norm.span == "row" else ops.HeadNorm(heads, e.norm.eps, e.norm.centred)
            (y,) = evaluate(norm, (y, roles[role]), step)
        if e.dims:
            rope = ops.Rope(heads, e.head_length, e.dims, e.interleaved)
            (y,) = evaluate(rope, (y, roles["rope_table"]), step)
        turned.append(y)
    caches = (roles["k_cache"], roles["v_cache"])
    append = ops.KVAppend(e.kv_heads, e.head_length, e.v_length)
    return (turned[0], *evaluate(append, (turned[1], products[2], *caches), step))


@_evaluate.register
def _(op: expert_ops.Experts, step: Step, *inputs: Array) -> tuple[Array, ...]:
    roles = dict(zip(op.input_names, inputs, strict=True))
    x = roles["x"]
    if isinstance(op.prologue, ops.RMSNormPrologue):
        (x,) = evaluate(ops.RMSNorm(op.prologue.eps), (x, roles["norm_weight"]), step)
    y = experts.experts(op, x, roles)
    return (roles["residual"] + y if op.residual else y,)


@_evaluate.register
def _(op: expert_ops.HeadLinear, step: Step, x: Array, weight: Array) -> tuple[Array, ...]:
    split = x.reshape(len(x), op.heads, -1)
    return (np.einsum("rhi,hoi->rho", split, weight, optimize=True).reshape(len(x), -1),)


@_evaluate.register
def _(op: expert_ops.LatentQK, step: Step, *inputs: Array) -> tuple[Array, ...]:
    q, weight, kv, norm_weight, table, cache = inputs
    latent = weight.shape[1]
    split = q.reshape(len(q), op.heads, op.nope_length + op.rope_dims)
    absorbed = np.einsum("rhi,hoi->rho", split[..., : op.nope_length], weight, optimize=True)
    queries = np.concatenate([absorbed, _turn(op, split[..., op.nope_length :], table, step)], axis=-1)
    (normed,) = evaluate(ops.RMSNorm(op.eps), (kv[:, :latent], norm_weight), step)
    key = np.concatenate([normed, _turn(op, kv[:, None, latent:], table, step)[:, 0]], axis=-1)[None]
    return queries.reshape(len(q), -1), np.concatenate([cache[:, : step.position], key], axis=1)


def _turn(op: expert_ops.LatentQK, x: Array, table: Array, step: Step) -> Array:
    """Rope of all elements of [rows, heads, dims]."""
    rope = ops.Rope(x.shape[1], op.rope_dims, op.rope_dims, op.interleaved)
    (turned,) = evaluate(rope, (x.reshape(len(x), -1), table), step)
    return turned.reshape(x.shape)
