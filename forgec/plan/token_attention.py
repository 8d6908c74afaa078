"""The attention step of the persistent kernel: which form it takes, and how its keys and heads are divided.

In comes the attention of the graph schedule; out go the parameters of the step, or why there is none. Renders
nothing.
"""

from __future__ import annotations

from forgec.plan.geometry import matrix_decode
from forgec.plan.stages import AttentionDecodeParams
from forgec.plan.stages.token import TokenAttention
from forgec.targets import Target

__all__ = ["matrix_attention", "token_attention", "without_step"]

#: Query heads that a block takes at a time: with four, registers spill to memory.
TILE_HEADS = 2
#: On matrix units: query heads and keys of a product, least keys of a part, bytes of LDS where waves merge.
MATRIX_HEADS, MATRIX_KEYS, LEAST_KEYS, MERGE_BYTES = 8, 16, 128, 34 << 10
#: Bytes of keys and values that a block asks the last-level cache for ahead of time. At 4,096 tokens an H100
#: makes a token of Llama-3.2-1B in 418 us with 24 KiB, in 429 with none and in 432 with 60, of eight layers
#: of Llama-3.1-8B in 620, 619 and 632: all at once they stand in the way of the weights.
NEAR_BYTES = 24 << 10
#: Heads, KV heads, head length, rotated dimensions, whether interleaved, context, cache type, scale.
Shape = tuple[int, int, int, int, bool, int, str, float]


def token_attention(
    params: AttentionDecodeParams, rope_dims: int, interleaved: bool, target: Target, block: int
) -> TokenAttention:
    """The step of an attention that has one, for blocks of ``block`` threads."""
    cache = params.cache
    heads = (params.heads, cache.kv_heads, cache.key_length)
    shape = (*heads, rope_dims, interleaved, cache.positions, cache.dtype, params.scale)
    if matrix_decode(cache, target) and rope_dims % 4 == 0:
        return matrix_attention(shape, target, block)
    return _plain_attention(shape, target)


def _plain_attention(shape: Shape, target: Target) -> TokenAttention:
    """Attention in products of vectors."""
    heads, kv_heads, length = shape[:3]
    tile = max(t for t in range(1, TILE_HEADS + 1) if heads // kv_heads % t == 0)
    most_parts = max(1, min(64, 2 * target.compute_units // (heads // tile)))
    return TokenAttention("attention", *shape, tile, max(64, (32 << 10) // length), most_parts)


def matrix_attention(shape: Shape, target: Target, block: int) -> TokenAttention:
    """Attention on matrix units: as many heads of a group at a time as a product has columns and LDS room.

    A wave has its first sixteen keys in registers before it knows q, so a block that takes no more than that
    of each wave takes no time for them; parts cost an exchange, about as much as reading 64 KiB does.
    """
    heads, kv_heads, length = shape[:3]
    waves, group, row_bytes = block // target.wave, heads // kv_heads, 2 * length
    tiles = -(-group // min(MATRIX_HEADS, MERGE_BYTES // (waves * 4 * (length + 4))))
    tile = -(-group // tiles)
    turn = MATRIX_KEYS * waves
    return TokenAttention(
        "attention_matrix",
        *shape,
        tile,
        alone=turn * max(1, (128 << 10) // (turn * 2 * row_bytes)),
        most_parts=max(1, min(64, target.compute_units // (kv_heads * tiles))),
        least=LEAST_KEYS,
        near=NEAR_BYTES // (2 * row_bytes) // MATRIX_KEYS * MATRIX_KEYS,
    )


def without_step(params: AttentionDecodeParams, target: Target) -> str:
    """What of an attention has no step, "" where it has."""
    cache = params.cache
    if cache.dtype not in ("f16", "f32"):
        return f"a cache of {cache.dtype} has no step"
    if cache.ring or cache.v_from_k or cache.key_length != cache.value_length:
        return "a cache that is a ring, or of unequal keys and values, has no step"
    for name in ("window", "softcap", "alibi", "sinks", "fresh"):
        if getattr(params, name):
            return f"attention with {name} has no step"
    length = cache.key_length
    pieces = length // 8
    if length % 8 or pieces & (pieces - 1) or pieces > target.wave or params.group < 1:
        return f"heads of {length} elements have no step"
    return ""
