"""A GGUF file with the same metadata and other weights: what comparisons with llama.cpp run on.

llama.cpp rounds activations to 8 bits when weights are quantised, and computes in float32 on F32 weights: a
file of dequantised weights is the one on which it is exact. A file in which some matrices have another type
shows whether both sides mean the same by that type. Nothing here runs a model.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf as gguf_py
import numpy.typing as npt

from forgec.errors import ForgeError
from forgec.frontend.gguf import GGUFFile, TensorInfo, open_gguf
from forgec.frontend.quant import QuantType
from forgec.golden.llama_cpp import ggml_quantise

__all__ = ["write_f32", "write_type"]

#: A tensor's data and its GGUF type, as the writer takes them.
Written = tuple[npt.NDArray[Any], QuantType]


def write_f32(source: Path, destination: Path) -> None:
    """Write ``source`` with every tensor as float32 to ``destination`` (replaced when it is complete).

    Raises: GGUFError for a damaged source, ForgeError when the file cannot be written.
    """
    _rewrite(source, destination, lambda model, tensor: None)


def write_type(source: Path, destination: Path, kind: QuantType, every: int) -> int:
    """Write ``source`` with the matrices of every ``every``-th layer in ``kind``; returns how many there are.

    They are quantised by ggml, with equal importance of all columns. Matrices whose rows are no whole blocks,
    and everything else, stay as they are. Raises: as ``write_f32``.
    """
    changed = 0

    def retyped(model: GGUFFile, tensor: TensorInfo) -> Written:
        nonlocal changed
        layer = re.match(r"blk\.(\d+)\.", tensor.name)
        matrix = len(tensor.shape) > 1 and tensor.shape[-1] % kind.block == 0
        if layer is None or int(layer[1]) % every or not matrix:
            raw = model.bytes_of(tensor.name).reshape(*tensor.shape[:-1], -1)
            return raw, tensor.type
        changed += 1
        values = model.array(tensor.name).reshape(-1, tensor.shape[-1])
        data = ggml_quantise(values, kind.ggml_id, kind.nbytes(values.shape[1]), importance=True)
        return data.reshape(*tensor.shape[:-1], -1), kind

    _rewrite(source, destination, retyped)
    return changed


def _rewrite(
    source: Path, destination: Path, encode: Callable[[GGUFFile, TensorInfo], Written | None]
) -> None:
    """Write ``source`` with the tensors that ``encode`` returns; None stands for the values in float32."""
    temporary = destination.with_name(destination.name + ".part")
    try:
        with open_gguf(source) as model:
            _write(model, gguf_py.GGUFReader(source), temporary, encode)
        temporary.replace(destination)
    except OSError as error:
        reason = error.strerror or "the disk is full"
        raise ForgeError(
            f"a copy of the model cannot be written to '{destination.parent}': {reason}",
            "Set TMPDIR to a folder with room for four bytes per parameter.",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _write(
    model: GGUFFile,
    reader: gguf_py.GGUFReader,
    path: Path,
    encode: Callable[[GGUFFile, TensorInfo], Written | None],
) -> None:
    writer = gguf_py.GGUFWriter(path, str(model.metadata["general.architecture"]))
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf_py.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    for tensor in model.tensors.values():
        written = encode(model, tensor)
        if written is None:
            writer.add_tensor(tensor.name, model.array(tensor.name).reshape(tensor.shape))
            continue
        data, quant = written
        writer.add_tensor(tensor.name, data, raw_dtype=gguf_py.GGMLQuantizationType(quant.ggml_id))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
