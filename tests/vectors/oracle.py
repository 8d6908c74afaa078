"""llama.cpp's own tokenizer, through the ``llama-cpp-python`` package.

A GGUF file comes in (its vocabulary is enough); ids, token bytes and special ids go out. Only scripts that
make or check vectors use it: the test suite reads what they stored.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import llama_cpp

__all__ = ["Oracle"]

_LLAMA_TOKEN_ATTR_UNKNOWN = 1
_LLAMA_TOKEN_ATTR_CONTROL = 8


class Oracle:
    """The vocabulary of one GGUF file as llama.cpp sees it."""

    def __init__(self, path: Path) -> None:
        self._model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model.model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self.bos_id = self._id(llama_cpp.llama_vocab_bos(self._vocab))
        self.eos_id = self._id(llama_cpp.llama_vocab_eos(self._vocab))
        self.add_bos = bool(llama_cpp.llama_vocab_get_add_bos(self._vocab))

    @staticmethod
    def _id(token: int) -> int | None:
        return None if token < 0 else int(token)

    def encode(self, text: str, special: bool) -> list[int]:
        """Ids without the begin-of-text id; ``special`` parses control tokens."""
        data = text.encode()
        # The raw call: the wrapper's tokenize() treats an empty text as a missing one.
        capacity = len(data) + 8
        ids = (llama_cpp.llama_token * capacity)()
        count = llama_cpp.llama_tokenize(self._vocab, data, len(data), ids, capacity, False, special)
        if count < 0:
            raise ValueError(f"llama.cpp wants {-count} ids for {len(data)} bytes")
        return list(ids[:count])

    def piece(self, token: int) -> bytes:
        """The bytes of one token, control tokens included."""
        buffer = ctypes.create_string_buffer(4096)
        size = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, 4096, 0, True)
        if size < 0:
            raise ValueError(f"token {token} has {-size} bytes")
        return buffer.raw[:size]

    def eog_ids(self) -> set[int]:
        return {i for i in range(self.vocab_size) if llama_cpp.llama_vocab_is_eog(self._vocab, i)}

    def fim_ids(self) -> dict[str, int | None]:
        """Fill-in-the-middle ids by role."""
        roles = {"prefix": "pre", "suffix": "suf", "middle": "mid", "pad": "pad", "repository": "rep",
                 "separator": "sep"}  # fmt: skip
        return {
            role: self._id(getattr(llama_cpp, f"llama_vocab_fim_{name}")(self._vocab))
            for role, name in roles.items()
        }

    def control_ids(self) -> set[int]:
        """Ids that llama.cpp neither parses from nor shows in plain text."""
        wanted = _LLAMA_TOKEN_ATTR_UNKNOWN | _LLAMA_TOKEN_ATTR_CONTROL
        return {i for i in range(self.vocab_size) if llama_cpp.llama_vocab_get_attr(self._vocab, i) & wanted}
