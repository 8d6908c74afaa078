"""The NumPy meaning of mixture-of-experts layers: routing, experts, shared expert.

Arrays of one float type go in by role, the sum of the chosen experts comes out. Nothing is grouped or
reordered here: every token goes through its own experts one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from forgec.ir.expert_ops import Experts, Routing

__all__ = ["activate", "experts", "route"]

Array = npt.NDArray[Any]

#: Least sum of weights that they are divided by: the smallest normal f16.
LEAST_SUM = 2.0**-14
#: gpt-oss's activation: slope of the sigmoid, and where gate and up are cut.
ALPHA, LIMIT = 1.702, 7.0


def route(routing: Routing, logits: Array, selection_bias: Array | None = None) -> tuple[Array, Array]:
    """The chosen experts i32[rows, used], best first, and their weights like the logits, [rows, used].

    ``logits`` is [rows, experts].
    """
    scores = {"softmax": _softmax, "sigmoid": _sigmoid}.get(routing.gating, np.asarray)(logits)
    select = scores if selection_bias is None else scores + selection_bias
    if routing.groups > 1:
        select = _within_groups(routing, select)
    chosen = np.argsort(-select, axis=-1, kind="stable")[:, : routing.used]
    weights = np.take_along_axis(scores, chosen, -1)
    if routing.gating == "softmax_chosen":
        weights = _softmax(weights)
    if routing.normalise:
        weights = weights / np.maximum(weights.sum(-1, keepdims=True), weights.dtype.type(LEAST_SUM))
    return chosen.astype(np.int32), weights * weights.dtype.type(routing.scale)


def _within_groups(routing: Routing, select: Array) -> Array:
    """-inf for the experts outside of the best groups."""
    rows = len(select)
    grouped = select.reshape(rows, routing.groups, -1)
    best = np.sort(grouped, axis=-1)[..., -2:].sum(-1)
    kept = np.argsort(-best, axis=-1, kind="stable")[:, : routing.groups_used]
    mask = np.zeros((rows, routing.groups, 1), bool)
    np.put_along_axis(mask[..., 0], kept, True, -1)
    return np.where(mask, grouped, select.dtype.type(-np.inf)).reshape(select.shape)


def activate(activation: str, gate: Array, up: Array) -> Array:
    """The gated activation of ``Experts``; see ``ACTIVATIONS``."""
    if activation == "silu":
        found: Array = gate * _sigmoid(gate) * up
        return found
    gate, up = np.minimum(gate, gate.dtype.type(LIMIT)), np.clip(up, -LIMIT, LIMIT)
    found = gate * _sigmoid(gate.dtype.type(ALPHA) * gate) * (up + up.dtype.type(1))
    return found


def experts(op: Experts, x: Array, roles: Mapping[str, Array]) -> Array:
    """The op without prologue and residual: x [rows, E] -> [rows, E]."""
    chosen, weights = route(op.routing, roles["logits"], roles.get("selection_bias"))
    y = np.zeros_like(x)
    for row in range(len(x)):
        for expert, weight in zip(chosen[row], weights[row], strict=True):
            gate, up = (_product(roles, name, expert, x[row]) for name in ("gate", "up"))
            y[row] += weight * _product(roles, "down", expert, activate(op.activation, gate, up))
    if op.shared != "none":
        gate, up = x @ roles["shared_gate"].T, x @ roles["shared_up"].T
        shared = activate("silu", gate, up) @ roles["shared_down"].T
        if op.shared == "gated":
            shared = shared * _sigmoid(x @ roles["shared_switch"])[:, None]
        y = y + shared
    scaled: Array = y * y.dtype.type(op.scale)
    return scaled


def _product(roles: Mapping[str, Array], name: str, expert: int, x: Array) -> Array:
    y: Array = roles[name][expert] @ x
    return y + roles[f"{name}_bias"][expert] if f"{name}_bias" in roles else y


def _sigmoid(x: Array) -> Array:
    # exp of negative numbers only, so that nothing overflows.
    decay = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + decay), decay / (1 + decay))


def _softmax(x: Array) -> Array:
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    found: Array = exponentials / exponentials.sum(-1, keepdims=True)
    return found
