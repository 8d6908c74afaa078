"""Builds the stub ``libamdhip64.so``: a folder and a device go in, a folder for ``ROCM_PATH`` comes out.

Uses the compiler that also compiles translated kernels (ziglang's clang, else clang on PATH). Never touches a
ROCm that is installed.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from forgec.emulator.hip.configuration import Configuration
from forgec.emulator.native import clang_command, lld_command, run_tool
from forgec.errors import DeviceError

__all__ = ["LIBRARY", "build_stub"]

LIBRARY = "libamdhip64.so"
_SOURCE = Path(__file__).parent
# glibc's own name for the major version of ROCm that the stub stands for.
_SONAME = "libamdhip64.so.7"
_COMPILE = (
    "-target",
    "x86_64-linux-gnu",
    "-O2",
    "-fPIC",
    "-ffreestanding",
    "-fvisibility=hidden",
    "-Wall",
    "-Werror",
)


def build_stub(
    directory: str | Path,
    arch: str = "gfx1100",
    *,
    memory: int | None = None,
    threads: int | None = None,
    checks: bool = False,
    seed: int | None = None,
) -> Path:
    """Write ``directory/lib/libamdhip64.so`` for an emulated ``arch``; returns the folder, the value for
    ``ROCM_PATH``.

    The library finds the emulator in the Python of the process that loads it, where forgec must be installed.
    The options are those of ``Configuration``.

    Raises: TargetError or DeviceError for a chip or options that cannot be, ToolchainError without a
    compiler, DeviceError when the folder cannot be written.
    """
    configuration = Configuration(arch, memory, threads, checks, seed)
    root = Path(directory)
    try:
        (root / "lib").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as folder:
            library = _build(Path(folder), configuration)
            library.replace(root / "lib" / LIBRARY)
    except OSError as error:
        raise DeviceError(f"the stub cannot be written to '{root}': {error.strerror or error}") from error
    return root


def _build(folder: Path, configuration: Configuration) -> Path:
    # A C string literal is JSON's, for text without control characters.
    export = '__attribute__((visibility("default")))'
    text = f"{export} const char forgec_hip_configuration[] = {json.dumps(configuration.to_json())};\n"
    (folder / "configuration.c").write_text(text, encoding="utf-8")
    objects = []
    for source in (_SOURCE / "stub.c", folder / "configuration.c"):
        made = folder / (source.stem + ".o")
        run_tool([*clang_command(), *_COMPILE, "-c", str(source), "-o", str(made)], "compile the HIP stub")
        objects.append(str(made))
    library = folder / LIBRARY
    link = [*lld_command(), "-shared", "-soname", _SONAME, "-z", "noexecstack", "-o", str(library), *objects]
    run_tool(link, "link the HIP stub")
    return library
