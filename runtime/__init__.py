"""A compiled language model and the runtime that runs it.

``load()`` opens this package, or another one's folder, and gives a ``Model`` with ``generate``, ``stream``,
``chat``, ``chat_stream`` and ``logits``. Needs NumPy, tokenizers, jinja2 (for chat) and the device's own
driver; never forgec and never a compiler.

    model = load()
    print(model.generate("Once upon a time", max_tokens=64).text)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .engine import Sampling
from .errors import (
    ChatTemplateError,
    ContextOverflowError,
    DeviceError,
    ForgeRuntimeError,
    PackageError,
    UsageError,
)
from .generate import Model, Result, Stream, Timings

__all__ = [
    "ChatTemplateError",
    "ContextOverflowError",
    "DeviceError",
    "ForgeRuntimeError",
    "Model",
    "PackageError",
    "Result",
    "Sampling",
    "Stream",
    "Timings",
    "UsageError",
    "load",
]


def load(
    path: str | Path | None = None,
    device: str | None = None,
    threads: int | None = None,
    verify: bool = True,
) -> Model:
    """Load the package in the folder ``path`` (None: the one this code lies in).

    ``device``: ``NAME`` or ``NAME:INDEX`` (None: the driver of the package's target family). ``threads`` is
    for the CPU (None: one per physical core). ``verify`` False skips the digests, not the checks of the
    manifest.

    Raises: PackageError (damaged, incomplete, too new), DeviceError (missing, another chip, out of memory),
    UsageError (unknown device).
    """
    from .driver import DriverOptions, device_of_family, open_driver
    from .engine import Engine
    from .manifest import load_manifest
    from .tokenizer import Tokenizer
    from .weights import Weights, check_files

    package = Path(__file__).resolve().parent if path is None else Path(path)
    manifest = load_manifest(package)
    check_files(manifest, verify=verify)
    weights = Weights(manifest)
    reading = _in_background(Tokenizer, package / manifest.tokenizer["file"], manifest.tokenizer)
    try:
        if verify:
            weights.start_verify()  # goes on while the device is made ready
        target = manifest.target
        options = DriverOptions(package, target.name, target.wave, target.requires, threads)
        start = time.perf_counter()
        driver = open_driver(device or device_of_family(target.family), manifest.raw, options)
        opened = time.perf_counter() - start
    except BaseException:
        weights.close()
        raise
    engine = Engine(manifest, driver, weights, verify=verify)
    engine.load_seconds["device"] = opened
    try:
        start = time.perf_counter()
        tokenizer = reading.result()
        engine.load_seconds["tokenizer"] = time.perf_counter() - start  # of waiting for it
    except BaseException:
        engine.close()
        raise
    return Model(manifest, engine, tokenizer)


def _in_background(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """Call a function on a thread of its own: a vocabulary of 128,000 takes as long as an upload of 4 GB."""
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(function, *arguments)
    finally:
        pool.shutdown(wait=False)
