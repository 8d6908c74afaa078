"""How fast a loaded package is on this machine, and how much of its memory bandwidth it uses.

In comes a loaded ``Model``, out goes a ``Report`` of plain numbers: the bandwidth that the device reaches in
a copy (a CPU: in a read), generation at several lengths of context, prompt speed, and the device time of
every stage. Contexts are set, not computed: the cache then holds one repeated finite value, so the text
means nothing. Never touches files.
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

__all__ = ["CONTEXTS", "Decode", "Report", "StageTime", "measure", "report_text", "stream_bandwidth"]

#: Tokens in the cache at which generation is measured unless the caller says otherwise.
CONTEXTS = (0, 4096, 16384)
#: Byte that the KV cache is filled with: 0.065 as a pair of float16, tiny as float32, 44 as int8.
CACHE_BYTE = 0x2C
#: Bytes that a copy moves at a time: far above every last-level cache.
COPY_BYTES = 1 << 30
#: Copies queued in front of launches that are timed one by one, so that the host is always ahead.
COPIES_AHEAD = 12


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
class StageTime:
    """All launches of one kernel in a token: device seconds together, and bytes of weights they read."""

    kernel: str
    launches: int
    seconds: float
    weight_bytes: int


@dataclass(frozen=True)
class Report:
    """Everything that was measured; bandwidths in bytes per second, ``load_seconds`` by step of loading."""

    model: str
    target: str
    math: str
    device: str
    bandwidth: float | None
    bandwidth_source: str
    decode: tuple[Decode, ...]
    prompt_tokens: int
    prompt_tokens_per_second: float
    stages: tuple[StageTime, ...]
    stage_context: int
    empty_seconds: float
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
    timed: tuple[tuple[StageTime, ...], float] = ((), 0.0)
    if stages and not _is_persistent(manifest.raw):
        timed = _stage_times(engine, manifest.raw, fitting[0], repeat)
    return Report(
        model=str(manifest.model["name"]),
        target=manifest.target.name,
        math=str(manifest.raw.get("math", "")),
        device=engine.driver.describe().name,
        bandwidth=bandwidth,
        bandwidth_source=source,
        decode=decode,
        prompt_tokens=prompt,
        prompt_tokens_per_second=_prompt(engine, prompt, repeat),
        stages=timed[0],
        stage_context=fitting[0],
        empty_seconds=timed[1],
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


def _is_persistent(raw: Mapping[str, Any]) -> bool:
    """Whether one resident kernel carries out the stages of a token: it is launched as a whole."""
    kernels = raw["kernels"]
    return any(kernels[launch["kernel"]].get("cooperative") for launch in raw["sequences"]["decode"])


def _stage_times(
    engine: Engine, raw: Mapping[str, Any], context: int, repeat: int
) -> tuple[tuple[StageTime, ...], float]:
    """Device time of a token's launches by kernel, and what an empty pair of timestamps measures."""
    driver = engine.driver
    runs, empty = [], []
    with _Busy(driver) as busy:
        for _ in range(repeat + 1):
            engine.start(Sampling())
            engine.seek(context)
            busy.queue()
            runs.append(engine.launch_times("decode"))
            busy.queue()
            empty.append(driver.elapsed(driver.timestamp(), driver.timestamp()))
    launches = raw["sequences"]["decode"]
    seconds = [statistics.median(times) for times in zip(*runs[1:], strict=True)]
    groups: dict[int, list[float]] = {}
    for launch, spent in zip(launches, seconds, strict=True):
        group = groups.setdefault(launch["kernel"], [0, 0.0, 0])
        group[0] += 1
        group[1] += spent
        group[2] += launch.get("weight_bytes", 0)
    result = tuple(
        StageTime(raw["kernels"][kernel]["symbol"], int(count), spent, int(size))
        for kernel, (count, spent, size) in groups.items()
    )
    return tuple(sorted(result, key=lambda stage: -stage.seconds)), statistics.median(empty[1:])


class _Busy:
    """Copies that keep a GPU occupied while the host queues timed launches behind them.

    Without them a timestamp pair around a launch would measure how long the host takes to send it.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._copy = getattr(driver, "copy", None) if driver.name != "cpu" else None
        self._blocks: list[int] = []
        self._size = 0

    def __enter__(self) -> _Busy:
        if self._copy is not None:
            self._size = min(COPY_BYTES, self._driver.describe().memory_free // 4)
            self._blocks = [self._driver.malloc(max(self._size, 4096)) for _ in range(2)]
        return self

    def queue(self) -> None:
        if self._copy is not None:
            for _ in range(COPIES_AHEAD):
                self._copy(*self._blocks, self._size)

    def __exit__(self, *_: object) -> None:
        for block in self._blocks:
            self._driver.free(block)


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
    if report.stages:
        total = sum(stage.seconds for stage in report.stages)
        lines.append(
            f"  stages at context {report.stage_context}, launched one by one and not as a graph: "
            f"{1e3 * total:.3f} ms together (an empty pair of timestamps: "
            f"{1e6 * report.empty_seconds:.1f} us)"
        )
        lines += [_stage_line(stage) for stage in report.stages]
    return "\n".join(lines)


def _stage_line(stage: StageTime) -> str:
    each = stage.seconds / stage.launches
    rate = f"{stage.weight_bytes / stage.seconds / 1e9:9,.1f} GB/s" if stage.weight_bytes else " " * 14
    return (
        f"    {1e3 * stage.seconds:8.3f} ms {stage.launches:4d} x {1e6 * each:8.1f} us {rate}  {stage.kernel}"
    )
