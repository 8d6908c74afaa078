"""Packs the arguments of launches into the buffers that kernels read.

In come a launch of the manifest and the addresses of the buffers, out go the bytes of its kernel's argument
segment, laid out by the offsets in the manifest (which are those of the code object). Done once per launch at
load time; never while tokens are made.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from .manifest import Kernel, Launch, Manifest, Pointer

__all__ = ["PackedLaunch", "pack_arguments", "pack_sequence"]


@dataclass(frozen=True)
class PackedLaunch:
    """A launch with nothing left to resolve; ``kernel`` indexes ``Manifest.kernels``."""

    kernel: int
    grid: int
    block: int
    kernarg: bytes
    lds: int = 0
    cooperative: bool = False


def pack_arguments(kernel: Kernel, launch: Launch, addresses: Mapping[str, int]) -> bytes:
    """The argument segment of one launch, ``kernel.kernarg_bytes`` long; gaps are zero.

    A whole number becomes an integer of the argument's size, any other number an f32.
    """
    segment = bytearray(kernel.kernarg_bytes)
    for spec, value in zip(kernel.args, launch.args, strict=True):
        if isinstance(value, Pointer):
            struct.pack_into("<Q", segment, spec.offset, addresses[value.buffer] + value.offset)
        elif isinstance(value, float):
            struct.pack_into("<f", segment, spec.offset, value)
        else:
            # Two's complement, so that unsigned values above the signed range keep their bits.
            mask = (1 << 8 * spec.size) - 1
            struct.pack_into("<I" if spec.size == 4 else "<Q", segment, spec.offset, value & mask)
    return bytes(segment)


def pack_sequence(manifest: Manifest, name: str, addresses: Mapping[str, int]) -> tuple[PackedLaunch, ...]:
    """All launches of one sequence, in order."""
    packed = []
    for launch in manifest.sequences[name]:
        kernel = manifest.kernels[launch.kernel]
        kernarg = pack_arguments(kernel, launch, addresses)
        packed.append(
            PackedLaunch(
                launch.kernel, launch.grid, kernel.block, kernarg, kernel.launch_lds, kernel.cooperative
            )
        )
    return tuple(packed)
