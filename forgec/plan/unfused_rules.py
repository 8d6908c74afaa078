"""Stages of operations that no pass has fused: one kernel per operation.

With the fusions switched off a model still compiles, slower; comparing both packages finds a fusion or a
fused kernel that is wrong. Prompt and token take the same stages here, with one row or a chunk of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from forgec.errors import VerifyError
from forgec.ir import ops
from forgec.ir.graph import Node
from forgec.plan.lowering import STATE, Arguments, Lowered, Lowering, Temp
from forgec.plan.stages import (
    ElementwiseParams,
    KVAppendParams,
    MaskParams,
    NormParams,
    QKParams,
    RopeParams,
    ScaleParams,
    SoftmaxParams,
    StageParams,
    WeightedVParams,
)
from forgec.plan.tuning import grid_blocks, lookup

__all__ = ["UNFUSED_RULES", "pointwise"]


def _common(at: Lowering, stage: str) -> tuple[str, int, int]:
    return at.common(lookup(stage, "f32", at.target))


def _launch(at: Lowering, params: StageParams, args: Arguments, node: Node, work: int) -> Iterator[Lowered]:
    yield Lowered(params, grid_blocks(work, at.target), args, node.name)


def _norm(at: Lowering, node: Node) -> Iterator[Lowered]:
    op = node.op
    match op:
        case ops.NormAdd():
            residual, x, *parameters = node.inputs
        case _:
            x, *parameters = node.inputs
            residual = ""
    width = at.width(x)
    common = _common(at, "norm")
    match op:
        case ops.RMSNorm(eps) | ops.NormAdd(ops.RMSNorm(eps)):
            params = NormParams(*common, width, eps, "f32", residual=bool(residual))
        case ops.LayerNorm(eps, weight, bias):
            params = NormParams(*common, width, eps, "f32", centred=True, weight=weight, bias=bias)
        case ops.HeadNorm(heads, eps, centred):
            own = len(at.graph.values[parameters[0]].shape) == 2
            params = NormParams(
                *common, width // heads, eps, "f32", centred=centred, groups=heads, own_weights=own
            )
        case _:
            raise VerifyError(f"node '{node.name}': operation '{op}' is no norm")
    in_place = residual if residual and at.is_last_user(node, residual) else ""
    args: Arguments = (
        STATE,
        *((at.value(residual),) if residual else ()),
        at.value(x),
        *(ref for name in parameters for ref in at.planes(name)),
        at.value(node.outputs[0], alias=in_place),
    )
    return _launch(at, params, args, node, at.rows * params.groups)


def _rope(at: Lowering, node: Node) -> Iterator[Lowered]:
    op = node.op
    assert isinstance(op, ops.Rope)
    x, table = node.inputs
    params = RopeParams(*_common(at, "rope"), op.heads, op.head_length, op.dims, op.interleaved)
    args: Arguments = (STATE, at.value(x), *at.planes(table), at.value(node.outputs[0]))
    return _launch(at, params, args, node, at.rows)


def _kv_append(at: Lowering, node: Node) -> Iterator[Lowered]:
    op = node.op
    assert isinstance(op, ops.KVAppend)
    half = len(node.inputs) // 2
    rows, caches = node.inputs[:half], node.inputs[half:]
    params = KVAppendParams(*_common(at, "kv_append"), at.kv_cache(*caches, value_length=op.v_length))
    args: Arguments = (STATE, *(at.value(name) for name in rows), *(at.cache(name) for name in caches))
    return _launch(at, params, args, node, at.rows)


def _scores(at: Lowering, name: str) -> Temp:
    """The temporary of scores [heads, rows, context], float32."""
    return at.temp(name, 4 * _heads(at, name) * at.rows * at.context)


def _heads(at: Lowering, name: str) -> int:
    """First dimension of scores."""
    heads = at.graph.values[name].shape[0]
    if not isinstance(heads, int):
        raise VerifyError(f"value '{name}' has no fixed number of heads: {heads}")
    return heads


def _qk(at: Lowering, node: Node) -> Iterator[Lowered]:
    op = node.op
    assert isinstance(op, ops.QK)
    q, k_cache = node.inputs
    cache = at.kv_cache(k_cache, value_length=op.head_length)
    params = QKParams(*_common(at, "qk"), op.heads, cache)
    args: Arguments = (STATE, at.value(q), at.cache(k_cache), _scores(at, node.outputs[0]))
    return _launch(at, params, args, node, op.heads * at.rows)


def _weighted_v(at: Lowering, node: Node) -> Iterator[Lowered]:
    op = node.op
    assert isinstance(op, ops.WeightedV)
    weights, v_cache = node.inputs
    # Rows of values alone are rows of which the values are the whole.
    cache = at.kv_cache(v_cache, value_length=op.value_length)
    params = WeightedVParams(*_common(at, "weighted_v"), op.heads, cache)
    args: Arguments = (STATE, _scores(at, weights), at.cache(v_cache), at.value(node.outputs[0]))
    return _launch(at, params, args, node, op.heads * at.rows)


def _on_scores(at: Lowering, node: Node) -> Iterator[Lowered]:
    if len(at.graph.values[node.outputs[0]].shape) == 2:
        return _elementwise(at, node)
    op, name = node.op, node.inputs[0]
    heads = _heads(at, name)
    params: StageParams
    sinks: Arguments = ()
    match op:
        case ops.Scale():
            params = ScaleParams(*_common(at, "scale"), heads, at.context, op.factor)
        case ops.SoftCap():
            params = ScaleParams(*_common(at, "scale"), heads, at.context, op.cap, capped=True)
        case ops.Mask():
            params = MaskParams(*_common(at, "mask"), heads, at.context, op.causal, op.window, op.alibi)
        case ops.Softmax():
            params = SoftmaxParams(*_common(at, "softmax"), heads, at.context, op.sinks)
            sinks = at.planes(node.inputs[1]) if op.sinks else ()
        case _:
            raise VerifyError(f"node '{node.name}': operation '{op}' has no stage")
    args: Arguments = (STATE, _scores(at, name), *sinks, _scores(at, node.outputs[0]))
    return _launch(at, params, args, node, heads * at.rows)


def pointwise(op: ops.Op) -> tuple[str, float]:
    """Name of the function in ``templates/lib/pointwise``, and its parameter (0 where it has none)."""
    match op:
        case ops.SiLU():
            return "silu", 0.0
        case ops.GELU():
            return "gelu", 0.0
        case ops.SquaredReLU():
            return "squared_relu", 0.0
        case ops.Scale(factor):
            return "scale", float(factor)
        case ops.SoftCap(cap):
            return "softcap", float(cap)
        case ops.Clamp(limit):
            return "clamp", float(limit)
    raise VerifyError(f"operation '{op}' is no function of single elements")


def _elementwise(at: Lowering, node: Node) -> Iterator[Lowered]:
    width = at.width(node.outputs[0])
    binary = {ops.Add: "add", ops.Mul: "mul"}.get(type(node.op))
    name, factor = (binary, 0.0) if binary else pointwise(node.op)
    params = ElementwiseParams(*_common(at, "elementwise"), name, width, factor)
    args: Arguments = (STATE, *(at.value(name) for name in node.inputs), at.value(node.outputs[0]))
    return _launch(at, params, args, node, -(-at.rows * width // params.block))


UNFUSED_RULES: Mapping[type[ops.Op], Callable[[Lowering, Node], Iterator[Lowered]]] = {
    ops.RMSNorm: _norm,
    ops.LayerNorm: _norm,
    ops.HeadNorm: _norm,
    ops.NormAdd: _norm,
    ops.Rope: _rope,
    ops.KVAppend: _kv_append,
    ops.QK: _qk,
    ops.Scale: _on_scores,
    ops.SoftCap: _on_scores,
    ops.Mask: _on_scores,
    ops.Softmax: _on_scores,
    ops.WeightedV: _weighted_v,
    ops.Add: _elementwise,
    ops.Mul: _elementwise,
    ops.SiLU: _elementwise,
    ops.GELU: _elementwise,
    ops.SquaredReLU: _elementwise,
    ops.Clamp: _elementwise,
}
