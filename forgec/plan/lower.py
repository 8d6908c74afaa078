"""A fused graph and a target in, a ``Program`` out: every launch, its parameters and its addresses.

Two timelines are planned over one arena: ``prefill`` + ``head`` + ``sample`` for prompts, ``decode`` for one
token. Lowering chooses stages and numbers; it never writes text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from forgec.errors import TargetError, UnsupportedModelError, VerifyError
from forgec.ir import ops
from forgec.ir.graph import Graph
from forgec.plan.kvcache import kv_cache_bytes, place_caches, rollback
from forgec.plan.limits import check_limits
from forgec.plan.lowering import Lowered, Lowering, Temp, sync_bytes
from forgec.plan.memory import Request, align, plan_arena
from forgec.plan.persistent import NotPersistentError, Persistent, persist
from forgec.plan.program import (
    STATE_BYTES,
    Argument,
    Buffer,
    CompileOptions,
    Launch,
    PackedTensor,
    Program,
    Ref,
)
from forgec.plan.stage_rules import lower_node
from forgec.plan.stages import StageParams
from forgec.plan.weights import TENSOR_ALIGNMENT, place_weights
from forgec.targets import Target

__all__ = ["SCHEDULES", "default_context", "lower"]

SCHEDULES = ("auto", "graph", "persistent")
#: Context in tokens that is compiled when the user names none and the model allows more.
DEFAULT_CONTEXT = 8192


@dataclass(frozen=True)
class Timeline:
    """Launches with virtual addresses, in order, by sequence name."""

    steps: tuple[tuple[str, Lowered], ...]
    temps: Mapping[str, Temp]


def default_context(graph: Graph, options: CompileOptions) -> int:
    """The context length to compile for, in tokens; more than the model was trained for is refused."""
    trained = graph.spec.context_length
    if options.context is None:
        return min(trained, DEFAULT_CONTEXT)
    if not 1 <= options.context <= trained:
        raise TargetError(
            f"context of {options.context} tokens is outside 1..{trained}, the model's trained context",
            f"Choose --ctx between 1 and {trained}.",
        )
    return options.context


def lower(graph: Graph, target: Target, options: CompileOptions) -> Program:
    """Plan a fused graph for a target.

    Raises TargetError when the model does not fit the target's memory, UnsupportedModelError for shapes that
    no stage takes, VerifyError when the graph holds an operation that has no stage.
    """
    check_limits(graph)
    context = default_context(graph, options)
    options = replace(options, context=context, chunk=min(options.chunk, context))
    tensors, weight_bytes = place_weights(graph, context)
    if options.schedule not in SCHEDULES:
        raise VerifyError(f"unknown schedule '{options.schedule}'; known: {', '.join(SCHEDULES)}")
    caches = place_caches(graph, context, options.chunk, options.kv_dtype)
    prompt = _timeline(Lowering(graph, target, options, tensors, caches, decode=False))
    token = _timeline(Lowering(graph, target, options, tensors, caches, decode=True))
    prompt_at, prompt_bytes = _plan(prompt)
    token_at, token_bytes = _plan(token)
    steps = tuple(_launch(step, token_at) for _, step in token.steps)
    persistent = _persistent(options, steps, tensors, target, weight_bytes)
    if persistent is not None:
        tensors = {**tensors, persistent.table.name: persistent.table}
        weight_bytes = align(persistent.table.offset + persistent.table.bytes, TENSOR_ALIGNMENT)
    buffers = (
        Buffer("weights", weight_bytes, "file"),
        Buffer("kv", kv_cache_bytes(caches), "none"),
        Buffer("arena", max(prompt_bytes, token_bytes), "none"),
        Buffer("logits", align(4 * graph.spec.vocab_size), "none"),
        Buffer("sync", sync_bytes(graph), "zero"),
        Buffer("state", STATE_BYTES, "zero"),
        Buffer("tokens", align(4 * options.chunk), "zero"),
        Buffer("ring", align(4 * options.ring), "zero"),
        *_persistent_buffers(persistent),
    )
    _check_memory(graph, target, buffers, context)
    sequences = {
        name: tuple(_launch(step, prompt_at) for part, step in prompt.steps if part == name)
        for name in ("prefill", "head", "sample")
    }
    sequences["decode"] = steps if persistent is None else (persistent.launch,)
    if persistent is not None and persistent.timed is not None:
        sequences["decode_timed"] = (persistent.timed,)
    return Program(
        spec=graph.spec,
        target=target,
        math=options.math,
        kv_dtype=options.kv_dtype,
        context=context,
        chunk=options.chunk,
        ring=options.ring,
        rollback=rollback(caches),
        buffers=buffers,
        tensors=tuple(tensors.values()),
        kernels=_kernels(sequences),
        sequences=sequences,
        symbols={
            "hidden": Ref("arena", prompt_at[_hidden(graph)]),
            "logits": Ref("logits", 0),
        },
        steps=steps,
    )


def _persistent(
    options: CompileOptions,
    steps: tuple[Launch, ...],
    tensors: Mapping[str, PackedTensor],
    target: Target,
    weight_bytes: int,
) -> Persistent | None:
    """The decode sequence as one kernel, where that was asked for or is the target's faster schedule."""
    schedule = options.schedule
    if schedule == "graph" or (schedule == "auto" and target.schedule == "graph"):
        return None
    try:
        return persist(steps, tensors, target, options.math, weight_bytes)
    except NotPersistentError as error:
        if schedule == "auto":
            return None
        raise UnsupportedModelError(
            f"the persistent schedule cannot run this model on '{target.name}': {error}",
            "Compile with --schedule graph.",
        ) from error


def _persistent_buffers(persistent: Persistent | None) -> tuple[Buffer, ...]:
    """What the kernel of a token needs besides the buffers of all schedules."""
    if persistent is None:
        return ()
    buffers = (Buffer("exchange", persistent.exchange_bytes, "zero"), Buffer("epoch", 256, "zero"))
    if persistent.timed is None:
        return buffers
    return (*buffers, Buffer("stamps", persistent.stamp_bytes, "demand"))


def _timeline(lowering: Lowering) -> Timeline:
    """Lower every node once, splitting the prompt's steps where the head begins."""
    steps: list[tuple[str, Lowered]] = []
    part = "prefill"
    for node in lowering.graph.topo():
        if isinstance(node.op, ops.SelectRow):
            part = "head"
        if isinstance(node.op, ops.Sample):
            part = "sample"
        steps += [(part, step) for step in lower_node(lowering, node)]
    return Timeline(tuple(steps), lowering.temps)


def _hidden(graph: Graph) -> str:
    """The residual stream that the head reads: the input of the one SelectRow."""
    selects = [n for n in graph if isinstance(n.op, ops.SelectRow)]
    if len(selects) != 1:
        raise VerifyError(f"a graph needs exactly one SelectRow, found {len(selects)}")
    return selects[0].inputs[0]


def _plan(timeline: Timeline) -> tuple[dict[str, int], int]:
    """Arena offset of every temporary of a timeline, and the size.

    A temporary that a step overwrites in place (``Temp.alias``) shares its storage. What the head reads
    stays alive to the end, because a caller may run the head for any row.
    """
    owner: dict[str, str] = {}
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    size: dict[str, int] = {}
    end = len(timeline.steps) - 1
    for at, (part, step) in enumerate(timeline.steps):
        for argument in step.args:
            if not isinstance(argument, Temp):
                continue
            temp = timeline.temps[argument.name]
            name = owner.setdefault(argument.name, owner[temp.alias] if temp.alias else argument.name)
            first.setdefault(name, at)
            last[name] = end if part == "head" else max(at, last.get(name, 0))
            size[name] = max(size.get(name, 0), temp.bytes)
    offsets, total = plan_arena(Request(n, size[n], first[n], last[n]) for n in first)
    return {name: offsets[storage] for name, storage in owner.items()}, total


def _resolve(argument: Argument | Temp, offsets: Mapping[str, int]) -> Argument:
    return Ref("arena", offsets[argument.name]) if isinstance(argument, Temp) else argument


def _launch(step: Lowered, offsets: Mapping[str, int]) -> Launch:
    args = tuple(_resolve(a, offsets) for a in step.args)
    if len(args) != len(step.kernel.args):
        raise VerifyError(
            f"launch '{step.note}' of '{step.kernel.symbol}' has {len(args)} arguments, "
            f"the kernel takes {len(step.kernel.args)}"
        )
    return Launch(step.kernel, step.grid, args, step.note)


def _kernels(sequences: Mapping[str, tuple[Launch, ...]]) -> tuple[StageParams, ...]:
    """Distinct kernels in order of first launch."""
    return tuple(dict.fromkeys(launch.kernel for launches in sequences.values() for launch in launches))


def _check_memory(graph: Graph, target: Target, buffers: tuple[Buffer, ...], context: int) -> None:
    """Refuse a model that cannot fit, with the numbers; a CPU's memory is the runtime's to check."""
    total = sum(b.bytes for b in buffers if b.resident)
    if target.wave == 1 or total <= target.memory_bytes:
        return
    sizes = ", ".join(f"{b.name} {b.bytes / 2**20:,.0f} MiB" for b in buffers if b.bytes >= 2**20)
    raise TargetError(
        f"'{graph.spec.name}' needs {total / 2**30:.1f} GiB at a context of {context} tokens, "
        f"'{target.name}' has {target.memory_bytes / 2**30:.1f} GiB ({sizes})",
        "Choose a shorter context with --ctx, a smaller quantisation, or a target with more memory.",
    )
