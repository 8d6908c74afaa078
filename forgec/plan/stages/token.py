"""Parameters of the stage "token": one decode step of a whole model in one kernel.

``plan.persistent`` fills them from the decode sequence of the graph schedule; ``templates/stages/token`` and
``templates/lib/token`` render them. Nothing here chooses a number.
"""

from __future__ import annotations

from dataclasses import dataclass

from forgec.plan.stages.base import Arg, StageParams
from forgec.plan.stages.cache import KV_CTYPES

__all__ = [
    "EMBEDDING",
    "FIRST_LINEAR",
    "STAMP_WORDS",
    "TokenAttention",
    "TokenEmbedding",
    "TokenGroup",
    "TokenLinear",
    "TokenParams",
    "TokenRun",
    "TokenSampler",
]

#: Words of a row of stamps: clocks of a step's five moments and of its waiting for weights, in a cache line.
STAMP_WORDS = 8
#: Kinds of the steps that are no products; products count on from ``FIRST_LINEAR``.
EMBEDDING, ATTENTION, SAMPLER, FIRST_LINEAR = range(4)


@dataclass(frozen=True)
class TokenRun:
    """``rows`` of a matrix, the ``matrix``-th of its step; ``start`` is their first row in the output."""

    matrix: int
    rows: int
    start: int


@dataclass(frozen=True)
class TokenGroup:
    """Rows of some matrices of one format, or the same rows of two, that a block takes in tiles.

    ``share`` waves share ``take`` rows of a matrix at a time. ``runs``: matrices of one format are one after
    the other in the tiles. A tile lies in ``slots`` slots of the ring, ``slot_rows`` rows in each. Shares of
    blocks are whole multiples of ``multiple`` rows. Sums lie from ``sums_at`` on, for at most ``room`` rows
    between two epilogues.
    """

    formats: tuple[str, ...]
    runs: tuple[TokenRun, ...]
    tile_rows: int
    take: int
    share: int
    room: int
    sums_at: int
    multiple: int
    slot_rows: int
    slots: int

    @property
    def label(self) -> str:
        return "[" + ", ".join(str(run.rows) for run in self.runs) + "] " + " and ".join(self.formats)

    @property
    def guards(self) -> tuple[str, ...]:
        """C text before the products of each distinct format: which matrices have it."""
        return (" && matrix == 0", " && matrix > 0") if len(self.distinct) > 1 else ("",)

    @property
    def distinct(self) -> tuple[str, ...]:
        """The formats, each once."""
        return tuple(dict.fromkeys(self.formats))

    @property
    def sums(self) -> int:
        """Floats that its sums take."""
        return len(self.formats) * self.share * self.room


@dataclass(frozen=True)
class TokenLinear:
    """A kind of product step. ``epilogue``: "store", "gated", "residual" or "logits".

    ``source_words``: words of the exchange that four elements of its vector take, 2 or 1.
    """

    kind: int
    cols: int
    source_words: int
    activations: str
    norm: bool
    eps: float
    epilogue: str
    bias: bool
    then: str
    factor: float
    groups: tuple[TokenGroup, ...]

    @property
    def label(self) -> str:
        """Rows and formats of its matrices."""
        return " + ".join(group.label for group in self.groups)

    @property
    def libraries(self) -> tuple[str, ...]:
        """Templates of ``templates/lib`` that the epilogue uses."""
        return (f"pointwise/{self.then}",) if self.then else ()

    def apply(self, expression: str) -> str:
        """C text of ``then`` of an expression."""
        return f"{self.then}({expression})" if self.then else expression


@dataclass(frozen=True)
class TokenEmbedding:
    """The embedding step: row of the token times ``scale``."""

    format: str
    cols: int
    vocab: int
    scale: float


@dataclass(frozen=True)
class TokenSampler:
    """The sampler step."""

    vocab: int


@dataclass(frozen=True)
class TokenAttention:
    """The attention step: RoPE, the token's own cache row, softmax over all keys.

    ``text`` names its template in ``templates/lib/token``. A work item has ``tile`` query heads; up to
    ``alone`` keys are one part, more at most ``most_parts``. On matrix units a part has at least ``least``
    keys, of which ``near`` are brought near ahead of time.
    """

    text: str
    heads: int
    kv_heads: int
    head_length: int
    rope_dims: int
    interleaved: bool
    context: int
    kv_dtype: str
    scale: float
    tile: int
    alone: int
    most_parts: int
    least: int = 0
    near: int = 0

    def lds_bytes(self, waves: int) -> int:
        """Bytes of LDS that it takes: q of a work item, sums, maxima and masses of the waves, the item."""
        if self.text == "attention":
            return 4 * self.tile * (waves * (self.head_length + 2) + self.head_length)
        pitch = self.head_length + 4
        return 4 * (pitch * self.tile * (1 + waves) + self.head_length + 2 * self.tile * waves) + 64

    @property
    def kv_ctype(self) -> str:
        return KV_CTYPES[self.kv_dtype]


@dataclass(frozen=True)
class TokenParams(StageParams):
    """Everything of the kernel; sizes in bytes, words (of 8 bytes) or floats as the names say.

    ``stream`` "copies" has ``copiers`` waves more that fill a ring of ``slots`` slots of ``slot_bytes`` in
    LDS, each one of them at a time; "loads" reads weights where they are used. ``rope_table`` is an offset
    in units of 16 bytes. ``timed``: every block stamps the clocks at which it was where, which costs a few
    per cent of a token.
    """

    stream: str
    slots: int
    slot_bytes: int
    copiers: int
    weight_formats: tuple[str, ...]
    steps: int
    work_bytes: int
    sums: int
    residual: int
    angles: int
    rope_table: int
    exchange_words: int
    replicas: int
    dynamic_lds: int
    embedding: TokenEmbedding
    attention: TokenAttention
    sampler: TokenSampler
    linears: tuple[TokenLinear, ...]
    timed: bool = False

    @property
    def stage(self) -> str:
        return "token"

    @property
    def title(self) -> str:
        return "token_timed" if self.timed else "token"

    @property
    def stamp_words(self) -> int:
        return STAMP_WORDS

    @property
    def stamp_rows(self) -> int:
        """Rows of stamps of a block: the token's and one a step."""
        return self.steps + 1

    @property
    def threads(self) -> int:
        return self.block + self.wave * self.copiers

    @property
    def cooperative(self) -> bool:
        return True

    @property
    def launch_lds(self) -> int:
        return self.dynamic_lds

    @property
    def entry(self) -> str:
        """Where LDS comes from: ``templates/lib/token/lds_<entry>``."""
        return "dynamic" if self.dynamic_lds else "static"

    @property
    def args(self) -> tuple[Arg, ...]:
        return (
            Arg("state", "State*", restrict=False),
            Arg("weights", "const u8*"),
            Arg("kv", "u8*", restrict=False),
            Arg("exchange", "u64*", restrict=False),
            Arg("sync_words", "u32*", restrict=False),
            Arg("table", "const u8*"),
            Arg("logits", "float*", restrict=False),
            Arg("ring", "i32*"),
            *((Arg("stamps", "u64*", restrict=False),) if self.timed else ()),
        )
