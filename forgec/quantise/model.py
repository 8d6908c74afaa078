"""Weights changed on the way: an open GGUF file in, the same file with other types and values out.

``EditedFile`` stands for the file everywhere behind it: plans see the new types, the package writer reads
rows that are merged and quantised as they are asked for. Memory is bounded by the rows asked for; the error
is added up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from forgec.errors import GGUFError
from forgec.frontend.gguf import GGUFFile, TensorInfo, open_gguf
from forgec.frontend.quant import QuantType, dequantize
from forgec.quantise.choose import Choice, merged_type, new_types
from forgec.quantise.encode import quantise
from forgec.quantise.lora import Adapter, AdapterFile, open_adapter

__all__ = ["Change", "EditedFile", "WeightOptions", "open_model"]

#: Elements decoded to float32 at a time where a whole tensor is asked for.
BAND_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class WeightOptions:
    """What to change: the type for all matrices (``quantize``), and adapters to merge, in order."""

    quantize: str | None = None
    requantize: bool = False
    adapters: tuple[AdapterFile, ...] = ()


@dataclass(frozen=True)
class Change:
    """Tensors that went from one type to another: ``count`` of them, ``merged`` of these with an adapter.

    ``error`` is what quantising added, relative: the root of (sum of squared differences / sum of squares)
    over all rows that were read.
    """

    before: str
    after: str
    reason: str
    count: int
    merged: int
    error: float

    def __str__(self) -> str:
        what = "1 tensor" if self.count == 1 else f"{self.count} tensors"
        reason = f" ({self.reason})" if self.reason else ""
        merged = f", {self.merged} with an adapter merged" if self.merged else ""
        return f"{what} {self.before} -> {self.after}{reason}{merged}: relative RMS error {self.error:.3g}"


class EditedFile(GGUFFile):
    """A GGUF file with tensors of other types or values; everything else is the file's own."""

    def __init__(self, base: GGUFFile, choices: Mapping[str, Choice], adapters: Sequence[Adapter]) -> None:
        self.path = base.path
        self.shard_paths = base.shard_paths
        self.version = base.version
        self.metadata = base.metadata
        self.adapters = tuple(adapters)
        self._base = base
        touched = {name for adapter in adapters for name in adapter.tensors}
        changed = (name for name in base.tensors if name in choices or name in touched)
        self._choices = {name: choices.get(name) or merged_type(base.tensors[name]) for name in changed}
        self._touched = frozenset(touched)
        self._edited = {name: _retyped(base.tensors[name], c.type) for name, c in self._choices.items()}
        self.tensors = MappingProxyType({n: self._edited.get(n, info) for n, info in base.tensors.items()})
        self._errors = dict.fromkeys(self._edited, (0.0, 0.0))
        self._lock = Lock()

    def bytes_of(self, name: str) -> npt.NDArray[np.uint8]:
        if name not in self._edited:
            return self._base.bytes_of(name)
        info = self._edited[name]
        step = max(1, BAND_ELEMENTS // info.shape[-1])
        bands = [self.rows_of(name, i, min(step, info.rows - i)) for i in range(0, info.rows, step)]
        return np.concatenate(bands).reshape(-1)

    def rows_of(self, name: str, first: int, count: int) -> npt.NDArray[np.uint8]:
        if name not in self._edited:
            return self._base.rows_of(name, first, count)
        info = self._edited[name]
        values = self._base.array_rows(name, first, count)
        for adapter in self.adapters:
            if name in adapter.tensors:
                adapter.add_to(values, info, first)
        try:
            data = quantise(values, info.type.name)
        except GGUFError as error:
            raise GGUFError(f"tensor '{name}': {error.message}", error.hint) from error
        self._count(name, values, dequantize(data, info.type.name, *values.shape))
        return data

    def array_rows(self, name: str, first: int, count: int) -> npt.NDArray[np.float32]:
        if name not in self._edited:
            return self._base.array_rows(name, first, count)
        info = self._edited[name]
        return dequantize(self.rows_of(name, first, count), info.type.name, count, info.shape[-1])

    def release(self, name: str, first: int, count: int) -> None:
        self._base.release(name, first, count)

    def close(self) -> None:
        for adapter in self.adapters:
            adapter.close()
        self._base.close()

    def history(self) -> Mapping[str, Any]:
        adapters = [{"file": a.path.name, "scale": a.scale} for a in self.adapters]
        return {"tensors": [asdict(change) for change in self.changes()], "adapters": adapters}

    def changes(self) -> tuple[Change, ...]:
        """All edited tensors by type, the most frequent first; with the errors of what was read so far."""
        groups: dict[tuple[str, str, str], list[str]] = {}
        for name, choice in self._choices.items():
            kind = (self._base.tensors[name].type.name, choice.type.name, choice.reason)
            groups.setdefault(kind, []).append(name)
        return tuple(
            Change(*kind, len(names), len(self._touched & set(names)), self._relative(names))
            for kind, names in sorted(groups.items(), key=lambda g: -len(g[1]))
        )

    def _relative(self, names: Sequence[str]) -> float:
        noise, signal = (sum(self._errors[name][i] for name in names) for i in (0, 1))
        return float(np.sqrt(noise / signal)) if signal else 0.0

    def _count(self, name: str, values: npt.NDArray[np.float32], written: npt.NDArray[np.float32]) -> None:
        signal = float(np.square(values).sum(dtype=np.float64))
        noise = float(np.square(written - values).sum(dtype=np.float64))
        with self._lock:
            before = self._errors[name]
            self._errors[name] = (before[0] + noise, before[1] + signal)


def _retyped(info: TensorInfo, kind: QuantType) -> TensorInfo:
    return replace(info, type=kind, nbytes=kind.nbytes(info.elements))


def open_model(path: Path, options: WeightOptions) -> GGUFFile:
    """Open a model with the changes of ``options``; without any, the file itself.

    Raises what ``open_gguf``, ``new_types`` and ``open_adapter`` raise.
    """
    base = open_gguf(path)
    adapters: list[Adapter] = []
    try:
        choices: dict[str, Choice] = {}
        if options.quantize is not None:
            choices = new_types(base.tensors, options.quantize, requantize=options.requantize)
        for file in options.adapters:
            adapters.append(open_adapter(file, base))
        return EditedFile(base, choices, adapters) if choices or adapters else base
    except BaseException:
        for adapter in adapters:
            adapter.close()
        base.close()
        raise
