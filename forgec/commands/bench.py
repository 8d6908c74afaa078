"""``forgec bench``: prompt and generation speed of a package, beside its memory-bandwidth limit."""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from forgec.errors import UsageError
from forgec.package.loader import loaded, read_manifest

__all__ = ["Measurement", "command", "measure", "step_bytes"]


@dataclass(frozen=True)
class Measurement:
    """Medians over repetitions, in tokens per second and bytes; ``spread`` is (max - min) / median."""

    prompt_tokens: int
    prompt_tokens_per_second: float
    generated_tokens: int
    generated_tokens_per_second: float
    generated_spread: float
    milliseconds_per_token: float
    bytes_per_token: int
    bandwidth_bytes_per_second: float

    @property
    def fraction(self) -> float:
        """Share of the memory bandwidth that generation uses."""
        return self.bytes_per_token * self.generated_tokens_per_second / self.bandwidth_bytes_per_second


@click.command("bench")
@click.argument("package", type=click.Path(path_type=Path))
@click.option("--prompt", "prompt_tokens", type=click.IntRange(1), default=512, show_default=True,
              help="Prompt length in tokens.")  # fmt: skip
@click.option("--tokens", type=click.IntRange(1), default=128, show_default=True, help="Tokens to generate.")
@click.option("--depth", type=click.IntRange(0), default=0, show_default=True,
              help="Tokens in the KV cache before generation is timed.")  # fmt: skip
@click.option("--repeat", type=click.IntRange(1), default=5, show_default=True, help="Repetitions.")
@click.option("--device", help="Device, as for the package.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    package: Path,
    prompt_tokens: int,
    tokens: int,
    depth: int,
    repeat: int,
    device: str | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure prompt and generation speed of PACKAGE.

    Random token ids, greedy sampling, medians over repetitions; the bandwidth is measured on this machine
    for a CPU and taken from the target's data sheet for a GPU.

    \b
    Example:
      forgec bench build/model-gfx1100 --prompt 512 --tokens 128
    """
    manifest = read_manifest(package)
    with loaded(package, device, threads) as model:
        bandwidth = _bandwidth(manifest)
        result = measure(model, manifest, bandwidth, prompt_tokens, tokens, depth, repeat)
        title = f"{manifest['model']['name']} on {model.engine.driver.describe().name}"
    click.echo(
        json.dumps({**asdict(result), "fraction": result.fraction}) if as_json else _text(title, result)
    )


def measure(
    model: Any,
    manifest: dict[str, Any],
    bandwidth: float,
    prompt_tokens: int,
    tokens: int,
    depth: int,
    repeat: int,
) -> Measurement:
    """Time ``repeat`` prompts and generations; the first of each is a warm-up and not counted."""
    context = manifest["model"]["context_length"]
    if max(prompt_tokens, depth + 1) + tokens > context:
        raise UsageError(
            f"{max(prompt_tokens, depth + 1) + tokens} tokens do not fit the package's context of {context}",
            "Choose a smaller --prompt, --depth or --tokens, or compile with a larger --ctx.",
        )
    engine = model.engine
    ids = np.random.default_rng(0).integers(0, manifest["model"]["vocab_size"], max(prompt_tokens, depth + 1))
    prompt = [int(i) for i in ids]
    sampling = sys.modules[type(engine).__module__].Sampling()
    prompt_seconds, token_seconds = [], []
    for _ in range(repeat + 1):
        prompt_seconds.append(_timed_prompt(model, sampling, prompt[:prompt_tokens]))
        token_seconds.append(_timed_tokens(model, sampling, prompt[: depth + 1], tokens))
    rates = [tokens / s for s in token_seconds[1:]]
    rate = statistics.median(rates)
    return Measurement(
        prompt_tokens=prompt_tokens,
        prompt_tokens_per_second=prompt_tokens / statistics.median(prompt_seconds[1:]),
        generated_tokens=tokens,
        generated_tokens_per_second=rate,
        generated_spread=(max(rates) - min(rates)) / rate,
        milliseconds_per_token=1e3 / rate,
        bytes_per_token=step_bytes(manifest, depth + tokens // 2),
        bandwidth_bytes_per_second=bandwidth,
    )


def _timed_prompt(model: Any, sampling: Any, prompt: list[int]) -> float:
    """Seconds to put a prompt into the cache and to compute the logits behind it."""
    engine = model.engine
    engine.start(sampling)
    engine.synchronize()
    start = time.perf_counter()
    engine.prefill(prompt)
    engine.head()
    engine.synchronize()
    return time.perf_counter() - start


def _timed_tokens(model: Any, sampling: Any, prompt: list[int], count: int) -> float:
    """Seconds to generate ``count`` tokens after a prompt, the device running ahead of the host."""
    engine = model.engine
    engine.start(sampling)
    engine.prefill(prompt)
    engine.head()
    engine.token(engine.sample())
    start = time.perf_counter()
    tickets = [engine.decode() for _ in range(count)]
    engine.token(tickets[-1])
    return time.perf_counter() - start


def step_bytes(manifest: dict[str, Any], position: int) -> int:
    """Bytes that one decode step must read: its weights, and the KV cache up to ``position``."""
    traffic = manifest["traffic"]
    return int(traffic["weight_bytes_per_token"] + position * traffic["kv_bytes_per_position"])


def _bandwidth(manifest: dict[str, Any]) -> float:
    """Bytes per second: measured for a CPU, the data sheet's for a GPU."""
    if manifest["target"]["family"] != "cpu":
        from forgec.targets import get_target

        return get_target(manifest["target"]["name"]).bandwidth
    return cpu_read_bandwidth()


def cpu_read_bandwidth(megabytes: int = 512, repeat: int = 3) -> float:
    """Best rate, in bytes per second, at which all cores together sum an array larger than any cache."""
    from concurrent.futures import ThreadPoolExecutor

    from forgec.targets import get_target

    threads = get_target("native").compute_units
    data = np.ones((threads, megabytes * 2**20 // 8 // threads), np.int64)
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeat):
            start = time.perf_counter()
            # A sum releases the interpreter lock and is bound by loads once it is vectorised.
            list(pool.map(np.sum, data))
            best = max(best, data.nbytes / (time.perf_counter() - start))
    return best


def _text(title: str, m: Measurement) -> str:
    return "\n".join(
        (
            title,
            f"  prompt      {m.prompt_tokens:6d} tokens  {m.prompt_tokens_per_second:10.1f} tok/s",
            f"  generation  {m.generated_tokens:6d} tokens  {m.generated_tokens_per_second:10.1f} tok/s"
            f"  ({m.milliseconds_per_token:.3f} ms/token, spread {m.generated_spread:.1%})",
            f"  a token reads {m.bytes_per_token / 1e6:,.1f} MB: "
            f"{m.bytes_per_token * m.generated_tokens_per_second / 1e9:,.1f} GB/s, {m.fraction:.1%} of "
            f"{m.bandwidth_bytes_per_second / 1e9:,.1f} GB/s",
        )
    )
