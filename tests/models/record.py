"""Writes llama.cpp's logits of every tiny model to tests/fixtures/models.

``python -m tests.models.record [NAME ...]``, from the repository's root and with the extra 'golden';
without names all fixtures are written anew. The models themselves are not stored: ``tiny`` makes the same
file from the same name.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from forgec.golden.llama_cpp import LlamaCpp
from forgec.golden.rewrite import write_f32
from tests.models.tiny import CONTEXT, TINY, VOCABULARY

__all__ = ["DECODED", "FIXTURES", "PROMPT", "tokens_of"]

FIXTURES = Path(__file__).parents[1] / "fixtures" / "models"
#: Tokens of the prompt, which is longer than a window and a chunk, and tokens decoded one by one after it.
PROMPT, DECODED = 13, 5


def tokens_of(name: str) -> list[int]:
    """The token ids of one model's run: prompt, then the ids that are fed to it one by one."""
    rng = np.random.default_rng(len(name))
    return [int(token) for token in rng.integers(3, VOCABULARY, size=PROMPT + DECODED)]


def record(name: str) -> Path:
    """Write ``name``.npz: logits f32 [1 + DECODED, vocabulary], the first row that of the whole prompt."""
    with tempfile.TemporaryDirectory() as folder:
        path = TINY[name].write(Path(folder) / "tiny.gguf", name)
        if TINY[name].types:  # llama.cpp rounds what it multiplies with quantised weights
            write_f32(path, path := path.with_name("f32.gguf"))
        with LlamaCpp(path, context=CONTEXT, kv="f32") as model:
            logits = model.decode(tokens_of(name), every=True)[PROMPT - 1 :]
    output = FIXTURES / f"{name}.npz"
    temporary = output.with_suffix(".partial.npz")
    np.savez_compressed(temporary, logits=logits)
    temporary.replace(output)
    return output


def main(names: list[str]) -> None:
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for name in names or TINY:
        output = record(name)
        print(f"{output.name}: {output.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
