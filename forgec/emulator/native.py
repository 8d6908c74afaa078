"""C text of a translated kernel in, a loaded shared object out; compiled once per content and kept on disk.

Uses clang (the ziglang wheel's, else one on PATH) and lld. The cache key covers the text, the engine's
sources, the flags, the compiler and the host CPU; files are written under a temporary name and renamed.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import itertools
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from forgec.emulator.cache import cache_directory, prune, touch
from forgec.emulator.shapes import ShapeLibrary
from forgec.errors import ToolchainError

__all__ = ["clang_command", "compile_kernel", "lld_command", "run_tool"]

_MACHINE = Path(__file__).parent / "machine"
_PRUNE_EVERY = 64
_made = itertools.count()
_FLAGS = (
    "-target",
    "x86_64-linux-gnu",
    "-march=native",
    "-fPIC",
    "-ffreestanding",
    "-Wno-psabi",
    "-Wno-unused-value",
    "-Wno-ignored-attributes",
)


@lru_cache(maxsize=1)
def _zig() -> str | None:
    spec = importlib.util.find_spec("ziglang")
    if spec is None or not spec.submodule_search_locations:
        return shutil.which("zig")
    path = Path(spec.submodule_search_locations[0]) / "zig"
    return str(path) if path.exists() else None


def clang_command() -> list[str]:
    """The clang to call.

    Raises:
        ToolchainError: neither the ziglang wheel nor clang is installed.
    """
    zig = _zig()
    if zig:
        return [zig, "clang"]
    found = shutil.which("clang")
    if found is None:
        raise ToolchainError("the emulator needs a C compiler and found none", "pip install ziglang")
    return [found]


def lld_command() -> list[str]:
    """The ELF linker to call; raises ToolchainError when there is none."""
    zig = _zig()
    if zig:
        return [zig, "ld.lld"]
    found = shutil.which("ld.lld") or shutil.which("ld")
    if found is None:
        raise ToolchainError("the emulator needs a linker and found none", "pip install ziglang")
    return [found]


def run_tool(command: list[str], what: str) -> str:
    """Run a tool and return its standard output; raises ToolchainError with the first lines of what it
    said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ToolchainError(f"cannot run '{command[0]}' to {what}: {error}") from error
    if done.returncode:
        head = "\n".join((done.stderr or done.stdout).splitlines()[:20])
        raise ToolchainError(f"'{Path(command[0]).name}' failed to {what}: {head}")
    return done.stdout


@lru_cache(maxsize=1)
def _host_key() -> str:
    version = run_tool([*clang_command(), "--version"], "tell its version")
    flags = ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        flags = next((line for line in info.read_text().splitlines() if line.startswith("flags")), "")
    return version + flags


@lru_cache(maxsize=1)
def _sources() -> dict[str, bytes]:
    """The engine's C files as this process first saw them: an upgrade meanwhile must not mix two versions."""
    return {p.name: p.read_bytes() for p in sorted(_MACHINE.iterdir()) if p.suffix in (".c", ".h")}


@lru_cache(maxsize=1)
def _engine_digest() -> str:
    digest = hashlib.sha256()
    for text in _sources().values():
        digest.update(text)
    digest.update(_host_key().encode())
    digest.update(" ".join(_FLAGS).encode())
    return digest.hexdigest()[:24]


def _machine(root: Path) -> Path:
    """A copy of the engine's sources in the cache, named by their digest."""
    final = root / f"machine-{_engine_digest()}"
    if not final.is_dir():
        with tempfile.TemporaryDirectory(dir=root) as folder:
            copy = Path(folder) / "machine"
            copy.mkdir()
            for name, text in _sources().items():
                (copy / name).write_bytes(text)
            with contextlib.suppress(OSError):  # another process was first
                copy.rename(final)
    touch(final)
    return final


def _engine_object(wave: int, root: Path) -> Path:
    final = root / f"engine-{wave}-{_engine_digest()}.o"
    if not final.exists():
        with tempfile.TemporaryDirectory(dir=root) as folder:
            out = Path(folder) / "engine.o"
            source = str(_machine(root) / "engine.c")
            flags = [*_FLAGS, "-O2", f"-DW={wave}"]
            run_tool(
                [*clang_command(), *flags, "-c", source, "-o", str(out)], "compile the emulator's engine"
            )
            out.replace(final)
    touch(final)
    return final


@lru_cache(maxsize=8)
def _shapes(wave: int, root: Path) -> ShapeLibrary:
    def compile_text(text: str, out: Path) -> None:
        source = out.with_suffix(".c")
        source.write_text(text)
        flags = [*_FLAGS, "-O1", "-ffunction-sections", f"-DW={wave}", f"-I{_machine(root)}"]
        run_tool([*clang_command(), *flags, "-c", str(source), "-o", str(out)], "compile instruction shapes")

    return ShapeLibrary(root / f"shapes-{wave}-{_engine_digest()}", compile_text)


def compile_kernel(
    source: str, functions: Mapping[str, str], wave: int, optimise: str = "-O1"
) -> ctypes.CDLL:
    """Compile ``source``, which calls ``functions``, for waves of ``wave`` lanes, or find it in the cache;
    load it.

    Raises:
        ToolchainError: no compiler, or the translated text does not compile (a defect of the emulator).
    """
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise ToolchainError(
            f"the emulator needs Linux on x86-64, this machine is {sys.platform} on {platform.machine()}"
        )
    key = hashlib.sha256(f"{_engine_digest()} {wave} {optimise}\n{source}".encode()).hexdigest()[:40]
    root = cache_directory()
    final = root / f"kernel-{key}.so"
    if not final.exists():
        engine, shapes = _engine_object(wave, root), _shapes(wave, root).objects(functions)
        with tempfile.TemporaryDirectory(dir=final.parent) as folder:
            text, obj, shared = (Path(folder) / name for name in ("kernel.c", "kernel.o", "kernel.so"))
            text.write_text(source)
            exports = Path(folder) / "exports"
            exports.write_text("{ global: kernel_run; emu_worker; emu_finish; local: *; };\n")
            run_tool(
                [
                    *clang_command(),
                    *_FLAGS,
                    optimise,
                    f"-DW={wave}",
                    f"-I{_machine(root)}",
                    "-c",
                    str(text),
                    "-o",
                    str(obj),
                ],
                "compile a translated kernel",
            )
            objects = [str(obj), str(engine), *(str(path) for path in shapes)]
            link = [*lld_command(), "-shared", "--gc-sections", "--allow-multiple-definition", "-Bsymbolic"]
            run_tool(
                [*link, "--version-script", str(exports), "-o", str(shared), *objects],
                "link a translated kernel",
            )
            shared.replace(final)
        if next(_made) % _PRUNE_EVERY == 0:
            prune(root)
    touch(final)
    return ctypes.CDLL(str(final))
