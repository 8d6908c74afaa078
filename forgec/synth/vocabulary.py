"""A valid byte-level BPE vocabulary of any size, small in what it knows.

A size goes in, the tokenizer's GGUF metadata comes out: three control tokens, the 256 bytes, a few merges of
two letters, and entries that are never produced up to the size. No text of a real vocabulary is used.
"""

from __future__ import annotations

from typing import Any

from forgec.errors import UsageError

__all__ = ["byte_characters", "vocabulary"]

CONTROL = ("<|begin_of_text|>", "<|end_of_text|>", "<|end_of_turn|>")
NORMAL, CONTROL_TYPE, UNUSED = 1, 3, 5
#: Letters whose pairs are merged, the most frequent pairs of English first in a coarse way.
LETTERS = "etaoinshrdlu"


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in a byte-level vocabulary.

    Source: GPT-2, encoder.py (bytes_to_unicode): printable Latin-1 stands for itself, the rest follow at 256.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(spare)) for byte in range(256)]


def vocabulary(size: int, pre: str) -> dict[str, Any]:
    """Tokenizer metadata of a vocabulary of ``size`` tokens for the pre-tokenizer ``pre``.

    Raises UsageError below the 260 tokens that bytes, control tokens and one merge take.
    """
    base = [*CONTROL, *byte_characters()]
    if size <= len(base):
        raise UsageError(f"a vocabulary of {size} tokens is too small", f"It takes at least {len(base) + 1}.")
    pairs = [(a, b) for a in LETTERS for b in LETTERS][: size - len(base)]
    used = [*base, *(a + b for a, b in pairs)]
    unused = [f"<{i}>" for i in range(len(used), size)]
    types = [CONTROL_TYPE] * len(CONTROL) + [NORMAL] * (len(used) - len(CONTROL)) + [UNUSED] * len(unused)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*used, *unused],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [f"{a} {b}" for a, b in pairs],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": True,
    }
