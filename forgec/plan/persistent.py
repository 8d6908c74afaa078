"""The persistent schedule: the decode sequence of the graph schedule as steps of one cooperative kernel.

In come the launches of one token and the tensors they read; out go the kernel's parameters, its launch and
its table of steps, which is stored with the weights. Chooses geometry, renders nothing.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from forgec.plan.layouts import FORMATS, row_pitch
from forgec.plan.memory import align
from forgec.plan.program import Argument, Launch, PackedTensor, Ref
from forgec.plan.stages import AttentionDecodeParams, EmbeddingParams, MatvecParams, SampleParams
from forgec.plan.stages.token import (
    ATTENTION,
    EMBEDDING,
    FIRST_LINEAR,
    SAMPLER,
    TokenAttention,
    TokenEmbedding,
    TokenGroup,
    TokenLinear,
    TokenParams,
    TokenRun,
    TokenSampler,
)
from forgec.plan.token_attention import token_attention, without_step
from forgec.plan.token_geometry import Work, geometry
from forgec.targets import Target

__all__ = ["NotPersistentError", "Persistent", "persist"]

#: Threads of a block, without the waves that copy.
BLOCK = 512
#: Bytes of a slot of the ring: the first that holds two of a model's longest rows, else the last.
SLOT_BYTES = (14848, 18560)
#: Slots of a ring, at least and at most.
LEAST_SLOTS, MOST_SLOTS = 6, 64
#: Waves that copy weights, each a slot at a time. With 132 blocks an H100 needs about 3 MB on their way for
#: all its bandwidth; with more everything else that is read waits longer: a token of Llama-3.2-1B Q4_0 takes
#: 350 us with 29 KiB a block, 362 with 36, and before that 403 with 36, 423 to 458 with more.
COPIERS = 2
#: LDS of a block, in bytes, that the tables and small arrays of the kernel take besides what is counted here.
LDS_MARGIN = 2 << 10
#: LDS that the sampler takes: histograms and the partial sums of a draw.
SAMPLER_BYTES = 18 << 10
#: Rows of logits between two epilogues.
LOGIT_ROWS = 256
#: Bytes of a row of the table.
STEP_BYTES = 64
#: Epilogues of matvec, and those of the steps.
EPILOGUES = {"store": "store", "residual": "residual", "gated": "gated", "rope_kv": "store"}
#: LDS of 32 activations, by how they are kept.
GROUP_BYTES = {"q8": 48, "q16": 80, "lds": 144}
#: Copies of the exchange where many blocks read it at once: an H100 is slower when all wait at one.
REPLICAS = 4
#: Most blocks whose candidates the first one gathers.
MOST_BLOCKS = 1024


class NotPersistentError(Exception):
    """Why a decode sequence cannot be one kernel; the graph schedule runs it."""


@dataclass(frozen=True)
class Persistent:
    """The kernel's launch, its table as a tensor of weights.bin, and the bytes of the exchange.

    ``timed``: the same launch of a kernel that stamps clocks, ``stamp_bytes`` bytes of them, into the buffer
    "stamps"; None where the target has no clock.
    """

    launch: Launch
    table: PackedTensor
    exchange_bytes: int
    timed: Launch | None
    stamp_bytes: int


@dataclass(frozen=True)
class _Step:
    """A row of the table: ``source`` is the number of the step that makes the input.

    ``partial`` is where attention's parts of the keys meet; the step of the logits clears ``partial_words``.
    """

    kind: int
    inbox: int = 0
    source: int = 0
    out: int = 0
    partial: int = 0
    norm: int = 0
    partial_words: int = 0
    weights: tuple[int, ...] = ()
    biases: tuple[int, ...] = ()
    caches: tuple[int, ...] = ()

    def packed(self) -> bytes:
        def padded(values: tuple[int, ...], count: int) -> tuple[int, ...]:
            return (*values, *(0,) * (count - len(values)))

        words: tuple[int, ...] = (self.kind, self.inbox, self.source, self.out, self.partial, self.norm)
        words += (
            padded(self.weights, 3)
            + padded(self.biases, 3)
            + padded(self.caches, 2)
            + (self.partial_words, 0)
        )
        return struct.pack("<16I", *words)


@dataclass(frozen=True)
class _Made:
    """Where a value is: the step that makes it, its first word, and how many words four elements take."""

    step: int
    at: int
    words: int


@dataclass
class _Builder:
    """Turns launches into steps, one after the other."""

    target: Target
    slot_bytes: int  # 0: rows are read in place
    fast: bool
    kinds: list[TokenLinear] = field(default_factory=list)
    steps: list[_Step] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)  # of the steps
    regions: dict[str, int] = field(default_factory=dict)
    words: int = 0
    made: dict[Ref, _Made] = field(default_factory=dict)
    stream: Ref | None = None  # where the residual stream is
    embedding: TokenEmbedding | None = None
    attention: TokenAttention | None = None
    parts: tuple[int, int] = (0, 0)  # where attention's parts of the keys meet, and how many words
    rope: tuple[Ref, int, bool] | None = None  # table, rotated dimensions, interleaved

    def add(self, launch: Launch, following: Launch | None) -> None:
        """``following``: the launch after this one, which may be the one that reads what it makes."""
        params = launch.kernel
        if isinstance(params, EmbeddingParams):
            self._embedding(params, launch)
        elif isinstance(params, MatvecParams):
            self._matvec(params, launch, following)
        elif isinstance(params, AttentionDecodeParams):
            self._attention(params, launch)
        elif isinstance(params, SampleParams):
            source = self._made(Ref("logits", 0))
            self.steps.append(_Step(SAMPLER, source.at, source.step))
        else:
            raise NotPersistentError(f"stage '{params.stage}' has no step")
        product = self.steps[-1].kind - FIRST_LINEAR
        self.labels.append(_role(launch.note) + (f" {self.kinds[product].label}" if product >= 0 else ""))

    # -- the exchange

    def _region(self, note: str, words: int) -> int:
        """Words of the exchange for what a node makes: the same in every layer."""
        role = _role(note)
        if role not in self.regions:
            self.regions[role] = self.words
            self.words += align(words, 16)
        return self.regions[role]

    def _made(self, value: Argument) -> _Made:
        if not isinstance(value, Ref) or value not in self.made:
            raise NotPersistentError("a step reads what no step before it made")
        return self.made[value]

    def _finish(self, step: _Step, out: Argument, words: int = 2) -> None:
        assert isinstance(out, Ref)
        self.made[out] = _Made(len(self.steps), step.out, words)
        self.steps.append(step)

    # -- steps

    def _embedding(self, params: EmbeddingParams, launch: Launch) -> None:
        if params.positions:
            raise NotPersistentError("learned positions have no step")
        self.embedding = TokenEmbedding(params.format, params.cols, params.vocab, params.scale)
        out = launch.args[-1]
        step = _Step(
            EMBEDDING, out=self._region(launch.note, params.cols // 2), weights=(_units(launch.args[2]),)
        )
        self._finish(step, out)
        assert isinstance(out, Ref)
        self.stream = out

    def _matvec(self, params: MatvecParams, launch: Launch, following: Launch | None) -> None:
        args = dict(zip((a.name for a in params.args), launch.args, strict=True))
        if params.prologue not in ("none", "rmsnorm") or (
            params.prologue == "rmsnorm" and params.norm_parameters != ("norm_weight",)
        ):
            raise NotPersistentError(f"prologue '{params.prologue}' has no step")
        if params.epilogue not in EPILOGUES:
            raise NotPersistentError(f"epilogue '{params.epilogue}' has no step")
        epilogue = EPILOGUES[params.epilogue]
        out = args["q_out"] if params.rope else args["out"]
        if out == Ref("logits", 0):
            epilogue = "logits"
        source = self._made(args["x"])
        fours = epilogue == "gated" and params.segments[0].rows % 4 == 0 and self._in_fours(out, following)
        multiple = 4 if fours else 2  # rows that share a word
        kind = self._kind(params, epilogue, source.words, multiple)
        size = 2 * MOST_BLOCKS if epilogue == "logits" else params.out_rows // multiple
        step = _Step(
            kind.kind,
            source.at,
            source.step,
            self._region(launch.note, size),
            partial=self.parts[0] if epilogue == "logits" else 0,
            partial_words=self.parts[1] if epilogue == "logits" else 0,
            norm=_units(args["norm_weight"]) if kind.norm else 0,
            weights=tuple(_units(args[f"w{i}"]) for i in range(len(params.segments))),
            biases=tuple(_units(args[f"bias{i}"]) for i in range(len(params.segments)))
            if params.bias
            else (),
        )
        if epilogue == "residual":
            if (
                args["residual"] != self.stream
                or self.embedding is None
                or params.rows != self.embedding.cols
            ):
                raise NotPersistentError("a product is added to something else than the residual stream")
            assert isinstance(out, Ref)
            self.stream = out
        if params.rope is not None:
            table = args.get("rope_table")
            if not isinstance(table, Ref):
                raise NotPersistentError("attention without rotary embedding has no step")
            rope = (table, params.rope.rope_dims, params.rope.interleaved)
            if self.rope not in (None, rope):
                raise NotPersistentError("layers with different rotary embeddings have no step")
            self.rope = rope
        self._finish(step, out, 4 // multiple)

    def _kind(self, params: MatvecParams, epilogue: str, source_words: int, multiple: int) -> TokenLinear:
        if params.activations == "global" and not self.slot_bytes:
            raise NotPersistentError(f"a vector of {params.cols} floats has no room in LDS")
        formats = tuple(s.format for s in params.segments)
        groups: list[TokenGroup] = []
        sums_at = 0
        members: dict[tuple[str, ...], list[TokenRun]] = {}
        if epilogue == "gated":
            members[formats] = [TokenRun(0, params.segments[0].rows, 0)]
        else:
            for i, (segment, start) in enumerate(zip(params.segments, params.row_starts, strict=True)):
                members.setdefault((segment.format,), []).append(TokenRun(i, segment.rows, start))
        for group_formats, runs in members.items():
            for run in runs:
                if run.rows % 2 and epilogue != "logits":
                    raise NotPersistentError(f"a matrix of {run.rows} rows does not go in pairs")
            group = self._group(
                params.cols,
                group_formats,
                tuple(runs),
                sums_at,
                logits=epilogue == "logits",
                activations=self._activations(params),
                multiple=multiple,
            )
            sums_at += group.sums
            groups.append(group)
        kind = TokenLinear(
            FIRST_LINEAR + len(self.kinds),
            params.cols,
            source_words,
            self._activations(params),
            params.prologue == "rmsnorm",
            params.eps,
            epilogue,
            params.bias,
            params.then,
            params.factor,
            tuple(groups),
        )
        for known in self.kinds:
            if replace(known, kind=kind.kind) == kind:
                return known
        self.kinds.append(kind)
        return kind

    def _in_fours(self, out: Argument, reader: Launch | None) -> bool:
        """Whether the next launch is the one that reads ``out``, a product that makes int8 of it."""
        if reader is None or not isinstance(reader.kernel, MatvecParams):
            return False
        names = [argument.name for argument in reader.kernel.args]
        return reader.kernel.act == "q8" and reader.args[names.index("x")] == out

    def _activations(self, params: MatvecParams) -> str:
        """How a product's vector is kept: floats of fast math as two int8, as good and three times faster."""
        if params.act == "q8":
            return "q8"
        quantised = all(FORMATS[s.format].block > 1 for s in params.segments)
        return "q16" if self.fast and quantised and self.target.dot else "lds"

    def _group(
        self,
        cols: int,
        formats: tuple[str, ...],
        runs: tuple[TokenRun, ...],
        sums_at: int,
        *,
        logits: bool,
        activations: str,
        multiple: int,
    ) -> TokenGroup:
        """The geometry that takes the least time for a block's share."""
        units = self.target.compute_units
        most = sum(multiple * -(-(r.rows // multiple) // units) + r.rows % multiple for r in runs)
        work = Work(cols, formats, activations, most, any(r.rows % 2 for r in runs))
        best = geometry(work, self.target, BLOCK, self.slot_bytes)
        if best is None:
            raise NotPersistentError(f"rows of {work.pitch} bytes have no room in a tile")
        # Twice the share of this target's chip: a smaller one of the same family takes more rows a block.
        room = 2 * most if not logits else min(LOGIT_ROWS, 2 * most)
        return TokenGroup(
            formats,
            runs,
            best.tile_rows,
            best.take,
            best.share,
            align(room, best.tile_rows),
            sums_at,
            multiple,
            best.slot_rows,
            best.slots,
        )

    def _attention(self, params: AttentionDecodeParams, launch: Launch) -> None:
        args = dict(zip((a.name for a in params.args), launch.args, strict=True))
        without = without_step(params, self.target)
        if without or self.rope is None:
            raise NotPersistentError(without or "attention without rotary embedding has no step")
        attention = token_attention(params, self.rope[1], self.rope[2], self.target, BLOCK)
        if self.attention not in (None, attention):
            raise NotPersistentError("layers with different attention have no step")
        self.attention = attention
        half = params.cache.key_length // 2
        source = self._made(args["q"])
        caches = (_units(args["k_cache"]), _units(args["v_cache"]))
        words = params.heads * attention.most_parts * (half + 1)
        self.parts = (self._region("partial", words), words)
        out = self._region(launch.note, params.heads * half)
        self._finish(_Step(ATTENTION, source.at, source.step, out, self.parts[0], caches=caches), args["out"])


def _role(note: str) -> str:
    """What a node does, whatever its layer."""
    return re.sub(r"^layer\d+\.", "", note)


def _units(value: Argument) -> int:
    """An offset in units of 16 bytes."""
    assert isinstance(value, Ref)
    if value.offset % 16:
        raise NotPersistentError(f"offset {value.offset} is no multiple of 16")
    return value.offset // 16


def persist(
    launches: Sequence[Launch],
    tensors: Mapping[str, PackedTensor],
    target: Target,
    math: str,
    weight_bytes: int,
) -> Persistent:
    """One kernel for the decode sequence ``launches``; its table goes behind ``weight_bytes`` bytes.

    Raises NotPersistentError with the reason where the sequence has a step that the kernel does not know.
    """
    if target.wave == 1:
        raise NotPersistentError("a CPU runs a token as one call anyway")
    if target.wave == 64:
        raise NotPersistentError("all steps in one kernel spill scalar registers there")
    if any(t.layout not in ("rows", "plain") for t in tensors.values()):
        raise NotPersistentError("weights of another layout have no step")
    return _persist(launches, target, math, weight_bytes, _slot_bytes(launches) if target.dynamic_lds else 0)


def _slot_bytes(launches: Sequence[Launch]) -> int:
    """A slot with room for the longest row of a product."""
    kernels = [launch.kernel for launch in launches if isinstance(launch.kernel, MatvecParams)]
    longest = max(row_pitch(s.format, kernel.cols) for kernel in kernels for s in kernel.segments)
    return next((size for size in SLOT_BYTES if size >= 2 * longest), max(SLOT_BYTES[-1], longest))


def _persist(
    launches: Sequence[Launch], target: Target, math: str, weight_bytes: int, slot_bytes: int
) -> Persistent:
    builder = _Builder(target, slot_bytes, math == "fast")
    for launch, following in zip(launches, (*launches[1:], None), strict=True):
        builder.add(launch, following)
    embedding, attention, rope = builder.embedding, builder.attention, builder.rope
    if embedding is None or attention is None or rope is None:
        raise NotPersistentError("a step is missing: embedding, attention or rotary embedding")
    waves = BLOCK // target.wave
    work = max(
        SAMPLER_BYTES,
        attention.lds_bytes(waves),
        *(k.cols // 32 * GROUP_BYTES[k.activations] for k in builder.kinds),
    )
    work = align(work, 128)
    sums = max(sum(g.sums for g in k.groups) for k in builder.kinds)
    residual = 2 * (2 * -(-(embedding.cols // 2) // target.compute_units))
    steps = len(builder.steps)
    used = work + STEP_BYTES * steps + 4 * (sums + residual + rope[1]) + LDS_MARGIN
    room = (target.dynamic_lds or 0 if slot_bytes else target.lds_bytes) - used
    # Whole turns of the copying waves: a place of the ring belongs to one of them, which waits for it alone.
    slots = min(MOST_SLOTS, room // slot_bytes) // COPIERS * COPIERS if slot_bytes else 0
    if room < 0 or (slot_bytes and slots < LEAST_SLOTS):
        raise NotPersistentError(f"LDS has no room for {used} bytes and the weights on their way")
    formats = {f for k in builder.kinds for g in k.groups for f in g.formats} | {embedding.format}
    params = TokenParams(
        target.family,
        target.wave,
        BLOCK,
        stream="copies" if slot_bytes else "loads",
        slots=slots,
        slot_bytes=slot_bytes,
        copiers=COPIERS if slot_bytes else 0,
        weight_formats=tuple(sorted(formats, key=list(FORMATS).index)),
        steps=steps,
        work_bytes=work,
        sums=sums,
        residual=residual,
        angles=rope[1],
        rope_table=_units(rope[0]),
        exchange_words=align(builder.words, 512),
        replicas=REPLICAS if slot_bytes else 1,
        dynamic_lds=align(used + slots * slot_bytes, 128) if slot_bytes else 0,
        embedding=embedding,
        attention=attention,
        sampler=TokenSampler(embedding.vocab),
        linears=tuple(builder.kinds),
    )
    table = PackedTensor(
        "token_table",
        "",
        "u32",
        "plain",
        steps,
        STEP_BYTES // 4,
        weight_bytes,
        STEP_BYTES * steps,
        literal=b"".join(step.packed() for step in builder.steps),
    )
    buffers = (
        Ref("state", 0),
        Ref("weights", 0),
        Ref("kv", 0),
        Ref("exchange", 0),
        Ref("epoch", 0),
        Ref("weights", table.offset),
        Ref("logits", 0),
        Ref("ring", 0),
    )
    launch = Launch(params, target.compute_units, buffers, "token")
    timed = replace(
        launch,
        kernel=replace(params, timed=True),
        args=(*buffers, Ref("stamps", 0)),
        steps=tuple(builder.labels),
    )
    return Persistent(
        launch,
        table,
        8 * params.exchange_words * params.replicas,
        timed if target.clock else None,
        8 * launch.grid * params.stamp_rows * params.stamp_words,
    )
