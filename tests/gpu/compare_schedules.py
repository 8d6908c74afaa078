"""Two packages of one model, such as a persistent one and a graph: the same tokens must give the same logits.

    python tests/gpu/compare_schedules.py PACKAGE PACKAGE [--depth 0 --depth 600 ...]

Behind every depth both decode the same few tokens. Differences are root mean squares in units of the logits'
standard deviation; the exit status is 1 when one is above the tolerance. Needs only what a package needs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from run_model import load

DEPTHS = (1, 70, 300, 600, 1500, 4000)
STEPS = 4


def decoded(module: Any, model: Any, depth: int) -> np.ndarray:
    """Logits [STEPS, vocabulary] of tokens that follow ``depth`` others."""
    engine = model.engine
    tokens = [(7919 * i + 13) % engine.vocab_size for i in range(depth + STEPS)]
    engine.start(module.Sampling())
    engine.prefill(tokens[:depth])
    rows = []
    for position in range(depth, depth + STEPS):
        engine.seek(position, tokens[position])
        engine.decode()
        engine.synchronize()
        rows.append(engine.read_logits().astype(np.float64))
    return np.stack(rows)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest over the steps; infinite where something is no number."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    return float((np.sqrt(((a - b) ** 2).mean(-1)) / b.std(-1)).max())


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", type=Path, nargs=2)
    parser.add_argument("--depth", type=int, action="append", help=f"tokens before; default {DEPTHS}")
    parser.add_argument("--tolerance", type=float, default=0.05)
    parser.add_argument("--device", default=None)
    options = parser.parse_args(arguments)
    modules = [load(path) for path in options.packages]
    chosen = {} if options.device is None else {"device": options.device}
    status = 0
    with modules[0].load(**chosen) as first, modules[1].load(**chosen) as second:
        for depth in options.depth or DEPTHS:
            if depth + STEPS > first.engine.context_length:
                continue
            pair = [decoded(m, model, depth) for m, model in zip(modules, (first, second), strict=True)]
            off = difference(*pair)
            same = int((pair[0].argmax(-1) == pair[1].argmax(-1)).sum())
            status |= not off <= options.tolerance
            print(f"depth {depth:6d}: difference {off:.4f}, {same} of {STEPS} best tokens equal", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
