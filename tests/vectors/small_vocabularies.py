"""Small vocabularies, made here from nothing but the strings they are to be tested on.

Strings come in; GGUF metadata (keys to values) goes out, the same for the same strings on every machine. They
contain no third party's tokens.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

__all__ = [
    "byte_pairs",
    "gemma_vocabulary",
    "naive_bytes",
    "pair_vocabulary",
    "sentencepiece_vocabulary",
    "trained_pieces",
]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

#: Reachable only where a word that is a token is taken whole (no merges lead to it).
WHOLE_WORD = "Ġignored"


def byte_alphabet() -> dict[int, str]:
    """GPT-2's character for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {b: chr(256 + i) for i, b in enumerate(others)}


def naive_bytes(text: str) -> str:
    """``text`` in GPT-2's byte alphabet."""
    alphabet = byte_alphabet()
    return "".join(alphabet[byte] for byte in text.encode())


def _shuffled(items: Iterable[str]) -> list[str]:
    """An order that does not depend on the machine, the Python version or the input's order."""
    return sorted(items, key=lambda item: (zlib.crc32(item.encode()), item))


def byte_pairs(strings: Sequence[str]) -> list[str]:
    """Every pair of neighbouring bytes in ``strings``, in GPT-2's byte alphabet and a shuffled order."""
    written = [naive_bytes(text) for text in strings]
    return _shuffled({text[i : i + 2] for text in written for i in range(len(text) - 1)})


def pair_vocabulary(strings: Sequence[str], pre: str) -> dict[str, Any]:
    """Every byte, and every pair of neighbouring bytes in ``strings``, merged in a shuffled order.

    Any two neighbours in a word can merge and nothing longer exists, so ids show where a text was cut.
    """
    pairs = byte_pairs(strings)
    tokens = [*byte_alphabet().values(), *pairs]
    types = [NORMAL] * len(tokens)
    extra = {
        WHOLE_WORD: NORMAL,
        "<|endoftext|>": CONTROL,
        "<|im_end|>": NORMAL,  # llama.cpp corrects this to a control token
        "<|user|>": USER_DEFINED,
        "unused_0": UNUSED,
        "": NORMAL,
    }
    begin = len(tokens) + 1
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens + list(extra),
        "tokenizer.ggml.token_type": types + list(extra.values()),
        "tokenizer.ggml.merges": [f"{pair[0]} {pair[1]}" for pair in pairs],
        "tokenizer.ggml.bos_token_id": begin,
        "tokenizer.ggml.eos_token_id": begin,
    }


def _train(strings: Sequence[str], merges: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Plain BPE over U+2581-escaped text: the characters, and the most frequent pairs in order.

    Strings with "<" give characters only: a piece such as "<s" would let llama.cpp join the text of a control
    token, which forgec never does. llama.cpp reads a NUL as the end of a token.
    """
    texts = [list(text.replace(" ", "\u2581")) for text in strings if text]
    characters = sorted({char for text in texts for char in text if char != "\0"})
    texts = [text for text in texts if "<" not in text]
    order: list[tuple[str, str]] = []
    for _ in range(merges):
        counts = Counter(pair for text in texts for pair in pairwise(text))
        if not counts:
            break
        pair = max(counts, key=lambda pair: (counts[pair], pair))
        order.append(pair)
        texts = [_merged(text, pair) for text in texts]
    return characters, order


def _merged(text: list[str], pair: tuple[str, str]) -> list[str]:
    result: list[str] = []
    index = 0
    while index < len(text):
        if tuple(text[index : index + 2]) == pair:
            result.append(text[index] + text[index + 1])
            index += 2
        else:
            result.append(text[index])
            index += 1
    return result


def _pieces(order: Sequence[tuple[str, str]], reserved: set[str]) -> list[str]:
    """The trained pieces, without texts that the vocabulary has for another purpose."""
    return [piece for piece in dict.fromkeys(left + right for left, right in order) if piece not in reserved]


def trained_pieces(strings: Sequence[str], reserved: set[str]) -> list[str]:
    """SentencePiece-like pieces of ``strings``, the best first, and then the characters."""
    characters, order = _train(strings, 40)
    return [*_pieces(order, reserved), *(char for char in characters if char not in reserved)]


def sentencepiece_vocabulary(
    strings: Sequence[str], *, space_prefix: bool, name: str = "small"
) -> dict[str, Any]:
    """SentencePiece-like: control tokens, bytes, trained pieces with falling scores, characters."""
    characters, order = _train(strings, 220)
    head = ["<unk>", "<s>", "</s>"]
    extra = {
        "<|end|>": CONTROL,
        "<|mark|>": USER_DEFINED,
        "<|assistant|>": CONTROL,
        "<|endoftext|>": CONTROL,
        "unused": UNUSED,
    }
    pieces = _pieces(order, {*head, *extra})
    byte_names = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = [*head, *byte_names, *pieces, *characters, *extra]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(pieces) + len(characters))]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(pieces) + len(characters))]
    return {
        "general.name": name,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types + list(extra.values()),
        "tokenizer.ggml.scores": scores + [-1000.0] * len(extra),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": space_prefix,
    }


def gemma_vocabulary(strings: Sequence[str]) -> dict[str, Any]:
    """The same pieces with a merge list instead of scores, as in Gemma 4's files."""
    characters, order = _train(strings, 220)
    pieces = _pieces(order, {"<pad>", "<eos>", "<bos>", "<unk>", "<turn|>", "</s>"})
    byte_names = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *byte_names, *pieces, *characters, "<turn|>", "</s>"]
    types = [CONTROL, CONTROL, CONTROL, UNKNOWN, *[BYTE] * 256]
    types += [NORMAL] * (len(pieces) + len(characters)) + [CONTROL, NORMAL]
    known = set(tokens)
    pairs = [(left, right) for left, right in order if {left, right} <= known]
    return {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in pairs],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.add_bos_token": False,
    }
