"""All operations on one page: what a model's graph is made of.

Each op is a frozen dataclass whose fields are its compile-time parameters; its docstring gives the equation,
the shapes and the source. The ops hold no tensors and compute nothing: shapes are inferred in ``shapes``,
the numerical meaning lives in ``forgec.reference``.

Shapes use ``rows`` for the tokens of the current step and ``context`` for the cached positions. Row r of a
step lies at position p + r, where p is the step's first position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

__all__ = [
    "GELU",
    "QK",
    "Add",
    "Attention",
    "Clamp",
    "Embedding",
    "Epilogue",
    "FusedLinear",
    "Gated",
    "HeadNorm",
    "KVAppend",
    "LayerNorm",
    "LayerNormPrologue",
    "Linear",
    "LinearInputs",
    "Mask",
    "Mul",
    "NoPrologue",
    "NormAdd",
    "NormResidual",
    "Op",
    "Pointwise",
    "Prologue",
    "QKNorm",
    "RMSNorm",
    "RMSNormPrologue",
    "Residual",
    "Rope",
    "RopeKV",
    "Sample",
    "Scale",
    "SelectRow",
    "SiLU",
    "SoftCap",
    "Softmax",
    "SquaredReLU",
    "Store",
    "WeightedV",
]


@dataclass(frozen=True)
class Op:
    """Base of all ops.

    ``input_names`` are the roles of the inputs in order, a last one with "?" is optional; ``output_names``
    those of the outputs. ``commutative`` ops have two inputs that may change places.
    """

    commutative: ClassVar[bool] = False

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("x",)

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("y",)


# ------------------------------------------------------------ from the model


@dataclass(frozen=True)
class Pointwise(Op):
    """Base of the ops y = f(x) of single elements, any shape: what a FusedLinear can do to its products."""


@dataclass(frozen=True)
class Embedding(Op):
    """y[r] = scale * weight[tokens[r]] (+ positions[p + r])

    tokens i32[rows], weight [vocabulary, E], positions f32[trained context, E] -> f32[rows, E]. ``scale`` is
    1 for llama, sqrt(E) for gemma; learned positions are GPT-2's.
    """

    scale: float = 1.0

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("tokens", "weight", "positions?")


@dataclass(frozen=True)
class RMSNorm(Op):
    """y[r] = x[r] / sqrt(mean(x[r]^2) + eps) * weight

    x f32[n, E], weight f32[E] -> f32[n, E]. Source: arXiv:1910.07467.
    """

    eps: float

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("x", "weight")


@dataclass(frozen=True)
class LayerNorm(Op):
    """y[r] = (x[r] - mean(x[r])) / sqrt(var(x[r]) + eps) (* weight) (+ bias)

    x f32[n, E], weight and bias f32[E] where ``weight`` and ``bias`` say so -> f32[n, E].
    Source: arXiv:1607.06450.
    """

    eps: float
    weight: bool
    bias: bool

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("x", *(("weight",) if self.weight else ()), *(("bias",) if self.bias else ()))


@dataclass(frozen=True)
class HeadNorm(Op):
    """RMSNorm, or LayerNorm without a bias where ``centred``, of every head by itself (QK-norm).

    x f32[rows, heads*head_length], weight f32[head_length] that all heads share, or f32[heads, head_length]
    -> like x. Source: arXiv:2302.05442.
    """

    heads: int
    eps: float
    centred: bool

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("x", "weight")


@dataclass(frozen=True)
class Linear(Op):
    """y[r, o] = sum_i x[r, i] * weight[o, i] (+ bias[o])

    x f32[n, in], weight [out, in], bias f32[out] -> f32[n, out].
    """

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("x", "weight", "bias?")


@dataclass(frozen=True)
class Rope(Op):
    """Rotary position embedding: turns each pair (a, b) of a head by the angle of its position.

    y_a = a cos - b sin, y_b = a sin + b cos, with (cos, sin) = table[p + r, i] for pair i. ``interleaved``
    pairs elements (2i, 2i+1), otherwise (i, i + dims/2); elements from ``dims`` on pass unchanged.
    x f32[rows, heads*head_length], table f32[context, dims/2, 2] -> like x. Source: arXiv:2104.09864.
    """

    heads: int
    head_length: int
    dims: int
    interleaved: bool

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("x", "rope_table")


@dataclass(frozen=True)
class KVAppend(Op):
    """k_cache'[h, p + r] = k[r, h], v_cache'[h, p + r] = v[r, h]; earlier positions stay.

    k f32[rows, kv_heads*head_length], v f32[rows, kv_heads*value_length], caches f32[kv_heads, context,
    head_length or value_length] -> both caches, the next versions of the same storage. ``value_length`` 0
    means head_length. ``v_from_k``: values are a prefix of the keys, so that only k and k_cache exist.
    """

    kv_heads: int
    head_length: int
    value_length: int = 0
    v_from_k: bool = False

    @property
    def v_length(self) -> int:
        """Elements of a value."""
        return self.value_length or self.head_length

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("k", "k_cache") if self.v_from_k else ("k", "v", "k_cache", "v_cache")

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("k_cache'",) if self.v_from_k else ("k_cache'", "v_cache'")


@dataclass(frozen=True)
class QK(Op):
    """scores[h, r, j] = sum_i q[r, h, i] * k_cache[h // (heads/kv_heads), j, i]

    q f32[rows, heads*head_length], k_cache f32[kv_heads, context, head_length] -> f32[heads, rows, context].
    Several query heads share one KV head (grouped-query attention, arXiv:2305.13245).
    """

    heads: int
    kv_heads: int
    head_length: int

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("q", "k_cache")

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("scores",)


@dataclass(frozen=True)
class Scale(Pointwise):
    """y = factor * x. Attention's factor is 1/sqrt(head_length)."""

    factor: float


@dataclass(frozen=True)
class SoftCap(Pointwise):
    """y = cap * tanh(x / cap): x bounded to -cap .. cap. Source: Gemma 2, arXiv:2408.00118."""

    cap: float


@dataclass(frozen=True)
class Clamp(Pointwise):
    """y = min(max(x, -limit), limit)."""

    limit: float


@dataclass(frozen=True)
class Mask(Op):
    """y[h, r, j] = x[h, r, j] + slope_h * (j - p - r) where position j may be seen from p + r, else -inf.

    ``causal`` hides j > p + r; a ``window`` w above 0 also hides j <= p + r - w. ``alibi`` is the largest
    bias exponent b, 0 for no slopes: with n the largest power of two <= heads, slope_h = 2^(-b (h+1) / n)
    for h < n and 2^(-b (2 (h-n) + 1) / (2 n)) for the others. f32[heads, rows, context] -> same.
    Source: ALiBi, arXiv:2108.12409; ggml, soft_max_ext with max_bias.
    """

    causal: bool
    window: int = 0
    alibi: float = 0.0


@dataclass(frozen=True)
class Softmax(Op):
    """y = exp(x - m) / sum exp(x - m) over the last axis, m its maximum; nothing but -inf gives zeros.

    With ``sinks`` f32[heads], x is [heads, ...] and the sum, and the maximum, also take the logit of the
    row's head, which gets no output: weights then sum to less than 1. Source: gpt-oss model card, 2025.
    """

    sinks: bool = False

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("x", "sinks") if self.sinks else ("x",)


@dataclass(frozen=True)
class WeightedV(Op):
    """y[r, h] = sum_j weights[h, r, j] * v_cache[h // (heads/kv_heads), j, :value_length]

    weights f32[heads, rows, context], v_cache f32[kv_heads, context, row_length]
    -> f32[rows, heads*value_length]. ``row_length`` 0 means value_length; a longer row holds keys of which
    the values are a prefix.
    """

    heads: int
    kv_heads: int
    value_length: int
    row_length: int = 0

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("weights", "v_cache")


@dataclass(frozen=True)
class Add(Op):
    """y = a + b, equal shapes."""

    commutative: ClassVar[bool] = True

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("a", "b")


@dataclass(frozen=True)
class Mul(Op):
    """y = a * b, equal shapes."""

    commutative: ClassVar[bool] = True

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("a", "b")


@dataclass(frozen=True)
class SiLU(Pointwise):
    """y = x / (1 + exp(-x)). Source: arXiv:1702.03118."""


@dataclass(frozen=True)
class GELU(Pointwise):
    """y = x / 2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))), the form that llama.cpp takes for all models.

    Source: arXiv:1606.08415.
    """


@dataclass(frozen=True)
class SquaredReLU(Pointwise):
    """y = max(x, 0)^2. Source: arXiv:2109.08668."""


@dataclass(frozen=True)
class SelectRow(Op):
    """y = x[row], where row is a word of the device's state: the row whose logits are wanted.

    x f32[rows, E] -> f32[1, E].
    """


@dataclass(frozen=True)
class Sample(Op):
    """token = one draw from softmax(logits) under the sampler settings of the device's state.

    logits f32[1, vocabulary] -> i32[1]. Temperature, then top-k, then top-p; temperature 0 takes the lowest
    index among the largest logits.
    """

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("logits",)

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("token",)


# -------------------------------------------------------- made by the passes


@dataclass(frozen=True)
class Attention(Op):
    """Scale, soft-cap, mask, softmax and both products in one: scores are never stored (FlashAttention form).

    y[r, h] = sum_j softmax_j(mask(softcap(scale * q[r, h] . k_cache[g, j]))) * v_cache[g, j], where
    g = h // (heads/kv_heads); ``softcap`` as SoftCap's cap (0: none), ``causal``, ``window`` and ``alibi`` as
    in Mask, ``sinks`` as in Softmax.
    q f32[rows, heads*head_length], caches f32[kv_heads, context, head_length or value_length], sinks
    f32[heads] -> f32[rows, heads*value_length]. ``value_length`` 0 means head_length. ``v_from_k``: a value
    is the first value_length elements of its key, and there is no v_cache.
    Source: arXiv:2205.14135.
    """

    heads: int
    kv_heads: int
    head_length: int
    scale: float
    causal: bool
    value_length: int = 0
    window: int = 0
    softcap: float = 0.0
    alibi: float = 0.0
    sinks: bool = False
    v_from_k: bool = False

    @property
    def v_length(self) -> int:
        """Elements of a value, and of an output head."""
        return self.value_length or self.head_length

    @property
    def input_names(self) -> tuple[str, ...]:
        caches = ("k_cache",) if self.v_from_k else ("k_cache", "v_cache")
        return ("q", *caches, "sinks") if self.sinks else ("q", *caches)


@dataclass(frozen=True)
class Prologue:
    """What a FusedLinear does to x before the products."""


@dataclass(frozen=True)
class NoPrologue(Prologue):
    """x as it is."""


@dataclass(frozen=True)
class RMSNormPrologue(Prologue):
    """x' = RMSNorm(eps)(x, norm_weight)."""

    eps: float


@dataclass(frozen=True)
class LayerNormPrologue(Prologue):
    """x' = LayerNorm(eps, weight, bias)(x[, norm_weight][, norm_bias])."""

    eps: float
    weight: bool
    bias: bool


@dataclass(frozen=True)
class Epilogue:
    """What a FusedLinear does with the products y_s = x' . weight_s^T (+ bias_s) of its segments s."""


@dataclass(frozen=True)
class Store(Epilogue):
    """Output: the products side by side, each element through ``then``: f32[n, sum of the segments' rows]."""

    then: Pointwise | None = None


@dataclass(frozen=True)
class Residual(Epilogue):
    """Output: residual + then(y_0), f32[n, out]. One segment."""

    then: Pointwise | None = None


@dataclass(frozen=True)
class NormResidual(Epilogue):
    """Output: residual + RMSNorm(eps)(y_0, post_norm), f32[n, out]. One segment."""

    eps: float


@dataclass(frozen=True)
class Gated(Epilogue):
    """Output: activation(y_0) * y_1, f32[n, out]. Two segments: gate, up. SwiGLU with SiLU, GeGLU with GELU.

    Source: arXiv:2002.05202.
    """

    activation: Pointwise


@dataclass(frozen=True)
class QKNorm:
    """The norms of q and k before their rotation.

    ``span`` "head": HeadNorm with one weight f32[head_length]; "heads": HeadNorm with a weight of
    f32[heads, head_length]; "row": RMSNorm over the whole projection, with a weight as long.
    """

    span: str
    eps: float
    centred: bool


@dataclass(frozen=True)
class RopeKV(Epilogue):
    """Outputs: q = Rope(norm(z_0)), and the caches with k = Rope(norm(z_1)), v = z_2 appended; z = then(y).

    Three segments: q of heads*head_length rows, k of kv_heads*head_length, v of kv_heads*value_length.
    Fields as in Rope and KVAppend; ``dims`` 0 rotates nothing and has no table, ``norm`` is None where q and
    k are not normed.
    """

    heads: int
    kv_heads: int
    head_length: int
    dims: int
    interleaved: bool
    value_length: int = 0
    norm: QKNorm | None = None
    then: Pointwise | None = None

    @property
    def v_length(self) -> int:
        """Elements of a value."""
        return self.value_length or self.head_length


@dataclass(frozen=True)
class LinearInputs:
    """The inputs of a FusedLinear by role; the names of values, None or empty where the op has none."""

    x: str
    norm_weight: str | None
    norm_bias: str | None
    weights: tuple[str, ...]
    biases: tuple[str, ...]
    residual: str | None
    post_norm: str | None
    q_norm: str | None
    k_norm: str | None
    rope_table: str | None
    k_cache: str | None
    v_cache: str | None


@dataclass(frozen=True)
class FusedLinear(Op):
    """Products of one x with several matrices, with what comes just before and just after them.

    epilogue(prologue(x) . weight_s^T + bias_s for each segment s). Inputs in order: x f32[n, in],
    [norm_weight f32[in]], [norm_bias f32[in]], a weight [out_s, in] per segment, [a bias f32[out_s] per
    segment if ``bias``], [residual f32[n, out] for Residual and NormResidual], [post_norm f32[out] for
    NormResidual], [q_norm, k_norm for RopeKV with a norm],
    [rope_table for RopeKV that rotates], [k_cache, v_cache for RopeKV]. One output, or (q, k_cache',
    v_cache') for RopeKV.
    """

    prologue: Prologue
    epilogue: Epilogue
    segments: int
    bias: bool

    @property
    def input_names(self) -> tuple[str, ...]:
        numbers = range(self.segments)
        names = ["x", *self.prologue_names]
        names += [f"weight{s}" for s in numbers]
        if self.bias:
            names += [f"bias{s}" for s in numbers]
        if isinstance(self.epilogue, (Residual, NormResidual)):
            names.append("residual")
        if isinstance(self.epilogue, NormResidual):
            names.append("post_norm")
        if isinstance(self.epilogue, RopeKV):
            names += ["q_norm", "k_norm"] if self.epilogue.norm else []
            names += ["rope_table"] if self.epilogue.dims else []
            names += ["k_cache", "v_cache"]
        return tuple(names)

    @property
    def prologue_names(self) -> tuple[str, ...]:
        """The roles of the prologue's parameters."""
        if isinstance(self.prologue, RMSNormPrologue):
            return ("norm_weight",)
        if isinstance(self.prologue, LayerNormPrologue):
            names = (("norm_weight", self.prologue.weight), ("norm_bias", self.prologue.bias))
            return tuple(name for name, there in names if there)
        return ()

    @property
    def output_names(self) -> tuple[str, ...]:
        if isinstance(self.epilogue, RopeKV):
            return ("q", "k_cache'", "v_cache'")
        return ("y",)

    def by_role(self, inputs: Sequence[str]) -> LinearInputs:
        """Sort a node's ``inputs`` by role; their number must be that of ``input_names``."""
        roles = dict(zip(self.input_names, inputs, strict=True))
        numbers = range(self.segments)
        return LinearInputs(
            x=roles["x"],
            norm_weight=roles.get("norm_weight"),
            norm_bias=roles.get("norm_bias"),
            weights=tuple(roles[f"weight{s}"] for s in numbers),
            biases=tuple(roles[f"bias{s}"] for s in numbers) if self.bias else (),
            residual=roles.get("residual"),
            post_norm=roles.get("post_norm"),
            q_norm=roles.get("q_norm"),
            k_norm=roles.get("k_norm"),
            rope_table=roles.get("rope_table"),
            k_cache=roles.get("k_cache"),
            v_cache=roles.get("v_cache"),
        )


@dataclass(frozen=True)
class NormAdd(Op):
    """y = residual + norm(x), ``norm`` an RMSNorm: a norm behind a block, before the residual stream.

    residual f32[n, E], x f32[n, E], weight f32[E] -> f32[n, E].
    """

    norm: RMSNorm

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("residual", "x", "weight")
