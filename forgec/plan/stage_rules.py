"""Which stages carry out each operation, one rule an operation; ``unfused_rules`` has those of plain graphs.

A rule turns a node into launches with virtual addresses (``Temp``); liveness and real offsets come later.
Decode takes the matvec path (one row), prefill the matmul path (a chunk of rows).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from forgec.errors import VerifyError
from forgec.ir import ops
from forgec.ir.graph import Node
from forgec.plan.attention_rules import append_new_rows, attention, written_as, written_to
from forgec.plan.geometry import lanes_per_row, matmul_grid, matvec_grid, matvec_tuning
from forgec.plan.lowering import STATE, Arguments, Lowered, Lowering, Temp
from forgec.plan.moe_rules import MOE_RULES
from forgec.plan.program import Argument, Ref
from forgec.plan.stages import (
    EmbeddingParams,
    MatmulParams,
    MatvecParams,
    NormParams,
    NormRopeKVParams,
    QuantiseParams,
    RopeFields,
    RopeKVParams,
    SampleParams,
    Segment,
)
from forgec.plan.stages.linear import LDS_ACTIVATION_BYTES, LDS_GROUP16_BYTES
from forgec.plan.tuning import grid_blocks, lookup
from forgec.plan.unfused_rules import UNFUSED_RULES, pointwise

__all__ = ["lower_node"]


def lower_node(lowering: Lowering, node: Node) -> list[Lowered]:
    """Launches of one node, in order."""
    rule = RULES.get(type(node.op))
    if rule is None:
        raise VerifyError(
            f"node '{node.name}': operation '{type(node.op).__name__}' has no stage",
        )
    return list(rule(lowering, node))


def _embedding(at: Lowering, node: Node) -> Iterator[Lowered]:
    assert isinstance(node.op, ops.Embedding)
    tensor = at.tensors[node.inputs[1]]
    tuning = lookup("embedding", tensor.format, at.target)
    params = EmbeddingParams(
        *at.common(tuning),
        tensor.format,
        tensor.layout,
        tensor.cols,
        tensor.rows,
        at.decode,
        float(node.op.scale),
        positions=len(node.inputs) > 2,
    )
    out = at.value(node.outputs[0])
    tables = (ref for name in node.inputs[1:] for ref in at.planes(name))
    args: Arguments = (STATE, Ref("tokens", 0), *tables, out)
    yield Lowered(params, grid_blocks(at.rows, at.target), args, node.name)


def _linear(at: Lowering, node: Node) -> Iterator[Lowered]:
    assert isinstance(node.op, ops.FusedLinear)
    # The head runs on one chosen row in both timelines: the same kernel serves a prompt and a token.
    one_row = at.decode or at.graph.values[node.outputs[0]].shape[0] == 1
    yield from (_matvec if one_row else _matmul)(at, node, node.op, node.op.by_role(node.inputs))


def _plain_linear(at: Lowering, node: Node) -> Iterator[Lowered]:
    """A product that nothing was fused with."""
    op = ops.FusedLinear(ops.NoPrologue(), ops.Store(), 1, len(node.inputs) > 2)
    return (_matvec if at.decode else _matmul)(at, node, op, op.by_role(node.inputs))


def _segments(at: Lowering, inputs: ops.LinearInputs) -> tuple[Segment, ...]:
    return tuple(Segment(at.tensors[w].format, at.tensors[w].rows) for w in inputs.weights)


def _weight_args(at: Lowering, inputs: ops.LinearInputs) -> tuple[Ref, ...]:
    return tuple(ref for name in (*inputs.weights, *inputs.biases) for ref in at.planes(name))


def _rope_fields(at: Lowering, op: ops.RopeKV, inputs: ops.LinearInputs) -> RopeFields:
    assert inputs.k_cache is not None
    shape = (op.heads, op.kv_heads, op.head_length, op.dims, op.interleaved, at.context)
    return RopeFields(*shape, *written_as(at, inputs.k_cache))


def _act(at: Lowering, node: Node, op: ops.FusedLinear, segments: tuple[Segment, ...]) -> str:
    """Activations of a product: int8 in fast math, except where rounding costs most of the quality.

    What the head rounds goes straight into the logits, and what q and k round is amplified by the softmax:
    on SmolLM2 these two products, a fifth of the weights without the head, make 60 % of the KL divergence.
    """
    if isinstance(op.epilogue, ops.RopeKV) or _makes_logits(at, node):
        return "f32"
    return at.act(s.format for s in segments)


def _makes_logits(at: Lowering, node: Node) -> bool:
    return any(isinstance(user.op, ops.Sample) for user in at.graph.users(node.outputs[0]))


def _output(at: Lowering, node: Node, inputs: ops.LinearInputs) -> Argument | Temp:
    """Where a product goes: over its residual when nobody else reads that, the logits to their own buffer."""
    name = node.outputs[0]
    if _makes_logits(at, node):
        return Ref("logits", 0)
    in_place = inputs.residual is not None and at.is_last_user(node, inputs.residual)
    return at.value(name, alias=inputs.residual if in_place and inputs.residual else "")


EPILOGUES: Mapping[type[ops.Epilogue], str] = {
    ops.Store: "store",
    ops.Residual: "residual",
    ops.NormResidual: "norm_residual",
    ops.Gated: "gated",
    ops.RopeKV: "rope_kv",
}


def _then(op: ops.FusedLinear) -> tuple[str, float]:
    """The function that an epilogue applies, "" for none, and its parameter."""
    match op.epilogue:
        case ops.Gated(function) | ops.Store(function) | ops.Residual(function) | ops.RopeKV(then=function):
            return ("", 0.0) if function is None else pointwise(function)
    return "", 0.0


def _norm_parameters(inputs: ops.LinearInputs) -> tuple[str, ...]:
    """The values behind the parameters of a prologue's norm."""
    return tuple(name for name in (inputs.norm_weight, inputs.norm_bias) if name)


def _prologue(op: ops.FusedLinear) -> tuple[str, float]:
    """Name and epsilon of a prologue."""
    match op.prologue:
        case ops.RMSNormPrologue(eps):
            return "rmsnorm", eps
        case ops.LayerNormPrologue(eps):
            return "layernorm", eps
    return "none", 0.0


#: Formats whose weights become floats in two instructions.
SIMPLE_FORMATS = frozenset({"q4_0", "q4_1", "q8_0"})


def _row_act(
    at: Lowering, node: Node, op: ops.FusedLinear, segments: tuple[Segment, ...], layout: str, cols: int
) -> str:
    """Activations of a product with one row: where int8 is too coarse, 16 bits by integer products.

    Float activations cost two to four times the instructions, since every weight becomes a float, and make a
    CPU's decoding slower than its memory. Only AVX-512 turns the simplest formats into floats more quickly
    than they arrive (30 GB/s instead of 25). On NVIDIA the persistent kernel takes 16 bits, too; the graph
    keeps floats, since nobody has measured it otherwise.
    """
    act = _act(at, node, op, segments)
    formats = {s.format for s in segments}
    if act != "f32" or at.act(formats) != "q8":
        return act
    if layout == "rows8":
        return "f32" if "avx512f" in at.target.requires and formats <= SIMPLE_FORMATS else "q16"
    fits = cols // 32 * LDS_GROUP16_BYTES <= LDS_ACTIVATION_BYTES
    return "q16" if at.target.family.startswith("gfx") and fits else "f32"


def _normed(op: ops.FusedLinear) -> bool:
    """Whether q and k are normed between the product and what RopeKV does with it."""
    return isinstance(op.epilogue, ops.RopeKV) and op.epilogue.norm is not None


def _matvec(at: Lowering, node: Node, op: ops.FusedLinear, inputs: ops.LinearInputs) -> Iterator[Lowered]:
    segments = _segments(at, inputs)
    weight = at.tensors[inputs.weights[0]]
    normed = _normed(op)
    epilogue = "store" if normed else EPILOGUES[type(op.epilogue)]
    tuning = matvec_tuning(segments, weight.cols, epilogue, at.target)
    selected = _selected(at, inputs.x)
    prologue, eps = _prologue(op)
    then, factor = _then(op)
    params = MatvecParams(
        *at.common(tuning),
        cols=weight.cols,
        segments=segments,
        layout=weight.layout,
        act=_row_act(at, node, op, segments, weight.layout, weight.cols),
        epilogue=epilogue,
        bias=op.bias,
        then=then,
        factor=factor,
        prologue=prologue,
        eps=eps,
        post_eps=op.epilogue.eps if isinstance(op.epilogue, ops.NormResidual) else 0.0,
        norm_parameters=op.prologue_names,
        row_select=selected is not None,
        lanes_per_row=lanes_per_row(segments, weight.cols, tuning, at.target),
        rows_per_group=tuning.rows_per_group,
        rope=_rope_fields(at, op.epilogue, inputs)
        if isinstance(op.epilogue, ops.RopeKV) and not normed
        else None,
    )
    qkv = at.temp(f"{node.name}.qkv", 4 * params.rows)
    args: Arguments = (
        STATE,
        selected or at.value(inputs.x),
        *(ref for name in _norm_parameters(inputs) for ref in at.planes(name)),
        *_weight_args(at, inputs),
        *((qkv,) if normed else _tail(at, node, inputs)),
    )
    yield Lowered(params, matvec_grid(params, tuning, at.target), args, node.name)
    if normed:
        yield _rope_kv(at, node, op, inputs, qkv)
    yield from _append_product(at, node, inputs)


def _selected(at: Lowering, name: str) -> Temp | None:
    """The residual stream behind a SelectRow, which the product reads at row ``state.row``."""
    producer = at.graph.producer(name)
    if producer is None or not isinstance(producer.op, ops.SelectRow):
        return None
    return at.value(producer.inputs[0])


def _tail(at: Lowering, node: Node, inputs: ops.LinearInputs) -> tuple[Argument | Temp, ...]:
    """The arguments behind the weights of a matvec: by epilogue."""
    if inputs.k_cache is not None and inputs.v_cache is not None:
        caches = (written_to(at, inputs.k_cache), written_to(at, inputs.v_cache))
        table = at.planes(inputs.rope_table) if inputs.rope_table else ()
        return (*table, at.value(node.outputs[0]), *caches)
    out = _output(at, node, inputs)
    if inputs.residual is None:
        return (out,)
    if inputs.post_norm is not None:
        weight = at.planes(inputs.post_norm)
        return (at.value(inputs.residual), *weight, _raw(at, node), at.counter, out)
    return (at.value(inputs.residual), out)


def _raw(at: Lowering, node: Node) -> Temp:
    """The products of a node before they are normed."""
    return at.temp(f"{node.name}.raw", 4 * at.rows * at.width(node.outputs[0]))


def _matmul(at: Lowering, node: Node, op: ops.FusedLinear, inputs: ops.LinearInputs) -> Iterator[Lowered]:
    segments = _segments(at, inputs)
    weight = at.tensors[inputs.weights[0]]
    act = _act(at, node, op, segments)
    x: tuple[Temp, ...] = (at.value(inputs.x),)
    if op.prologue != ops.NoPrologue() or act == "q8":
        prepare = _prepare(at, node, op, inputs, weight.cols, act)
        yield prepare
        x = tuple(a for a in prepare.args[2:] if isinstance(a, Temp))
    tuning = lookup("matmul", weight.format, at.target)
    rope, post_norm = isinstance(op.epilogue, ops.RopeKV), isinstance(op.epilogue, ops.NormResidual)
    then, factor = _then(op)
    params = MatmulParams(
        *at.common(tuning),
        cols=weight.cols,
        segments=segments,
        layout=weight.layout,
        act=act,
        epilogue="store" if rope or post_norm else EPILOGUES[type(op.epilogue)],
        bias=op.bias,
        then=then,
        factor=factor,
        tile_rows=tuning.tile_rows,
        tile_cols=tuning.tile_cols,
    )
    qkv = at.temp(f"{node.name}.qkv", 4 * params.rows * at.rows)
    tail = (qkv,) if rope else (_raw(at, node),) if post_norm else _tail(at, node, inputs)
    args: Arguments = (STATE, *x, *_weight_args(at, inputs), *tail)
    yield Lowered(params, matmul_grid(params, at.rows, at.target), args, node.name)
    if rope:
        yield _rope_kv(at, node, op, inputs, qkv)
    if post_norm:
        yield _norm_residual(at, node, op, inputs)
    yield from _append_product(at, node, inputs)


def _norm_residual(at: Lowering, node: Node, op: ops.FusedLinear, inputs: ops.LinearInputs) -> Lowered:
    """The launch behind a prompt's product that is normed before it is added."""
    assert isinstance(op.epilogue, ops.NormResidual)
    common = at.common(lookup("norm", "f32", at.target))
    params = NormParams(*common, at.width(node.outputs[0]), op.epilogue.eps, "f32", residual=True)
    residual, *norm, raw, _, out = _tail(at, node, inputs)
    return Lowered(
        params, grid_blocks(at.rows, at.target), (STATE, residual, raw, *norm, out), f"{node.name}.norm_add"
    )


def _append_product(at: Lowering, node: Node, inputs: ops.LinearInputs) -> Iterator[Lowered]:
    if inputs.k_cache is not None and inputs.v_cache is not None:
        yield from append_new_rows(at, node, inputs.k_cache, inputs.v_cache)


def _rope_kv(at: Lowering, node: Node, op: ops.FusedLinear, inputs: ops.LinearInputs, qkv: Temp) -> Lowered:
    """The launch behind a product of q, k and v: norms, rotation, and the append to the caches."""
    assert isinstance(op.epilogue, ops.RopeKV)
    common = at.common(lookup("rope_kv", "f32", at.target))
    rope, name = _rope_fields(at, op.epilogue, inputs), f"{node.name}.rope_kv"
    tail = _tail(at, node, inputs)
    norm = op.epilogue.norm
    if norm is None or inputs.q_norm is None or inputs.k_norm is None:
        return Lowered(
            RopeKVParams(*common, rope), grid_blocks(at.rows, at.target), (STATE, qkv, *tail), name
        )
    params = NormRopeKVParams(*common, rope, norm.span, norm.eps, norm.centred)
    waves = -(-at.rows * (rope.heads + 2 * rope.kv_heads) * at.target.wave // params.block)
    grid = grid_blocks(at.rows if params.share == "row" else waves, at.target)
    norms = (*at.planes(inputs.q_norm), *at.planes(inputs.k_norm))
    return Lowered(params, grid, (STATE, qkv, *norms, *tail), name)


def _prepare(
    at: Lowering, node: Node, op: ops.FusedLinear, inputs: ops.LinearInputs, cols: int, act: str
) -> Lowered:
    """The launch before a prompt's product: norm and/or int8 quantisation of its input rows."""
    if act == "q8":
        scales = 4 * at.rows * (cols // 32)
        outputs: tuple[Temp, ...] = (
            at.temp(f"{node.name}.xq", at.rows * cols),
            at.temp(f"{node.name}.xd", scales),
            at.temp(f"{node.name}.xs", scales),
        )
    else:
        outputs = (at.temp(f"{node.name}.x", 4 * at.rows * cols),)
    grid = grid_blocks(at.rows, at.target)
    prologue, eps = _prologue(op)
    if prologue == "none":
        quantise = QuantiseParams(*at.common(lookup("quantise", act, at.target)), cols)
        return Lowered(quantise, grid, (STATE, at.value(inputs.x), *outputs), f"{node.name}.quantise")
    norm = NormParams(
        *at.common(lookup("norm", act, at.target)),
        cols,
        eps,
        act,
        centred=prologue == "layernorm",
        weight=inputs.norm_weight is not None,
        bias=inputs.norm_bias is not None,
    )
    parameters = (ref for name in _norm_parameters(inputs) for ref in at.planes(name))
    args: Arguments = (STATE, at.value(inputs.x), *parameters, *outputs)
    return Lowered(norm, grid, args, f"{node.name}.norm")


def _select_row(at: Lowering, node: Node) -> Iterator[Lowered]:
    """No launch: the head's product reads the chosen row itself."""
    return iter(())


def _sample(at: Lowering, node: Node) -> Iterator[Lowered]:
    block = 1 if at.target.wave == 1 else at.target.max_threads
    params = SampleParams(at.target.family, at.target.wave, block, at.graph.spec.vocab_size)
    yield Lowered(params, 1, (STATE, Ref("logits", 0), Ref("ring", 0)), node.name)


RULES: Mapping[type[ops.Op], Callable[[Lowering, Node], Iterator[Lowered]]] = {
    ops.Embedding: _embedding,
    ops.Attention: attention,
    ops.FusedLinear: _linear,
    ops.Linear: _plain_linear,
    ops.SelectRow: _select_row,
    ops.Sample: _sample,
    **MOE_RULES,
    **UNFUSED_RULES,
}
