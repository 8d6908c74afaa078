"""Which stages carry out mixture-of-experts layers and latent attention, for a prompt and for a token.

A token takes two launches after the router's product: the first decides the routing in every block. A prompt
sorts its (token, expert) pairs on the device and multiplies each expert's rows in tiles. A rule turns a node
into launches with virtual addresses; liveness and real offsets come later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from forgec.ir import ops
from forgec.ir.expert_ops import ExpertInputs, Experts, HeadLinear, LatentQK
from forgec.ir.graph import Node
from forgec.plan.geometry import lanes_per_row, power_of_two_below
from forgec.plan.lowering import STATE, Arguments, Lowered, Lowering, Temp
from forgec.plan.program import PackedTensor
from forgec.plan.stages import (
    ExpertDownParams,
    ExpertGatherParams,
    ExpertMatmulParams,
    ExpertSumParams,
    ExpertUpParams,
    HeadMatvecParams,
    LatentParams,
    NormParams,
    QuantiseParams,
    RouterParams,
    Segment,
    SharedExpert,
)
from forgec.plan.stages.experts import fits_int8
from forgec.plan.tuning import grid_blocks, lookup

__all__ = ["MOE_RULES"]

#: Fewest and most rows of a tile of a grouped product: what a block of 256 threads shares evenly.
TILE_ROWS = (16, 64)


@dataclass(frozen=True)
class _Layer:
    """An Experts node with its tensors, and the decisions that its launches share."""

    at: Lowering
    node: Node
    op: Experts
    inputs: ExpertInputs
    gate: PackedTensor
    up: PackedTensor
    down: PackedTensor
    shared: tuple[PackedTensor, ...]

    @classmethod
    def of(cls, at: Lowering, node: Node) -> _Layer:
        assert isinstance(node.op, Experts)
        inputs = node.op.by_role(node.inputs)
        gate, up, down = (at.tensors[name] for name in inputs.weights)
        return cls(at, node, node.op, inputs, gate, up, down, tuple(at.tensors[n] for n in inputs.shared))

    @property
    def inner(self) -> int:
        """Rows of an expert's gate."""
        return self.gate.rows // self.op.routing.experts

    @property
    def pairs(self) -> int:
        """Most (token, expert) pairs of a step."""
        return self.at.rows * self.op.routing.used

    @property
    def tile_rows(self) -> int:
        """Rows of a tile: about what an expert gets of a whole chunk."""
        low, high = TILE_ROWS
        return min(high, max(low, power_of_two_below(self.pairs // self.op.routing.experts)))

    def act(self, second: bool) -> str:
        """Activations of the first or second products, of the experts and the shared one alike.

        Those of all experts of a token lie side by side before the second: too long for LDS they stay floats.
        """
        tensors = (self.down, *self.shared[2:]) if second else (self.gate, self.up, *self.shared[:2])
        cols = self.op.routing.used * self.inner + sum(t.rows for t in self.shared[:1])
        if not fits_int8(cols if second else self.gate.cols):
            return "f32"
        return self.at.act(t.format for t in tensors)

    def temp(self, name: str, words: int) -> Temp:
        """A temporary of this node, of 4-byte words."""
        return self.at.temp(f"{self.node.name}.{name}", 4 * words)

    def plain(self, *names: str | None) -> Arguments:
        """Addresses of those vectors, biases and matrices that there are."""
        return tuple(ref for name in names if name is not None for ref in self.at.planes(name))

    @property
    def selection(self) -> Arguments:
        return self.plain(self.inputs.selection_bias)

    @property
    def residual(self) -> Arguments:
        return () if self.inputs.residual is None else (self.at.value(self.inputs.residual),)

    @property
    def output(self) -> Temp:
        """Over the residual where nobody else reads that."""
        residual = self.inputs.residual
        in_place = residual is not None and self.at.is_last_user(self.node, residual)
        return self.at.value(self.node.outputs[0], alias=residual if in_place and residual else "")


def _experts(at: Lowering, node: Node) -> Iterator[Lowered]:
    layer = _Layer.of(at, node)
    return _token(layer) if at.decode else _prompt(layer)


# ---------------------------------------------------------------- one token


def _token(layer: _Layer) -> Iterator[Lowered]:
    at, op, used = layer.at, layer.op, layer.op.routing.used
    shared = _shared(layer)
    tuning = lookup("expert_up", layer.gate.format, at.target)
    segments = tuple(Segment(t.format, t.rows) for t in (layer.gate, layer.up, *layer.shared[:2]))
    up = ExpertUpParams(
        *at.common(tuning),
        routing=op.routing,
        selection_bias=op.selection_bias,
        gate=layer.gate.format,
        up=layer.up.format,
        cols=layer.gate.cols,
        inner=layer.inner,
        bias=op.bias,
        activation=op.activation,
        shared_expert=shared,
        prologue=_prologue(op),
        eps=_eps(op),
        act=layer.act(second=False),
        lanes_per_row=lanes_per_row(segments, layer.gate.cols, tuning, at.target),
        rows_per_group=tuning.rows_per_group,
        layout=layer.gate.layout,
    )
    chosen, shares = layer.temp("chosen", used), layer.temp("shares", used + 1)
    h = layer.temp("h", used * layer.inner + up.shared_rows)
    inputs = layer.inputs
    weights = layer.plain(*inputs.weights[:2], *inputs.biases[:2], *inputs.shared[:2], inputs.shared_switch)
    args: Arguments = (STATE, at.value(inputs.x), *layer.plain(inputs.norm_weight), at.value(inputs.logits))
    yield Lowered(
        up, _groups(at, up), (*args, *layer.selection, *weights, chosen, shares, h), f"{layer.node.name}.up"
    )
    tuning = lookup("expert_down", layer.down.format, at.target)
    down = ExpertDownParams(
        *at.common(tuning),
        experts=op.routing.experts,
        used=used,
        down=layer.down.format,
        rows=layer.down.rows // op.routing.experts,
        inner=layer.inner,
        bias=op.bias,
        shared_down=shared.down if shared is not None else "",
        shared_inner=up.shared_rows,
        scale=op.scale,
        residual=op.residual,
        act=layer.act(second=True),
        lanes_per_row=lanes_per_row((Segment(layer.down.format, 1),), layer.inner, tuning, at.target),
        rows_per_group=tuning.rows_per_group,
        layout=layer.down.layout,
    )
    weights = layer.plain(inputs.weights[2], *inputs.biases[2:], *inputs.shared[2:])
    args = (STATE, h, chosen, shares, *weights, *layer.residual, layer.output)
    yield Lowered(down, _groups(at, down), args, f"{layer.node.name}.down")


def _shared(layer: _Layer) -> SharedExpert | None:
    if not layer.shared:
        return None
    gate, up, down = layer.shared
    return SharedExpert(gate.format, up.format, down.format, gate.rows, layer.op.shared == "gated")


def _prologue(op: Experts) -> str:
    return "rmsnorm" if isinstance(op.prologue, ops.RMSNormPrologue) else "none"


def _eps(op: Experts) -> float:
    return op.prologue.eps if isinstance(op.prologue, ops.RMSNormPrologue) else 0.0


def _groups(at: Lowering, params: ExpertUpParams | ExpertDownParams | HeadMatvecParams) -> int:
    """Blocks of a launch whose items each go to a group of lanes."""
    return grid_blocks(-(-params.items // max(1, params.block // params.lanes_per_row)), at.target)


# ---------------------------------------------------------------- a prompt


def _prompt(layer: _Layer) -> Iterator[Lowered]:
    at, op, inputs, name = layer.at, layer.op, layer.inputs, layer.node.name
    used, cols = op.routing.used, layer.gate.cols
    x = at.value(inputs.x)
    if inputs.norm_weight is not None:
        norm = NormParams(*at.common(lookup("norm", "f32", at.target)), cols, _eps(op), "f32")
        normed = layer.temp("x", at.rows * cols)
        args: Arguments = (STATE, x, *layer.plain(inputs.norm_weight), normed)
        yield Lowered(norm, grid_blocks(at.rows, at.target), args, f"{name}.norm")
        x = normed
    router = RouterParams(
        *at.common(lookup("router", "f32", at.target)), op.routing, op.selection_bias, layer.tile_rows
    )
    weights, place, order = (layer.temp(n, layer.pairs) for n in ("weights", "place", "order"))
    tiles = layer.temp("tiles", 1 + 3 * (layer.pairs // layer.tile_rows + op.routing.experts))
    args = (STATE, at.value(inputs.logits), *layer.selection, layer.temp("chosen", layer.pairs), weights)
    args = (*args, place, order, tiles, at.counter)
    yield Lowered(router, grid_blocks(at.rows, at.target), args, f"{name}.router")
    act = layer.act(second=False)
    gather = ExpertGatherParams(
        *at.common(lookup("expert_gather", act, at.target)), cols, cols, used, "sorted", act
    )
    rows = _activations(layer, "sorted", act, layer.pairs, cols)
    yield Lowered(gather, grid_blocks(layer.pairs, at.target), (STATE, x, order, *rows), f"{name}.gather")
    h = layer.temp("h", layer.pairs * layer.inner)
    weights_up = layer.plain(*inputs.weights[:2], *inputs.biases[:2])
    formats = (layer.gate.format, layer.up.format)
    yield _grouped(layer, "up", formats, op.activation, act, (*rows, tiles, *weights_up, h))
    act = layer.act(second=True)
    rows = (h,)
    if act == "q8":
        rows = _activations(layer, "h", act, layer.pairs, layer.inner)
        yield _quantise(layer, "quantise", h, rows, used * layer.inner)
    y = layer.temp("y", layer.pairs * cols)
    weights_down = layer.plain(inputs.weights[2], *inputs.biases[2:])
    yield _grouped(layer, "down", (layer.down.format,), "", act, (*rows, tiles, *weights_down, y))
    args = (STATE, y, weights, place)
    if layer.shared:
        more = layer.temp("shared", at.rows * cols)
        yield from _prompt_shared(layer, x, more)
        args = (*args, more)
    if inputs.shared_switch is not None:
        args = (*args, x, *layer.plain(inputs.shared_switch))
    total = ExpertSumParams(
        *at.common(lookup("expert_sum", "f32", at.target)), cols, used, op.scale, op.shared, op.residual
    )
    args = (*args, *layer.residual, layer.output)
    yield Lowered(total, grid_blocks(at.rows, at.target), args, f"{name}.sum")


def _prompt_shared(layer: _Layer, x: Temp, out: Temp) -> Iterator[Lowered]:
    """The shared expert of all rows of x: a stack of one matrix, which every row meets."""
    at, inputs = layer.at, layer.inputs
    gate, up, down = layer.shared
    act = layer.act(second=False)
    rows: tuple[Temp, ...] = (x,)
    if act == "q8":
        rows = _activations(layer, "x", act, at.rows, gate.cols)
        yield _quantise(layer, "shared_x", x, rows, gate.cols)
    h = layer.temp("shared_h", at.rows * gate.rows)
    weights = layer.plain(*inputs.shared[:2])
    yield _all_rows(layer, "shared_up", (gate, up), "silu", act, (*rows, *weights, h))
    act, rows = layer.act(second=True), (h,)
    if act == "q8":
        rows = _activations(layer, "shared_h", act, at.rows, gate.rows)
        yield _quantise(layer, "shared_h", h, rows, gate.rows)
    weights = layer.plain(*inputs.shared[2:])
    yield _all_rows(layer, "shared_down", (down,), "", act, (*rows, *weights, out))


def _activations(layer: _Layer, name: str, act: str, rows: int, cols: int) -> tuple[Temp, ...]:
    """Temporaries of rows of activations: floats, or int8 with scale and sum per 32."""
    if act == "f32":
        return (layer.temp(f"{name}.f32", rows * cols),)
    scales = rows * (cols // 32)
    names = ((f"{name}.q", rows * cols // 4), (f"{name}.d", scales), (f"{name}.s", scales))
    return tuple(layer.temp(n, words) for n, words in names)


def _quantise(layer: _Layer, note: str, x: Temp, rows: tuple[Temp, ...], cols: int) -> Lowered:
    at = layer.at
    params = QuantiseParams(*at.common(lookup("quantise", "q8", at.target)), cols)
    grid = grid_blocks(at.rows, at.target)
    return Lowered(params, grid, (STATE, x, *rows), f"{layer.node.name}.{note}")


def _grouped(
    layer: _Layer, note: str, formats: tuple[str, ...], activation: str, act: str, args: Arguments
) -> Lowered:
    """A product of the sorted pairs with the matrices of their experts."""
    at, experts = layer.at, layer.op.routing.experts
    tensor = layer.gate if activation else layer.down
    tuning = lookup("expert_matmul", tensor.format, at.target)
    rows = tensor.rows // experts
    params = ExpertMatmulParams(
        *at.common(tuning),
        cols=tensor.cols,
        rows=rows,
        stack=experts,
        formats_of=formats,
        activation=activation,
        bias=layer.op.bias,
        act=act,
        listing="sorted",
        pitch=rows,
        tile_rows=layer.tile_rows,
        tile_cols=tuning.tile_cols,
        layout=tensor.layout,
    )
    tiles = layer.pairs // layer.tile_rows + min(experts, layer.pairs)
    return _tiled(at, params, tiles, args, f"{layer.node.name}.{note}")


def _all_rows(
    layer: _Layer, note: str, tensors: tuple[PackedTensor, ...], activation: str, act: str, args: Arguments
) -> Lowered:
    formats = tuple(t.format for t in tensors)
    return _of_heads(layer.at, tensors[0], 1, formats, activation, act, 0, args, f"{layer.node.name}.{note}")


def _of_heads(
    at: Lowering,
    tensor: PackedTensor,
    heads: int,
    formats: tuple[str, ...],
    activation: str,
    act: str,
    pitch: int,
    args: Arguments,
    note: str,
) -> Lowered:
    """A product of all rows with every matrix of a stack; ``pitch`` 0 leaves no room between heads."""
    tuning = lookup("expert_matmul", tensor.format, at.target)
    rows = tensor.rows // heads
    params = ExpertMatmulParams(
        *at.common(tuning),
        cols=tensor.cols,
        rows=rows,
        stack=heads,
        formats_of=formats,
        activation=activation,
        bias=False,
        act=act,
        listing="heads",
        pitch=pitch or rows,
        tile_rows=tuning.tile_rows,
        tile_cols=tuning.tile_cols,
        layout=tensor.layout,
    )
    return _tiled(at, params, heads * -(-at.rows // tuning.tile_rows), args, note)


def _tiled(at: Lowering, params: ExpertMatmulParams, tiles: int, args: Arguments, note: str) -> Lowered:
    grid = grid_blocks(tiles * -(-params.rows // params.tile_cols), at.target, blocks_per_unit=8)
    return Lowered(params, grid, (STATE, *args), note)


# -------------------------------------------------------- latent attention


def _head_linear(at: Lowering, node: Node) -> Iterator[Lowered]:
    assert isinstance(node.op, HeadLinear)
    x, weight = node.inputs
    tensor = at.tensors[weight]
    return _head_product(at, node, tensor, node.op.heads, at.value(x), tensor.cols, node.outputs[0], 0)


def _latent(at: Lowering, node: Node) -> Iterator[Lowered]:
    op = node.op
    assert isinstance(op, LatentQK)
    q, weight, kv, norm_weight, table, cache = node.inputs
    tensor, pitch = at.tensors[weight], op.nope_length + op.rope_dims
    latent = tensor.rows // op.heads
    out = node.outputs[0]
    yield from _head_product(at, node, tensor, op.heads, at.value(q), pitch, out, latent + op.rope_dims)
    params = LatentParams(
        *at.common(lookup("latent", at.options.kv_dtype, at.target)),
        heads=op.heads,
        nope_length=op.nope_length,
        rope_dims=op.rope_dims,
        interleaved=op.interleaved,
        eps=op.eps,
        cache=at.kv_cache(cache, value_length=latent),
    )
    vectors = (*at.planes(norm_weight), *at.planes(table))
    args: Arguments = (STATE, at.value(q), at.value(kv), *vectors, at.value(out), at.cache(cache))
    yield Lowered(params, grid_blocks(at.rows, at.target), args, f"{node.name}.latent")


def _head_product(
    at: Lowering, node: Node, tensor: PackedTensor, heads: int, x: Temp, pitch: int, out: str, out_pitch: int
) -> Iterator[Lowered]:
    """Every head's activations, ``pitch`` elements apart, times its own matrix."""
    rows, cols = tensor.rows // heads, tensor.cols
    y = at.value(out)
    if at.decode:
        tuning = lookup("head_matvec", tensor.format, at.target)
        params = HeadMatvecParams(
            *at.common(tuning),
            heads=heads,
            format=tensor.format,
            rows=rows,
            inner=cols,
            pitch=pitch,
            out_pitch=out_pitch or rows,
            lanes_per_row=lanes_per_row((Segment(tensor.format, rows),), cols, tuning, at.target),
            rows_per_group=tuning.rows_per_group,
        )
        yield Lowered(params, _groups(at, params), (STATE, x, *at.planes(tensor.name), y), node.name)
        return
    gather = ExpertGatherParams(
        *at.common(lookup("expert_gather", "f32", at.target)), cols, pitch, heads, "heads", "f32"
    )
    by_head = at.temp(f"{node.name}.x", 4 * at.rows * heads * cols)
    grid = grid_blocks(at.rows * heads, at.target)
    yield Lowered(gather, grid, (STATE, x, by_head), f"{node.name}.gather")
    args: Arguments = (by_head, *at.planes(tensor.name), y)
    yield _of_heads(at, tensor, heads, (tensor.format,), "", "f32", out_pitch, args, node.name)


MOE_RULES: Mapping[type[ops.Op], Callable[[Lowering, Node], Iterator[Lowered]]] = {
    Experts: _experts,
    HeadLinear: _head_linear,
    LatentQK: _latent,
}
