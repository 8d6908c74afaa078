"""Prompt and generation speed of CPU packages beside llama.cpp: same file, same threads, runs interleaved.

    python examples/compare_llama_cpp.py MODEL.gguf PACKAGE [PACKAGE...] --threads 2

Every round times each contender once, so that a slower spell of the machine meets all of them; medians over
the rounds are compared. Run it on an otherwise idle machine: llama.cpp's spinning threads lose most when they
have to share cores. Needs the extra 'golden' (xllamacpp).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from forgec.golden.llama_cpp import LlamaCpp, oracle_version
from forgec.package.loader import import_package

Timed = Callable[[list[int], int], tuple[float, float]]


Clock = Callable[[], float]


def time_package(model: Any, sampling: Any, clock: Clock) -> Timed:
    """(seconds of the prompt with its logits, seconds of ``count`` greedy tokens) of a loaded package."""

    def run(prompt: list[int], count: int) -> tuple[float, float]:
        engine = model.engine
        engine.start(sampling)
        start = clock()
        engine.prefill(prompt)
        engine.head()
        engine.synchronize()
        prompt_seconds = clock() - start
        engine.start(sampling)
        engine.prefill(prompt[:1])
        engine.head()
        engine.token(engine.sample())
        start = clock()
        for _ in range(count):
            engine.token(engine.decode())
        return prompt_seconds, clock() - start

    return run


def time_llama_cpp(oracle: LlamaCpp, clock: Clock) -> Timed:
    """The same of llama.cpp, through llama_decode and an argmax over its logits."""

    def run(prompt: list[int], count: int) -> tuple[float, float]:
        oracle.reset()
        start = clock()
        oracle.decode(prompt)
        prompt_seconds = clock() - start
        oracle.reset()
        token = int(oracle.decode(prompt[:1])[0].argmax())
        start = clock()
        for _ in range(count):
            token = int(oracle.decode([token])[0].argmax())
        return prompt_seconds, clock() - start

    return run


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("packages", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512, help="prompt tokens")
    parser.add_argument("--tokens", type=int, default=128, help="generated tokens")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--cpu-time", action="store_true", help="count processor seconds: for one thread on a busy machine"
    )
    options = parser.parse_args(arguments)
    clock = time.process_time if options.cpu_time else time.perf_counter
    prompt = [(7919 * i) % 32000 for i in range(options.prompt)]
    with ExitStack() as stack:
        context = options.prompt + options.tokens + 8
        oracle = stack.enter_context(
            LlamaCpp(options.model, context=context, threads=options.threads, flash=True)
        )
        contenders: dict[str, Timed] = {oracle_version(): time_llama_cpp(oracle, clock)}
        for path in options.packages:
            module = import_package(path)
            model = stack.enter_context(module.load(threads=options.threads))
            contenders[path.name] = time_package(model, module.Sampling(), clock)
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
        for timed in contenders.values():
            timed(prompt, 4)  # warm-up
        for _ in range(options.rounds):
            for name, timed in contenders.items():
                samples[name].append(timed(prompt, options.tokens))
    peer = samples[oracle_version()]
    print(
        f"{options.threads} threads, {options.rounds} interleaved rounds, medians; "
        "in brackets the median ratio to llama.cpp within a round"
    )
    for name, runs in samples.items():
        print(f"  {name:<28}", end="")
        for index, count, title in ((0, options.prompt, "prompt"), (1, options.tokens, "generation")):
            rate = count / statistics.median(run[index] for run in runs)
            ratio = statistics.median(p[index] / r[index] for p, r in zip(peer, runs, strict=True))
            print(f"  {title} {rate:8.1f} tok/s ({ratio:.2f} x)", end="")
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
