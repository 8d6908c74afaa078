"""Parameters of the stages around weight matrices: embedding, norms, products, RoPE with KV append."""

from __future__ import annotations

from dataclasses import dataclass, field

from forgec.errors import VerifyError
from forgec.plan.layouts import FORMATS, block_elements
from forgec.plan.stages.base import STATE, Arg, StageParams, matrix_of
from forgec.plan.stages.cache import KV_CTYPES

__all__ = [
    "POINTWISE",
    "Q8_IN",
    "Q8_OUT",
    "EmbeddingParams",
    "LinearParams",
    "MatmulParams",
    "MatvecParams",
    "NormParams",
    "NormRopeKVParams",
    "Operand",
    "QuantiseParams",
    "RopeFields",
    "RopeKVParams",
    "Segment",
]

#: Functions of one element that a product or an elementwise stage can apply: ``templates/lib/pointwise``.
POINTWISE = ("silu", "gelu", "squared_relu", "scale", "softcap", "clamp")
#: LDS that a row of activations may take, and bytes of 32 of them (padded, with their sum): floats, two int8.
LDS_ACTIVATION_BYTES = 48 * 1024
LDS_GROUP_BYTES = 36 * 4
LDS_GROUP16_BYTES = 20 * 4


@dataclass(frozen=True)
class EmbeddingParams(StageParams):
    """out[r, :] = scale * W[token_r, :] (+ positions[position + r, :], f32, where ``positions``).

    ``decode`` takes the one token from ``state``.
    """

    format: str
    layout: str
    cols: int
    vocab: int
    decode: bool
    scale: float = 1.0
    positions: bool = False

    @property
    def stage(self) -> str:
        return "embedding"

    @property
    def title(self) -> str:
        return f"embedding_{self.format}{'_decode' if self.decode else ''}"

    @property
    def source(self) -> str:
        """Where tokens come from: ``templates/lib/tokens_<source>``."""
        return "state" if self.decode else "prompt"

    @property
    def formats(self) -> tuple[str, ...]:
        return (self.format,)

    @property
    def args(self) -> tuple[Arg, ...]:
        positions = (Arg("positions", "const float*"),) if self.positions else ()
        return (STATE, Arg("tokens", "const i32*"), matrix_of("w0"), *positions, Arg("out", "float*"))


@dataclass(frozen=True)
class NormParams(StageParams):
    """RMSNorm, or LayerNorm where ``centred``, of ``state.rows * groups`` rows of ``cols`` elements.

    ``output`` "f32" writes y, "q8" writes int8 with d and s per 32. ``weight``, ``bias``: which parameters
    there are; ``own_weights``: each of the groups of a row (its heads) has its own. ``residual``: y has it
    added, and may be the same buffer.
    """

    cols: int
    eps: float
    output: str
    centred: bool = field(default=False, kw_only=True)
    weight: bool = field(default=True, kw_only=True)
    bias: bool = field(default=False, kw_only=True)
    groups: int = field(default=1, kw_only=True)
    own_weights: bool = field(default=False, kw_only=True)
    residual: bool = field(default=False, kw_only=True)

    @property
    def stage(self) -> str:
        return "norm"

    @property
    def title(self) -> str:
        return f"{self.kind}_{self.output}{'_add' if self.residual else ''}"

    @property
    def kind(self) -> str:
        """Which norm: ``templates/lib/prologues/<kind>``."""
        return "layernorm" if self.centred else "rmsnorm"

    @property
    def norm_weight(self) -> str:
        """C expression of the weights of row ``row``, "nullptr" without any."""
        if not self.weight:
            return "nullptr"
        return f"weight + (i64)(row % {self.groups}) * kCols" if self.own_weights else "weight"

    @property
    def norm_bias(self) -> str:
        return "bias" if self.bias else "nullptr"

    @property
    def by_eights(self) -> bool:
        """Whether rows are whole vectors of eight."""
        return self.cols % 8 == 0

    def added(self, row: str) -> str:
        """C expression of a row with its residual added, where there is one."""
        if not self.residual:
            return row
        return f"AddedRow<decltype({row})>{{residual + (i64)row * kCols, {row}}}"

    @property
    def output_args(self) -> tuple[Arg, ...]:
        return Q8_OUT if self.output == "q8" else (Arg("y", "float*", restrict=not self.residual),)

    @property
    def outputs(self) -> str:
        """The outputs as passed on by the stage."""
        return ", ".join(a.name for a in self.output_args)

    @property
    def args(self) -> tuple[Arg, ...]:
        weight = (Arg("weight", "const float*"),) if self.weight else ()
        bias = (Arg("bias", "const float*"),) if self.bias else ()
        residual = (Arg("residual", "const float*", restrict=False),) if self.residual else ()
        return (STATE, *residual, Arg("x", "const float*"), *weight, *bias, *self.output_args)


Q8_OUT = (Arg("yq", "i8*"), Arg("yd", "float*"), Arg("ys", "float*"))
Q8_IN = (Arg("xq", "const i8*"), Arg("xd", "const float*"), Arg("xs", "const float*"))


@dataclass(frozen=True)
class QuantiseParams(StageParams):
    """int8 activations of ``state.rows`` rows: per 32 elements a scale d and d * sum(q)."""

    cols: int

    @property
    def stage(self) -> str:
        return "quantise"

    @property
    def args(self) -> tuple[Arg, ...]:
        return (STATE, Arg("x", "const float*"), *Q8_OUT)


@dataclass(frozen=True)
class Segment:
    """One weight matrix of a fused product: ``rows`` output features in a quantisation format."""

    format: str
    rows: int


@dataclass(frozen=True)
class Operand:
    """A segment as a template writes it: C expressions of weights and bias, and its place in the output."""

    index: int
    format: str
    rows: int
    start: int  # first output row
    pointer: str
    bias: str  # "" without one

    def plus_bias(self, row: str) -> str:
        """C text that adds the bias of a row, empty without a bias."""
        return f" + {self.bias}[{row}]" if self.bias else ""


@dataclass(frozen=True)
class RopeFields:
    """What RoPE and the KV append need to know; part of the stages that carry that epilogue.

    ``rope_dims`` 0: nothing is rotated and there is no table.
    ``kept`` positions stay in the cache, the last ones, position p in row p % kept; 0: all ``context``.
    """

    heads: int
    kv_heads: int
    head_length: int
    rope_dims: int
    interleaved: bool
    context: int
    kv_dtype: str
    kept: int = 0

    @property
    def kv_ctype(self) -> str:
        return KV_CTYPES[self.kv_dtype]

    @property
    def positions(self) -> int:
        """Rows of the cache of a KV head."""
        return self.kept or self.context

    @property
    def width(self) -> int:
        """Features of a row of stacked q, k and v."""
        return (self.heads + 2 * self.kv_heads) * self.head_length

    @property
    def table(self) -> str:
        """C expression of the table of angles."""
        return "rope_table" if self.rope_dims else "nullptr"

    @property
    def out_args(self) -> tuple[Arg, ...]:
        table = (Arg("rope_table", "const float*"),) if self.rope_dims else ()
        return (
            *table,
            Arg("q_out", "float*"),
            Arg("k_cache", f"{self.kv_ctype}*"),
            Arg("v_cache", f"{self.kv_ctype}*"),
        )


@dataclass(frozen=True)
class LinearParams(StageParams):
    """Shared by matvec and matmul: y = epilogue(W · prologue(x)) over one to three weight segments.

    Epilogue "norm_residual" stores the products to ``raw``, and the last block norms them (RMSNorm with
    ``post_eps``) and adds the residual.
    ``then``: the function of POINTWISE that the epilogue applies, "" for none; to the gate of "gated", else
    to the product. ``factor`` is its parameter, if it has one.
    """

    cols: int
    segments: tuple[Segment, ...]
    layout: str
    act: str  # "f32" | "q8", and for a matvec "q16": 16 bits per 32 in two digits
    epilogue: str  # "store" | "residual" | "norm_residual" | "gated" | "rope_kv"
    bias: bool
    then: str = field(default="", kw_only=True)
    factor: float = field(default=0.0, kw_only=True)
    post_eps: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for segment in self.segments:
            if self.cols % block_elements(segment.format):
                raise VerifyError(
                    f"stage '{self.stage}': {self.cols} columns do not divide into blocks of {segment.format}"
                )
            if self.act != "f32" and FORMATS[segment.format].block == 1:
                raise VerifyError(
                    f"stage '{self.stage}': integer activations need weights in blocks of 32, "
                    f"found '{segment.format}'"
                )
        if self.epilogue == "gated" and (
            len(self.segments) != 2 or self.segments[0].rows != self.segments[1].rows or not self.then
        ):
            raise VerifyError("epilogue 'gated' needs two segments of equal rows and a function")
        if self.then not in ("", *POINTWISE):
            raise VerifyError(f"unknown function '{self.then}'; known: {', '.join(POINTWISE)}")

    @property
    def combines(self) -> bool:
        """Whether the last block goes on with what all blocks have made."""
        return self.epilogue == "norm_residual"

    @property
    def rows(self) -> int:
        """Rows of all segments together."""
        return sum(s.rows for s in self.segments)

    @property
    def out_rows(self) -> int:
        return self.segments[0].rows if self.epilogue == "gated" else self.rows

    @property
    def formats(self) -> tuple[str, ...]:
        """The distinct formats, sorted: what the template includes."""
        return tuple(sorted({s.format for s in self.segments}))

    @property
    def row_starts(self) -> tuple[int, ...]:
        """First output row of each segment."""
        return tuple(sum(s.rows for s in self.segments[:i]) for i in range(len(self.segments)))

    @property
    def libraries(self) -> tuple[str, ...]:
        """Templates of ``templates/lib`` (or ``templates/lib/cpu``) that the epilogue uses."""
        rope = ("rope",) if self.epilogue == "rope_kv" else ()
        return (*rope, f"pointwise/{self.then}") if self.then else rope

    def apply(self, expression: str) -> str:
        """C text of ``then`` of an expression."""
        return f"{self.then}({expression})" if self.then else expression

    @property
    def operands(self) -> tuple[Operand, ...]:
        """The segments with the names of their arguments."""
        return tuple(
            Operand(
                i,
                s.format,
                s.rows,
                start,
                f"w{i}",
                f"bias{i}" if self.bias else "",
            )
            for i, (s, start) in enumerate(zip(self.segments, self.row_starts, strict=True))
        )

    @property
    def apart(self) -> tuple[Operand, ...]:
        """The operands whose rows are work of their own: gate and up share theirs."""
        return self.operands[:1] if self.epilogue == "gated" else self.operands

    @property
    def weight_args(self) -> tuple[Arg, ...]:
        pointers = [matrix_of(f"w{i}") for i in range(len(self.segments))]
        bias = [Arg(f"bias{i}", "const float*") for i in range(len(self.segments))] if self.bias else []
        return (*pointers, *bias)

    @property
    def tail_args(self) -> tuple[Arg, ...]:
        """Output, and the residual that may be the same buffer."""
        if self.epilogue == "residual":
            return (Arg("residual", "const float*", restrict=False), Arg("out", "float*", restrict=False))
        if self.combines:
            return (
                Arg("residual", "const float*", restrict=False),
                Arg("post_norm", "const float*"),
                Arg("raw", "float*", restrict=False),
                Arg("counter", "u32*"),
                Arg("out", "float*", restrict=False),
            )
        return (Arg("out", "float*"),)

    @property
    def tag(self) -> str:
        epilogue = f"{self.epilogue}_{self.then}" if self.then else self.epilogue
        return f"{'_'.join(self.formats)}_{epilogue}_{self.rows}x{self.cols}"


@dataclass(frozen=True)
class MatvecParams(LinearParams):
    """Decode: one row of activations; ``lanes_per_row`` lanes share ``rows_per_group`` rows at a time."""

    prologue: str  # "none" | "rmsnorm" | "layernorm"
    eps: float
    row_select: bool
    lanes_per_row: int
    rows_per_group: int
    rope: RopeFields | None = None
    norm_parameters: tuple[str, ...] = field(default=("norm_weight",), kw_only=True)

    @property
    def stage(self) -> str:
        return "matvec"

    @property
    def norm_weight(self) -> str:
        """C expression of the prologue's weights, "nullptr" without any."""
        return "norm_weight" if "norm_weight" in self.norm_parameters else "nullptr"

    @property
    def norm_bias(self) -> str:
        return "norm_bias" if "norm_bias" in self.norm_parameters else "nullptr"

    @property
    def most_rows(self) -> int:
        """Rows of the largest matrix."""
        return max(s.rows for s in self.segments)

    @property
    def bundles(self) -> str:
        """Which rows a group takes at a time: ``templates/lib/<name>``."""
        return {"gated": "matvec_gated", "rope_kv": "matvec_rotary"}.get(self.epilogue, "matvec_plain")

    @property
    def activations(self) -> str:
        """Where the row of activations is kept: ``templates/lib/activations/<name>``."""
        if self.act != "f32":
            return self.act
        return "lds" if -(-self.cols // 32) * LDS_GROUP_BYTES <= LDS_ACTIVATION_BYTES else "global"

    @property
    def title(self) -> str:
        return f"matvec_{self.tag}"

    @property
    def args(self) -> tuple[Arg, ...]:
        parameters = self.norm_parameters if self.prologue != "none" else ()
        norm = tuple(Arg(name, "const float*") for name in parameters)
        tail = self.rope.out_args if self.rope is not None else self.tail_args
        return (STATE, Arg("x", "const float*"), *norm, *self.weight_args, *tail)


@dataclass(frozen=True)
class MatmulParams(LinearParams):
    """Prefill: ``state.rows`` rows of activations against the same segments, in tiles in LDS."""

    tile_rows: int  # rows of activations of a block's tile
    tile_cols: int  # output features of a block's tile

    @property
    def stage(self) -> str:
        return "matmul"

    @property
    def sets(self) -> int:
        """Matrices that a tile multiplies at once."""
        return 2 if self.epilogue == "gated" else 1

    @property
    def activation_args(self) -> tuple[Arg, ...]:
        return Q8_IN if self.act == "q8" else (Arg("x", "const float*"),)

    @property
    def activation_names(self) -> str:
        """The activations as passed on by the stage."""
        return ", ".join(a.name for a in self.activation_args)

    @property
    def title(self) -> str:
        return f"matmul_{self.tag}"

    @property
    def args(self) -> tuple[Arg, ...]:
        return (STATE, *self.activation_args, *self.weight_args, *self.tail_args)


@dataclass(frozen=True)
class RopeKVParams(StageParams):
    """Prefill: rotate q and k of ``state.rows`` rows, write q out and k, v into the cache."""

    rope: RopeFields

    @property
    def stage(self) -> str:
        return "rope_kv"

    @property
    def args(self) -> tuple[Arg, ...]:
        return (STATE, Arg("qkv", "const float*"), *self.rope.out_args)


@dataclass(frozen=True)
class NormRopeKVParams(StageParams):
    """As RopeKVParams, and q and k are normed before: RMSNorm, or LayerNorm without bias where ``centred``.

    ``span`` "head": each head by itself, one weight [head_length] for all; "heads": a weight per head; "row":
    all heads of q, and all of k, as one row.
    """

    rope: RopeFields
    span: str
    eps: float
    centred: bool

    @property
    def stage(self) -> str:
        return "norm_rope_kv"

    @property
    def title(self) -> str:
        return f"norm_rope_kv_{self.span}"

    @property
    def share(self) -> str:
        """Who norms together: ``templates/lib/qk_norm/<share>``."""
        return "row" if self.span == "row" else "head"

    @property
    def args(self) -> tuple[Arg, ...]:
        norms = (Arg("q_norm", "const float*"), Arg("k_norm", "const float*"))
        return (STATE, Arg("qkv", "const float*"), *norms, *self.rope.out_args)
