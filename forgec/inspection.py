"""What a GGUF file is, whether it compiles, and what it will need: a path in, an ``Inspection`` out.

It asks the parts of the compiler that can refuse a file and collects their answers instead of stopping at the
first; for what no part knows it names the operation, tensor or type at fault. Nothing is compiled, no tensor
is read, and a file need not be a language model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from forgec.compiler import plan_model
from forgec.errors import ForgeError, TargetError, UnsupportedModelError
from forgec.frontend.architectures import ARCHITECTURES, build_graph
from forgec.frontend.foreign import file_kind, foreign_operations, unknown_tensors
from forgec.frontend.gguf import GGUFFile, open_gguf
from forgec.frontend.metadata import ModelKeys
from forgec.frontend.spec import ModelSpec, read_spec
from forgec.frontend.tokenizer import TokenizerSpec, describe_tokenizer
from forgec.ir.graph import Graph
from forgec.ir.shapes import EXECUTABLE_TYPES
from forgec.passes.fuse_attention import fuse_attention
from forgec.plan.limits import check_limits
from forgec.plan.program import CompileOptions
from forgec.targets import Target, get_target

__all__ = ["Inspection", "Problem", "TargetNeeds", "inspect_file"]

Answer = TypeVar("Answer")
#: The chip for which a model is planned where none is named; what is refused is refused on all of them.
ANY_TARGET = "gfx1100"


@dataclass(frozen=True)
class Problem:
    """What stands in the way of compiling, which part of the compiler says so, and what to do."""

    part: str
    problem: str
    hint: str
    exit_code: int = UnsupportedModelError.exit_code


@dataclass(frozen=True)
class TargetNeeds:
    """What a model needs on one target, in bytes by buffer, or why it does not compile for it.

    ``memory_bytes``: what the chip has, 0 for a CPU; ``context`` in tokens, ``kv_dtype``: of the KV cache;
    ``launches``: per generated token.
    """

    target: str
    memory_bytes: int
    problem: Problem | None = None
    buffers: Mapping[str, int] | None = None
    context: int = 0
    kv_dtype: str = ""
    kernels: int = 0
    launches: int = 0


@dataclass(frozen=True)
class Inspection:
    """Everything that is known of a file without reading a tensor.

    ``spec``, ``tokenizer``: None where they cannot be read; then a problem says why. ``graph``: with
    attention fused, which shows windows; None where it cannot be built. ``quant_types``: number
    of tensors by type, the most frequent first; ``types_without_kernels``: those of them that matrices have
    and no kernel reads. ``targets`` are the targets asked for.
    """

    path: Path
    kind: str
    architecture: str
    name: str
    version: int
    shards: int
    parameters: int
    weight_bytes: int
    quant_types: Mapping[str, int]
    types_without_kernels: tuple[str, ...]
    spec: ModelSpec | None
    graph: Graph | None
    tokenizer: TokenizerSpec | None
    problems: tuple[Problem, ...]
    targets: tuple[TargetNeeds, ...]

    @property
    def compiles(self) -> bool:
        """For at least one target, as far as can be known without compiling."""
        return not self.problems

    @property
    def exit_code(self) -> int:
        """0, or that of the first problem of the file or of a target."""
        found = [*self.problems, *(t.problem for t in self.targets if t.problem is not None)]
        return found[0].exit_code if found else 0


def inspect_file(
    path: Path, targets: Sequence[Target] = (), options: CompileOptions | None = None
) -> Inspection:
    """Inspect a file (of a sharded model the first shard), and plan it for ``targets``.

    Merges and scores of the vocabulary are only compared with its tokens when compiling. Raises GGUFError for
    a damaged file and UnsupportedModelError for a tensor type that GGUF does not define;
    everything else that stands in the way is in the result.
    """
    with open_gguf(path) as gguf:
        found = _Problems()
        kind, spec, graph, tokenizer = "language model", None, None, None
        keys = found.ask("metadata", lambda: ModelKeys.of(gguf))
        other = file_kind(gguf.metadata)
        if other is not None:
            kind = other[0]
            found.add("file", f"the file is {kind}", other[1])
        elif not gguf.tensors:
            kind = "a vocabulary without a model"
            found.add("file", f"the file has no tensors: it is {kind}", "Give the file with the weights.")
        else:
            spec, graph = _ask_layers(gguf, "" if keys is None else keys.architecture, found)
        if other is None:
            tokenizer = found.ask("tokenizer", lambda: describe_tokenizer(gguf.metadata))
        plans: tuple[TargetNeeds, ...] = ()
        if spec is not None and not found.problems:
            plans = tuple(_needs(gguf, spec, target, options or CompileOptions()) for target in targets)
            if not targets:
                _ask_plan(gguf, spec, found)
        types = Counter(info.type.name for info in gguf.tensors.values())
        matrices = {info.type.name for info in gguf.tensors.values() if len(info.shape) > 1}
        return Inspection(
            path=gguf.path,
            kind=kind,
            architecture="" if keys is None else keys.architecture,
            name=str(gguf.metadata.get("general.name", gguf.path.stem)),
            version=gguf.version,
            shards=len(gguf.shard_paths),
            parameters=sum(info.elements for info in gguf.tensors.values()),
            weight_bytes=sum(info.nbytes for info in gguf.tensors.values()),
            quant_types=dict(sorted(types.items(), key=lambda item: (-item[1], item[0]))),
            types_without_kernels=tuple(
                t for t in types if t in matrices and t.lower() not in EXECUTABLE_TYPES
            ),
            spec=spec,
            graph=graph,
            tokenizer=tokenizer,
            problems=tuple(found.problems),
            targets=plans,
        )


class _Problems:
    """The problems found so far."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def add(self, part: str, problem: str, hint: str) -> None:
        self.problems.append(Problem(part, problem, hint))

    def ask(self, part: str, attempt: Callable[[], Answer]) -> Answer | None:
        """The answer of a part of the compiler; its refusal becomes a problem."""
        try:
            return attempt()
        except ForgeError as error:
            self.problems.append(_problem(part, error))
            return None


def _problem(part: str, error: ForgeError) -> Problem:
    return Problem(part, error.message, error.hint, error.exit_code)


def _ask_layers(gguf: GGUFFile, architecture: str, found: _Problems) -> tuple[ModelSpec | None, Graph | None]:
    """Numbers and graph of a model, if they can be had; whatever its layers lack becomes a problem."""
    if architecture in ARCHITECTURES:
        spec = found.ask("metadata", lambda: read_spec(gguf))
        if spec is None:
            return None, None
        graph = found.ask("layers", lambda: _checked_graph(gguf, spec))
        if graph is None:
            _explain(gguf, found)
        return spec, graph
    lacking = len(found.problems)
    hint = f"Supported: {', '.join(ARCHITECTURES)}."
    found.add("layers", f"architecture '{architecture}' is not supported", hint)
    _explain(gguf, found)
    if len(found.problems) == lacking + 1:
        # Nothing but the description of how the tensors are joined is missing.
        hint = f"Its tensors are of kinds that forgec has operations for: what is missing is a module. {hint}"
        found.problems[-1] = replace(found.problems[-1], hint=hint)
    try:
        return read_spec(gguf), None
    except ForgeError:
        return None, None  # the keys of another kind of model: that it is one has been said


def _checked_graph(gguf: GGUFFile, spec: ModelSpec) -> Graph:
    graph = build_graph(gguf, spec)
    check_limits(graph)
    return fuse_attention(graph)


def _explain(gguf: GGUFFile, found: _Problems) -> None:
    """Add what a file needs that forgec has no operation for, tensor by tensor."""
    for foreign in foreign_operations(gguf.tensors, gguf.metadata):
        found.add("operations", foreign.sentence, "")
    unknown = unknown_tensors(gguf.tensors)
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        found.add("operations", f"nothing is known of tensor '{unknown[0]}'{more}", "")


def _ask_plan(gguf: GGUFFile, spec: ModelSpec, found: _Problems) -> None:
    """Plan the model for one chip, for what only planning finds; its memory does not count."""
    needs = _needs(gguf, spec, get_target(ANY_TARGET), CompileOptions(context=1))
    if needs.problem is not None and needs.problem.exit_code != TargetError.exit_code:
        found.problems.append(needs.problem)


def _needs(gguf: GGUFFile, spec: ModelSpec, target: Target, options: CompileOptions) -> TargetNeeds:
    try:
        program = plan_model(gguf, spec, target, options)
    except ForgeError as error:
        return TargetNeeds(target.name, target.memory_bytes, _problem("plan", error))
    return TargetNeeds(
        target=target.name,
        memory_bytes=target.memory_bytes if target.wave > 1 else 0,
        buffers={buffer.name: buffer.bytes for buffer in program.buffers if buffer.resident},
        context=program.context,
        kv_dtype=program.kv_dtype,
        kernels=len(program.kernels),
        launches=len(program.sequences["decode"]),
    )
