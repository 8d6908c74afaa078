"""Compiles many units at once: in parallel, through the cache, each result inspected before it is handed on.

Units and a ``Target`` go in, one ``CodeObject`` per unit comes out in the same order, or one error. No files
are left behind except cache entries and, when asked for, the dump directory.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from forgec.errors import ToolchainError
from forgec.targets import Target
from forgec.toolchain.cache import Cache, cache_key
from forgec.toolchain.inspection import inspect_code
from forgec.toolchain.objects import CodeObject, Toolchain, Unit, source_suffix
from forgec.toolchain.process import DEFAULT_TIMEOUT_SECONDS, Runner
from forgec.toolchain.select import select_toolchain

__all__ = ["compile_units"]

#: Less free space than this in the folder for temporary files, and a failure is blamed on that.
_SCRATCH_BYTES = 16 << 20

_log = logging.getLogger(__name__)


def compile_units(
    units: Sequence[Unit],
    target: Target,
    *,
    toolchain: str | Toolchain = "auto",
    cache: Cache | None = None,
    progress: Callable[[int, int], None] | None = None,
    jobs: int | None = None,
    dump_dir: Path | None = None,
    timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
) -> tuple[CodeObject, ...]:
    """Compile ``units`` for ``target``, in their order.

    ``toolchain`` is ``"auto"``, ``"hipcc"``, ``"zig"`` or one already selected. ``progress(done, total)`` is
    called in the calling thread. ``jobs`` compilers run at once, as many as there are cores when it is None;
    the result does not depend on it. ``dump_dir`` gets each unit's source before it is compiled, and its
    listing after.

    Raises: ToolchainError of the first unit (in order) that fails, after the others were stopped.
    """
    names = [unit.name for unit in units]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ToolchainError(f"two units are called '{repeated[0]}'")
    if jobs is not None and jobs < 1:
        raise ToolchainError(f"{jobs} jobs cannot compile anything, expected 1 or more")
    if not units:
        return ()
    runner = Runner(timeout_seconds)
    if isinstance(toolchain, str):
        toolchain = select_toolchain(toolchain, target, runner)
    build = _Build(target, toolchain, cache, dump_dir, runner)
    objects = _run_all(build, units, jobs or _cores(), progress)
    hits = sum(item.cached for item in objects)
    _log.info("%s: %d units, %d from the cache, %s", target.name, len(objects), hits, toolchain.version)
    if cache is not None and hits < len(objects):
        cache.prune()
    return objects


@dataclass(frozen=True)
class _Build:
    """What all units of one call share."""

    target: Target
    toolchain: Toolchain
    cache: Cache | None
    dump_dir: Path | None
    runner: Runner
    uncached: threading.Event = field(default_factory=threading.Event)

    def one(self, unit: Unit) -> CodeObject:
        source = unit.name + source_suffix(unit, self.target)
        self._dump(source, unit.source)
        key = cache_key(unit, self.target, self.toolchain)
        compiled = self.cache.load(key) if self.cache is not None else None
        cached = compiled is not None
        if compiled is None:
            try:
                compiled = self.toolchain.compile(unit, self.target, self.runner)
            except ToolchainError as error:
                _check_scratch(error)
                raise ToolchainError(error.message, self._hint(error.hint, source)) from error
        inspection = inspect_code(unit, self.target, compiled.data)
        if self.cache is not None and not cached:
            warning = self.cache.store(key, compiled)
            if warning is not None and not self.uncached.is_set():
                self.uncached.set()  # once: what stops one entry stops the others
                _log.warning("%s", warning.message)
        self._dump(unit.name + (".ptx" if self.target.driver == "cuda" else ".s"), compiled.assembly)
        return CodeObject(
            name=unit.name,
            target=self.target.name,
            data=compiled.data,
            assembly=compiled.assembly,
            inspection=inspection,
            compiler=self.toolchain.version,
            log=compiled.log,
            cached=cached,
        )

    def _dump(self, name: str, text: str) -> None:
        if self.dump_dir is None:
            return
        try:
            self.dump_dir.mkdir(parents=True, exist_ok=True)
            temporary = self.dump_dir / (name + ".partial")
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(self.dump_dir / name)
        except OSError as error:
            raise ToolchainError(
                f"'{self.dump_dir / name}' cannot be written: {error.strerror or error}",
                "choose another --dump-dir, or free some space",
            ) from error

    def _hint(self, hint: str, source: str) -> str:
        where = (
            f"the source is '{self.dump_dir / source}'"
            if self.dump_dir is not None
            else "--dump-dir keeps the rendered source"
        )
        return f"{hint}\n{where}" if hint else where


def _check_scratch(error: ToolchainError) -> None:
    """A compiler that finds no room for its files fails in many ways; say the reason instead."""
    folder = tempfile.gettempdir()
    if shutil.disk_usage(folder).free < _SCRATCH_BYTES:
        raise ToolchainError(
            f"the disk is full: the compiler needs room in '{folder}'",
            f"free some space or set TMPDIR to another folder\n{error.message}",
        ) from error


def _run_all(
    build: _Build, units: Sequence[Unit], jobs: int, progress: Callable[[int, int], None] | None
) -> tuple[CodeObject, ...]:
    with ThreadPoolExecutor(max_workers=min(jobs, len(units)), thread_name_prefix="forgec-compile") as pool:
        futures = [pool.submit(build.one, unit) for unit in units]
        try:
            _wait(futures, progress)
        except BaseException:
            # An interrupt or a failing callback: nothing that still runs is of use to anyone.
            _stop(futures, build.runner)
            raise
        failed = [future for future in futures if _has_failed(future)]
        if failed:
            _stop(futures, build.runner)
            raise failed[0].exception() or ToolchainError("a compilation failed")
        return tuple(future.result() for future in futures)


def _wait(futures: Sequence[Future[CodeObject]], progress: Callable[[int, int], None] | None) -> None:
    """Until all are done, or until every unit before the first failing one is: so the error is always the
    same.
    """
    waiting = set(futures)
    if progress is not None:
        progress(0, len(futures))
    while waiting:
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        failed = [index for index, future in enumerate(futures) if _has_failed(future)]
        if failed:
            for future in futures[failed[0] + 1 :]:
                future.cancel()
            waiting &= set(futures[: failed[0]])
        if progress is not None and done:
            progress(sum(future.done() and not future.cancelled() for future in futures), len(futures))


def _has_failed(future: Future[CodeObject]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is not None


def _stop(futures: Sequence[Future[CodeObject]], runner: Runner) -> None:
    for future in futures:
        future.cancel()
    runner.cancel()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
