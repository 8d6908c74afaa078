"""Which stages carry out fused attention and the append of a step's rows to a quantised KV cache.

Rules as in ``stage_rules``. Products write k and v of a step feature by feature, which a cache of blocks
cannot take: there they go to float32 rows first, and whoever reads the cache next puts them into it.
"""

from __future__ import annotations

from collections.abc import Iterator

from forgec.ir import ops
from forgec.ir.graph import Node
from forgec.plan.geometry import attention_tile, lanes_per_key, matrix_decode
from forgec.plan.kvcache import readers
from forgec.plan.lowering import STATE, Arguments, Lowered, Lowering, Temp
from forgec.plan.program import Argument, Ref
from forgec.plan.stages import AttentionDecodeParams, AttentionPrefillParams, KVAppendParams
from forgec.plan.stages.cache import rows_bytes
from forgec.plan.tuning import attention_splits, grid_blocks, lookup

__all__ = ["append_new_rows", "attention", "written_as", "written_to"]


def attention(at: Lowering, node: Node) -> Iterator[Lowered]:
    """A prompt's chunk, or one token with its keys split over the chip."""
    op = node.op
    assert isinstance(op, ops.Attention)
    yield from (_decode if at.decode else _prefill)(at, node, op)


def _prefill(at: Lowering, node: Node, op: ops.Attention) -> Iterator[Lowered]:
    tuning = lookup("attention", at.options.kv_dtype, at.target)
    lengths = (op.head_length, op.v_length)
    held = {"f16": 2}.get(at.options.kv_dtype, 4)  # LDS bytes of an element
    queries, keys = attention_tile(op.heads, lengths, held, at.rows, tuning, at.target)
    params = AttentionPrefillParams(
        *at.common(tuning),
        op.heads,
        at.kv_cache(*_caches(op, node), value_length=op.v_length),
        op.scale,
        op.window,
        op.softcap,
        op.alibi,
        op.sinks,
        causal=op.causal,
        tile_queries=queries,
        tile_keys=keys,
    )
    tiles = op.heads * -(-at.rows // queries)
    args = (*_inputs(at, node, op), at.value(node.outputs[0]))
    yield Lowered(params, grid_blocks(tiles, at.target, 8), args, node.name)


def _decode(at: Lowering, node: Node, op: ops.Attention) -> Iterator[Lowered]:
    tuning = lookup("attention", at.options.kv_dtype, at.target)
    splits = attention_splits(op.kv_heads, min(op.window or at.context, at.context), at.target)
    fresh = _fresh(at, node.inputs[1])
    cache = at.kv_cache(*_caches(op, node), value_length=op.v_length)
    params = AttentionDecodeParams(
        *at.common(tuning),
        op.heads,
        cache,
        op.scale,
        op.window,
        op.softcap,
        op.alibi,
        op.sinks,
        splits,
        lanes_per_key(op.head_length, at.target),
        fresh,
        matrix_decode(cache, at.target),
    )
    partial = at.temp(f"{node.name}.partial", 4 * params.partial_floats)
    new = tuple(_new_rows(at, name) for name in _caches(op, node)) if fresh else ()
    args = (*_inputs(at, node, op), *new, partial, Ref("sync", 0), at.value(node.outputs[0]))
    # The stage splits the keys over the blocks that it is given: one for every compute unit.
    grid = 1 if at.target.wave == 1 else at.target.compute_units
    yield Lowered(params, grid, args, node.name)


def _caches(op: ops.Attention, node: Node) -> tuple[str, ...]:
    """The names of the caches that attention reads: K, and V where there is one."""
    return node.inputs[1:2] if op.v_from_k else node.inputs[1:3]


def _inputs(at: Lowering, node: Node, op: ops.Attention) -> Arguments:
    sinks = at.planes(node.inputs[-1]) if op.sinks else ()
    return (STATE, at.value(node.inputs[0]), *(at.cache(name) for name in _caches(op, node)), *sinks)


# ---- caches that take whole blocks


def written_as(at: Lowering, name: str) -> tuple[str, int]:
    """Element type, and how many positions are kept (0: all), of what a product's rows for a cache go to."""
    rows = at.cache_rows(name)
    if at.options.kv_dtype == "q8_0":
        return "f32", at.rows
    return at.options.kv_dtype, rows.positions if rows.window else 0


def written_to(at: Lowering, name: str) -> Argument | Temp:
    """Where a product's rows for a cache go: to the cache itself, or to rows that are appended later."""
    return _new_rows(at, name) if at.options.kv_dtype == "q8_0" else at.cache(name)


def append_new_rows(at: Lowering, node: Node, *names: str) -> Iterator[Lowered]:
    """The launch that puts a product's rows into its caches; none where attention does it by itself."""
    if at.options.kv_dtype != "q8_0" or _fresh(at, names[0]):
        return
    cache = at.kv_cache(*names, value_length=at.cache_rows(names[-1]).length)
    params = KVAppendParams(*at.common(lookup("kv_append", "f32", at.target)), cache, at.rows)
    rows, caches = (_new_rows(at, name) for name in names), (at.cache(name) for name in names)
    grid = grid_blocks(at.rows, at.target)
    yield Lowered(params, grid, (STATE, *rows, *caches), f"{node.name}.kv_append")


def _new_rows(at: Lowering, name: str) -> Temp:
    """The float32 rows of this step for a cache: [kv_heads][rows][length], position p in row p % rows."""
    rows = at.cache_rows(name)
    size = rows_bytes("f32", rows.kv_heads * at.rows, rows.length)
    return at.temp(f"{at.graph.values[name].root}.new", size)


def _fresh(at: Lowering, name: str) -> bool:
    """Whether decode attention finds this step's rows of a cache outside of it, and appends them."""
    if not at.decode or at.options.kv_dtype != "q8_0":
        return False
    root = at.graph.values[name].root
    updates = [at.graph.producer(v.name) for v in at.graph.of_kind("state") if v.root == root and v.version]
    fused = all(update is not None and isinstance(update.op, ops.FusedLinear) for update in updates)
    return fused and all(isinstance(node.op, ops.Attention) for node in readers(at.graph, root))
