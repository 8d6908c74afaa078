"""How fast a loaded package is on this machine, and how much of its memory bandwidth it uses.

In comes a loaded ``Model``, out goes a ``Report`` of plain numbers: the bandwidth that the device reaches in
a copy (a CPU: in a read), generation at several lengths of context, prompt speed, and the device time of
every stage (``stages.py``). Contexts are set, not computed: the cache then holds one repeated finite value,
so the text means nothing. Never touches files.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .driver import Driver
from .engine import Engine, Sampling
from .errors import UsageError
from .generate import Model
from .stages import COPY_BYTES, StageTimes, stage_times, stages_text

__all__ = ["CONTEXTS", "Decode", "Report", "measure", "report_text", "stream_bandwidth"]

#: Tokens in the cache at which generation is measured unless the caller says otherwise.
CONTEXTS = (0, 4096, 16384)
#: Byte that the KV cache is filled with: 0.065 as a pair of float16, tiny as float32, 44 as int8.
CACHE_BYTE = 0x2C


@dataclass(frozen=True)
class Decode:
    """Generation behind ``context`` tokens; ``spread`` is (max - min) / median over the repetitions.

    ``bytes_per_token``: weights and the cache at that context. ``fraction``: of the measured bandwidth.
    """

    context: int
    tokens_per_second: float
    milliseconds_per_token: float
    spread: float
    bytes_per_token: int
    fraction: float | None


@dataclass(frozen=True)
class Report:
    """Everything that was measured; bandwidths in bytes per second, ``load_seconds`` by step of loading.

    ``stages`` is None where they were not asked for.
    """

    model: str
    target: str
    math: str
    device: str
    bandwidth: float | None
    bandwidth_source: str
    decode: tuple[Decode, ...]
    prompt_tokens: int
    prompt_tokens_per_second: float
    stages: StageTimes | None
    skipped_contexts: tuple[int, ...]
    load_seconds: Mapping[str, float]
    weights_bytes: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def measure(
    model: Model,
    *,
    contexts: Sequence[int] = CONTEXTS,
    tokens: int = 64,
    prompt: int = 512,
    repeat: int = 5,
    stages: bool = True,
) -> Report:
    """Measure a loaded model; medians over ``repeat`` repetitions of ``tokens`` tokens, warm-up not counted.

    Contexts that do not fit the package are left out and listed. Raises: UsageError when none fits.
    """
    engine, manifest = model.engine, model.manifest
    fitting = [c for c in contexts if c + tokens < engine.context_length]
    if not fitting:
        raise UsageError(
            f"{min(contexts) + tokens} tokens do not fit the package's context of {engine.context_length}",
            "choose shorter contexts or fewer tokens, or compile with a larger --ctx",
        )
    prompt = min(prompt, engine.context_length - 1)
    traffic: Mapping[str, Any] = manifest.raw.get("traffic", {})
    bandwidth, source = stream_bandwidth(engine.driver)
    engine.fill("kv", CACHE_BYTE)
    decode = tuple(_decode(engine, traffic, context, tokens, repeat, bandwidth) for context in fitting)
    prompt_rate = _prompt(engine, prompt, repeat)
    return Report(
        model=str(manifest.model["name"]),
        target=manifest.target.name,
        math=str(manifest.raw.get("math", "")),
        device=engine.driver.describe().name,
        bandwidth=bandwidth,
        bandwidth_source=source,
        decode=decode,
        prompt_tokens=prompt,
        prompt_tokens_per_second=prompt_rate,
        stages=stage_times(engine, fitting[0], repeat) if stages else None,
        skipped_contexts=tuple(c for c in contexts if c not in fitting),
        load_seconds=dict(engine.load_seconds),
        weights_bytes=manifest.weights.bytes,
    )


def stream_bandwidth(driver: Driver) -> tuple[float | None, str]:
    """Bytes per second that the device moves, and how that was measured; None where it cannot be."""
    if driver.name == "cpu":
        threads = int(getattr(driver, "threads", 0)) or len(os.sched_getaffinity(0))
        return _read_bandwidth(threads), f"read by {threads} threads"
    copy = getattr(driver, "copy", None)
    if copy is None:
        return None, "the device has no copy of its own"
    size = min(COPY_BYTES, driver.describe().memory_free // 4 >> 20 << 20)
    if size <= 0:
        return None, "too little memory is free"
    source, target = driver.malloc(size), driver.malloc(size)
    try:
        driver.memset(source, CACHE_BYTE, size)
        best = float("inf")
        for _ in range(5):
            start = driver.timestamp()
            for _ in range(4):
                copy(target, source, size)
            best = min(best, driver.elapsed(start, driver.timestamp()) / 4)
    finally:
        driver.free(source)
        driver.free(target)
    return 2 * size / best, f"copy of {size >> 20} MiB on the device, read and written"


def _read_bandwidth(threads: int, megabytes: int = 512, repeat: int = 3) -> float:
    """Best rate at which ``threads`` threads together sum an array larger than any cache."""
    data = np.ones((threads, megabytes * 2**20 // 8 // threads), np.int64)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeat):
            start = time.perf_counter()
            # A sum releases the interpreter lock and is bound by loads once it is vectorised.
            list(pool.map(np.sum, data))
            best = max(best, data.nbytes / (time.perf_counter() - start))
    return best


def _decode(
    engine: Engine,
    traffic: Mapping[str, Any],
    context: int,
    tokens: int,
    repeat: int,
    bandwidth: float | None,
) -> Decode:
    rates = []
    for _ in range(repeat + 1):
        engine.start(Sampling())
        engine.seek(context)
        engine.token(engine.decode())
        start = time.perf_counter()
        for _ in range(tokens - 1):
            engine.decode()
        engine.token(engine.decode())
        rates.append(tokens / (time.perf_counter() - start))
    rates = rates[1:]
    rate = statistics.median(rates)
    position = context + 1 + tokens // 2
    size = int(traffic.get("weight_bytes_per_token", 0) + position * traffic.get("kv_bytes_per_position", 0))
    return Decode(
        context=context,
        tokens_per_second=rate,
        milliseconds_per_token=1e3 / rate,
        spread=(max(rates) - min(rates)) / rate,
        bytes_per_token=size,
        fraction=None if bandwidth is None else size * rate / bandwidth,
    )


def _prompt(engine: Engine, length: int, repeat: int) -> float:
    """Tokens per second of a prompt, the logits behind it included."""
    ids = [(7919 * i) % engine.vocab_size for i in range(length)]
    seconds = []
    for _ in range(repeat + 1):
        engine.start(Sampling())
        engine.synchronize()
        start = time.perf_counter()
        engine.prefill(ids)
        engine.head()
        engine.synchronize()
        seconds.append(time.perf_counter() - start)
    return length / statistics.median(seconds[1:])


def report_text(report: Report) -> str:
    """The report for a reader."""
    limit = "unknown" if report.bandwidth is None else f"{report.bandwidth / 1e9:,.1f} GB/s"
    lines = [
        f"{report.model} for {report.target} (math {report.math}) on {report.device}",
        f"  bandwidth   {limit} ({report.bandwidth_source})",
        f"  prompt      {report.prompt_tokens:6d} tokens     {report.prompt_tokens_per_second:10.1f} tok/s",
    ]
    for row in report.decode:
        share = "" if row.fraction is None else f", {row.fraction:.1%} of the bandwidth"
        lines.append(
            f"  generation  at context {row.context:5d} {row.tokens_per_second:10.1f} tok/s "
            f"({row.milliseconds_per_token:.3f} ms, spread {row.spread:.1%}; "
            f"{row.bytes_per_token / 1e6:,.1f} MB a token{share})"
        )
    if report.skipped_contexts:
        shown = ", ".join(map(str, report.skipped_contexts))
        lines.append(f"  not measured: context {shown}, beyond what the package was compiled for")
    parts = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in report.load_seconds.items())
    lines.append(f"  loading     {parts}")
    if report.stages is not None:
        context = report.stages.context
        whole = next((1e-3 * r.milliseconds_per_token for r in report.decode if r.context == context), None)
        lines += stages_text(report.stages, whole)
    return "\n".join(lines)
