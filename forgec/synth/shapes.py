"""Real model shapes: the numbers of published models, each with its source, and the tensors they consist of.

A name goes in, a frozen ``Shape`` comes out, which lists its GGUF metadata and tensors. Nothing here makes
weights or chooses types.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from forgec.errors import UsageError

__all__ = ["SHAPES", "RopeFactors", "Shape", "TensorShape", "find_shape"]


@dataclass(frozen=True)
class RopeFactors:
    """Llama 3's scaling of RoPE: wavelengths above ``context / low`` grow by ``factor``, below
    ``context / high`` they stay, between them they are blended.

    Source: "rope_scaling" of the models' config.json; Hugging Face transformers, modeling_rope_utils.
    """

    factor: float
    low: float = 1.0
    high: float = 4.0
    context: int = 8192

    def values(self, dimensions: int, base: float) -> list[float]:
        """Divisors of the ``dimensions / 2`` frequencies: the tensor rope_freqs.weight."""
        result = []
        for i in range(0, dimensions, 2):
            wavelength = 2 * math.pi * base ** (i / dimensions)
            if wavelength < self.context / self.high:
                result.append(1.0)
            elif wavelength > self.context / self.low:
                result.append(self.factor)
            else:
                smooth = (self.context / wavelength - self.low) / (self.high - self.low)
                result.append(1.0 / ((1.0 - smooth) / self.factor + smooth))
        return result


@dataclass(frozen=True)
class TensorShape:
    """A tensor: GGUF name, role for the quantisation rules, layer (-1: none) and NumPy shape."""

    name: str
    role: str
    layer: int
    shape: tuple[int, ...]

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) > 1


@dataclass(frozen=True)
class Shape:
    """A published model in numbers; lengths in elements. ``source``: the Hugging Face repository of its
    config.json. ``pre`` names llama.cpp's pre-tokenizer."""

    name: str
    architecture: str
    layers: int
    embedding: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_length: int
    vocab: int
    context: int
    rope_base: float
    epsilon: float
    tied: bool
    pre: str
    source: str
    rope_factors: RopeFactors | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    extra: tuple[tuple[str, Any], ...] = ()

    def metadata(self) -> dict[str, Any]:
        """The keys of the architecture (without the tokenizer's)."""
        values: dict[str, Any] = {
            "block_count": self.layers,
            "context_length": self.context,
            "embedding_length": self.embedding,
            "feed_forward_length": self.feed_forward,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "attention.key_length": self.head_length,
            "attention.value_length": self.head_length,
            "attention.layer_norm_rms_epsilon": self.epsilon,
            "rope.dimension_count": self.head_length,
            "rope.freq_base": self.rope_base,
            "vocab_size": self.vocab,
            **dict(self.extra),
        }
        return {f"{self.architecture}.{key}": value for key, value in values.items()}

    def tensors(self) -> Iterator[TensorShape]:
        """All tensors in file order."""
        width = self.embedding
        yield TensorShape("token_embd.weight", "token_embd", -1, (self.vocab, width))
        if self.rope_factors is not None:
            yield TensorShape("rope_freqs.weight", "rope_freqs", -1, (self.head_length // 2,))
        for layer in range(self.layers):
            for role, shape in self._layer():
                suffix = "bias" if role.endswith("_bias") else "weight"
                yield TensorShape(f"blk.{layer}.{role.removesuffix('_bias')}.{suffix}", role, layer, shape)
        yield TensorShape("output_norm.weight", "output_norm", -1, (width,))
        if not self.tied:
            yield TensorShape("output.weight", "output", -1, (self.vocab, width))

    def _layer(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        width, ff = self.embedding, self.feed_forward
        queries, keys = self.heads * self.head_length, self.kv_heads * self.head_length
        yield "attn_norm", (width,)
        for role, rows in (("attn_q", queries), ("attn_k", keys), ("attn_v", keys)):
            yield role, (rows, width)
            if self.qkv_bias:
                yield f"{role}_bias", (rows,)
        if self.qk_norm:
            yield "attn_q_norm", (self.head_length,)
            yield "attn_k_norm", (self.head_length,)
        yield "attn_output", (width, queries)
        if self.post_norms:
            yield "post_attention_norm", (width,)
        yield "ffn_norm", (width,)
        yield "ffn_gate", (ff, width)
        yield "ffn_up", (ff, width)
        yield "ffn_down", (width, ff)
        if self.post_norms:
            yield "post_ffw_norm", (width,)


def _llama(
    name: str, layers: int, width: int, ff: int, heads: int, kv: int, head: int, tied: bool, factor: float
) -> Shape:
    """Llama 3.1 and 3.2."""
    return Shape(
        name, "llama", layers, width, ff, heads, kv, head, 128256, 131072, 500000.0, 1e-5, tied, "llama-bpe",
        f"meta-llama/{name}", RopeFactors(factor),
    )  # fmt: skip


def _qwen2(
    name: str, layers: int, width: int, ff: int, heads: int, kv: int, head: int, vocab: int, tied: bool
) -> Shape:
    return Shape(
        name, "qwen2", layers, width, ff, heads, kv, head, vocab, 32768, 1e6, 1e-6, tied, "qwen2",
        f"Qwen/{name}-Instruct", qkv_bias=True,
    )  # fmt: skip


def _qwen3(name: str, layers: int, width: int, ff: int, heads: int, kv: int, tied: bool) -> Shape:
    return Shape(
        name, "qwen3", layers, width, ff, heads, kv, 128, 151936, 40960, 1e6, 1e-6, tied, "qwen2",
        f"Qwen/{name}", qk_norm=True,
    )  # fmt: skip


def _smol(name: str, layers: int, width: int, ff: int, heads: int, kv: int, base: float) -> Shape:
    return Shape(
        name, "llama", layers, width, ff, heads, kv, 64, 49152, 8192, base, 1e-5, True, "smollm",
        f"HuggingFaceTB/{name}-Instruct",
    )  # fmt: skip


SHAPES: dict[str, Shape] = {
    s.name: s
    for s in (
        _smol("SmolLM2-135M", 30, 576, 1536, 9, 3, 1e5),
        _smol("SmolLM2-360M", 32, 960, 2560, 15, 5, 1e5),
        _smol("SmolLM2-1.7B", 24, 2048, 8192, 32, 32, 1.3e5),
        _llama("Llama-3.2-1B", 16, 2048, 8192, 32, 8, 64, True, 32.0),
        _llama("Llama-3.2-3B", 28, 3072, 8192, 24, 8, 128, True, 32.0),
        _llama("Llama-3.1-8B", 32, 4096, 14336, 32, 8, 128, False, 8.0),
        _qwen2("Qwen2.5-0.5B", 24, 896, 4864, 14, 2, 64, 151936, True),
        _qwen2("Qwen2.5-1.5B", 28, 1536, 8960, 12, 2, 128, 151936, True),
        _qwen2("Qwen2.5-3B", 36, 2048, 11008, 16, 2, 128, 151936, True),
        _qwen2("Qwen2.5-7B", 28, 3584, 18944, 28, 4, 128, 152064, False),
        _qwen3("Qwen3-0.6B", 28, 1024, 3072, 16, 8, True),
        _qwen3("Qwen3-1.7B", 28, 2048, 6144, 16, 8, True),
        _qwen3("Qwen3-4B", 36, 2560, 9728, 32, 8, True),
        _qwen3("Qwen3-8B", 36, 4096, 12288, 32, 8, False),
        Shape(
            "Mistral-7B", "llama", 32, 4096, 14336, 32, 8, 128, 32768, 32768, 1e6, 1e-5, False, "llama-bpe",
            "mistralai/Mistral-7B-Instruct-v0.3",
        ),
        Shape(
            "TinyLlama-1.1B", "llama", 22, 2048, 5632, 32, 4, 64, 32000, 2048, 1e4, 1e-5, False, "llama-bpe",
            "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        ),
        Shape(
            "Gemma-2-2B", "gemma2", 26, 2304, 9216, 8, 4, 256, 256000, 8192, 1e4, 1e-6, True, "default",
            "google/gemma-2-2b-it", post_norms=True,
            extra=(
                ("attn_logit_softcapping", 50.0),
                ("final_logit_softcapping", 30.0),
                ("attention.sliding_window", 4096),
            ),
        ),
    )
}  # fmt: skip


def find_shape(name: str) -> Shape:
    """The shape of a name, whatever its case. Raises UsageError that lists the known ones."""
    for shape in SHAPES.values():
        if shape.name.lower() == name.lower():
            return shape
    raise UsageError(f"there is no model shape '{name}'", f"Known: {', '.join(SHAPES)}.")
