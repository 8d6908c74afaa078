"""The parameter objects of every stage: what a template may know, already legal and divided.

A planner fills one of these frozen objects; codegen renders ``templates/stages/<stage>.hip.j2`` with it as
the only name ``k``. Equal parameters give one kernel for all layers, so nothing here names a layer. This
module never renders text and never reads a model.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

from forgec.errors import VerifyError
from forgec.plan.layouts import plane_count, slice_elements

__all__ = [
    "Arg",
    "AttentionDecodeParams",
    "AttentionPrefillParams",
    "ElementwiseParams",
    "EmbeddingParams",
    "KVAppendParams",
    "MaskParams",
    "MatmulParams",
    "MatvecParams",
    "NormParams",
    "QKParams",
    "QuantiseParams",
    "RopeKVParams",
    "RopeParams",
    "SampleParams",
    "ScaleParams",
    "Segment",
    "SoftmaxParams",
    "StageParams",
    "WeightedVParams",
]

#: C types of a KV-cache element.
KV_CTYPES = {"f16": "half", "f32": "float"}
#: Size in bytes of each argument type; every pointer is 8.
VALUE_SIZES = {"i32": 4, "u32": 4, "float": 4}


@dataclass(frozen=True)
class Arg:
    """One kernel argument: ``ctype`` is a pointer type of the device vocabulary or a 32-bit value."""

    name: str
    ctype: str
    restrict: bool = True  # False where two pointers of one kernel may be the same buffer

    @property
    def is_pointer(self) -> bool:
        return self.ctype.endswith("*")

    @property
    def size(self) -> int:
        """Bytes in the argument buffer; alignment equals size."""
        return 8 if self.is_pointer else VALUE_SIZES[self.ctype]


STATE = Arg("state", "const State*")


def planes_of(prefix: str, format: str, layout: str) -> tuple[Arg, ...]:
    """The plane pointers of one packed weight matrix, in the order of its layout."""
    return tuple(Arg(f"{prefix}p{i}", "const u8*") for i in range(plane_count(format, layout)))


@dataclass(frozen=True)
class StageParams:
    """What every stage knows: the target's family and wave width, and the threads of a block."""

    family: str
    wave: int
    block: int

    def __post_init__(self) -> None:
        if self.wave not in (1, 32, 64) or self.block % self.wave:
            raise VerifyError(f"stage '{self.stage}': block {self.block} is no multiple of wave {self.wave}")

    @property
    def stage(self) -> str:
        """Name of the template: ``templates/stages/<stage>[.<family>].hip.j2``."""
        raise NotImplementedError

    @property
    def title(self) -> str:
        """Readable part of the kernel symbol."""
        return self.stage

    @property
    def args(self) -> tuple[Arg, ...]:
        """Kernel arguments in order."""
        raise NotImplementedError

    @property
    def symbol(self) -> str:
        """Kernel symbol: readable title plus a digest of all parameters, so equal parameters share it."""
        text = repr(tuple((f.name, getattr(self, f.name)) for f in fields(self)))
        return f"{self.title}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    @property
    def signature(self) -> str:
        """C parameter list of the device function."""
        return ", ".join(
            f"{a.ctype} __restrict__ {a.name}" if a.is_pointer and a.restrict else f"{a.ctype} {a.name}"
            for a in self.args
        )

    @property
    def call(self) -> str:
        """The arguments as passed on by the entry point."""
        return ", ".join(a.name for a in self.args)

    @property
    def arg_offsets(self) -> tuple[int, ...]:
        """Byte offset of each argument in the kernel argument buffer (natural C alignment)."""
        offsets, at = [], 0
        for arg in self.args:
            at = -(-at // arg.size) * arg.size
            offsets.append(at)
            at += arg.size
        return tuple(offsets)

    @property
    def unpack(self) -> tuple[tuple[Arg, int], ...]:
        """(argument, offset) pairs, for entries that unpack the argument buffer themselves."""
        return tuple(zip(self.args, self.arg_offsets, strict=True))

    @property
    def kernarg_bytes(self) -> int:
        """Size of the explicit kernel arguments, padded to 8 bytes."""
        end = self.arg_offsets[-1] + self.args[-1].size
        return -(-end // 8) * 8


@dataclass(frozen=True)
class EmbeddingParams(StageParams):
    """out[r, :] = scale * W[token_r, :]; ``decode`` takes the one token from ``state``."""

    format: str
    layout: str
    cols: int
    vocab: int
    decode: bool
    scale: float = 1.0

    @property
    def stage(self) -> str:
        return "embedding"

    @property
    def title(self) -> str:
        return f"embedding_{self.format}{'_decode' if self.decode else ''}"

    @property
    def args(self) -> tuple[Arg, ...]:
        planes = planes_of("w0", self.format, self.layout)
        return (STATE, Arg("tokens", "const i32*"), *planes, Arg("out", "float*"))


@dataclass(frozen=True)
class NormParams(StageParams):
    """RMSNorm of ``state.rows`` rows; ``output`` "f32" writes y, "q8" writes int8 with d and s per 32."""

    cols: int
    eps: float
    output: str

    @property
    def stage(self) -> str:
        return "norm"

    @property
    def title(self) -> str:
        return f"norm_{self.output}"

    @property
    def args(self) -> tuple[Arg, ...]:
        outputs = Q8_OUT if self.output == "q8" else (Arg("y", "float*"),)
        return (STATE, Arg("x", "const float*"), Arg("weight", "const float*"), *outputs)


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
class RopeFields:
    """What RoPE and the KV append need to know; part of the stages that carry that epilogue."""

    heads: int
    kv_heads: int
    head_length: int
    rope_dims: int
    interleaved: bool
    context: int
    kv_dtype: str

    @property
    def kv_ctype(self) -> str:
        return KV_CTYPES[self.kv_dtype]

    @property
    def width(self) -> int:
        """Features of a row of stacked q, k and v."""
        return (self.heads + 2 * self.kv_heads) * self.head_length

    @property
    def out_args(self) -> tuple[Arg, ...]:
        return (
            Arg("rope_table", "const float*"),
            Arg("q_out", "float*"),
            Arg("k_cache", f"{self.kv_ctype}*"),
            Arg("v_cache", f"{self.kv_ctype}*"),
        )


@dataclass(frozen=True)
class LinearParams(StageParams):
    """Shared by matvec and matmul: y = epilogue(W · prologue(x)) over one to three weight segments."""

    cols: int
    segments: tuple[Segment, ...]
    layout: str
    act: str  # "f32" | "q8"
    epilogue: str  # "store" | "residual" | "swiglu" | "rope_kv"
    bias: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        for segment in self.segments:
            if self.cols % slice_elements(segment.format):
                raise VerifyError(
                    f"stage '{self.stage}': {self.cols} columns do not divide into slices of {segment.format}"
                )
        if self.epilogue == "swiglu" and (
            len(self.segments) != 2 or self.segments[0].rows != self.segments[1].rows
        ):
            raise VerifyError("epilogue 'swiglu' needs two segments of equal rows")

    @property
    def rows(self) -> int:
        """Rows of all segments together."""
        return sum(s.rows for s in self.segments)

    @property
    def out_rows(self) -> int:
        return self.segments[0].rows if self.epilogue == "swiglu" else self.rows

    @property
    def formats(self) -> tuple[str, ...]:
        """The distinct formats, sorted: what the template includes."""
        return tuple(sorted({s.format for s in self.segments}))

    @property
    def row_starts(self) -> tuple[int, ...]:
        """First output row of each segment."""
        return tuple(sum(s.rows for s in self.segments[:i]) for i in range(len(self.segments)))

    @property
    def weight_args(self) -> tuple[Arg, ...]:
        planes = [a for i, s in enumerate(self.segments) for a in planes_of(f"w{i}", s.format, self.layout)]
        bias = [Arg(f"bias{i}", "const float*") for i in range(len(self.segments))] if self.bias else []
        return (*planes, *bias)

    @property
    def tail_args(self) -> tuple[Arg, ...]:
        """Output, and the residual that may be the same buffer."""
        if self.epilogue == "residual":
            return (Arg("residual", "const float*", restrict=False), Arg("out", "float*", restrict=False))
        return (Arg("out", "float*"),)

    @property
    def tag(self) -> str:
        return f"{'_'.join(self.formats)}_{self.epilogue}_{self.rows}x{self.cols}"


@dataclass(frozen=True)
class MatvecParams(LinearParams):
    """Decode: one row of activations; ``lanes_per_row`` lanes share ``rows_per_group`` rows at a time."""

    prologue: str  # "none" | "rmsnorm"
    eps: float
    row_select: bool
    lanes_per_row: int
    rows_per_group: int
    rope: RopeFields | None = None

    @property
    def stage(self) -> str:
        return "matvec"

    @property
    def title(self) -> str:
        return f"matvec_{self.tag}"

    @property
    def args(self) -> tuple[Arg, ...]:
        norm = (Arg("norm_weight", "const float*"),) if self.prologue == "rmsnorm" else ()
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
    def title(self) -> str:
        return f"matmul_{self.tag}"

    @property
    def args(self) -> tuple[Arg, ...]:
        x = Q8_IN if self.act == "q8" else (Arg("x", "const float*"),)
        return (STATE, *x, *self.weight_args, *self.tail_args)


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
class AttentionParams(StageParams):
    """Shared by the attention stages; the cache is [kv_heads][context][head_length] for K and for V."""

    heads: int
    kv_heads: int
    head_length: int
    context: int
    kv_dtype: str
    scale: float

    @property
    def kv_ctype(self) -> str:
        return KV_CTYPES[self.kv_dtype]

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.heads // self.kv_heads

    @property
    def kv_args(self) -> tuple[Arg, ...]:
        return (Arg("k_cache", f"const {self.kv_ctype}*"), Arg("v_cache", f"const {self.kv_ctype}*"))


@dataclass(frozen=True)
class AttentionDecodeParams(AttentionParams):
    """One query row; the keys are split ``splits`` ways, the last block of a KV head combines.

    ``lanes_per_key`` lanes share one key: each holds ``head_length / lanes_per_key`` elements.
    ``partial`` is f32 [heads][splits][head_length + 2] (weighted sum, maximum, sum of weights) and
    ``counters`` u32 [kv_heads], zero between launches.
    """

    splits: int
    lanes_per_key: int

    @property
    def stage(self) -> str:
        return "attention_decode"

    @property
    def dims_per_lane(self) -> int:
        return self.head_length // self.lanes_per_key

    @property
    def args(self) -> tuple[Arg, ...]:
        work = (Arg("partial", "float*"), Arg("counters", "u32*"))
        return (STATE, Arg("q", "const float*"), *self.kv_args, *work, Arg("out", "float*"))


@dataclass(frozen=True)
class AttentionPrefillParams(AttentionParams):
    """``state.rows`` query rows against all cached keys, online softmax over key tiles."""

    causal: bool
    tile_queries: int
    tile_keys: int

    @property
    def stage(self) -> str:
        return "attention_prefill"

    @property
    def title(self) -> str:
        return f"attention_prefill_{'causal' if self.causal else 'full'}"

    @property
    def args(self) -> tuple[Arg, ...]:
        return (STATE, Arg("q", "const float*"), *self.kv_args, Arg("out", "float*"))


@dataclass(frozen=True)
class SampleParams(StageParams):
    """Draw the next token from ``logits`` and advance ``state``; one block."""

    vocab: int

    @property
    def stage(self) -> str:
        return "sample"

    @property
    def args(self) -> tuple[Arg, ...]:
        return (Arg("state", "State*"), Arg("logits", "const float*"), Arg("ring", "i32*"))


# The unfused stages: the plain meaning of one IR operation each, for graphs that were not fused.


@dataclass(frozen=True)
class ElementwiseParams(StageParams):
    """y = op(a[, b]) over ``state.rows * width`` elements; op is "add", "mul", "silu" or "scale"."""

    op: str
    width: int
    factor: float = 1.0

    @property
    def stage(self) -> str:
        return "elementwise"

    @property
    def title(self) -> str:
        return self.op

    @property
    def binary(self) -> bool:
        return self.op in ("add", "mul")

    @property
    def args(self) -> tuple[Arg, ...]:
        second = (Arg("b", "const float*"),) if self.binary else ()
        return (STATE, Arg("a", "const float*"), *second, Arg("y", "float*"))


@dataclass(frozen=True)
class RopeParams(StageParams):
    """Rotate [rows, heads * head_length] at positions ``state.position + row``."""

    heads: int
    head_length: int
    rope_dims: int
    interleaved: bool

    @property
    def stage(self) -> str:
        return "rope"

    @property
    def args(self) -> tuple[Arg, ...]:
        return (STATE, Arg("x", "const float*"), Arg("rope_table", "const float*"), Arg("y", "float*"))


@dataclass(frozen=True)
class KVAppendParams(StageParams):
    """Write rows of k and v into the cache at positions ``state.position + row``."""

    kv_heads: int
    head_length: int
    context: int
    kv_dtype: str

    @property
    def stage(self) -> str:
        return "kv_append"

    @property
    def kv_ctype(self) -> str:
        return KV_CTYPES[self.kv_dtype]

    @property
    def args(self) -> tuple[Arg, ...]:
        caches = (Arg("k_cache", f"{self.kv_ctype}*"), Arg("v_cache", f"{self.kv_ctype}*"))
        return (STATE, Arg("k", "const float*"), Arg("v", "const float*"), *caches)


@dataclass(frozen=True)
class QKParams(AttentionParams):
    """scores[h, r, c] = q[r, h, :] · k[h / group, c, :] for c < position + rows; row length ``context``."""

    @property
    def stage(self) -> str:
        return "qk"

    @property
    def args(self) -> tuple[Arg, ...]:
        return (STATE, Arg("q", "const float*"), self.kv_args[0], Arg("scores", "float*"))


@dataclass(frozen=True)
class MaskParams(StageParams):
    """scores[h, r, c] = -inf where c > position + r (causal); row length ``context``."""

    heads: int
    context: int
    causal: bool

    @property
    def stage(self) -> str:
        return "mask"

    @property
    def args(self) -> tuple[Arg, ...]:
        return (STATE, Arg("scores", "const float*"), Arg("y", "float*"))


@dataclass(frozen=True)
class ScaleParams(StageParams):
    """scores[h, r, c] *= factor for c < position + rows; row length ``context``."""

    heads: int
    context: int
    factor: float

    @property
    def stage(self) -> str:
        return "scale"

    @property
    def args(self) -> tuple[Arg, ...]:
        return (STATE, Arg("scores", "const float*"), Arg("y", "float*"))


@dataclass(frozen=True)
class SoftmaxParams(StageParams):
    """Softmax over c < position + rows of scores [heads][rows][context]; a fully masked row gives zeros."""

    heads: int
    context: int

    @property
    def stage(self) -> str:
        return "softmax"

    @property
    def args(self) -> tuple[Arg, ...]:
        return (STATE, Arg("scores", "const float*"), Arg("y", "float*"))


@dataclass(frozen=True)
class WeightedVParams(AttentionParams):
    """out[r, h, :] = sum over c of p[h, r, c] * v[h / group, c, :]."""

    @property
    def stage(self) -> str:
        return "weighted_v"

    @property
    def args(self) -> tuple[Arg, ...]:
        return (STATE, Arg("p", "const float*"), self.kv_args[1], Arg("out", "float*"))
