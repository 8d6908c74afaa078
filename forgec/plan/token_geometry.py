"""How a block of the persistent kernel takes its rows of a product: in tiles, by teams of waves.

In comes what there is to multiply, out goes a geometry. Knows nothing of steps, launches or the exchange.
"""

from __future__ import annotations

from dataclasses import dataclass

from forgec.plan.layouts import row_pitch, slice_elements
from forgec.targets import Target

__all__ = ["Geometry", "Work", "geometry"]

#: Bytes of a tile of weights at most.
TILE_BYTES = 37 << 10
#: Work of a pass over a tile, beside the slices of a lane and in units of a slice: waiting and reducing.
PASS_COST = 5


@dataclass(frozen=True)
class Work:
    """What a block has to multiply: ``most`` rows of each matrix at most, not all in pairs where ``odd``."""

    cols: int
    formats: tuple[str, ...]
    activations: str
    most: int
    odd: bool

    @property
    def pitch(self) -> int:
        """Bytes from a row to the next in LDS."""
        return max(row_pitch(format, self.cols) for format in self.formats)

    @property
    def slices(self) -> int:
        return max(self.cols // slice_elements(format) for format in self.formats)


@dataclass(frozen=True)
class Geometry:
    """How a block takes its rows: the fields of TokenGroup of the same names."""

    tile_rows: int
    take: int
    share: int
    slot_rows: int
    slots: int


def geometry(work: Work, target: Target, block: int, slot_bytes: int) -> Geometry | None:
    """The fewest passes, each weighed with its slices; ``slot_bytes`` 0: rows are read in place.

    With activations in floats a slice alone fills the registers, so a wave takes one row at a time.
    """
    waves, matrices = block // target.wave, len(work.formats)
    single = work.odd or work.activations == "lds"
    takes = (1,) if single else (1, 2, 4) if slot_bytes else (1, 2)
    best: tuple[int, Geometry] | None = None
    for share in (s for s in range(1, waves // matrices + 1) if waves % s == 0):
        for take in takes:
            tile_rows = waves // share // matrices * take
            rows = tile_rows * matrices
            slot_rows = min(slot_bytes // work.pitch, rows) if slot_bytes else rows
            slots = -(-rows // slot_rows)
            if slots > target.wave or (slot_bytes and rows * work.pitch > TILE_BYTES):
                continue
            rounds = -(-work.slices // (share * target.wave))
            cost = -(-work.most // tile_rows) * (take * rounds + PASS_COST + take)
            if best is None or cost < best[0]:
                best = (cost, Geometry(tile_rows, take, share, slot_rows, slots))
    return best[1] if best else None
