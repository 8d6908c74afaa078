"""Where the time of a token goes: device time by stage, of either schedule.

In comes an ``Engine``, out go ``StageTimes``. Launches of a graph are timed one by one by the device's
timestamps; of a kernel that makes a whole token a second one is run, whose blocks stamp the clock at every
turn. Never changes what the package does otherwise; the second kernel is loaded here and nowhere else.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .driver import Driver
from .engine import Engine, Sampling
from .errors import DeviceError
from .manifest import STAMP_WORDS, STAMPS, TIMED, Step

__all__ = [
    "COPY_BYTES",
    "StageTime",
    "StageTimes",
    "StepParts",
    "stage_times",
    "stages_text",
    "stamped_times",
]

#: Bytes that a copy moves at a time: far above every last-level cache.
COPY_BYTES = 1 << 30
#: Copies queued in front of launches that are timed one by one, so that the host is always ahead.
COPIES_AHEAD = 12
#: Tokens made in front of one that is stamped: the device is as warm as it is in the middle of a text.
TOKENS_AHEAD = 16

#: Moments of a step in a row of stamps, in this order (enum Moment of the kernel).
BEGUN, RECEIVED, PREPARED, PRODUCED, ENDED = range(5)
#: Behind them the clocks for which the block waited for weights while it made products.
WAITED = 5
#: In the row of the token: clock and nanosecond of its begin, then of its end.
FIRST_CLOCK, FIRST_NANOSECOND, LAST_CLOCK, LAST_NANOSECOND = range(4)

Stamps = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class StepParts:
    """What a block does in all steps of a kind, in seconds; medians over the ``blocks`` that take part.

    ``waiting`` for the vector, ``preparing`` it, making ``products`` (``weights``: thereof waiting for
    weights) and ``rest``, what becomes of them. ``least_waiting`` is the wait of the block whose turn comes
    last, ``most_products`` the time of the slowest. Of attention the products are those with the cache.
    """

    waiting: float
    preparing: float
    products: float
    weights: float
    rest: float
    least_waiting: float
    most_products: float
    blocks: int


@dataclass(frozen=True)
class StageTime:
    """All launches of one kernel in a token: device seconds together, and bytes of weights they read.

    Of a kernel that makes a whole token: all its steps of one kind, with what a block does in them.
    """

    kernel: str
    launches: int
    seconds: float
    weight_bytes: int
    parts: StepParts | None = None


@dataclass(frozen=True)
class StageTimes:
    """The stages of a token, longest first, with ``context`` tokens in the cache.

    ``empty_seconds``: what a pair of timestamps around nothing measures. ``token_seconds`` and ``clock_hz``
    are of the kernel that stamps clocks. ``missing`` says why there are no stages.
    """

    context: int
    table: tuple[StageTime, ...] = ()
    empty_seconds: float = 0.0
    token_seconds: float | None = None
    clock_hz: float | None = None
    missing: str = ""


def stage_times(engine: Engine, context: int, repeat: int) -> StageTimes:
    """Measure the stages of a token; medians over ``repeat`` tokens, one more is warm-up.

    Raises: DeviceError where kernels cannot be loaded or the device has no memory for stamps.
    """
    manifest = engine.manifest
    if TIMED in manifest.sequences:
        return _stamped(engine, context, repeat)
    if any(manifest.kernels[launch.kernel].cooperative for launch in manifest.sequences["decode"]):
        reason = f"one kernel makes a whole token, and on '{manifest.target.name}' it has no clock to stamp"
        return StageTimes(context, missing=reason)
    return _launched(engine, context, repeat)


# -- a kernel that stamps clocks


def _stamped(engine: Engine, context: int, repeat: int) -> StageTimes:
    (launch,) = engine.manifest.sequences[TIMED]
    (packed,) = engine.packed(TIMED)
    ahead = min(TOKENS_AHEAD, engine.context_length - context - 1)
    runs = []
    for _ in range(repeat + 1):
        engine.fill(STAMPS, 0)
        engine.start(Sampling())
        engine.seek(context)
        for _ in range(ahead):
            engine.decode()
        engine.token(engine.decode(timed=True))
        words = np.frombuffer(engine.read(STAMPS), "<u8")
        rows = words.reshape(-1, len(launch.steps) + 1, STAMP_WORDS)
        runs.append(rows[: packed.grid])
    return stamped_times(np.stack(runs[1:]), launch.steps, context)


def stamped_times(stamps: Stamps, steps: Sequence[Step], context: int) -> StageTimes:
    """What stamps mean: u64 [tokens, blocks, 1 + steps, STAMP_WORDS], in the first row the token's.

    Clocks are compared within a block only, nanoseconds are the same for all. What did not come is 0.
    Raises: DeviceError where the device's clocks stood still.
    """
    signed = stamps.astype(np.int64)
    token = signed[:, :, 0]
    clocks = token[..., LAST_CLOCK] - token[..., FIRST_CLOCK]
    nanoseconds = token[..., LAST_NANOSECOND] - token[..., FIRST_NANOSECOND]
    if clocks.min() <= 0 or nanoseconds.min() <= 0:
        raise DeviceError(
            f"the kernel that stamps clocks counted {clocks.min()} clocks in {nanoseconds.min()} ns",
            "measure without stages",
        )
    hz = float(np.median(1e9 * clocks / nanoseconds))
    each = _parts_of_steps(signed[:, :, 1:])
    kinds: dict[str, list[int]] = {}
    for number, step in enumerate(steps):
        kinds.setdefault(step.label, []).append(number)
    stages = []
    for label, numbers in kinds.items():
        seconds = {name: float(np.median(v[:, numbers].sum(axis=1))) / hz for name, v in each.items()}
        parts = StepParts(
            seconds["waiting"],
            seconds["preparing"],
            seconds["products"],
            seconds["weights"],
            seconds["rest"],
            seconds["least_waiting"],
            seconds["most_products"],
            round(float(np.median(each["blocks"][:, numbers]))),
        )
        size = sum(steps[number].weight_bytes for number in numbers)
        stages.append(StageTime(label, len(numbers), seconds["all"], size, parts))
    spans = token[..., LAST_NANOSECOND].max(axis=1) - token[..., FIRST_NANOSECOND].min(axis=1)
    return StageTimes(
        context,
        tuple(sorted(stages, key=lambda stage: -stage.seconds)),
        token_seconds=1e-9 * float(np.median(spans)),
        clock_hz=hz,
    )


def _parts_of_steps(rows: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.float64]]:
    """Clocks of each step's parts, f64 [tokens, steps], from its rows of all blocks.

    Of a step that no block has more to stamp of than begin and end (the embedding) all blocks are counted.
    """
    came = np.max(rows[..., RECEIVED:ENDED], axis=-1) > 0
    came |= ~np.any(came, axis=1, keepdims=True)
    # What did not come took no time: it is as if it had come with the moment before.
    at = np.maximum.accumulate(rows[..., : ENDED + 1], axis=-1).astype(np.float64)
    at[~came] = np.nan
    waited = np.where(came, rows[..., WAITED], np.nan)

    def between(first: int, last: int) -> npt.NDArray[np.float64]:
        return np.asarray(at[..., last] - at[..., first])

    waiting, products = between(BEGUN, RECEIVED), between(PREPARED, PRODUCED)
    medians = {
        "all": between(BEGUN, ENDED),
        "waiting": waiting,
        "preparing": between(RECEIVED, PREPARED),
        "products": products,
        "weights": waited,
        "rest": between(PRODUCED, ENDED),
    }
    return {
        **{name: np.nanmedian(values, axis=1) for name, values in medians.items()},
        "least_waiting": np.nanmin(waiting, axis=1),
        "most_products": np.nanmax(products, axis=1),
        "blocks": came.sum(axis=1).astype(np.float64),
    }


# -- launches one by one


def _launched(engine: Engine, context: int, repeat: int) -> StageTimes:
    """Device time of a token's launches by kernel, and what an empty pair of timestamps measures."""
    driver, raw = engine.driver, engine.manifest.raw
    runs, empty = [], []
    with _Busy(driver) as busy:
        for _ in range(repeat + 1):
            engine.start(Sampling())
            engine.seek(context)
            busy.queue()
            runs.append(engine.launch_times("decode"))
            busy.queue()
            empty.append(driver.elapsed(driver.timestamp(), driver.timestamp()))
    seconds = [statistics.median(times) for times in zip(*runs[1:], strict=True)]
    return StageTimes(context, _by_kernel(raw, seconds), statistics.median(empty[1:]))


def _by_kernel(raw: Mapping[str, Any], seconds: Sequence[float]) -> tuple[StageTime, ...]:
    """Launches of ``decode`` and their seconds, gathered by kernel."""
    groups: dict[int, list[float]] = {}
    for launch, spent in zip(raw["sequences"]["decode"], seconds, strict=True):
        group = groups.setdefault(launch["kernel"], [0, 0.0, 0])
        group[0] += 1
        group[1] += spent
        group[2] += launch.get("weight_bytes", 0)
    result = [
        StageTime(raw["kernels"][kernel]["symbol"], int(count), spent, int(size))
        for kernel, (count, spent, size) in groups.items()
    ]
    return tuple(sorted(result, key=lambda stage: -stage.seconds))


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


# -- for a reader


def stages_text(times: StageTimes, whole: float | None) -> list[str]:
    """Lines for a reader; ``whole``: seconds of a token without stamps, None where that is unknown."""
    if times.missing:
        return [f"  stages      not timed: {times.missing}"]
    if times.token_seconds is None or times.clock_hz is None:
        return _launched_text(times)
    without = "" if whole is None else f" ({1e3 * whole:.3f} ms without stamps)"
    return [
        f"  steps at context {times.context}, by clocks that the blocks stamp: "
        f"{1e3 * times.token_seconds:.3f} ms a token{without}, {times.clock_hz / 1e9:.3f} GHz;",
        "    us in all steps of a kind, medians over the blocks that take part",
        f"    {'steps':>5} {'all':>8} = {'waiting':>8} {'(least)':>8} + {'prepare':>7} + {'products':>8} "
        f"{'(most,':>8} {'weights)':>8} + {'rest':>7} {'blocks':>7} {'MB':>8} {'GB/s':>9}",
        *(_step_line(stage, stage.parts) for stage in times.table if stage.parts is not None),
    ]


def _step_line(stage: StageTime, parts: StepParts) -> str:
    size = f"{stage.weight_bytes / 1e6:8,.1f}" if stage.weight_bytes else " " * 8
    us = {name: f"{1e6 * value:.1f}" for name, value in vars(parts).items()}
    return (
        f"    {stage.launches:5d} {1e6 * stage.seconds:8.1f} = {us['waiting']:>8} "
        f"{'(' + us['least_waiting'] + ')':>8} + {us['preparing']:>7} + {us['products']:>8} "
        f"{'(' + us['most_products'] + ',':>8} {us['weights'] + ')':>8} + {us['rest']:>7} "
        f"{parts.blocks:7d} {size} {_rate(stage)}  {stage.kernel}"
    )


def _rate(stage: StageTime) -> str:
    """Weights read in the time of a stage, in GB/s."""
    return f"{stage.weight_bytes / stage.seconds / 1e9:9,.1f}" if stage.weight_bytes else " " * 9


def _launched_text(times: StageTimes) -> list[str]:
    total = sum(stage.seconds for stage in times.table)
    lines = [
        f"  stages at context {times.context}, launched one by one and not as a graph: "
        f"{1e3 * total:.3f} ms together (an empty pair of timestamps: {1e6 * times.empty_seconds:.1f} us)"
    ]
    for stage in times.table:
        each = 1e6 * stage.seconds / stage.launches
        rate = f"{_rate(stage)} GB/s" if stage.weight_bytes else " " * 14
        lines.append(
            f"    {1e3 * stage.seconds:8.3f} ms {stage.launches:4d} x {each:8.1f} us {rate}  {stage.kernel}"
        )
    return lines
