"""LoRA adapters in GGUF: a file and a model in, checked low-rank changes of the model's tensors out.

W' = W + scale * alpha / rank * B A, row by row in float32. The embedding's factors lie the other way round,
because its rows are looked up; a norm vector in the adapter replaces the model's. Nothing here writes or
quantises. Source: llama.cpp's src/llama-adapter.cpp and convert_lora_to_gguf.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from forgec.errors import GGUFError, UnsupportedModelError, UsageError
from forgec.frontend.gguf import GGUFFile, TensorInfo, open_gguf

__all__ = ["Adapter", "AdapterFile", "open_adapter", "parse_adapter"]

Floats = npt.NDArray[np.float32]

A, B = ".lora_a", ".lora_b"
EMBEDDING = "token_embd.weight"
#: Names that an error message lists before it only counts.
NAMES_SHOWN = 5


@dataclass(frozen=True)
class AdapterFile:
    """What the user asked for: an adapter and the factor of its change."""

    path: Path
    scale: float = 1.0


def parse_adapter(text: str) -> AdapterFile:
    """``file`` or ``file:scale``. Raises UsageError when the part behind the last colon is neither."""
    path, colon, scale = text.rpartition(":")
    if not colon or Path(text).exists():
        return AdapterFile(Path(text))
    try:
        factor = float(scale)
    except ValueError:
        return AdapterFile(Path(text))
    if not np.isfinite(factor):
        raise UsageError(f"the scale of adapter '{path}' must be a finite number, found '{scale}'")
    return AdapterFile(Path(path), factor)


class Adapter:
    """An open adapter that fits a model; ``tensors`` names the tensors that it changes."""

    def __init__(self, gguf: GGUFFile, scale: float, alpha: float, tensors: Mapping[str, str]) -> None:
        self.path = gguf.path
        self.scale = scale
        self.tensors = tensors  # name of the model's tensor -> "factors" | "vector"
        self._gguf = gguf
        self._alpha = alpha
        # A tensor is merged band by band: its factors are decoded once, and those of the tensors beside it.
        self._factors = lru_cache(maxsize=4)(self._read_factors)

    def add_to(self, values: Floats, info: TensorInfo, first: int) -> None:
        """Add the change to rows [first, first + len(values)) of a tensor, in place: f32 [rows, columns]."""
        if self.tensors[info.name] == "vector":
            values += np.float32(self.scale) * (self._gguf.array(info.name).reshape(1, -1) - values)
            return
        left, right, factor = self._factors(info.name)
        per_matrix = info.shape[-2]
        for matrix in range(first // per_matrix, (first + len(values) - 1) // per_matrix + 1):
            start = max(first, matrix * per_matrix)
            stop = min(first + len(values), (matrix + 1) * per_matrix)
            rows = left[matrix, start - matrix * per_matrix : stop - matrix * per_matrix]
            values[start - first : stop - first] += (rows * factor) @ right[matrix]

    def close(self) -> None:
        """Let go of the file."""
        self._gguf.close()

    def _read_factors(self, name: str) -> tuple[Floats, Floats, np.float32]:
        """(left [matrices, rows, rank], right [matrices, rank, columns], factor of their product)."""
        a, b = self._gguf.array(name + A), self._gguf.array(name + B)
        rank = b.shape[-1]
        left, right = (a, b.swapaxes(-1, -2)) if name == EMBEDDING else (b, a)
        factor = self.scale * self._alpha / rank if self._alpha else self.scale
        return left.reshape(-1, *left.shape[-2:]), right.reshape(-1, *right.shape[-2:]), np.float32(factor)


def open_adapter(file: AdapterFile, model: GGUFFile) -> Adapter:
    """Open an adapter and check that it was made for ``model``.

    Raises GGUFError when the file is no LoRA adapter or does not fit the model (wrong architecture, tensors
    that the model lacks, shapes that do not match), UnsupportedModelError for a kind of adapter that cannot
    be merged.
    """
    gguf = open_gguf(file.path)
    try:
        alpha = _check_metadata(gguf, model)
        tensors = _pairs(gguf, model)
        for name, kind in tensors.items():
            _check_shapes(gguf, model.tensors[name], kind)
        return Adapter(gguf, file.scale, alpha, tensors)
    except BaseException:
        gguf.close()
        raise


def _check_metadata(gguf: GGUFFile, model: GGUFFile) -> float:
    """Checks what the file says it is; returns alpha, 0 where it has none."""
    for key, expected in (("general.type", "adapter"), ("adapter.type", "lora")):
        found = gguf.metadata.get(key)
        if found != expected:
            raise GGUFError(
                f"'{gguf.path.name}' is not a LoRA adapter: its '{key}' is {found!r}, expected '{expected}'",
                "Make one from a PEFT folder with llama.cpp's convert_lora_to_gguf.py.",
            )
    ours, theirs = (f.metadata.get("general.architecture") for f in (model, gguf))
    if ours != theirs:
        raise GGUFError(
            f"adapter '{gguf.path.name}' is for the architecture '{theirs}', the model is '{ours}'",
            "Use the adapter with the model that it was trained on.",
        )
    if "adapter.alora.invocation_tokens" in gguf.metadata:
        raise UnsupportedModelError(
            f"adapter '{gguf.path.name}' is an activated LoRA, which begins to act at certain tokens",
            "Only adapters that always act can be merged into the weights.",
        )
    alpha = gguf.metadata.get("adapter.lora.alpha", 0.0)
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not np.isfinite(alpha):
        raise GGUFError(
            f"'adapter.lora.alpha' of '{gguf.path.name}' must be a finite number, found {alpha!r}"
        )
    return float(alpha)


def _pairs(gguf: GGUFFile, model: GGUFFile) -> dict[str, str]:
    """The model's tensors that the adapter changes, each with both factors or as a vector."""
    found: dict[str, str] = {}
    unknown = []
    for name in gguf.tensors:
        base = name.removesuffix(A).removesuffix(B)
        if base not in model.tensors:
            unknown.append(name)
            continue
        if base == name:
            if len(model.tensors[base].shape) != 1:
                raise GGUFError(
                    f"adapter '{gguf.path.name}' replaces the whole matrix '{name}'; "
                    f"only vectors may be replaced, matrices have '{A}' and '{B}'"
                )
            found[base] = "vector"
            continue
        other = base + (B if name.endswith(A) else A)
        if other not in gguf.tensors:
            raise GGUFError(f"adapter '{gguf.path.name}' has '{name}' but not '{other}'")
        found[base] = "factors"
    if unknown:
        more = f" and {len(unknown) - NAMES_SHOWN} more" if len(unknown) > NAMES_SHOWN else ""
        names = ", ".join(f"'{n}'" for n in unknown[:NAMES_SHOWN])
        raise GGUFError(
            f"adapter '{gguf.path.name}' changes tensors that "
            f"'{model.path.name}' does not have: {names}{more}",
            "Use the adapter with the model that it was trained on.",
        )
    if not found:
        raise GGUFError(f"adapter '{gguf.path.name}' changes nothing: it has no tensors")
    return found


def _check_shapes(gguf: GGUFFile, info: TensorInfo, kind: str) -> None:
    if kind == "vector":
        shape = gguf.tensors[info.name].shape
        if shape != info.shape:
            raise GGUFError(
                f"adapter '{gguf.path.name}': '{info.name}' has shape {list(shape)}, "
                f"the model's {list(info.shape)}"
            )
        return
    a, b = gguf.tensors[info.name + A].shape, gguf.tensors[info.name + B].shape
    rank = b[-1]
    *stack, rows, cols = info.shape if len(info.shape) > 1 else (0, *info.shape)
    fits = {
        True: ((*stack, rows, rank), (*stack, cols, rank)),
        False: ((*stack, rank, cols), (*stack, rows, rank)),
    }[info.name == EMBEDDING]
    if (a, b) != fits:
        raise GGUFError(
            f"adapter '{gguf.path.name}': the factors of '{info.name}' have shapes {list(a)} and {list(b)}, "
            f"expected {list(fits[0])} and {list(fits[1])} for the model's {list(info.shape)}",
            "Use the adapter with the model that it was trained on.",
        )
