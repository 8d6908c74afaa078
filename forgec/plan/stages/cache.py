"""The KV cache of one layer as stages see it: rows of every KV head, their type, how many are kept.

Lengths are in elements, sizes in bytes. Where a layer's rows lie in device memory is decided by
``plan.kvcache``; nothing here knows a graph.
"""

from __future__ import annotations

from dataclasses import dataclass

from forgec.errors import VerifyError

__all__ = ["KV_CTYPES", "KV_TYPES", "Q8_BLOCK", "KVCache", "rows_bytes"]

#: C types of what a cache pointer points to.
KV_CTYPES = {"f16": "half", "f32": "float", "q8_0": "i8"}
#: The element types of a KV cache, the default first.
KV_TYPES = tuple(KV_CTYPES)
#: Elements that share a scale in a "q8_0" cache.
Q8_BLOCK = 32


def rows_bytes(dtype: str, rows: int, length: int) -> int:
    """Bytes of ``rows`` rows of ``length`` elements; "q8_0" has one byte each and an f16 scale per 32."""
    if dtype == "q8_0":
        return rows * (length + 2 * (length // Q8_BLOCK))
    return rows * length * {"f16": 2, "f32": 4}[dtype]


@dataclass(frozen=True)
class KVCache:
    """K [kv_heads][positions][key_length] and V [kv_heads][positions][value_length] of a layer.

    Position p is kept in row p, or in row p % positions of a ``ring``. In type "q8_0" the int8 rows of all
    heads are followed by their scales, f16 [kv_heads][positions][length / 32]. With ``v_from_k`` a value is
    the first value_length elements of its key, and there is no V.
    """

    kv_heads: int
    key_length: int
    value_length: int
    positions: int
    dtype: str
    ring: bool = False
    v_from_k: bool = False

    def __post_init__(self) -> None:
        lengths = (self.key_length,) if self.v_from_k else (self.key_length, self.value_length)
        if self.dtype == "q8_0" and any(length % Q8_BLOCK for length in lengths):
            raise VerifyError(f"a KV cache of type q8_0 needs rows of whole blocks of 32, found {lengths}")

    @property
    def ctype(self) -> str:
        return KV_CTYPES[self.dtype]

    @property
    def storage(self) -> str:
        """How rows are read and written: ``templates/lib/kv_<storage>``."""
        return "q8_0" if self.dtype == "q8_0" else "floats"

    @property
    def value_row_length(self) -> int:
        """Elements between a value and that of the next position."""
        return self.key_length if self.v_from_k else self.value_length

    @property
    def bytes_per_position(self) -> int:
        """Bytes of all heads' rows of one position."""
        values = 0 if self.v_from_k else rows_bytes(self.dtype, self.kv_heads, self.value_length)
        return rows_bytes(self.dtype, self.kv_heads, self.key_length) + values
