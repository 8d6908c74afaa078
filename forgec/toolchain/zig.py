"""The compiler that comes with pip: clang, an assembler and lld inside the ``ziglang`` wheel.

A ``Unit`` goes in; an AMD code object, PTX text or a shared object comes out, always assembled from the very
listing that is handed back. The wheel's binary is called directly. No header of the machine is ever read, and
zig's own libraries are never built.
"""

from __future__ import annotations

import importlib.util
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from forgec.errors import ToolchainError
from forgec.targets import Target
from forgec.toolchain.diagnostics import check_finished
from forgec.toolchain.flags import (
    AMD_ASSEMBLE,
    AMD_COMPILE,
    AMD_LINK,
    COMMON,
    CPLUSPLUS,
    CPU_COMPILE,
    CPU_LINK,
    PTX_COMPILE,
    C,
)
from forgec.toolchain.objects import Compiled, Unit, source_suffix
from forgec.toolchain.process import Runner

__all__ = ["ZigToolchain", "find_zig"]

_CPU_TRIPLE = "x86_64-linux-gnu"
_TARGET_CPU = re.compile(r'"-target-cpu" "([^"]+)"')
_TARGET_FEATURE = re.compile(r'"-target-feature" "(\+[^"]+)"')


@dataclass(frozen=True)
class ZigToolchain:
    """clang and lld of one ``ziglang`` wheel.

    ``native`` is what ``-march=native`` means on this machine, empty when no target asked for it.
    """

    executable: Path
    version: str
    native: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return "zig"

    def recipe(self, unit: Unit, target: Target) -> tuple[str, ...]:
        link = {"hip": (*AMD_ASSEMBLE, *AMD_LINK), "cpu": CPU_LINK, "cuda": ()}[target.driver]
        native = self.native if "-march=native" in target.cpu_flags else ()
        return (*self._compile_flags(unit, target), *link, *native)

    def compile(self, unit: Unit, target: Target, runner: Runner) -> Compiled:
        with tempfile.TemporaryDirectory(prefix="forgec-") as name:
            directory = Path(name)
            # Names relative to the working directory: no path of this machine can get into the output.
            source = unit.name + source_suffix(unit, target)
            (directory / source).write_text(unit.source, encoding="utf-8")
            listing = "unit.ptx" if target.driver == "cuda" else "unit.s"
            command = (*self._clang(), *self._compile_flags(unit, target), "-S", source, "-o", listing)
            finished = runner.run(command, directory)
            check_finished(finished, f"compiling '{unit.name}' for {target.name}")
            assembly = (directory / listing).read_text(encoding="utf-8")
            if target.driver == "cuda":
                return Compiled(assembly.encode("utf-8"), assembly, finished.stderr)
            data = self._assemble(unit, target, runner, directory)
            return Compiled(data, assembly, finished.stderr)

    def _assemble(self, unit: Unit, target: Target, runner: Runner, directory: Path) -> bytes:
        """``unit.s`` to a linked object, in ``directory``."""
        assemble: tuple[str, ...]
        link: tuple[str, ...]
        if target.driver == "hip":
            assemble = (*AMD_ASSEMBLE, f"-mcpu={target.name}")
            link = AMD_LINK
        else:
            assemble = ("-target", _CPU_TRIPLE)
            # A missing entry is reported by the inspection, in the same words for every target.
            link = (*CPU_LINK, "--version-script=exports.map", "--undefined-version")
            exports = "".join(f" {entry};" for entry in unit.entries)
            (directory / "exports.map").write_text(f"{{ global:{exports} local: *; }};\n", encoding="utf-8")
        finished = runner.run((*self._clang(), *assemble, "-c", "unit.s", "-o", "unit.o"), directory)
        check_finished(finished, f"assembling '{unit.name}' for {target.name}")
        linked = runner.run((str(self.executable), "ld.lld", *link, "unit.o", "-o", "unit.out"), directory)
        check_finished(linked, f"linking '{unit.name}' for {target.name}")
        return (directory / "unit.out").read_bytes()

    def _clang(self) -> tuple[str, ...]:
        # clang's own freestanding headers (stdint.h, immintrin.h) come with the wheel, beside the binary.
        headers = self.executable.parent / "lib" / "include"
        return (str(self.executable), "clang", "-isystem", str(headers))

    def _compile_flags(self, unit: Unit, target: Target) -> tuple[str, ...]:
        family: tuple[str, ...]
        if target.driver == "hip":
            family = (*AMD_COMPILE, f"--offload-arch={target.name}")
        elif target.driver == "cuda":
            family = (*PTX_COMPILE, f"--cuda-gpu-arch={target.name}")
        else:
            family = (
                *CPU_COMPILE,
                "-x",
                "c" if unit.language == "c" else "c++",
                "-target",
                _CPU_TRIPLE,
                *target.cpu_flags,
            )
        language = C if unit.language == "c" else CPLUSPLUS
        return (*COMMON, *language, "-nostdinc", *family, *unit.flags)


def find_zig(target: Target, runner: Runner) -> ZigToolchain | None:
    """The ``ziglang`` wheel of this Python, or None when it is not installed.

    Raises: ToolchainError when it is installed but does not run.
    """
    specification = importlib.util.find_spec("ziglang")
    if specification is None or not specification.submodule_search_locations:
        return None
    package = Path(next(iter(specification.submodule_search_locations)))
    executable = next((path for path in (package / "zig", package / "zig.exe") if path.is_file()), None)
    if executable is None:
        return None
    with tempfile.TemporaryDirectory(prefix="forgec-") as name:
        directory = Path(name)
        zig = runner.run((str(executable), "version"), directory)
        check_finished(zig, "asking zig for its version")
        clang = runner.run((str(executable), "clang", "--version"), directory)
        check_finished(clang, "asking zig's clang for its version")
        native = _resolve_native(executable, runner, directory) if "-march=native" in target.cpu_flags else ()
    first_line = next(iter(clang.stdout.splitlines()), "unknown clang").strip()
    return ZigToolchain(executable, f"ziglang {zig.stdout.strip()}, {first_line}", native)


def _resolve_native(executable: Path, runner: Runner, directory: Path) -> tuple[str, ...]:
    """The CPU name and features that clang takes ``-march=native`` for, sorted."""
    (directory / "empty.cpp").touch()
    command = (str(executable), "clang", "-target", _CPU_TRIPLE, "-march=native", "-###", "-c", "empty.cpp")
    finished = runner.run(command, directory)
    check_finished(finished, "asking zig's clang for this machine's CPU")
    cpu = _TARGET_CPU.search(finished.stderr)
    if cpu is None:
        raise ToolchainError("zig's clang does not say which CPU '-march=native' is")
    return (cpu[1], *sorted(_TARGET_FEATURE.findall(finished.stderr)))
