"""Rotary position embedding as data: GGUF metadata in, a RopeSpec and its table of cosines and sines out.

The meaning of each scaling is llama.cpp's, computed in float64. Nothing here rotates a vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from forgec.errors import GGUFError, UnsupportedModelError
from forgec.frontend.gguf_values import quoted
from forgec.frontend.metadata import ModelKeys

__all__ = ["INTERLEAVED_ARCHITECTURES", "LONG_FACTORS", "RopeSpec", "read_rope"]

FREQ_FACTORS = "rope_freqs.weight"
#: LongRoPE has two: the short factors for contexts up to the original one, the long factors above.
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
_TABLE_ROWS = 4096  # positions computed at a time, which bounds the float64 temporaries

# Architectures whose Q and K rows are stored for pairs (2i, 2i+1): LLAMA_ROPE_TYPE_NORM. The GGUF converter
# permutes them that way for 'llama'. All others with a rotary embedding rotate (i, i + dim/2), as NeoX does.
# Source: llama.cpp src/llama-model.cpp, llama_model_rope_type.
INTERLEAVED_ARCHITECTURES = frozenset(
    [
        "arcee",
        "arctic",
        "baichuan",
        "bailingmoe",
        "chameleon",
        "chatglm",
        "cohere2",
        "cohere2moe",
        "command-r",
        "deci",
        "deepseek",
        "deepseek2",
        "ernie4_5",
        "ernie4_5-moe",
        "glm4",
        "granite",
        "granitehybrid",
        "granitemoe",
        "internlm2",
        "llada",
        "llama",
        "llama-embed",
        "llama4",
        "maincoder",
        "minicpm",
        "mistral3",
        "mistral4",
        "neo-bert",
        "olmo",
        "plm",
        "smollm3",
        "starcoder",
        "xverse",
    ]
)


@dataclass(frozen=True)
class RopeSpec:
    """One rotary embedding: rotate ``dimension_count`` values of a head, in pairs, by position · frequency.

    Frequency of pair i: f[i] = freq_base^(-2i / dimension_count), divided by the tensor ``freq_factors[i]``
    where the model has one, and then by ``scaling``:

    - ``none``: unchanged.
    - ``linear``: f / factor.
    - ``llama3``: the factors tensor alone; without one, f where the original context holds more than
      ``beta_fast`` (high_freq_factor) rotations, f / factor below ``beta_slow`` (low_freq_factor),
      blended linearly in the number of rotations between the two.
    - ``yarn``: f above ``beta_fast`` rotations and f / factor below ``beta_slow``, blended linearly in i
      between the two rounded pair indices; cosines and sines are scaled by
      attention_factor · (1 + 0.1 ln factor).

    ``interleaved`` pairs are (2i, 2i+1), the others (i, i + dimension_count/2). ``attention_factor`` scales
    cosines and sines in every scaling. ``original_context_length`` is in tokens. LongRoPE (arXiv 2402.13753)
    is ``none`` or ``linear`` with ``freq_factors`` for contexts up to it and ``long_factors`` above.
    Source: ggml/src/ggml-cpu/ops.cpp (rope_yarn), llama.cpp src/llama-context.cpp; YaRN: arXiv 2309.00071.
    """

    dimension_count: int
    freq_base: float
    interleaved: bool
    scaling: str
    factor: float
    original_context_length: int
    attention_factor: float
    beta_fast: float
    beta_slow: float
    freq_factors: str | None
    long_factors: str | None = None

    def factors_tensor(self, context_length: int) -> str | None:
        """The tensor whose values ``table`` needs for a context of so many tokens; None for none."""
        long = self.long_factors is not None and context_length > self.original_context_length
        return self.long_factors if long else self.freq_factors

    def local(self, freq_base: float) -> RopeSpec:
        """The rotation of sliding-window layers that have their own base and no scaling."""
        return replace(
            self,
            freq_base=freq_base,
            scaling="none",
            factor=1.0,
            attention_factor=1.0,
            freq_factors=None,
            long_factors=None,
        )

    @property
    def magnitude(self) -> float:
        """What cosines and sines are multiplied by."""
        if self.scaling == "yarn":
            return self.attention_factor * (1.0 + 0.1 * math.log(self.factor))
        return self.attention_factor

    def inverse_frequencies(self, factors: npt.NDArray[np.floating] | None = None) -> npt.NDArray[np.float64]:
        """Radians per position of each pair: float64 [dimension_count / 2].

        ``factors`` are the decoded values of tensor ``freq_factors`` and must be given exactly when the
        spec names one. Raises GGUFError when they are missing, or not positive numbers of that shape.
        """
        pairs = self.dimension_count // 2
        frequencies = self.freq_base ** (-np.arange(pairs, dtype=np.float64) / pairs)
        checked = self._checked_factors(factors)
        if checked is not None:
            frequencies = frequencies / checked
        if self.scaling == "none" or (self.scaling == "llama3" and checked is not None):
            return frequencies
        if self.scaling == "linear":
            return frequencies / self.factor
        if self.scaling == "llama3":
            kept = self._llama3_kept(frequencies)
        elif self.scaling == "yarn":
            kept = self._yarn_kept()
        else:
            raise UnsupportedModelError(f"rope scaling {quoted(self.scaling)} is not supported")
        return frequencies * (kept + (1.0 - kept) / self.factor)

    def table(
        self, context_length: int, factors: npt.NDArray[np.floating] | None = None
    ) -> npt.NDArray[np.float32]:
        """Cosine and sine of every position and pair, times ``magnitude``.

        Returns float32 [context_length, dimension_count / 2, 2], last axis (cos, sin), rounded once from
        float64. Raises as ``inverse_frequencies``.
        """
        frequencies = self.inverse_frequencies(factors)
        table = np.empty((context_length, len(frequencies), 2), np.float32)
        for begin in range(0, context_length, _TABLE_ROWS):
            rows = table[begin : begin + _TABLE_ROWS]
            positions = np.arange(begin, begin + len(rows), dtype=np.float64)
            angles = np.outer(positions, frequencies)
            rows[..., 0] = np.cos(angles) * self.magnitude
            rows[..., 1] = np.sin(angles) * self.magnitude
        return table

    def _checked_factors(self, factors: npt.NDArray[np.floating] | None) -> npt.NDArray[np.float64] | None:
        if self.freq_factors is None:
            if factors is not None:
                raise GGUFError("rope frequency factors were given for a model that has no such tensor")
            return None
        if factors is None:
            raise GGUFError(f"the rope frequencies need the values of tensor '{self.freq_factors}'")
        values = np.asarray(factors, np.float64)
        expected = (self.dimension_count // 2,)
        if values.shape != expected:
            raise GGUFError(
                f"tensor '{self.freq_factors}' has shape {list(values.shape)}, expected {list(expected)}"
            )
        if not np.all(np.isfinite(values) & (values > 0)):
            raise GGUFError(f"tensor '{self.freq_factors}' must hold positive numbers")
        return values

    def _llama3_kept(self, frequencies: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The share of each frequency that is not slowed down, 0 to 1."""
        rotations = self.original_context_length * frequencies / (2.0 * math.pi)
        kept = (rotations - self.beta_slow) / (self.beta_fast - self.beta_slow)
        return np.clip(kept, 0.0, 1.0)

    def _yarn_kept(self) -> npt.NDArray[np.float64]:
        """As ``_llama3_kept``: a ramp over the pair index i between two corner pairs."""
        low = max(0, math.floor(self._pair_with_rotations(self.beta_fast)))
        high = min(self.dimension_count - 1, math.ceil(self._pair_with_rotations(self.beta_slow)))
        pairs = np.arange(self.dimension_count // 2, dtype=np.float64)
        return 1.0 - np.clip((pairs - low) / max(0.001, high - low), 0.0, 1.0)

    def _pair_with_rotations(self, rotations: float) -> float:
        """The (fractional) pair that turns ``rotations`` times within the original context."""
        wavelength_ratio = self.original_context_length / (rotations * 2.0 * math.pi)
        return self.dimension_count * math.log(wavelength_ratio) / (2.0 * math.log(self.freq_base))


def read_rope(keys: ModelKeys, key_length: int, context_length: int) -> RopeSpec:
    """The rotary embedding of a model whose heads have ``key_length`` values.

    Raises GGUFError for a bad value, UnsupportedModelError for a scaling that RopeSpec cannot express.
    """
    dimension_count = keys.integer("rope.dimension_count", key_length, key_length)
    if dimension_count % 2 != 0:
        raise GGUFError(
            f"metadata key '{keys.key('rope.dimension_count')}' must be even, found {dimension_count}"
        )
    factor = _factor(keys)
    freq_factors = _freq_factors(keys, FREQ_FACTORS, dimension_count)
    short, long = (_freq_factors(keys, name, dimension_count) for name in (SHORT_FACTORS, LONG_FACTORS))
    if (short is None) != (long is None):
        missing = SHORT_FACTORS if short is None else LONG_FACTORS
        raise GGUFError(f"tensor '{missing}' of [{dimension_count // 2}] is missing; LongRoPE needs both")
    scaling = _scaling(keys, factor, freq_factors is not None)
    # 'llama3' keeps its two corners, given in rotations as well, in the fields that YaRN uses.
    fast, slow = ("yarn_beta_fast", 32.0), ("yarn_beta_slow", 1.0)
    if scaling == "llama3":
        fast, slow = ("high_freq_factor", 4.0), ("low_freq_factor", 1.0)
    beta_fast = keys.number(f"rope.scaling.{fast[0]}", 1e-3, 1e6, fast[1])
    beta_slow = keys.number(f"rope.scaling.{slow[0]}", 1e-3, 1e6, slow[1])
    if beta_fast <= beta_slow:
        raise GGUFError(
            f"metadata key '{keys.key('rope.scaling.' + fast[0])}' is {beta_fast:g} and must be more than "
            f"'{keys.key('rope.scaling.' + slow[0])}', which is {beta_slow:g}"
        )
    attention_factor = keys.number("rope.scaling.attn_factor", 1e-3, 1e3, 1.0)
    if scaling == "yarn":
        attention_factor *= _yarn_attention_factor(keys, factor)
    return RopeSpec(
        dimension_count=dimension_count,
        freq_base=keys.number("rope.freq_base", 1.01, 1e15, 10000.0),
        interleaved=keys.architecture in INTERLEAVED_ARCHITECTURES,
        scaling=scaling,
        factor=1.0 if scaling == "none" else factor,
        original_context_length=keys.integer("rope.scaling.original_context_length", 1 << 30, context_length),
        attention_factor=attention_factor,
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        freq_factors=short or freq_factors,
        long_factors=long,
    )


def _factor(keys: ModelKeys) -> float:
    # 'scale_linear' is the name that files of 2023 use; llama.cpp takes a factor of 0 for "not scaled".
    suffix = "rope.scaling.factor" if keys.has("rope.scaling.factor") else "rope.scale_linear"
    return keys.number(suffix, 0.0, 1e6, 1.0) or 1.0


def _scaling(keys: ModelKeys, factor: float, has_freq_factors: bool) -> str:
    # Without a type llama.cpp scales linearly, by a factor that is 1 unless it is given.
    declared = keys.text("rope.scaling.type", "linear")
    key = keys.key("rope.scaling.type")
    if declared not in ("none", "linear", "llama3", "yarn", "longrope"):
        raise UnsupportedModelError(
            f"metadata key '{key}' is {quoted(declared)}; supported are 'none', 'linear', 'llama3', 'yarn' "
            f"and 'longrope'"
        )
    if declared == "yarn":
        if factor < 1.0:
            raise GGUFError(
                f"'{keys.key('rope.scaling.factor')}' must be at least 1 for YaRN, found {factor:g}"
            )
        return "yarn"
    if declared in ("linear", "longrope") and factor != 1.0:
        return "linear"
    if has_freq_factors:
        return "llama3"
    if declared == "llama3":
        for suffix in ("rope.scaling.factor", "rope.scaling.original_context_length"):
            keys.number(suffix, 1.0, 1e9)  # without the factors tensor these are required
        return "llama3"
    return "none"


def _freq_factors(keys: ModelKeys, tensor: str, dimension_count: int) -> str | None:
    info = keys.gguf.tensors.get(tensor)
    if info is None:
        return None
    if info.shape != (dimension_count // 2,):
        raise GGUFError(
            f"tensor '{tensor}' has shape {list(info.shape)}, expected [{dimension_count // 2}]: "
            f"half of '{keys.key('rope.dimension_count')}'"
        )
    return tensor


def _yarn_attention_factor(keys: ModelKeys, factor: float) -> float:
    """What llama.cpp multiplies 1 + 0.1 ln(factor) by: DeepSeek's and Mistral's second logarithm."""
    for suffix in ("rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor"):
        value = keys.number(suffix, -1.0, 1e3, 1.0)
        if value not in (1.0, -1.0):  # -1 is llama.cpp's "default"
            raise UnsupportedModelError(
                f"metadata key '{keys.key(suffix)}' is {value:g}; only the default of 1 is supported"
            )
    log_multiplier = keys.number("rope.scaling.yarn_log_multiplier", 0.0, 1e3, 0.0)
    return 1.0 / (1.0 + 0.1 * log_multiplier * math.log(factor))
