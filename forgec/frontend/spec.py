"""What a model is, in numbers: an open GGUF file in, one checked ModelSpec out.

It reads the keys that every decoder architecture shares, under whatever prefix the file names. Whether an
architecture is supported, and which tensors it must have, is decided by ``frontend.architectures``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from forgec.errors import GGUFError
from forgec.frontend.gguf import GGUFFile
from forgec.frontend.gguf_values import described
from forgec.frontend.metadata import ModelKeys
from forgec.frontend.rope import RopeSpec, read_rope
from forgec.frontend.vocabulary import is_output_matrix, read_vocabulary_size

__all__ = ["ModelSpec", "RopeSpec", "read_spec"]

# Upper bounds of what is believed: ten times or more above the largest published models.
MAX_CONTEXT_LENGTH = 1 << 30
MAX_EMBEDDING_LENGTH = 1 << 20
MAX_FEED_FORWARD_LENGTH = 1 << 22
MAX_BLOCK_COUNT = 4096
MAX_HEAD_COUNT = 4096
MAX_HEAD_LENGTH = 1 << 14


@dataclass(frozen=True)
class ModelSpec:
    """The shape of a decoder-only language model; lengths are in elements, counts per layer.

    ``vocab_size_source`` says where the size came from: 'metadata', 'tensor <name> axis <n>' or
    'architecture default'. ``tied_embeddings``: the output matrix is the embedding matrix.
    ``quant_types`` counts tensors by type name, the most frequent first.
    """

    architecture: str
    name: str
    vocab_size: int
    vocab_size_source: str
    context_length: int
    embedding_length: int
    block_count: int
    feed_forward_length: int
    head_count: int
    head_count_kv: int
    key_length: int
    value_length: int
    norm_epsilon: float
    rope: RopeSpec
    tied_embeddings: bool
    parameter_count: int
    quant_types: tuple[tuple[str, int], ...]


def read_spec(gguf: GGUFFile) -> ModelSpec:
    """Read and check the numbers of a model.

    Raises GGUFError naming the missing, mistyped, contradictory or implausible key, and
    UnsupportedModelError when layers differ or the rope scaling is not known.
    """
    keys = ModelKeys.of(gguf)
    block_count = keys.integer("block_count", MAX_BLOCK_COUNT)
    context_length = keys.integer("context_length", MAX_CONTEXT_LENGTH)
    embedding_length = keys.integer("embedding_length", MAX_EMBEDDING_LENGTH)
    head_count = keys.layer_integer("attention.head_count", MAX_HEAD_COUNT, block_count)
    head_count_kv = keys.layer_integer("attention.head_count_kv", MAX_HEAD_COUNT, block_count, head_count)
    if head_count % head_count_kv != 0:
        raise GGUFError(
            f"metadata key '{keys.key('attention.head_count')}' is {head_count}, which is not a multiple of "
            f"'{keys.key('attention.head_count_kv')}', {head_count_kv}"
        )
    key_length = _head_length(keys, "attention.key_length", embedding_length, head_count)
    vocabulary = read_vocabulary_size(keys, embedding_length)
    return ModelSpec(
        architecture=keys.architecture,
        name=_name(gguf),
        vocab_size=vocabulary.size,
        vocab_size_source=vocabulary.source,
        context_length=context_length,
        embedding_length=embedding_length,
        block_count=block_count,
        feed_forward_length=keys.layer_integer("feed_forward_length", MAX_FEED_FORWARD_LENGTH, block_count),
        head_count=head_count,
        head_count_kv=head_count_kv,
        key_length=key_length,
        value_length=_head_length(keys, "attention.value_length", embedding_length, head_count),
        norm_epsilon=_norm_epsilon(keys),
        rope=read_rope(keys, key_length, context_length),
        tied_embeddings=not any(map(is_output_matrix, gguf.tensors)),
        parameter_count=sum(info.elements for info in gguf.tensors.values()),
        quant_types=_quant_types(gguf),
    )


def _head_length(keys: ModelKeys, suffix: str, embedding_length: int, head_count: int) -> int:
    if keys.has(suffix):
        return keys.integer(suffix, MAX_HEAD_LENGTH)
    if embedding_length % head_count != 0:
        raise GGUFError(
            f"'{keys.gguf.path.name}' lacks the metadata key '{keys.key(suffix)}', and "
            f"'{keys.key('embedding_length')}', {embedding_length}, is not a multiple of "
            f"'{keys.key('attention.head_count')}', {head_count}"
        )
    return embedding_length // head_count


def _norm_epsilon(keys: ModelKeys) -> float:
    rms, layer = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
    suffix = layer if keys.has(layer) and not keys.has(rms) else rms
    return keys.number(suffix, 1e-30, 1.0)


def _name(gguf: GGUFFile) -> str:
    name = gguf.metadata.get("general.name", gguf.path.stem)
    if not isinstance(name, str):
        raise GGUFError(f"metadata key 'general.name' must be a string, found {described(name)}")
    return name


def _quant_types(gguf: GGUFFile) -> tuple[tuple[str, int], ...]:
    counts = Counter(info.type.name for info in gguf.tensors.values())
    return tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
