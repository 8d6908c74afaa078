"""A GGUF file's weights dequantised to F32, metadata unchanged: the file on which llama.cpp is exact.

llama.cpp rounds activations to 8 bits when weights are quantised; on F32 weights it computes in float32.
"""

from __future__ import annotations

from pathlib import Path

import gguf as gguf_py

from forgec.errors import ForgeError
from forgec.frontend.gguf import GGUFFile, open_gguf

__all__ = ["write_f32"]


def write_f32(source: Path, destination: Path) -> None:
    """Write ``source`` with every tensor as float32 to ``destination`` (replaced when it is complete).

    Raises: GGUFError for a damaged source, ForgeError when the file cannot be written.
    """
    temporary = destination.with_name(destination.name + ".part")
    try:
        with open_gguf(source) as model:
            _write(model, gguf_py.GGUFReader(source), temporary)
        temporary.replace(destination)
    except OSError as error:
        reason = error.strerror or "the disk is full"
        raise ForgeError(
            f"the model's F32 weights cannot be written to '{destination.parent}': {reason}",
            "Set TMPDIR to a folder with room for four bytes per parameter.",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _write(model: GGUFFile, reader: gguf_py.GGUFReader, path: Path) -> None:
    writer = gguf_py.GGUFWriter(path, str(model.metadata["general.architecture"]))
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf_py.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    for tensor in model.tensors.values():
        writer.add_tensor(tensor.name, model.array(tensor.name).reshape(tensor.shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
