"""What a launch must move at least: bytes of weights, KV cache and activations, from its parameters.

A lower bound for rooflines and reports: every byte counts once, caches are taken as perfect for what a
launch reads twice. Nothing here times or emulates.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from forgec.plan.program import Launch, Program, Ref
from forgec.plan.stages import (
    AttentionDecodeParams,
    AttentionPrefillParams,
    EmbeddingParams,
    ExpertDownParams,
    ExpertMatmulParams,
    ExpertSumParams,
    ExpertUpParams,
    HeadMatvecParams,
    LatentParams,
    MatmulParams,
    MatvecParams,
    NormParams,
    NormRopeKVParams,
    QKParams,
    QuantiseParams,
    RopeKVParams,
    SampleParams,
    WeightedVParams,
)
from forgec.plan.stages.cache import rows_bytes
from forgec.plan.stages.token import TokenParams

__all__ = ["Traffic", "cache_bytes_per_position", "launch_traffic", "weight_bytes_per_token"]

F32 = 4


@dataclass(frozen=True)
class Traffic:
    """Bytes of one launch: ``weights`` and ``cache`` read, ``activations`` read and written."""

    weights: int
    cache: int
    activations: int

    @property
    def bytes(self) -> int:
        return self.weights + self.cache + self.activations


def launch_traffic(launch: Launch, program: Program, rows: int, position: int) -> Traffic:
    """Bytes that a launch moves for ``rows`` rows when ``position`` tokens are in the KV cache."""
    kernel = launch.kernel
    if isinstance(kernel, TokenParams):
        parts = [launch_traffic(step, program, rows, position) for step in program.steps]
        return Traffic(*(sum(getattr(p, f) for p in parts) for f in ("weights", "cache", "activations")))
    cache = 0
    match kernel:
        case MatvecParams():
            activations = F32 * (kernel.cols + kernel.out_rows)
            if kernel.rope is not None:
                rope = kernel.rope
                cache = rows_bytes(rope.kv_dtype, 2 * rope.kv_heads, rope.head_length)
        case MatmulParams():
            x = kernel.cols if kernel.act == "q8" else F32 * kernel.cols
            activations = rows * (x + F32 * kernel.out_rows)
        case AttentionDecodeParams() | AttentionPrefillParams():
            activations = rows * F32 * kernel.heads * (kernel.cache.key_length + kernel.cache.value_length)
            keys = position + rows
            if kernel.window:
                keys = min(keys, kernel.window + rows - 1)
            cache = kernel.cache.bytes_per_position * keys
        case EmbeddingParams():
            activations = rows * F32 * kernel.cols
        case NormParams() | QuantiseParams():
            activations = rows * F32 * 2 * kernel.cols
        case RopeKVParams() | NormRopeKVParams():
            activations = rows * F32 * 2 * kernel.rope.width
        case ExpertUpParams():
            written = kernel.routing.used * kernel.inner + kernel.shared_rows
            activations = F32 * (kernel.cols + kernel.routing.experts + written)
        case ExpertDownParams():
            activations = F32 * (kernel.cols + kernel.rows)
        case ExpertMatmulParams():
            activations = rows * F32 * (kernel.cols + kernel.rows)
        case ExpertSumParams():
            activations = rows * F32 * (kernel.used + 1) * kernel.cols
        case HeadMatvecParams():
            activations = F32 * kernel.heads * (kernel.inner + kernel.rows)
        case LatentParams():
            activations = rows * F32 * (kernel.heads * kernel.rope_dims * 2 + kernel.latent)
            cache = rows * kernel.cache.bytes_per_position
        case SampleParams():
            activations = F32 * kernel.vocab
        case _:
            activations = 0
    return Traffic(_weight_bytes(launch, program, rows), cache, activations)


def cache_bytes_per_position(program: Program) -> int:
    """Bytes of KV cache that one more position adds to a decode step while no window is full."""
    kernels = [launch.kernel for launch in program.steps]
    fused = sum(k.cache.bytes_per_position for k in kernels if isinstance(k, AttentionDecodeParams))
    return fused + sum(
        rows_bytes(k.cache.dtype, k.cache.kv_heads, k.cache.key_length)
        for k in kernels
        if isinstance(k, QKParams | WeightedVParams)
    )


def weight_bytes_per_token(program: Program) -> int:
    """Bytes of weights that one decode step reads."""
    return sum(launch_traffic(launch, program, 1, 0).weights for launch in program.steps)


def _weight_bytes(launch: Launch, program: Program, rows: int) -> int:
    """Bytes of weights.bin behind the launch's pointers; of tables that are looked up, ``rows`` rows, and of
    stacks of experts the share that takes part."""
    owner = program.tensor_at
    total = Fraction(0)
    for argument, arg in zip(launch.args, launch.kernel.args, strict=True):
        if not isinstance(argument, Ref) or argument.buffer != "weights":
            continue
        tensor = owner[argument.offset]
        size = tensor.bytes
        looked_up = isinstance(launch.kernel, EmbeddingParams) or arg.name == "rope_table"
        total += min(size, rows * size // tensor.rows) if looked_up else size * _share(launch, arg.name, rows)
    return int(total)


def _share(launch: Launch, name: str, rows: int) -> Fraction:
    """The part of a stack that a launch reads at least: the chosen experts, or one for each row."""
    match launch.kernel:
        case ExpertUpParams() if name in ("gate", "up", "gate_bias", "up_bias"):
            return Fraction(launch.kernel.routing.used, launch.kernel.routing.experts)
        case ExpertDownParams() if name in ("down", "down_bias"):
            return Fraction(launch.kernel.used, launch.kernel.experts)
        case ExpertMatmulParams(listing="sorted"):
            return Fraction(min(rows, launch.kernel.stack), launch.kernel.stack)
    return Fraction(1)
