"""GGUF bytes to ModelSpec to Graph: all that knows the file format or a family's tensor names."""

from __future__ import annotations

from forgec.frontend.gguf import GGUFFile, TensorInfo, open_gguf
from forgec.frontend.spec import ModelSpec, RopeSpec, read_spec

__all__ = ["GGUFFile", "ModelSpec", "RopeSpec", "TensorInfo", "open_gguf", "read_spec"]
