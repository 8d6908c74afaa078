"""Parameters of the mixture-of-experts stages: routing, gathering, the experts' products, their sum.

A prompt goes through router, gather, two grouped products and the sum; a token through two products only,
the first of which decides the routing itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from forgec.ir.expert_ops import Routing
from forgec.plan.stages.base import STATE, Arg, StageParams
from forgec.plan.stages.linear import LDS_ACTIVATION_BYTES, LDS_GROUP_BYTES, Q8_IN, Q8_OUT

__all__ = [
    "ExpertDownParams",
    "ExpertGatherParams",
    "ExpertMatmulParams",
    "ExpertSumParams",
    "ExpertUpParams",
    "RouterParams",
    "SharedExpert",
]

SELECTION_BIAS = Arg("selection_bias", "const float*")


#: LDS bytes of 32 int8 activations: the codes, scale, sum, and a gap against bank conflicts.
LDS_GROUP8_BYTES = 48


def fits_int8(cols: int) -> bool:
    """Whether a row of int8 activations fits into LDS, the only place where it is kept."""
    return cols // 32 * LDS_GROUP8_BYTES <= LDS_ACTIVATION_BYTES


def activations_of(act: str, cols: int, beside: int = 0) -> str:
    """Where a row of activations is kept, with so many bytes in LDS beside it:
    ``templates/lib/activations/<name>``."""
    if act == "q8":
        return "q8"
    fits = -(-cols // 32) * LDS_GROUP_BYTES + beside <= LDS_ACTIVATION_BYTES
    return "lds" if fits else "global"


def weight_arg(name: str) -> Arg:
    """A matrix, or a stack of them, in the layout "rows"."""
    return Arg(name, "const u8*")


@dataclass(frozen=True)
class RouterParams(StageParams):
    """Experts and weights of ``state.rows`` tokens, and their pairs sorted by expert in tiles.

    ``counters`` is u32 [1], zero between launches.
    """

    routing: Routing
    selection_bias: bool
    tile_rows: int

    @property
    def stage(self) -> str:
        return "router"

    @property
    def selection(self) -> str:
        """The selection bias as a C expression."""
        return "selection_bias" if self.selection_bias else "nullptr"

    @property
    def args(self) -> tuple[Arg, ...]:
        bias = (SELECTION_BIAS,) if self.selection_bias else ()
        outputs = tuple(Arg(name, "i32*") for name in ("place", "order", "tiles"))
        return (
            STATE,
            Arg("logits", "const float*"),
            *bias,
            Arg("chosen", "i32*", restrict=False),
            Arg("weights", "float*"),
            *outputs,
            Arg("counters", "u32*"),
        )


@dataclass(frozen=True)
class SharedExpert:
    """The expert that every token takes: ``rows`` of its gate and up, and the formats of its matrices.

    ``gated``: it counts sigmoid(x . shared_switch) times.
    """

    gate: str
    up: str
    down: str
    rows: int
    gated: bool


@dataclass(frozen=True)
class ExpertUpParams(StageParams):
    """Decode: routing by logits, then activation(gate . a, up . a) of the chosen and the shared experts.

    ``inner`` rows of ``cols`` columns in gate and in up of each expert.
    """

    routing: Routing
    selection_bias: bool
    gate: str  # formats
    up: str
    cols: int
    inner: int
    bias: bool
    activation: str
    shared_expert: SharedExpert | None
    prologue: str  # "none" | "rmsnorm"
    eps: float
    act: str  # "f32" | "q8"
    lanes_per_row: int
    rows_per_group: int
    layout: str = "rows"

    @property
    def stage(self) -> str:
        return "expert_up"

    @property
    def title(self) -> str:
        return f"expert_up_{self.gate}_{self.routing.experts}x{self.inner}x{self.cols}"

    @property
    def shared(self) -> str:
        """As Experts.shared."""
        if self.shared_expert is None:
            return "none"
        return "gated" if self.shared_expert.gated else "plain"

    @property
    def shared_rows(self) -> int:
        return self.shared_expert.rows if self.shared_expert is not None else 0

    @property
    def shared_gate(self) -> str:
        return self.shared_expert.gate if self.shared_expert is not None else ""

    @property
    def shared_up(self) -> str:
        return self.shared_expert.up if self.shared_expert is not None else ""

    @property
    def formats(self) -> tuple[str, ...]:
        """The distinct formats, sorted: what the template includes."""
        return tuple(sorted({self.gate, self.up, self.shared_gate, self.shared_up} - {""}))

    @property
    def formats_text(self) -> str:
        return f"{self.gate} and {self.up}"

    @property
    def gates(self) -> tuple[str, ...]:
        """The gated activations, sorted: what the template includes. A shared expert has SiLU."""
        return tuple(sorted({self.activation, *(("silu",) if self.shared_expert is not None else ())}))

    @property
    def activations(self) -> str:
        decision = 8 * self.routing.experts + 4 * self.routing.groups + 12 * self.routing.used + 256
        return activations_of(self.act, self.cols, decision)

    @property
    def selection(self) -> str:
        """The selection bias as a C expression."""
        return "selection_bias" if self.selection_bias else "nullptr"

    @property
    def norm_weight(self) -> str:
        """The prologue's weights as a C expression."""
        return "norm_weight"

    @property
    def items(self) -> int:
        """Bundles of rows: the units of work of a group of lanes."""
        rows = self.routing.used * -(-self.inner // self.rows_per_group)
        return rows + -(-self.shared_rows // self.rows_per_group)

    def plus_bias(self, name: str) -> str:
        """C text that adds a bias to row i of expert e, empty without one."""
        return f" + {name}[e * kInner + i]" if self.bias else ""

    @property
    def args(self) -> tuple[Arg, ...]:
        args = [STATE, Arg("x", "const float*")]
        args += [Arg("norm_weight", "const float*")] if self.prologue == "rmsnorm" else []
        args += [Arg("logits", "const float*")]
        args += [SELECTION_BIAS] if self.selection_bias else []
        args += [weight_arg("gate"), weight_arg("up")]
        args += [Arg(name, "const float*") for name in ("gate_bias", "up_bias") if self.bias]
        args += [weight_arg("shared_gate"), weight_arg("shared_up")] if self.shared_expert is not None else []
        args += [Arg("shared_switch", "const float*")] if self.shared == "gated" else []
        return (*args, Arg("chosen", "i32*"), Arg("shares", "float*"), Arg("out", "float*"))


@dataclass(frozen=True)
class ExpertDownParams(StageParams):
    """Decode: out = residual + scale * the weighted sum of the experts' second products.

    ``inner`` columns in an expert's matrix of ``rows`` rows, ``shared_inner`` (0: none) in the shared one's.
    """

    experts: int
    used: int
    down: str  # format
    rows: int
    inner: int
    bias: bool
    shared_down: str  # format, "" without a shared expert
    shared_inner: int
    scale: float
    residual: bool
    act: str
    lanes_per_row: int
    rows_per_group: int
    layout: str = "rows"

    @property
    def stage(self) -> str:
        return "expert_down"

    @property
    def title(self) -> str:
        return f"expert_down_{self.down}_{self.experts}x{self.rows}x{self.inner}"

    @property
    def cols(self) -> int:
        """All activations: of the chosen experts and of the shared one."""
        return self.used * self.inner + self.shared_inner

    @property
    def shared(self) -> str:
        return "plain" if self.shared_down else "none"

    @property
    def formats(self) -> tuple[str, ...]:
        return tuple(sorted({self.down, self.shared_down} - {""}))

    @property
    def activations(self) -> str:
        return activations_of(self.act, self.cols)

    @property
    def items(self) -> int:
        return -(-self.rows // self.rows_per_group)

    @property
    def args(self) -> tuple[Arg, ...]:
        args = [STATE, Arg("h", "const float*"), Arg("chosen", "const i32*"), Arg("shares", "const float*")]
        args += [weight_arg("down")]
        args += [Arg("down_bias", "const float*")] if self.bias else []
        args += [weight_arg("shared_down")] if self.shared_down else []
        args += [Arg("residual", "const float*", restrict=False)] if self.residual else []
        return (*args, Arg("out", "float*", restrict=False))


@dataclass(frozen=True)
class ExpertMatmulParams(StageParams):
    """Prefill: sorted rows of activations against the matrix of their expert, or of their head.

    ``stack`` matrices of ``rows`` x ``cols`` per name of ``formats_of``: gate and up with an ``activation``,
    else one. ``listing`` "sorted" takes the tiles of the router; "heads" gives every head all ``state.rows``
    rows, [heads][rows][cols], and writes [rows][heads][pitch].
    """

    cols: int
    rows: int
    stack: int
    formats_of: tuple[str, ...]
    activation: str  # "" without
    bias: bool
    act: str
    listing: str
    pitch: int
    tile_rows: int
    tile_cols: int
    layout: str = "rows"

    @property
    def stage(self) -> str:
        return "expert_matmul"

    @property
    def epilogue(self) -> str:
        return "gated" if self.activation else "store"

    @property
    def title(self) -> str:
        return f"expert_matmul_{self.formats_of[0]}_{self.stack}x{self.rows}x{self.cols}"

    @property
    def formats(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.formats_of)))

    @property
    def formats_text(self) -> str:
        return " and ".join(self.formats_of)

    @property
    def sets(self) -> int:
        return len(self.formats_of)

    @property
    def first(self) -> str:
        return self.formats_of[0]

    @property
    def second(self) -> str:
        return self.formats_of[-1]

    @property
    def tile_count(self) -> str:
        """C expression of the number of row tiles."""
        return "tiles[0]" if self.listing == "sorted" else "kHeads * ceil_div(state->rows, kTileRows)"

    @property
    def tile_call(self) -> str:
        """C expression of row tile ``number``."""
        call = {"sorted": "listed_tile(tiles, {})", "heads": "head_tile({}, state->rows)"}[self.listing]
        return call.format("number")

    def plus_bias(self, name: str) -> str:
        """C text that adds a bias to feature f, empty without one."""
        return f" + {name}[tile.matrix * kFeatures + f]" if self.bias else ""

    def plus_bias8(self, name: str) -> str:
        """C text that adds a bias to eight features from f on, empty without one."""
        return f" + load_rows({name} + tile.matrix * kFeatures + f, count)" if self.bias else ""

    @property
    def activation_args(self) -> tuple[Arg, ...]:
        return Q8_IN if self.act == "q8" else (Arg("x", "const float*"),)

    @property
    def activation_names(self) -> str:
        """The activations as passed on by the stage."""
        return ", ".join(a.name for a in self.activation_args)

    @property
    def args(self) -> tuple[Arg, ...]:
        names = ("gate", "up") if self.activation else ("weight",)
        biases = ("gate_bias", "up_bias") if self.activation else ("bias",)
        return (
            STATE,
            *self.activation_args,
            *((Arg("tiles", "const i32*"),) if self.listing == "sorted" else ()),
            *(weight_arg(name) for name in names),
            *(Arg(name, "const float*") for name in biases if self.bias),
            Arg("out", "float*"),
        )


@dataclass(frozen=True)
class ExpertGatherParams(StageParams):
    """Rows of activations in the order in which matrices take them, ``pairs`` for each of ``state.rows``.

    ``listing`` "sorted": row p is x[order[p] / pairs], rows of x being ``pitch`` elements apart. "heads": x
    is [rows][pairs][pitch], of which the first ``cols`` of each become [pairs][rows][cols]. ``output`` "f32"
    or "q8" as in NormParams.
    """

    cols: int
    pitch: int
    pairs: int
    listing: str
    output: str

    @property
    def stage(self) -> str:
        return "expert_gather"

    @property
    def source(self) -> str:
        """C expression of the element of x where row p begins."""
        rows = "state->rows"
        place = {"sorted": "order[p] / kPairs", "heads": f"(i64)(p % {rows}) * kPairs + p / {rows}"}
        return f"({place[self.listing]}) * kPitch"

    @property
    def output_args(self) -> tuple[Arg, ...]:
        return Q8_OUT if self.output == "q8" else (Arg("y", "float*"),)

    @property
    def outputs(self) -> str:
        """The outputs as passed on by the stage."""
        return ", ".join(a.name for a in self.output_args)

    @property
    def args(self) -> tuple[Arg, ...]:
        order = (Arg("order", "const i32*"),) if self.listing == "sorted" else ()
        return (STATE, Arg("x", "const float*"), *order, *self.output_args)


@dataclass(frozen=True)
class ExpertSumParams(StageParams):
    """out = residual + scale * (weighted sum of the experts' rows + shared expert), per row of ``state``."""

    cols: int
    used: int
    scale: float
    shared: str  # as Experts.shared
    residual: bool

    @property
    def stage(self) -> str:
        return "expert_sum"

    @property
    def args(self) -> tuple[Arg, ...]:
        args = [STATE, Arg("y", "const float*"), Arg("weights", "const float*"), Arg("place", "const i32*")]
        args += [Arg("shared", "const float*")] if self.shared != "none" else []
        if self.shared == "gated":
            args += [Arg("x", "const float*"), Arg("shared_switch", "const float*")]
        args += [Arg("residual", "const float*", restrict=False)] if self.residual else []
        return (*args, Arg("out", "float*", restrict=False))
