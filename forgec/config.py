"""What forgec takes from the environment, read once and handed on as a value.

In comes a mapping of environment variables, out goes a frozen ``Config``. These are the only two variables
that forgec itself reads:

``FORGEC_CACHE_DIR``
    Where compiled code objects are kept; the user cache directory of the platform otherwise. The directory
    may be copied to another machine.

``FORGEC_DEBUG``
    One ladder, each step including those below it:
    0 (default) errors and warnings as one sentence each;
    1 the Python traceback of an error;
    2 the steps of a compilation with their times, and what the compile cache held;
    3 every compiler command line.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from forgec.errors import UsageError

__all__ = ["MAX_DEBUG", "Config", "configure_logging", "load_config"]

MAX_DEBUG = 3


@dataclass(frozen=True)
class Config:
    """The settings of one process: the cache directory and the step of the debug ladder (0 to 3)."""

    cache_dir: Path
    debug: int = 0


def load_config(environ: Mapping[str, str] | None = None) -> Config:
    """Read ``FORGEC_CACHE_DIR`` and ``FORGEC_DEBUG``; nothing is created on disk.

    Raises: UsageError when ``FORGEC_DEBUG`` is not a whole number from 0 to 3.
    """
    if environ is None:
        environ = os.environ
    directory = environ.get("FORGEC_CACHE_DIR", "")
    cache_dir = Path(directory) if directory else Path(platformdirs.user_cache_dir("forgec", appauthor=False))
    text = environ.get("FORGEC_DEBUG", "") or "0"
    if text not in {str(step) for step in range(MAX_DEBUG + 1)}:
        raise UsageError(
            f"FORGEC_DEBUG is '{text}', expected a whole number from 0 to {MAX_DEBUG}",
            "unset it, or see forgec/config.py for what each step shows",
        )
    return Config(cache_dir=cache_dir.expanduser(), debug=int(text))


class _StandardError(logging.Handler):
    """Writes to what is standard error at that moment, which may have been replaced since."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:
            print(self.format(record), file=sys.stderr)


def configure_logging(debug: int) -> None:
    """Show the ``forgec`` loggers on standard error as far as the debug ladder asks for.

    Only the command line calls this; a program that imports forgec keeps its own logging set-up.
    """
    level = {0: logging.WARNING, 1: logging.WARNING, 2: logging.INFO}.get(debug, logging.DEBUG)
    logger = logging.getLogger("forgec")
    logger.setLevel(level)
    if not logger.handlers:
        handler = _StandardError()
        handler.setFormatter(
            logging.Formatter("warning: %(message)s" if debug < 2 else "%(name)s: %(message)s")
        )
        logger.addHandler(handler)
