"""A compiled package on a real GPU: its greedy tokens against the goldens, then its speed.

    python tests/gpu/run_model.py PACKAGE [PACKAGE...] --golden tests/fixtures/golden/smollm2.json

Needs only what a package needs. Exits with 1 when a package compiled with --math exact leaves a golden where
the two best tokens were not tied.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

TIE = 1e-3
REPEAT = 5


def load(path: Path) -> Any:
    """The package as a module, loaded onto its device."""
    name = "package_" + path.resolve().name.replace("-", "_").replace(".", "_")
    spec = importlib.util.spec_from_file_location(
        name, path / "__init__.py", submodule_search_locations=[str(path)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def compare(model: Any, goldens: list[dict[str, Any]]) -> bool:
    """Free greedy generation beside each golden; True when none was left without a tie."""
    good = True
    for golden in goldens:
        tokens = model.generate(golden["prompt"], max_tokens=len(golden["tokens"]), ignore_eos=True).tokens
        pairs = enumerate(zip(tokens, golden["tokens"], strict=True))
        parted = next((i for i, (a, b) in pairs if a != b), None)
        gap = 0.0
        if parted is not None:
            best, second = golden["steps"][parted]["logprobs"][:2]
            gap = best - second
        good = good and gap < TIE
        equal = len(tokens) if parted is None else parted
        print(
            f"  {golden['name']:<10} {equal:3d} of {len(tokens)} tokens equal"
            + (f", gap {gap:.4f}" if gap else "")
        )
    return good


def speed(model: Any, sampling: Any, depth: int, tokens: int = 128) -> float:
    """Median tokens per second of greedy decoding after ``depth`` tokens."""
    engine, rates = model.engine, []
    prompt = [(7919 * i) % engine.vocab_size for i in range(depth)]
    for _ in range(REPEAT + 1):
        engine.start(sampling)
        engine.prefill(prompt)
        engine.head()
        engine.token(engine.sample())
        start = time.perf_counter()
        tickets = [engine.decode() for _ in range(tokens)]
        engine.token(tickets[-1])
        rates.append(tokens / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def prompt_speed(model: Any, sampling: Any, length: int = 512) -> float:
    """Median prompt tokens per second, logits of the last token included."""
    engine, rates = model.engine, []
    prompt = [(7919 * i) % engine.vocab_size for i in range(length)]
    for _ in range(REPEAT + 1):
        engine.start(sampling)
        engine.synchronize()
        start = time.perf_counter()
        engine.prefill(prompt)
        engine.head()
        engine.synchronize()
        rates.append(length / (time.perf_counter() - start))
    return statistics.median(rates[1:])


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", type=Path, nargs="+")
    parser.add_argument("--golden", type=Path, required=True)
    parser.add_argument("--depth", type=int, action="append", help="tokens in the cache; default 1 and 4000")
    options = parser.parse_args(arguments)
    goldens = json.loads(options.golden.read_text(encoding="utf-8"))["goldens"]
    status = 0
    for path in options.packages:
        module = load(path)
        with module.load() as model:
            math = model.manifest.raw["math"]
            print(f"{path} ({math}) on {model.engine.driver.describe().name}")
            if not compare(model, goldens) and math == "exact":
                status = 1
            for depth in options.depth or (1, 4000):
                print(f"  decode at {depth} tokens: {speed(model, module.Sampling(), depth):.0f} tok/s")
            print(f"  prompt of 512 tokens: {prompt_speed(model, module.Sampling()):.0f} tok/s")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
