"""The operations of mixture-of-experts layers and of attention over a latent cache: the second page of ops.

Each is a frozen dataclass as in ``ops``, with its equation, shapes and source. They are whole blocks of a
layer, because what they consist of (choosing, grouping, gathering) has no meaning outside of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from forgec.ir.ops import NoPrologue, Op, Prologue, RMSNormPrologue

__all__ = [
    "ACTIVATIONS",
    "GATINGS",
    "SHARED",
    "ExpertInputs",
    "Experts",
    "HeadLinear",
    "LatentQK",
    "Routing",
]

#: Scores of experts: softmax or sigmoid of all logits, or softmax of the chosen logits only.
GATINGS = ("softmax", "sigmoid", "softmax_chosen")
#: Gated activations of g (gate) and u (up): "silu" is SiLU(g) * u; "clamped" is the one of gpt-oss,
#: g' * sigmoid(1.702 g') * (u' + 1) with g' = min(g, 7) and u' = u clamped to [-7, 7].
ACTIVATIONS = ("silu", "clamped")
#: A shared expert that every token takes: none, one, or one times sigmoid(x . shared_switch).
SHARED = ("none", "plain", "gated")


@dataclass(frozen=True)
class Routing:
    """How ``used`` of ``experts`` experts are chosen for a token from its logits, and what each weighs.

    s = gating(logits); the experts with the largest s + selection bias are taken, the lower number first
    among equals. With ``groups`` > 1 only experts of the ``groups_used`` neighbouring groups count whose two
    best sum highest. Weights are the unbiased s of the chosen, divided by their sum (at least 2^-14) if
    ``normalise``, times ``scale``.
    Source: llama.cpp, build_moe_ffn of src/llama-graph.cpp; arXiv:2412.19437, section 2.1.2.
    """

    experts: int
    used: int
    gating: str = "softmax"
    normalise: bool = False
    scale: float = 1.0
    groups: int = 1
    groups_used: int = 1


@dataclass(frozen=True)
class ExpertInputs:
    """The inputs of ``Experts`` by role: names of values, None or empty where the op has none."""

    x: str
    norm_weight: str | None
    logits: str
    selection_bias: str | None
    weights: tuple[str, str, str]  # gate, up, down
    biases: tuple[str, ...]
    shared: tuple[str, ...]  # gate, up, down
    shared_switch: str | None
    residual: str | None


_MATRICES = ("gate", "up", "down")


@dataclass(frozen=True)
class Experts(Op):
    """A mixture of experts: y = residual + scale * (sum_e w_e down_e(a(gate_e(x'), up_e(x'))) + shared(x')).

    x' = prologue(x), (e, w_e) = routing of the logits, a = ``activation``; every matrix product of an expert
    has a bias if ``bias``; the shared expert has SiLU and no biases. Inputs in order: x f32[n, E],
    [norm_weight f32[E]], logits f32[n, X], [selection_bias f32[X]], gate and up [X, F, E], down [X, E, F],
    [gate_bias and up_bias f32[X, F], down_bias f32[X, E]], [shared gate and up [S, E], down [E, S]],
    [shared_switch f32[E]], [residual f32[n, E]] -> f32[n, E]. Source: arXiv:1701.06538.
    """

    routing: Routing
    activation: str = "silu"
    selection_bias: bool = False
    bias: bool = False
    shared: str = "none"
    scale: float = 1.0
    prologue: Prologue = field(default_factory=NoPrologue)
    residual: bool = False

    @property
    def input_names(self) -> tuple[str, ...]:
        names = ["x"]
        if isinstance(self.prologue, RMSNormPrologue):
            names.append("norm_weight")
        names.append("logits")
        names += ["selection_bias"] if self.selection_bias else []
        names += _MATRICES
        names += [f"{name}_bias" for name in _MATRICES] if self.bias else []
        names += [f"shared_{name}" for name in _MATRICES] if self.shared != "none" else []
        names += ["shared_switch"] if self.shared == "gated" else []
        names += ["residual"] if self.residual else []
        return tuple(names)

    def by_role(self, inputs: Sequence[str]) -> ExpertInputs:
        """Sort a node's ``inputs`` by role; their number must be that of ``input_names``."""
        roles = dict(zip(self.input_names, inputs, strict=True))
        return ExpertInputs(
            x=roles["x"],
            norm_weight=roles.get("norm_weight"),
            logits=roles["logits"],
            selection_bias=roles.get("selection_bias"),
            weights=(roles["gate"], roles["up"], roles["down"]),
            biases=tuple(roles[f"{name}_bias"] for name in _MATRICES) if self.bias else (),
            shared=tuple(roles[f"shared_{name}"] for name in _MATRICES) if self.shared != "none" else (),
            shared_switch=roles.get("shared_switch"),
            residual=roles.get("residual"),
        )


@dataclass(frozen=True)
class HeadLinear(Op):
    """y[r, h, o] = sum_i x[r, h, i] * weight[h, o, i]: every head has its own matrix.

    x f32[rows, heads*in], weight [heads, out, in] -> f32[rows, heads*out].
    """

    heads: int

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("x", "weight")


@dataclass(frozen=True)
class LatentQK(Op):
    """Queries and keys of multi-head latent attention in the absorbed form: all heads share one latent key.

    Of a query head's ``nope_length + rope_dims`` elements the first are multiplied by the head's matrix, the
    others turned as in ``Rope``: y[r, h] = (weight[h] . q[r, h, :nope], Rope(q[r, h, nope:])). The key is
    k_cache'[0, p + r] = (RMSNorm(kv[r, :L]), Rope(kv[r, L:])); its first L elements are the value too.
    q f32[rows, heads*(nope+dims)], weight [heads, L, nope], kv f32[rows, L+dims], norm_weight f32[L], table
    f32[context, dims/2, 2], cache f32[1, context, L+dims] -> f32[rows, heads*(L+dims)] and the cache.
    Source: arXiv:2405.04434, section 2.1.
    """

    heads: int
    nope_length: int
    rope_dims: int
    interleaved: bool
    eps: float

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("q", "weight", "kv", "norm_weight", "rope_table", "k_cache")

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("y", "k_cache'")
