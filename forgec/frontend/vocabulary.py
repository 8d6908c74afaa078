"""How many tokens a model has: GGUF metadata and tensor shapes in, a size and where it came from out.

Metadata decide; without them the shape of an embedding tensor does, and only then a well-known default.
Where metadata and tensors are both present they must agree. Token texts are the tokenizer's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from forgec.errors import GGUFError
from forgec.frontend.gguf import TensorInfo
from forgec.frontend.gguf_values import described, quoted
from forgec.frontend.metadata import ModelKeys

__all__ = ["VocabularySize", "is_output_matrix", "read_vocabulary_size"]

MAX_VOCABULARY = 1 << 24  # no less than the number of strings that the reader accepts

# ggml's names first, then those of transformers, GPT-2 and the original Llama release.
_EMBEDDING_NAMES = (
    "token_embd.weight",
    "embed_tokens.weight",
    "tok_embeddings.weight",
    "word_embeddings.weight",
    "wte.weight",
)
_OUTPUT_NAMES = ("output.weight", "lm_head.weight", "embed_out.weight")

# Sizes of the embedding tensors of the families' released models.
_ARCHITECTURE_DEFAULTS = MappingProxyType(
    {"chatglm": 151552, "glm": 151552, "glm4": 151552, "llama": 32000, "qwen2": 151936}
)


@dataclass(frozen=True)
class VocabularySize:
    """``size`` in tokens; ``source`` is 'metadata', 'tensor <name> axis <n>' or 'architecture default'."""

    size: int
    source: str


def read_vocabulary_size(keys: ModelKeys, embedding_length: int) -> VocabularySize:
    """The vocabulary size of a model whose hidden size is ``embedding_length``.

    An embedding tensor may be padded: then its larger size counts, as logits of that many tokens are
    computed. Raises GGUFError when sources contradict each other or none is present.
    """
    declared = _declared(keys)
    tensors = _vocabulary_tensors(keys, embedding_length)
    if not tensors:
        if declared:
            return VocabularySize(declared[0][1], "metadata")
        default = _ARCHITECTURE_DEFAULTS.get(keys.architecture)
        if default is None:
            raise GGUFError(
                f"the vocabulary size of '{keys.gguf.path.name}' is unknown: it has neither "
                f"'{keys.key('vocab_size')}' nor 'tokenizer.ggml.tokens' nor an embedding tensor"
            )
        return VocabularySize(default, "architecture default")
    name, axis, rows = tensors[0]
    for other, _, other_rows in tensors[1:]:
        if other_rows != rows:
            raise GGUFError(
                f"tensor {quoted(name)} is for {rows} tokens, but {quoted(other)} for {other_rows}"
            )
    if rows > MAX_VOCABULARY:
        raise GGUFError(f"tensor {quoted(name)} is for {rows} tokens; at most {MAX_VOCABULARY} are accepted")
    for source, size in declared:
        if rows < size:
            raise GGUFError(
                f"{source} gives {size} tokens, but tensor {quoted(name)} has rows for only {rows}"
            )
    if declared and declared[0][1] == rows:
        return VocabularySize(rows, "metadata")
    return VocabularySize(rows, f"tensor {name} axis {axis}")


def _declared(keys: ModelKeys) -> list[tuple[str, int]]:
    """(what says so, size) of each metadata source, the decisive one first."""
    sources: list[tuple[str, int]] = []
    if keys.has("vocab_size"):
        size = keys.integer("vocab_size", MAX_VOCABULARY)
        sources.append((f"metadata key '{keys.key('vocab_size')}'", size))
    tokens = keys.gguf.metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        return sources
    if isinstance(tokens, (str, np.ndarray)) or not isinstance(tokens, Sequence):
        raise GGUFError(
            f"metadata key 'tokenizer.ggml.tokens' must be an array of strings, found {described(tokens)}"
        )
    if len(tokens) > 0:
        sources.append(("metadata key 'tokenizer.ggml.tokens'", len(tokens)))
    return sources


def _vocabulary_tensors(keys: ModelKeys, embedding_length: int) -> list[tuple[str, int, int]]:
    """(name, vocabulary axis, vocabulary size) of every embedding and output matrix, embeddings first."""
    found: list[tuple[str, int, int]] = []
    for known in (*_EMBEDDING_NAMES, *_OUTPUT_NAMES):
        for info in keys.gguf.tensors.values():
            if _is_named(info.name, known) and len(info.shape) == 2:
                axis = _vocabulary_axis(info, embedding_length, keys)
                found.append((info.name, axis, info.shape[axis]))
    return found


def is_output_matrix(name: str) -> bool:
    """Whether a tensor of this name turns hidden values into logits, under any of the usual names."""
    return any(_is_named(name, known) for known in _OUTPUT_NAMES)


def _is_named(name: str, known: str) -> bool:
    """``known`` itself, or at the end of a path outside the layers: 'model.embed_tokens.weight'.

    Inside a layer the same word means something else: 'encoder.layer.0.output.weight'.
    """
    if name == known:
        return True
    head, _, _ = name.partition(known)
    return name == head + known and head.endswith(".") and not any(c.isdigit() for c in head)


def _vocabulary_axis(info: TensorInfo, embedding_length: int, keys: ModelKeys) -> int:
    """The axis that is not the hidden size; rows (axis 0, as GGUF stores it) when both could be."""
    if info.shape[1] == embedding_length:
        return 0
    if info.shape[0] == embedding_length:
        return 1
    raise GGUFError(
        f"tensor {quoted(info.name)} has shape {list(info.shape)}, in which no axis is "
        f"'{keys.key('embedding_length')}', {embedding_length}"
    )
