"""``forgec doctor``: what this machine has of what forgec can use, each line with its remedy."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import click

from forgec.config import load_config
from forgec.errors import ForgeError
from forgec.targets import get_target
from forgec.toolchain import open_cache, select_toolchain

__all__ = ["command"]


@dataclass(frozen=True)
class Finding:
    """One checked thing: whether it is usable, what was found, and what to do where it is not."""

    name: str
    usable: bool
    found: str
    remedy: str = ""


@click.command("doctor")
@click.pass_context
def command(ctx: click.Context) -> None:
    """Check compilers, drivers and caches on this machine.

    Exits with 6 when no compiler can build for AMD GPUs; everything else is optional.

    \b
    Example:
      forgec doctor
    """
    findings = [check() for check in CHECKS]
    width = max(len(f.name) for f in findings)
    for finding in findings:
        click.echo(f"{'ok' if finding.usable else '--'}  {finding.name:<{width}}  {finding.found}")
        if finding.remedy and not finding.usable:
            click.echo(f"    {'':<{width}}  {finding.remedy}")
    if not findings[0].usable:
        ctx.exit(6)


def _compiler(title: str, choice: str, target: str) -> Callable[[], Finding]:
    def check() -> Finding:
        try:
            return Finding(title, True, select_toolchain(choice, get_target(target)).version)
        except ForgeError as error:
            return Finding(title, False, error.message, error.hint)

    return check


def _python_package(name: str, use: str) -> Callable[[], Finding]:
    def check() -> Finding:
        try:
            return Finding(f"package {name}", True, f"{version(name)}, {use}")
        except PackageNotFoundError:
            return Finding(f"package {name}", False, f"not installed; {use}", f"pip install {name}")

    return check


def _cuda() -> Finding:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Finding(
            "NVIDIA driver", False, "libcuda.so.1 is not here", "Needed only to run sm_* packages."
        )
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return Finding("NVIDIA driver", False, "libcuda.so.1 is here, but no device answers")
    return Finding("NVIDIA driver", True, f"{count.value} device(s)")


def _hip() -> Finding:
    roots = [os.environ.get("ROCM_PATH", ""), "/opt/rocm"]
    libraries = [p for root in roots if root for p in Path(root, "lib").glob("libamdhip64.so*")]
    found = str(libraries[0]) if libraries else ctypes.util.find_library("amdhip64")
    if not found:
        return Finding("ROCm runtime", False, "libamdhip64.so is not here",
                       "Needed only to run gfx* packages; install ROCm 6 or later.")  # fmt: skip
    if not Path("/dev/kfd").exists():
        return Finding("ROCm runtime", False, f"{found}, but no AMD GPU (/dev/kfd is missing)")
    return Finding("ROCm runtime", True, found)


def _cache() -> Finding:
    cache, warning = open_cache(load_config())
    if cache is None:
        return Finding("compile cache", False, warning.message if warning else "not available")
    free = shutil.disk_usage(cache.directory).free
    return Finding("compile cache", True, f"{cache.directory}, {free / 2**30:.0f} GiB free")


def _python() -> Finding:
    return Finding("python", True, f"{sys.version.split()[0]} at {sys.executable}")


def _cpu() -> Finding:
    target = get_target("native")
    return Finding("cpu", True, f"{target.title}, {target.compute_units} cores, dot4 by {target.dot}")


CHECKS: tuple[Callable[[], Finding], ...] = (
    _compiler("compiler, AMD", "auto", "gfx1100"),
    _compiler("compiler, NVIDIA", "auto", "sm_90"),
    _compiler("compiler, CPU", "auto", "x86-64-v3"),
    _compiler("hipcc", "hipcc", "gfx1100"),
    _python_package("ziglang", "the compiler without ROCm"),
    _python_package("hip-python", "runs gfx* packages"),
    _python_package("xllamacpp", "the oracle of 'forgec golden record'"),
    _cpu,
    _hip,
    _cuda,
    _cache,
    _python,
)
