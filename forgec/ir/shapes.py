"""The types that an op's outputs must have, from the types of its inputs.

An op and its input values go in, one (shape, dtype) per output comes out, and a ``VerifyError`` that names
the node, what was expected and what was found where the inputs do not fit. The importers use it to declare
values, the verifier to check them; it never looks at the graph around the node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import singledispatch

from forgec.errors import VerifyError
from forgec.frontend.quant import QUANT_BY_NAME
from forgec.ir import expert_ops, ops
from forgec.ir.graph import Shape, Value

__all__ = ["EXECUTABLE_TYPES", "Type", "infer"]

Type = tuple[Shape, str]

#: Weight types with kernels.
EXECUTABLE_TYPES = tuple(name.lower() for name, quant in QUANT_BY_NAME.items() if quant.weights)


def infer(node: str, op: ops.Op, inputs: Sequence[Value]) -> tuple[Type, ...]:
    """The (shape, dtype) of every output of ``op``, in order; ``node`` is the name for messages.

    Raises VerifyError for a wrong number, shape or dtype of inputs.
    """
    names = op.input_names
    optional = len(names) > 0 and names[-1].endswith("?")
    least = len(names) - optional
    if not least <= len(inputs) <= len(names):
        expected = f"{least} or {len(names)}" if optional else f"{least}"
        raise VerifyError(
            f"node '{node}': {type(op).__name__} takes {expected} inputs ({', '.join(names)}), "
            f"found {len(inputs)}"
        )
    return _infer(op, _Check(node), tuple(inputs))


class _Check:
    """The comparisons that the rules below are made of; each raises with the node's name."""

    def __init__(self, node: str) -> None:
        self.node = node

    def fail(self, what: str, expected: object, found: object) -> VerifyError:
        return VerifyError(f"node '{self.node}': expected {what} {expected}, found {found}")

    def shape(self, role: str, value: Value, *expected: int | str) -> None:
        if value.shape != expected:
            raise self.fail(f"{role} '{value.name}' of shape", _text(expected), _text(value.shape))

    def rank(self, role: str, value: Value, rank: int) -> None:
        if len(value.shape) != rank:
            raise self.fail(f"{role} '{value.name}' with", f"{rank} dimensions", _text(value.shape))

    def dtype(self, role: str, value: Value, expected: str) -> None:
        if value.dtype != expected:
            raise self.fail(f"{role} '{value.name}' of type", expected, value.dtype)

    def f32(self, role: str, value: Value, *shape: int | str) -> None:
        self.dtype(role, value, "f32")
        if shape:
            self.shape(role, value, *shape)

    def matrix(self, role: str, value: Value) -> tuple[int, int]:
        """A weight of any executable type and two numeric extents, which are returned: (rows, cols)."""
        if value.kind != "weight":
            raise self.fail(f"{role} '{value.name}' of kind", "weight", value.kind)
        if value.dtype not in EXECUTABLE_TYPES:
            raise self.fail(f"{role} '{value.name}' of type", "/".join(EXECUTABLE_TYPES), value.dtype)
        self.rank(role, value, 2)
        rows, cols = value.shape
        if not isinstance(rows, int) or not isinstance(cols, int):
            raise self.fail(f"{role} '{value.name}' with", "numeric extents", _text(value.shape))
        block = QUANT_BY_NAME[value.dtype.upper()].block
        if cols % block:
            raise self.fail(f"{role} '{value.name}' with rows of", f"whole blocks of {block}", cols)
        return rows, cols

    def stack(self, role: str, value: Value, *shape: int | str) -> None:
        """A weight of one matrix per expert or head: any executable type, the given extents."""
        if value.kind != "weight":
            raise self.fail(f"{role} '{value.name}' of kind", "weight", value.kind)
        if value.dtype not in EXECUTABLE_TYPES:
            raise self.fail(f"{role} '{value.name}' of type", "/".join(EXECUTABLE_TYPES), value.dtype)
        self.shape(role, value, *shape)
        cols, block = value.shape[-1], QUANT_BY_NAME[value.dtype.upper()].block
        if not isinstance(cols, int) or cols % block:
            raise self.fail(f"{role} '{value.name}' with rows of", f"whole blocks of {block}", cols)

    def state(self, role: str, value: Value, *shape: int | str) -> None:
        if value.kind != "state":
            raise self.fail(f"{role} '{value.name}' of kind", "state", value.kind)
        self.f32(role, value, *shape)

    def attention_heads(self, heads: int, kv_heads: int) -> None:
        if kv_heads < 1 or heads % kv_heads:
            raise self.fail("heads that are", f"a multiple of the {kv_heads} KV heads", heads)


def _text(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(str(extent) for extent in shape)}]"


@singledispatch
def _infer(op: ops.Op, check: _Check, inputs: tuple[Value, ...]) -> tuple[Type, ...]:
    raise VerifyError(f"node '{check.node}': op '{type(op).__name__}' has no shape rule")


@_infer.register
def _(op: ops.Embedding, check: _Check, inputs: tuple[Value, ...]) -> tuple[Type, ...]:
    tokens, weight = inputs[:2]
    check.dtype("tokens", tokens, "i32")
    check.rank("tokens", tokens, 1)
    _, length = check.matrix("weight", weight)
    if len(inputs) == 3:
        check.rank("positions", inputs[2], 2)
        check.f32("positions", inputs[2], inputs[2].shape[0], length)
    return (((tokens.shape[0], length), "f32"),)


@_infer.register
def _(op: ops.RMSNorm, check: _Check, inputs: tuple[Value, ...]) -> tuple[Type, ...]:
    x, weight = inputs
    check.f32("x", x)
    check.rank("x", x, 2)
    check.f32("weight", weight, x.shape[-1])
    return ((x.shape, "f32"),)


@_infer.register
def _(op: ops.LayerNorm, check: _Check, inputs: tuple[Value, ...]) -> tuple[Type, ...]:
    x = inputs[0]
    check.f32("x", x)
    check.rank("x", x, 2)
    for role, value in zip(op.input_names[1:], inputs[1:], strict=True):
        check.f32(role, value, x.shape[-1])
    return ((x.shape, "f32"),)


@_infer.register
def _(op: ops.HeadNorm, check: _Check, inputs: tuple[Value, ...]) -> tuple[Type, ...]:
    x, weight = inputs
    check.f32("x", x)
    check.rank("x", x, 2)
    width = x.shape[1]
    if not isinstance(width, int) or width % op.heads:
        raise check.fail("x with", f"whole heads, {op.heads} of them", _text(x.shape))
    shared = (width // op.heads,)
    check.f32("weight", weight, *(shared if len(weight.shape) == 1 else (op.heads, *shared)))
    return ((x.shape, "f32"),)


@_infer.register
def _(op: ops.NormAdd, check: _Check, inputs: tuple[Value, ...]) -> tuple[Type, ...]:
    residual, x, weight = inputs
    check.f32("x", x)
    check.rank("x", x, 2)
    check.f32("residual", residual, *x.shape)
    check.f32("weight", weight, x.shape[-1])
    return ((x.shape, "f32"),)


@_infer.register
def _(op: ops.Linear, check: _Check, inputs: tuple[Value, ...]) -> tuple[Type, ...]:
    x, weight = inputs[:2]
    rows, cols = check.matrix("weight", weight)
    check.f32("x", x)
    check.rank("x", x, 2)
    check.shape("x", x, x.shape[0], cols)
    if len(inputs) == 3:
        check.f32("bias", inputs[2], rows)
    return (((x.shape[0], rows), "f32"),)


@_infer.register
def _(op: ops.Rope, check: _Check, inputs: tuple[Value, ...]) -> tuple[Type, ...]:
    x, table = inputs
    check.f32("x", x, "rows", op.heads * op.head_length)
    _rope_table(check, table, op.dims, op.head_length)
    return ((x.shape, "f32"),)


def _rope_table(check: _Check, table: Value, dims: int, head_length: int) -> None:
    if dims % 2 or not 0 < dims <= head_length:
        raise check.fail("RoPE dims that are", f"even and from 2 to {head_length}", dims)
    check.f32("rope_table", table, "context", dims // 2, 2)


@_infer.register
def _(op: ops.KVAppend, check: _Check, inputs: tuple[Value, ...]) -> tuple[Type, ...]:
    roles = dict(zip(op.input_names, inputs, strict=True))
    check.f32("k", roles["k"], "rows", op.kv_heads * op.head_length)
    if not op.v_from_k:
        check.f32("v", roles["v"], "rows", op.kv_heads * op.v_length)
    return _caches(check, roles, op.kv_heads, op.head_length, op.v_length, op.v_from_k)


def _caches(
    check: _Check,
    roles: Mapping[str, Value],
    kv_heads: int,
    length: int,
    v_length: int,
    v_from_k: bool = False,
) -> tuple[Type, ...]:
    """Check the caches among ``roles``; the types of their next versions."""
    if v_from_k and v_length > length:
        raise check.fail("values that are a prefix of keys of", f"at most {length} elements", v_length)
    lengths = {"k_cache": length} if v_from_k else {"k_cache": length, "v_cache": v_length}
    for role, extent in lengths.items():
        check.state(role, roles[role], kv_heads, "context", extent)
    return tuple((roles[role].shape, "f32") for role in lengths)


@_infer.register
def _(op: ops.QK, check: _Check, inputs: tuple[Value, ...]) -> tuple[Type, ...]:
    q, k_cache = inputs
    check.attention_heads(op.heads, op.kv_heads)
    check.f32("q", q, "rows", op.heads * op.head_length)
    check.state("k_cache", k_cache, op.kv_heads, "context", op.head_length)
    return (((op.heads, "rows", "context"), "f32"),)


@_infer.register(ops.Pointwise)
def _(op: ops.Op, check: _Check, inputs: tuple[Value, ...]) -> tuple[Type, ...]:
    check.f32("x", inputs[0])
    return ((inputs[0].shape, "f32"),)


@_infer.register
def _(op: ops.Mask, check: _Check, inputs: tuple[Value, ...]) -> tuple[Type, ...]:
    (scores,) = inputs
    check.f32("x", scores)
    check.rank("x", scores, 3)
    check.shape("x", scores, scores.shape[0], "rows", "context")
    _bias_and_window(check, op.window, op.alibi)
    return ((scores.shape, "f32"),)


def _bias_and_window(check: _Check, window: int, alibi: float) -> None:
    if window < 0:
        raise check.fail("a window of", "at least 1, or 0 for none", window)
    if alibi < 0:
        raise check.fail("an ALiBi exponent of", "at least 0", alibi)


@_infer.register
def _(op: ops.Softmax, check: _Check, inputs: tuple[Value, ...]) -> tuple[Type, ...]:
    check.f32("x", inputs[0])
    if op.sinks:
        check.f32("sinks", inputs[1], inputs[0].shape[0])
    return ((inputs[0].shape, "f32"),)


@_infer.register
def _(op: ops.WeightedV, check: _Check, inputs: tuple[Value, ...]) -> tuple[Type, ...]:
    weights, v_cache = inputs
    check.attention_heads(op.heads, op.kv_heads)
    check.f32("weights", weights, op.heads, "rows", "context")
    if op.row_length and op.row_length < op.value_length:
        raise check.fail("cache rows of", f"at least {op.value_length} elements", op.row_length)
    check.state("v_cache", v_cache, op.kv_heads, "context", op.row_length or op.value_length)
    return ((("rows", op.heads * op.value_length), "f32"),)


@_infer.register(ops.Add)
@_infer.register(ops.Mul)
def _(op: ops.Op, check: _Check, inputs: tuple[Value, ...]) -> tuple[Type, ...]:
    a, b = inputs
    check.f32("a", a)
    check.f32("b", b, *a.shape)
    return ((a.shape, "f32"),)


@_infer.register
def _(op: ops.SelectRow, check: _Check, inputs: tuple[Value, ...]) -> tuple[Type, ...]:
    (x,) = inputs
    check.f32("x", x)
    check.rank("x", x, 2)
    check.shape("x", x, "rows", x.shape[1])
    return (((1, x.shape[1]), "f32"),)


@_infer.register
def _(op: ops.Sample, check: _Check, inputs: tuple[Value, ...]) -> tuple[Type, ...]:
    (logits,) = inputs
    check.f32("logits", logits)
    check.rank("logits", logits, 2)
    check.shape("logits", logits, 1, logits.shape[1])
    return (((1,), "i32"),)


@_infer.register
def _(op: ops.Attention, check: _Check, inputs: tuple[Value, ...]) -> tuple[Type, ...]:
    roles = dict(zip(op.input_names, inputs, strict=True))
    check.attention_heads(op.heads, op.kv_heads)
    check.f32("q", roles["q"], "rows", op.heads * op.head_length)
    _caches(check, roles, op.kv_heads, op.head_length, op.v_length, op.v_from_k)
    _bias_and_window(check, op.window, op.alibi)
    if op.sinks:
        check.f32("sinks", roles["sinks"], op.heads)
    return ((("rows", op.heads * op.v_length), "f32"),)


_SEGMENTS: dict[type[ops.Epilogue], int] = {ops.Residual: 1, ops.NormResidual: 1, ops.Gated: 2, ops.RopeKV: 3}


@_infer.register
def _(op: ops.FusedLinear, check: _Check, inputs: tuple[Value, ...]) -> tuple[Type, ...]:
    wanted = _SEGMENTS.get(type(op.epilogue), max(op.segments, 1))
    if op.segments != wanted:
        raise check.fail(f"{type(op.epilogue).__name__} with", f"{wanted} segments", op.segments)
    roles = dict(zip(op.input_names, inputs, strict=True))
    x = roles["x"]
    check.f32("x", x)
    check.rank("x", x, 2)
    lengths = []
    for segment in range(op.segments):
        weight = roles[f"weight{segment}"]
        length, cols = check.matrix(f"weight{segment}", weight)
        check.shape("x", x, x.shape[0], cols)
        if op.bias:
            check.f32(f"bias{segment}", roles[f"bias{segment}"], length)
        lengths.append(length)
    for role in ("norm_weight", "norm_bias"):
        if role in roles:
            check.f32(role, roles[role], x.shape[1])
    return _epilogue(op.epilogue, check, roles, lengths)


def _epilogue(
    epilogue: ops.Epilogue, check: _Check, roles: dict[str, Value], lengths: list[int]
) -> tuple[Type, ...]:
    """The outputs of a FusedLinear whose segments have ``lengths`` rows."""
    rows = roles["x"].shape[0]
    if isinstance(epilogue, (ops.Residual, ops.NormResidual)):
        check.f32("residual", roles["residual"], rows, lengths[0])
    if isinstance(epilogue, ops.NormResidual):
        check.f32("post_norm", roles["post_norm"], lengths[0])
    if isinstance(epilogue, ops.Gated):
        if lengths[0] != lengths[1]:
            raise check.fail("gate and up of", "equal length", f"{lengths[0]} and {lengths[1]}")
        return (((rows, lengths[0]), "f32"),)
    if isinstance(epilogue, ops.RopeKV):
        return _rope_kv(epilogue, check, roles, lengths)
    return (((rows, sum(lengths)), "f32"),)


def _rope_kv(
    epilogue: ops.RopeKV, check: _Check, roles: dict[str, Value], lengths: list[int]
) -> tuple[Type, ...]:
    check.attention_heads(epilogue.heads, epilogue.kv_heads)
    e = epilogue
    expected = [e.heads * e.head_length, e.kv_heads * e.head_length, e.kv_heads * e.v_length]
    if lengths != expected:
        raise check.fail("q, k and v of length", expected, lengths)
    check.shape("x", roles["x"], "rows", roles["x"].shape[1])
    if e.dims:
        _rope_table(check, roles["rope_table"], e.dims, e.head_length)
    if e.norm is not None:
        _qk_norm(e.norm, check, roles, (e.heads, e.kv_heads), e.head_length)
    caches = _caches(check, roles, e.kv_heads, e.head_length, e.v_length)
    return ((("rows", lengths[0]), "f32"), *caches)


def _qk_norm(
    norm: ops.QKNorm, check: _Check, roles: dict[str, Value], heads: tuple[int, int], length: int
) -> None:
    for role, count in zip(("q_norm", "k_norm"), heads, strict=True):
        shapes = {"head": (length,), "heads": (count, length), "row": (count * length,)}
        if norm.span not in shapes:
            raise check.fail("a norm over", "/".join(shapes), norm.span)
        check.f32(role, roles[role], *shapes[norm.span])


@_infer.register
def _(op: expert_ops.Experts, check: _Check, inputs: tuple[Value, ...]) -> tuple[Type, ...]:
    routing = op.routing
    if not 0 < routing.used <= routing.experts:
        raise check.fail("experts used", f"from 1 to {routing.experts}", routing.used)
    if (
        routing.groups < 1
        or routing.experts % routing.groups
        or not 0 < routing.groups_used <= routing.groups
    ):
        raise check.fail("groups that divide the experts", f"{routing.experts}", routing.groups)
    roles = dict(zip(op.input_names, inputs, strict=True))
    x = roles["x"]
    check.f32("x", x)
    check.rank("x", x, 2)
    width = x.shape[1]
    check.f32("logits", roles["logits"], x.shape[0], routing.experts)
    _expert_matrices(op, check, roles, width)
    for role, length in (
        ("norm_weight", width),
        ("selection_bias", routing.experts),
        ("shared_switch", width),
    ):
        if role in roles:
            check.f32(role, roles[role], length)
    if op.residual:
        check.f32("residual", roles["residual"], *x.shape)
    return ((x.shape, "f32"),)


def _expert_matrices(
    op: expert_ops.Experts, check: _Check, roles: dict[str, Value], width: int | str
) -> None:
    """The matrices of the experts and of the shared expert fit together."""
    experts = op.routing.experts
    check.rank("gate", roles["gate"], 3)
    inner = roles["gate"].shape[1]
    check.stack("gate", roles["gate"], experts, inner, width)
    check.stack("up", roles["up"], experts, inner, width)
    check.stack("down", roles["down"], experts, width, inner)
    if op.bias:
        check.f32("gate_bias", roles["gate_bias"], experts, inner)
        check.f32("up_bias", roles["up_bias"], experts, inner)
        check.f32("down_bias", roles["down_bias"], experts, width)
    if op.shared != "none":
        rows, _ = check.matrix("shared_gate", roles["shared_gate"])
        check.stack("shared_gate", roles["shared_gate"], rows, width)
        check.stack("shared_up", roles["shared_up"], rows, width)
        check.stack("shared_down", roles["shared_down"], width, rows)


@_infer.register
def _(op: expert_ops.HeadLinear, check: _Check, inputs: tuple[Value, ...]) -> tuple[Type, ...]:
    x, weight = inputs
    check.rank("weight", weight, 3)
    _, out, cols = weight.shape
    check.stack("weight", weight, op.heads, out, cols)
    check.f32("x", x, "rows", op.heads * int(cols))
    return ((("rows", op.heads * int(out)), "f32"),)


@_infer.register
def _(op: expert_ops.LatentQK, check: _Check, inputs: tuple[Value, ...]) -> tuple[Type, ...]:
    q, weight, kv, norm_weight, table, cache = inputs
    check.f32("q", q, "rows", op.heads * (op.nope_length + op.rope_dims))
    check.rank("weight", weight, 3)
    latent = weight.shape[1]
    check.stack("weight", weight, op.heads, latent, op.nope_length)
    length = int(latent) + op.rope_dims
    check.f32("kv", kv, "rows", length)
    check.f32("norm_weight", norm_weight, latent)
    _rope_table(check, table, op.rope_dims, op.rope_dims)
    check.state("k_cache", cache, 1, "context", length)
    return ((("rows", op.heads * length), "f32"), (cache.shape, "f32"))
