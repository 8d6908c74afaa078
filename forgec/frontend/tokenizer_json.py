"""Writes a vocabulary as the JSON document of the ``tokenizers`` library.

Checked tokens, types and merges (or scores) come in, text goes out; equal inputs give equal text. It reads no
metadata and decides nothing about special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt

from forgec.errors import UnsupportedModelError
from forgec.frontend.pretokenizers import PreTokenizer
from forgec.frontend.special_tokens import TokenType

__all__ = ["Vocabulary", "bpe_json", "sentencepiece_json"]

# SentencePiece writes a space as U+2581.
_SPACE = "\u2581"


@dataclass(frozen=True)
class Vocabulary:
    """``tokens`` and ``types`` have one entry per id, ``ids`` inverts ``tokens``.

    ``swallows_space``: ids of special tokens that take the white space after them with them.
    """

    tokens: tuple[str, ...]
    ids: Mapping[str, int]
    types: tuple[TokenType, ...]
    swallows_space: frozenset[int] = frozenset()

    def ids_of(self, *kinds: TokenType) -> list[int]:
        """The ids of these types, ascending."""
        return np.flatnonzero(np.isin(self._codes, kinds)).tolist()

    @cached_property
    def _codes(self) -> npt.NDArray[np.int8]:
        return np.fromiter(self.types, np.int8, len(self.types))


def bpe_json(vocabulary: Vocabulary, merges: Sequence[str], pre: PreTokenizer) -> str:
    """BPE with the file's own merge list, over GPT-2 bytes or (``pre.raw_utf8``) over UTF-8.

    ``merges``: ``"left right"`` lines, best rank first.

    Raises: UnsupportedModelError if a merge does not join two tokens into a third, or a byte is missing.
    """
    checked = _checked_merges(merges, vocabulary.ids)
    splits: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
        for expression in pre.splits
    ]
    if pre.raw_utf8:
        _require_bytes(vocabulary)
        return _document(
            vocabulary,
            checked,
            normalizer=_replace(" ", _SPACE),
            pre_tokenizer={"type": "Sequence", "pretokenizers": splits},
            decoder=_PIECE_DECODER,
            byte_fallback=True,
            ignore_merges=pre.ignore_merges,
        )
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return _document(
        vocabulary,
        checked,
        normalizer=None,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [*splits, byte_level]},
        decoder=byte_level,
        byte_fallback=False,
        ignore_merges=pre.ignore_merges,
    )


def sentencepiece_json(vocabulary: Vocabulary, scores: Sequence[float], space_prefix: bool) -> str:
    """BPE whose merge order is the order of the scores, over UTF-8 with bytes for unknown characters.

    ``space_prefix``: every text, and every text after a special token, begins with an extra space.

    Raises: UnsupportedModelError if a byte token or a character of a token is missing.
    """
    _require_bytes(vocabulary)
    prefix = [{"type": "Prepend", "prepend": _SPACE}] if space_prefix else []
    return _document(
        vocabulary,
        _merges_from_scores(vocabulary, scores),
        normalizer={"type": "Sequence", "normalizers": [*prefix, _replace(" ", _SPACE)]},
        pre_tokenizer=None,
        decoder=_PIECE_DECODER,
        byte_fallback=True,
        ignore_merges=False,
    )


def _replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


_PIECE_DECODER = {
    "type": "Sequence",
    "decoders": [_replace(_SPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"}],
}


def _document(
    vocabulary: Vocabulary,
    merges: Sequence[str],
    *,
    normalizer: dict[str, Any] | None,
    pre_tokenizer: dict[str, Any] | None,
    decoder: dict[str, Any],
    byte_fallback: bool,
    ignore_merges: bool,
) -> str:
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": _added_tokens(vocabulary),
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": None,
            "decoder": decoder,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": byte_fallback,
                "ignore_merges": ignore_merges,
                "vocab": vocabulary.ids,
                "merges": merges,
            },
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )


def _added_tokens(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Tokens found in the text before it is cut: control and unknown as special, user-defined not."""
    special = (TokenType.CONTROL, TokenType.UNKNOWN)
    return [
        {
            "id": index,
            "content": vocabulary.tokens[index],
            "single_word": False,
            "lstrip": False,
            "rstrip": index in vocabulary.swallows_space,
            "normalized": False,
            "special": vocabulary.types[index] in special,
        }
        for index in vocabulary.ids_of(*special, TokenType.USER_DEFINED)
    ]


def _checked_merges(lines: Sequence[str], ids: Mapping[str, int]) -> list[str]:
    """``"left right"`` lines without repetitions; a left part may itself begin with a space."""
    # Whole lists at a time and no pairs: a vocabulary of 262k tokens has half a million merges.
    cuts = [line.find(" ", 1) for line in lines]
    lefts = [line[:cut] for line, cut in zip(lines, cuts, strict=True)]
    rights = [line[cut + 1 :] for line, cut in zip(lines, cuts, strict=True)]
    known = ids.__contains__
    good = all(map(known, lefts)) and all(map(known, rights)) and all(map(known, map(add, lefts, rights)))
    if not good or -1 in cuts:
        parts = zip(lines, cuts, lefts, rights, strict=True)
        bad = next(line for line, cut, a, b in parts if cut < 0 or not ids.keys() >= {a, b, a + b})
        raise UnsupportedModelError(
            f"'tokenizer.ggml.merges' holds {bad!r}, which does not join two tokens into a third",
            hint="the vocabulary and its merges do not belong together; convert the model again",
        )
    if "".join(lines).count(" ") > len(lines):
        # The text has no space by then (it is a "\u0120" or U+2581), so a part with a space is out of reach.
        lines = [line for line in lines if line.count(" ") == 1]
    return list(dict.fromkeys(lines))


def _merges_from_scores(vocabulary: Vocabulary, scores: Sequence[float]) -> list[str]:
    """Every way to join two tokens into a third as ``"left right"``, best score of the third first.

    llama.cpp joins any two neighbours whose concatenation is a token, best score first, leftmost on ties.
    Left out are joins *into* control, unknown and byte tokens: those must not arise from plain text.

    Raises: UnsupportedModelError if llama.cpp would join a character that is not in the vocabulary.
    """
    ids, tokens = vocabulary.ids, vocabulary.tokens
    targets = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED, TokenType.UNDEFINED)
    order = vocabulary.ids_of(*targets)
    if " " in "".join(tokens):
        # Out of reach: by then every space of the text is a U+2581.
        order = [index for index in order if " " not in tokens[index]]
    order.sort(key=[-score for score in scores].__getitem__)  # stable: equal scores stay in order of ids
    merges: list[str] = []
    for token in map(tokens.__getitem__, order):
        last = len(token) - 1
        if last > 0 and token[0] not in ids and (last == 1 or token[1:] in ids):
            raise _lone_character(token)
        for cut in range(1, last + 1):
            # Few beginnings of a token are tokens, and looking them up is most of the work.
            if (left := token[:cut]) not in ids:
                continue
            if (right := token[cut:]) in ids:
                merges.append(f"{left} {right}")
            elif cut == last:
                raise _lone_character(token)
    return merges


def _lone_character(token: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the token {token!r} is made of a character that is not itself a token",
        hint="the tokenizers library writes such characters as bytes before merging, so the ids "
        "would differ; convert the model again with its complete vocabulary",
    )


def _require_bytes(vocabulary: Vocabulary) -> None:
    names = (f"<0x{byte:02X}>" for byte in range(256))
    missing = next((name for name in names if name not in vocabulary.ids), None)
    if missing is not None:
        raise UnsupportedModelError(
            f"the vocabulary has no byte token {missing!r}, so characters outside it cannot be written",
            hint="forgec supports SentencePiece vocabularies with byte fallback only",
        )
