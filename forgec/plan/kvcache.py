"""Where the KV caches of all layers lie and how many positions each of them keeps.

A graph, a context and a prompt chunk go in; sizes and offsets come out. A layer whose only readers are fused
attention with a window keeps a ring of the window and a chunk; every other layer keeps the whole context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from forgec.errors import UnsupportedModelError
from forgec.ir import ops
from forgec.ir.graph import Graph, Node, Value
from forgec.plan.stages.cache import Q8_BLOCK, rows_bytes

__all__ = ["CacheRows", "kv_cache_bytes", "place_caches", "readers", "rollback"]

#: Bytes to which every cache is aligned, and positions to which a ring is rounded up.
ALIGNMENT = 256
RING_STEP = 64


@dataclass(frozen=True)
class CacheRows:
    """K or V of one layer: ``positions`` rows of ``length`` elements per KV head, at byte ``offset``.

    ``window`` is that of a ring, 0 where the whole context is kept.
    """

    kv_heads: int
    length: int
    positions: int
    window: int
    bytes: int
    offset: int


def place_caches(graph: Graph, context: int, chunk: int, kv_dtype: str) -> Mapping[str, CacheRows]:
    """The cache of every state value by its name ("kv.k.0"), in the order of the graph.

    Raises UnsupportedModelError where rows do not divide into the blocks of ``kv_dtype``.
    """
    placed: dict[str, CacheRows] = {}
    offset = 0
    for value in graph.of_kind("state"):
        if value.version:
            continue
        kv_heads, length = _extents(value)
        if kv_dtype == "q8_0" and length % Q8_BLOCK:
            raise UnsupportedModelError(
                f"the KV cache '{value.root}' has rows of {length} elements, which are no whole blocks of "
                f"{Q8_BLOCK}",
                "Use --kv f16.",
            )
        window = _window(graph, value)
        # A chunk's rows are written before its first row has read the oldest key of its window.
        ring = -(-(window + chunk - 1) // RING_STEP) * RING_STEP
        if not window or ring >= context:
            window, ring = 0, context
        size = rows_bytes(kv_dtype, kv_heads * ring, length)
        placed[value.root] = CacheRows(kv_heads, length, ring, window, size, offset)
        offset += -(-size // ALIGNMENT) * ALIGNMENT
    return placed


def kv_cache_bytes(caches: Mapping[str, CacheRows]) -> int:
    """Bytes of all caches together."""
    last = max(caches.values(), key=lambda rows: rows.offset, default=None)
    return 0 if last is None else last.offset + -(-last.bytes // ALIGNMENT) * ALIGNMENT


def rollback(caches: Mapping[str, CacheRows]) -> int | None:
    """Positions by which a sequence may be shortened with the keys of every window still there; None: any."""
    return min((rows.positions - rows.window for rows in caches.values() if rows.window), default=None)


def readers(graph: Graph, root: str) -> tuple[Node, ...]:
    """The nodes that read a cache and do not update it."""
    versions = [value.name for value in graph.of_kind("state") if value.root == root]
    users = {user.name: user for name in versions for user in graph.users(name)}
    return tuple(user for user in users.values() if not set(user.outputs) & set(versions))


def _window(graph: Graph, value: Value) -> int:
    """The largest window of all readers; 0 where one of them may want any position."""
    windows = [
        node.op.window if isinstance(node.op, ops.Attention) and node.op.causal else 0
        for node in readers(graph, value.root)
    ]
    return max(windows) if windows and all(windows) else 0


def _extents(value: Value) -> tuple[int, int]:
    kv_heads, _, length = value.shape
    assert isinstance(kv_heads, int) and isinstance(length, int)  # the verifier's shape of a cache
    return kv_heads, length
