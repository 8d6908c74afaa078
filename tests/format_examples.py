"""Kernels that between them read every weight format: for families that no test runs on everywhere."""

from __future__ import annotations

from forgec.plan.formats import FORMATS
from forgec.plan.stages import EmbeddingParams, MatmulParams, MatvecParams, Segment, StageParams
from forgec.targets import get_target

__all__ = ["format_examples"]

COLUMNS = 512
ROWS = 64
#: Formats of which a kernel has int8 products, three to a kernel: as many as it takes.
_BLOCKED = [name for name, format in FORMATS.items() if format.block > 1]
_TRIPLES = [tuple(Segment(name, ROWS) for name in _BLOCKED[i : i + 3]) for i in range(0, len(_BLOCKED), 3)]
_FLOATS = (tuple(Segment(name, ROWS) for name in FORMATS if name not in _BLOCKED),)


def format_examples(target_name: str) -> list[StageParams]:
    """Embedding rows of every format, and the products of all of them, for a GPU."""
    target = get_target(target_name)
    common = (target.family, target.wave, target.block_size)
    plain = ("store", False, "none", 0.0, False, 8, 2)
    return [
        *(EmbeddingParams(*common, name, "rows", COLUMNS, 999, decode=False) for name in FORMATS),
        *(MatvecParams(*common, COLUMNS, three, "rows", "q8", *plain) for three in _TRIPLES),
        *(MatvecParams(*common, COLUMNS, three, "rows", "f32", *plain) for three in _FLOATS),
        *(
            MatmulParams(*common[:2], 256, COLUMNS, three, "rows", "f32", "store", False, 64, 64)
            for three in (*_TRIPLES, *_FLOATS)
        ),
    ]
