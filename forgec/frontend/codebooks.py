"""The values that quantisation codes stand for, where they are no arithmetic: grids of the IQ types, and FP4.

A name comes in and a table of small integers goes out. The grids are ggml's (ggml-common.h), as gguf-py
carries them; kernels take them from here. Nothing here decodes a tensor.
"""

from __future__ import annotations

from functools import cache
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from forgec.errors import UnsupportedModelError

__all__ = ["codebook"]

#: Values of a nibble: IQ4_NL's non-linear levels, and twice the values of a four-bit float (E2M1).
NIBBLES = MappingProxyType(
    {
        "iq4_nl": (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113),
        "fp4": (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12),
    }
)
#: Grids of four or eight values an entry, by the class of gguf-py that has them. Those of IQ1 are -1, 0 and 1
#: and become 0, 8 and 16: eighths, because a delta of an eighth goes on top, and without a sign.
GRIDS = MappingProxyType(
    {
        "iq1": "IQ1_S",
        "iq2_xxs": "IQ2_XXS",
        "iq2_xs": "IQ2_XS",
        "iq2_s": "IQ2_S",
        "iq3_xxs": "IQ3_XXS",
        "iq3_s": "IQ3_S",
    }
)


@cache
def codebook(name: str) -> npt.NDArray[np.int8]:
    """int8 [entries, values of an entry]; read-only. Raises UnsupportedModelError for an unknown name."""
    if name in NIBBLES:
        table = np.array(NIBBLES[name], np.int8).reshape(-1, 1)
    elif name in GRIDS:
        # Imported here: gguf takes 0.2 s to import and most callers need no grid.
        from gguf import quants

        grid = getattr(quants, GRIDS[name])
        grid.init_grid()
        table = grid.grid.reshape(grid.grid_shape).astype(np.int8)
        table = 8 * (table + 1) if name == "iq1" else table
    else:
        raise UnsupportedModelError(f"codebook '{name}' is not known", f"Known: {[*NIBBLES, *GRIDS]}.")
    table.setflags(write=False)
    return table
