"""Finds a compiler for a target: the one asked for, else hipcc of ROCm 6 or newer, else ziglang.

A choice and a ``Target`` go in, a ``Toolchain`` comes out, or an error that says what was tried and what to
install. Nothing is downloaded or installed.
"""

from __future__ import annotations

from forgec.errors import ToolchainError
from forgec.targets import Target
from forgec.toolchain.hipcc import describe_hipcc, find_hipcc, probe
from forgec.toolchain.objects import Toolchain
from forgec.toolchain.process import Runner
from forgec.toolchain.zig import find_zig

__all__ = ["CHOICES", "select_toolchain"]

CHOICES = ("auto", "hipcc", "zig")
_OLDEST_ROCM = 6
_INSTALL_ZIG = "pip install 'forgec[toolchain]' brings the ziglang compiler"


def select_toolchain(choice: str, target: Target, runner: Runner | None = None) -> Toolchain:
    """The compiler for ``target``.

    ``"auto"`` takes hipcc for AMD GPUs when it belongs to ROCm 6 or newer and compiles a probe for the
    target, and ziglang otherwise. ``"hipcc"`` takes any hipcc that compiles the probe, Debian's 5.2 included.

    Raises: ToolchainError when there is none, with what was tried.
    """
    if choice not in CHOICES:
        raise ToolchainError(f"unknown toolchain '{choice}'", f"expected one of {', '.join(CHOICES)}")
    runner = runner or Runner()
    if choice == "hipcc":
        return _require_hipcc(target, runner)
    tried = "hipcc is for AMD GPUs"
    if choice == "auto" and target.driver == "hip":
        hipcc, tried = _try_hipcc(target, runner)
        if hipcc is not None:
            return hipcc
    zig = find_zig(target, runner)
    if zig is not None:
        return zig
    if choice == "zig":
        raise ToolchainError("the ziglang package is not installed", _INSTALL_ZIG)
    raise ToolchainError(
        f"no compiler for {target.name}: {tried}; ziglang is not installed",
        _INSTALL_ZIG + (", or install ROCm 6 or newer" if target.driver == "hip" else ""),
    )


def _require_hipcc(target: Target, runner: Runner) -> Toolchain:
    if target.driver != "hip":
        raise ToolchainError(
            f"hipcc compiles for AMD GPUs and not for {target.name}", "use '--toolchain zig' or leave it out"
        )
    executable = find_hipcc()
    if executable is None:
        raise ToolchainError(
            "no hipcc on PATH, in ROCM_PATH or in /opt/rocm",
            f"install ROCm 6 or newer, or use '--toolchain zig': {_INSTALL_ZIG}",
        )
    toolchain = describe_hipcc(executable, runner)
    try:
        probe(toolchain, target, runner)
    except ToolchainError as error:
        raise ToolchainError(
            f"'{executable}' ({toolchain.version}) does not compile for {target.name}: {error.message}",
            f"it may be older than the chip; use '--toolchain zig'\n{error.hint}".rstrip(),
        ) from error
    return toolchain


def _try_hipcc(target: Target, runner: Runner) -> tuple[Toolchain | None, str]:
    """A usable hipcc and nothing, or None and the reason."""
    executable = find_hipcc()
    if executable is None:
        return None, "no hipcc on PATH, in ROCM_PATH or in /opt/rocm"
    try:
        toolchain = describe_hipcc(executable, runner)
        if toolchain.major < _OLDEST_ROCM:
            return None, f"'{executable}' is of ROCm {toolchain.major}, older than {_OLDEST_ROCM}"
        probe(toolchain, target, runner)
    except ToolchainError as error:
        return None, f"'{executable}' is not usable ({error.message})"
    return toolchain, ""
