"""The compiler of a ROCm installation: ``hipcc``, with the clang and lld that stand behind it.

A ``Unit`` goes in, an AMD code object comes out, assembled from the listing that is handed back. ROCm's
headers and device libraries are never used, so any release that knows the target will do. GPUs of AMD only.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from forgec.errors import ToolchainError
from forgec.targets import Target
from forgec.toolchain.diagnostics import check_finished
from forgec.toolchain.flags import AMD_ASSEMBLE, AMD_COMPILE, AMD_LINK, COMMON, CPLUSPLUS
from forgec.toolchain.objects import Compiled, Unit, source_suffix
from forgec.toolchain.process import Runner

__all__ = ["HipccToolchain", "describe_hipcc", "find_hipcc", "probe"]

_HIP_VERSION = re.compile(r"^HIP version: *(?P<text>(?P<major>\d+)\.\S+)", re.MULTILINE)
_CLANG_VERSION = re.compile(r"^.*clang version .*$", re.MULTILINE)
_CC1 = re.compile(r'^ *"(?P<clang>[^"]+)" "-cc1"', re.MULTILINE)
# Any target that every hipcc since ROCm 4.5 knows: only the path of the compiler is asked for.
_ANY_ARCH = "gfx90a"

_PROBE = Unit(
    name="probe",
    source=(
        "#ifndef __HIP__\n#error no HIP\n#endif\n"
        'extern "C" __attribute__((global)) void __attribute__((amdgpu_flat_work_group_size(64, 64)))\n'
        "probe(float* values) { values[__builtin_amdgcn_workitem_id_x()] += 1.0f; }\n"
    ),
    entries=("probe",),
)


@dataclass(frozen=True)
class HipccToolchain:
    """One hipcc; ``clang`` and ``linker`` are the programs that it calls itself. ``major`` is ROCm's."""

    executable: Path
    version: str
    major: int
    clang: Path
    linker: Path

    @property
    def name(self) -> str:
        return "hipcc"

    def recipe(self, unit: Unit, target: Target) -> tuple[str, ...]:
        return (*self._compile_flags(unit, target), *AMD_ASSEMBLE, *AMD_LINK)

    def compile(self, unit: Unit, target: Target, runner: Runner) -> Compiled:
        with tempfile.TemporaryDirectory(prefix="forgec-") as name:
            directory = Path(name)
            source = unit.name + source_suffix(unit, target)
            (directory / source).write_text(unit.source, encoding="utf-8")
            flags = self._compile_flags(unit, target)
            command = (str(self.executable), *flags, "-S", source, "-o", "unit.s")
            compiled = runner.run(command, directory)
            check_finished(compiled, f"compiling '{unit.name}' for {target.name} with hipcc")
            assemble = (
                str(self.clang),
                *AMD_ASSEMBLE,
                f"-mcpu={target.name}",
                "-c",
                "unit.s",
                "-o",
                "unit.o",
            )
            check_finished(runner.run(assemble, directory), f"assembling '{unit.name}' for {target.name}")
            link = (str(self.linker), *AMD_LINK, "unit.o", "-o", "unit.out")
            check_finished(runner.run(link, directory), f"linking '{unit.name}' for {target.name}")
            assembly = (directory / "unit.s").read_text(encoding="utf-8")
            return Compiled((directory / "unit.out").read_bytes(), assembly, compiled.stderr)

    def _compile_flags(self, unit: Unit, target: Target) -> tuple[str, ...]:
        return (
            *COMMON,
            *CPLUSPLUS,
            "-nostdlibinc",
            "-nostdinc++",
            *AMD_COMPILE,
            f"--offload-arch={target.name}",
            *unit.flags,
        )


def find_hipcc(
    environ: Mapping[str, str] | None = None, default_root: Path = Path("/opt/rocm")
) -> Path | None:
    """The hipcc on ``PATH``, else that of ``ROCM_PATH``, else that of ``/opt/rocm``, else None."""
    if environ is None:
        environ = os.environ
    on_path = shutil.which("hipcc", path=environ.get("PATH", ""))
    if on_path:
        return Path(on_path)
    roots = [Path(environ["ROCM_PATH"])] if environ.get("ROCM_PATH") else []
    for root in (*roots, default_root):
        candidate = root / "bin" / "hipcc"
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate
    return None


def describe_hipcc(executable: Path, runner: Runner) -> HipccToolchain:
    """Ask a hipcc for its release and for the clang behind it.

    Raises: ToolchainError when it does not run or does not answer like a hipcc.
    """
    with tempfile.TemporaryDirectory(prefix="forgec-") as name:
        directory = Path(name)
        (directory / "empty.hip").touch()
        version = runner.run((str(executable), "--version"), directory)
        check_finished(version, f"asking '{executable}' for its version")
        flags = (*AMD_COMPILE, "-Wno-unused-command-line-argument", f"--offload-arch={_ANY_ARCH}")
        dry = runner.run((str(executable), *flags, "-S", "-###", "empty.hip"), directory)
        check_finished(dry, f"asking '{executable}' for its compiler")
    hip = _HIP_VERSION.search(version.stdout)
    compiler = _CLANG_VERSION.search(version.stdout)
    cc1 = _CC1.search(dry.stderr)
    if hip is None or compiler is None or cc1 is None:
        raise ToolchainError(f"'{executable}' does not answer like a hipcc", version.stdout.strip()[:500])
    clang = Path(cc1["clang"])
    linker = clang.parent / "ld.lld"
    if not linker.is_file():
        raise ToolchainError(
            f"'{executable}' uses '{clang}', but there is no ld.lld beside it", "install lld"
        )
    text = f"HIP {hip['text']}, {compiler[0].strip()}"
    return HipccToolchain(executable, text, int(hip["major"]), clang, linker)


def probe(toolchain: HipccToolchain, target: Target, runner: Runner) -> None:
    """Compile a three-line kernel for ``target``. Raises: ToolchainError when this hipcc cannot."""
    toolchain.compile(_PROBE, target, runner)
