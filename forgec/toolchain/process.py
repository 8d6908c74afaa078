"""Runs compiler commands: bounded in time, in a clean environment, and stoppable from another thread.

A command line and a working directory go in, a frozen ``Finished`` comes out, whatever happened to the
process. Nothing here knows what a compiler prints; see ``diagnostics`` for that.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from forgec.errors import ToolchainError

__all__ = ["DEFAULT_TIMEOUT_SECONDS", "Finished", "Runner"]

DEFAULT_TIMEOUT_SECONDS = 300.0

# Variables that change what a compiler reads or emits without showing up in its command line.
_REMOVED = (
    *("CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "OBJC_INCLUDE_PATH", "LIBRARY_PATH", "COMPILER_PATH"),
    *("CCC_OVERRIDE_OPTIONS", "CCC_ADD_ARGS", "SOURCE_DATE_EPOCH", "HIPCC_COMPILE_FLAGS_APPEND"),
    *("HIPCC_LINK_FLAGS_APPEND", "HIPCC_VERBOSE", "HIP_COMPILER", "HIP_RUNTIME", "CUDA_PATH"),
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """How one command ended. ``returncode`` is negative when a signal ended it, as in ``subprocess``."""

    command: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    seconds: float
    timed_out: bool


class Runner:
    """Starts commands and ends those still running when it is cancelled.

    One runner may be used from several threads. ``timeout_seconds`` bounds each command.
    """

    def __init__(self, timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS) -> None:
        self.timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._cancelled = False

    def run(self, command: Sequence[str], directory: Path) -> Finished:
        """Run ``command`` in ``directory``, which also takes all temporary files and caches it may make.

        Raises: ToolchainError when the program cannot be started or the runner was cancelled.
        """
        start = time.monotonic()
        process = self._start(command, directory)
        timed_out = False
        try:
            try:
                stdout, stderr = process.communicate(timeout=self.timeout_seconds)
            except subprocess.TimeoutExpired:
                timed_out = True
                _kill(process)
                stdout, stderr = process.communicate()
        finally:
            # Reached with the process alive only when this thread itself is interrupted.
            if process.poll() is None:
                _kill(process)
                process.communicate()
            with self._lock:
                self._running.discard(process)
        seconds = time.monotonic() - start
        _log.debug("%.2f s, exit %d: %s", seconds, process.returncode, shlex.join(command))
        return Finished(tuple(command), process.returncode, stdout, stderr, seconds, timed_out)

    def cancel(self) -> None:
        """End every running command and refuse new ones."""
        with self._lock:
            self._cancelled = True
            for process in self._running:
                _kill(process)

    def _start(self, command: Sequence[str], directory: Path) -> subprocess.Popen[str]:
        with self._lock:
            if self._cancelled:
                raise ToolchainError("the compilation was cancelled")
            try:
                process = subprocess.Popen(
                    list(command),
                    cwd=directory,
                    env=_environment(directory),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    encoding="utf-8",
                    errors="replace",
                    start_new_session=True,
                )
            except OSError as error:
                raise ToolchainError(
                    f"the compiler '{command[0]}' cannot be started: {error.strerror or error}",
                    "check that it is installed and executable",
                ) from error
            self._running.add(process)
            return process


def _environment(directory: Path) -> dict[str, str]:
    """This process's environment, less what could change the output; scratch goes to ``directory``."""
    environment = {name: value for name, value in os.environ.items() if name not in _REMOVED}
    environment.update(
        LC_ALL="C",
        TMPDIR=str(directory),
        # zig's clang needs neither cache nor home directory; should a release want one, it is thrown away.
        ZIG_GLOBAL_CACHE_DIR=str(directory / "zig-global"),
        ZIG_LOCAL_CACHE_DIR=str(directory / "zig-local"),
        # With nvcc on the machine hipcc would otherwise compile for NVIDIA.
        HIP_PLATFORM="amd",
    )
    return environment


def _kill(process: subprocess.Popen[str]) -> None:
    # The process leads a session of its own, so that this reaches the compiler behind a wrapper script too.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
