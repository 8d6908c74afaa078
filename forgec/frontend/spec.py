"""What a model is, in numbers: an open GGUF file in, one checked ModelSpec out.

It reads the keys that every decoder architecture shares, under whatever prefix the file names. Whether an
architecture is supported, and which tensors it must have, is decided by ``frontend.architectures``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from forgec.errors import GGUFError
from forgec.frontend.expert_spec import ExpertSpec, LatentSpec, read_experts, read_latent
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

    What only some architectures have is None (the window 0) where the metadata do not give it; what that
    means is for the architecture's module to say. ``sliding_window`` is in tokens, ``window_pattern`` one
    truth per layer or a period, caps and the ALiBi exponent are as in ``ir.ops``, and ``rope_local_base`` is
    the base of the layers with a window.
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
    sliding_window: int = 0
    window_pattern: tuple[bool, ...] | int | None = None
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    logit_scale: float | None = None
    embedding_scale: float | None = None
    residual_scale: float | None = None
    alibi_bias: float | None = None
    qkv_clamp: float | None = None
    rope_local_base: float | None = None
    rope_finetuned: bool | None = None
    parallel_residual: bool | None = None
    experts: ExpertSpec | None = None
    latent: LatentSpec | None = None

    def windowed(self, layer: int, period: int) -> bool:
        """Whether a layer has the sliding window, by the file's pattern, else all but every ``period``-th.

        Source: llama.cpp, llama_hparams::set_swa_pattern.
        """
        pattern = period if self.window_pattern is None else self.window_pattern
        if isinstance(pattern, tuple):
            return pattern[layer]
        return pattern == 0 or layer % pattern < pattern - 1


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
    experts = read_experts(keys)
    inner = None if experts is None else experts.feed_forward_length
    vocabulary = read_vocabulary_size(keys, embedding_length)
    return ModelSpec(
        architecture=keys.architecture,
        name=_name(gguf),
        vocab_size=vocabulary.size,
        vocab_size_source=vocabulary.source,
        context_length=context_length,
        embedding_length=embedding_length,
        block_count=block_count,
        feed_forward_length=keys.layer_integer(
            "feed_forward_length",
            MAX_FEED_FORWARD_LENGTH,
            block_count,
            inner,
        ),
        head_count=head_count,
        head_count_kv=head_count_kv,
        key_length=key_length,
        value_length=_head_length(keys, "attention.value_length", embedding_length, head_count),
        norm_epsilon=_norm_epsilon(keys),
        rope=read_rope(keys, key_length, context_length),
        tied_embeddings=not any(map(is_output_matrix, gguf.tensors)),
        parameter_count=sum(info.elements for info in gguf.tensors.values()),
        quant_types=_quant_types(gguf),
        sliding_window=_sliding_window(keys),
        window_pattern=keys.layer_flags("attention.sliding_window_pattern", block_count),
        attention_scale=keys.optional_number("attention.scale", 0.0, 1e6),
        attention_softcap=keys.optional_number("attn_logit_softcapping", 0.0, 1e6),
        logit_softcap=keys.optional_number("final_logit_softcapping", 0.0, 1e6),
        logit_scale=keys.optional_number("logit_scale", 0.0, 1e6),
        embedding_scale=keys.optional_number("embedding_scale", 0.0, 1e6),
        residual_scale=keys.optional_number("residual_scale", 0.0, 1e6),
        alibi_bias=keys.optional_number("attention.max_alibi_bias", 0.0, 1e3),
        qkv_clamp=keys.optional_number("attention.clamp_kqv", 0.0, 1e6),
        rope_local_base=keys.optional_number("rope.freq_base_swa", 1.01, 1e15),
        rope_finetuned=keys.flag("rope.scaling.finetuned"),
        parallel_residual=keys.flag("use_parallel_residual"),
        experts=experts,
        latent=read_latent(keys),
    )


def _sliding_window(keys: ModelKeys) -> int:
    """Tokens; 0, which files also write for "none", where there is no such key."""
    suffix = "attention.sliding_window"
    if keys.gguf.metadata.get(keys.key(suffix), 0) == 0:
        return 0
    return keys.integer(suffix, MAX_CONTEXT_LENGTH)


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
