"""Legal, divided numbers for stage parameters: lanes, groups and blocks from shapes, target and tuning.

Small pure functions over integers; the choices behind them are rows of ``plan.tuning``.
"""

from __future__ import annotations

from dataclasses import replace

from forgec.plan.layouts import slice_elements
from forgec.plan.stages import MatmulParams, MatvecParams, Segment
from forgec.plan.stages.cache import KVCache
from forgec.plan.tuning import Tuning, grid_blocks, lookup, shape_class
from forgec.targets import Target

__all__ = [
    "attention_tile",
    "lanes_per_key",
    "lanes_per_row",
    "matmul_grid",
    "matrix_decode",
    "matvec_grid",
    "matvec_tuning",
    "power_of_two_below",
    "retuned",
]

#: LDS that a tile of prefill attention may take: what every target gives a block without asking, in bytes.
_ATTENTION_LDS = 48 << 10


def power_of_two_below(limit: int) -> int:
    """Largest power of two that is at most ``limit`` (at least 1)."""
    return 1 << max(0, limit.bit_length() - 1) if limit > 0 else 1


def lanes_per_row(segments: tuple[Segment, ...], cols: int, tuning: Tuning, target: Target) -> int:
    """Lanes that share a row: enough that each takes about ``slices_per_lane`` slices, at most a wave."""
    slices = min(cols // slice_elements(s.format) for s in segments)
    return min(target.wave, power_of_two_below(max(1, slices // tuning.slices_per_lane)))


def lanes_per_key(head_length: int, target: Target) -> int:
    """Lanes that share a cached key in pieces of 8 elements (16 bytes of f16): at most three pieces each.

    The fewest idle lanes decide, then the most lanes: 80 elements are 10 pieces, 3 for each of 4 lanes.
    """
    pieces = -(-head_length // 8)
    choices = [1 << i for i in range(target.wave.bit_length())]
    choices = [lanes for lanes in choices if pieces <= 3 * lanes] or choices[-1:]
    return min(choices, key=lambda lanes: (-(-pieces // lanes) * lanes, -lanes))


def matrix_decode(cache: KVCache, target: Target) -> bool:
    """Whether decode attention runs on matrix units.

    It does where a wave's products are 16 x 8 x 16, K and V are f16 and a turn's rows fit the registers.
    """
    lengths = {cache.key_length, cache.value_length}
    return (
        target.matrix == "mma.sync" and cache.dtype == "f16" and not cache.v_from_k and lengths <= {64, 128}
    )


def attention_tile(
    heads: int, lengths: tuple[int, int], kv_bytes: int, chunk: int, tuning: Tuning, target: Target
) -> tuple[int, int]:
    """Query rows and keys of a block's tile in prefill attention, for ``kv_bytes`` per element in LDS.

    ``lengths`` are those of keys and values.

    The tuning's tile, with fewer query rows where compute units would be without work, down to one row for
    every 16 threads, and with fewer keys until it fits into LDS. Measured on an H100 for 9 heads of 64 and
    128 rows at position 1024: 16 rows by 32 keys 73.6 us, by 64 keys 69.6 us, by 128 keys 46.9 us; 32 rows
    by 128 keys 59.0 us.
    """
    queries, keys = tuning.tile_rows, tuning.tile_cols
    if target.wave == 1:
        return queries, keys
    least = (tuning.block or target.block_size) // 16
    while queries > least and heads * -(-chunk // queries) < target.compute_units:
        queries //= 2
    while _attention_lds(queries, keys, lengths, kv_bytes) > _ATTENTION_LDS and queries > 1:
        if keys > 16:  # the lanes that share a query row
            keys //= 2
        else:
            queries //= 2
    return queries, keys


def _attention_lds(queries: int, keys: int, lengths: tuple[int, int], kv_bytes: int) -> int:
    """Bytes of ``struct Shared`` of the attention_prefill stage: queries, K or V, weights, each padded."""
    quads, row = lengths[0] // 4 + 1, max(lengths) // 4 + 1
    return queries * quads * 16 + keys * row * 4 * kv_bytes + queries * (keys // 4 + 1) * 16


def matvec_tuning(segments: tuple[Segment, ...], cols: int, epilogue: str, target: Target) -> Tuning:
    """The row of the table for a product of one row of activations."""
    formats = "+".join(sorted({s.format for s in segments}))
    return lookup("matvec", formats, target, shape_class(epilogue, sum(s.rows for s in segments), cols))


def retuned(params: MatvecParams, tuning: Tuning, target: Target) -> MatvecParams:
    """The same product with the geometry of another row of the table."""
    return replace(
        params,
        block=tuning.block or target.block_size,
        lanes_per_row=lanes_per_row(params.segments, params.cols, tuning, target),
        rows_per_group=tuning.rows_per_group,
    )


def matvec_grid(params: MatvecParams, tuning: Tuning, target: Target) -> int:
    """Blocks of a matvec launch."""
    groups_per_block = max(1, params.block // params.lanes_per_row)
    groups = -(-params.out_rows // params.rows_per_group)
    return grid_blocks(-(-groups // groups_per_block), target, tuning.blocks_per_unit)


def matmul_grid(params: MatmulParams, chunk: int, target: Target) -> int:
    """Blocks of a prefill product of up to ``chunk`` rows."""
    tiles = -(-chunk // params.tile_rows) * -(-params.out_rows // params.tile_cols)
    return grid_blocks(tiles, target, blocks_per_unit=8)
