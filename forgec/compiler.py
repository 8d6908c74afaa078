"""The whole way from a GGUF file to a package, in one function that reads like DESIGN's first picture.

The command line and tests call ``compile_model``; every step is a pure function of another module.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from forgec.codegen.render import render_pool, render_stage
from forgec.errors import UnsupportedModelError, UsageError
from forgec.frontend.architectures import ARCHITECTURES, Build, build_graph, supported_spec
from forgec.frontend.gguf import GGUFFile
from forgec.frontend.spec import ModelSpec
from forgec.frontend.tokenizer import TokenizerSpec, build_tokenizer, check_chat_template
from forgec.ir.printer import format_graph
from forgec.package.loader import import_folder
from forgec.package.output import check_destination
from forgec.package.writer import POOL, runtime_dir, write_package
from forgec.passes.manager import PassResult
from forgec.passes.pipeline import optimise
from forgec.plan.lower import lower
from forgec.plan.program import CompileOptions, Program, program_text
from forgec.quantise import Change, EditedFile, WeightOptions, open_model
from forgec.targets import Target, get_target
from forgec.toolchain import Cache, CodeObject, ExpectedKernel, Unit, check_inspection, compile_units

__all__ = ["Compiled", "Reporter", "compile_model", "plan_model", "program_units"]

#: Weights as they are in the file.
UNCHANGED = WeightOptions()
Reporter = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Compiled:
    """What a compilation made: the program, its sources and code objects, and the seconds of each step.

    ``changes`` says what was requantised or merged, and the error of it.
    """

    program: Program
    sources: Mapping[str, str]
    objects: tuple[CodeObject, ...]
    seconds: Mapping[str, float]
    warnings: tuple[str, ...] = ()
    changes: tuple[Change, ...] = ()


def plan_model(
    gguf: GGUFFile,
    spec: ModelSpec,
    target: Target,
    options: CompileOptions,
    dump: Path | None = None,
    architectures: Mapping[str, Build] = ARCHITECTURES,
) -> Program:
    """Import, fuse and lower a model; with ``dump``, write the text of every intermediate product there.

    What is in ``dump`` stays after a failure, which is when it is read.
    """

    def write(result: PassResult) -> None:
        if dump is not None:
            _dump(dump, f"{result.index:02d}-{result.name}.txt", format_graph(result.graph))

    graph = optimise(build_graph(gguf, spec, architectures), target, write, fuse=options.fuse)
    program = lower(graph, target, options)
    if dump is not None:
        _dump(dump, "program.txt", program_text(program))
    return program


def program_units(program: Program) -> tuple[Unit, ...]:
    """One compilation unit per kernel, and the thread pool on a CPU."""
    units = [Unit(k.symbol, render_stage(k), (k.symbol,)) for k in program.kernels]
    if program.target.wave == 1:
        entries = ("forgec_pool_create", "forgec_pool_run", "forgec_pool_destroy")
        units.append(Unit(POOL, render_pool(), entries, libc=True, language="c"))
    return tuple(units)


def compile_model(
    model: Path,
    target_name: str,
    output: Path,
    options: CompileOptions,
    *,
    weights: WeightOptions = UNCHANGED,
    chat_template: str | None = None,
    toolchain: str = "auto",
    force: bool = False,
    with_weights: bool = True,
    dump: Path | None = None,
    cache: Cache | None = None,
    architectures: Mapping[str, Build] = ARCHITECTURES,
    report: Reporter = lambda step, done, total: None,
) -> Compiled:
    """Compile ``model`` for a target and write the package to ``output``.

    ``weights`` says what to requantise or merge; ``chat_template`` takes the place of the file's own;
    ``with_weights`` False leaves weights.bin out; ``architectures`` are those that can be imported.
    ``report`` hears (step, done, total). Raises ForgeError; nothing is left behind then.
    """
    clock = _Clock()
    target = get_target(target_name)
    check_destination(output, force=force)
    with open_model(model, weights) as gguf:
        spec = supported_spec(gguf, architectures)
        program = plan_model(gguf, spec, target, options, dump, architectures)
        tokenizer, warnings = _tokenizer(gguf, chat_template)
        clock.lap("plan")
        units = program_units(program)
        objects = compile_units(
            units,
            target,
            toolchain=toolchain,
            cache=cache,
            progress=lambda d, t: report("kernels", d, t),
            dump_dir=None if dump is None else dump / "src",
        )
        check_kernels(program, objects)
        sources = {unit.name: unit.source for unit in units}
        clock.lap("kernels")
        write_package(
            output,
            program,
            gguf,
            tokenizer,
            sources,
            objects,
            force=force,
            with_weights=with_weights,
            progress=lambda d, t: report("weights", d, t),
        )
        clock.lap("package")
        changes = gguf.changes() if isinstance(gguf, EditedFile) else ()
    return Compiled(program, sources, objects, clock.seconds, warnings, changes)


def check_kernels(program: Program, objects: tuple[CodeObject, ...]) -> None:
    """Compare every compiled kernel with what the plan asked for; raises ToolchainError."""
    found = {info.symbol: info for code in objects for info in code.inspection}
    for kernel in program.kernels:
        expected = ExpectedKernel(
            symbol=kernel.symbol,
            wave=program.target.wave,
            threads=kernel.threads,
            lds_limit=program.target.lds_bytes,
            args=tuple((arg.name, offset, arg.size, arg.is_pointer) for arg, offset in kernel.unpack),
        )
        check_inspection(found[kernel.symbol], expected)


def _tokenizer(gguf: GGUFFile, chat_template: str | None) -> tuple[TokenizerSpec, tuple[str, ...]]:
    """The tokenizer, its chat template rendered once with the runtime's own sandbox, and warnings.

    A broken template of the file is no reason to stop; one that the user gives is.
    """
    tokenizer = build_tokenizer(gguf.metadata)
    if chat_template is not None:
        tokenizer = replace(tokenizer, chat_template=chat_template)
    if tokenizer.chat_template is None:
        return tokenizer, ()
    runtime = import_folder(runtime_dir())
    try:
        check_chat_template(tokenizer, importlib.import_module(f"{runtime.__name__}.chat").render)
    except UnsupportedModelError as error:
        if chat_template is not None:
            raise
        return tokenizer, (f"{error.message}; --chat will not work with this package",)
    return tokenizer, ()


def _dump(folder: Path, name: str, text: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"cannot write '{folder / name}': {error.strerror}", "Choose a writable --dump-dir."
        ) from error


class _Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now
