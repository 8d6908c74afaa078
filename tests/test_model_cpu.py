"""The whole product on the real model: SmolLM2 compiled for the CPU, against llama.cpp's goldens."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forgec.compiler import compile_model
from forgec.config import load_config
from forgec.golden import record
from forgec.package.loader import import_package
from forgec.plan.program import CompileOptions
from forgec.toolchain import open_cache
from tests.smollm2 import require_smollm2

GOLDEN = Path(__file__).parent / "fixtures" / "golden" / "smollm2.json"
CONTEXT = 2048


def build(folder: Path, math: str, kv: str = "f16", *, fuse: bool = True) -> Path:
    output = folder / f"smollm2-{math}-{kv}"
    options = CompileOptions(math=math, context=CONTEXT if fuse else 256, kv_dtype=kv, fuse=fuse)
    compile_model(require_smollm2(), "x86-64-v3", output, options, cache=open_cache(load_config())[0])
    return output


@pytest.fixture(scope="module")
def exact_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("packages"), "exact", "f32")


@pytest.fixture(scope="module")
def exact(exact_package: Path) -> Iterator[Any]:
    with import_package(exact_package).load(threads=2) as model:
        yield model


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with import_package(build(tmp_path_factory.mktemp("packages"), "fast")).load(threads=2) as model:
        yield model


@pytest.mark.parametrize("golden", record.load(GOLDEN)[1], ids=lambda g: g.name)
def test_exact_greedy_tokens_are_llama_cpps(exact: Any, golden: record.Golden) -> None:
    """64 tokens of free greedy generation; they may part only where llama.cpp's two best are tied."""
    tokens = exact.generate(golden.prompt, max_tokens=len(golden.tokens), ignore_eos=True).tokens
    parted = next((i for i, (a, b) in enumerate(zip(tokens, golden.tokens, strict=True)) if a != b), None)
    assert parted is None or golden.steps[parted].gap < record.TIE


def test_exact_logits_are_llama_cpps(exact: Any) -> None:
    """Log-probabilities along the goldens, within the rounding of float32 sums in another order."""
    chosen = [g for g in record.load(GOLDEN)[1] if len(g.prompt) < 100]
    results = record.check(exact, chosen)
    assert len(results) == 8
    assert all(r.passed for r in results)
    assert max(r.error for r in results) < 2e-3


def test_fast_stays_close_to_exact(exact: Any, fast: Any) -> None:
    """int8 activations keep the best token and the distribution on text the goldens hold."""
    golden = next(g for g in record.load(GOLDEN)[1] if g.name == "long")
    tokens = list(golden.prompt[:384])
    p, q = (record.log_softmax(model.logits(tokens)) for model in (exact, fast))
    kl = (np.exp(p) * (p - q)).sum(axis=-1)
    assert (p.argmax(axis=-1) == q.argmax(axis=-1)).mean() >= 0.95
    assert kl.mean() < 0.02


def test_a_quantised_cache_stays_close(tmp_path: Path, exact: Any) -> None:
    """A q8_0 cache, by prompt and by decode steps: KL within a few times the 0.0007 of the benchmark text."""
    golden = next(g for g in record.load(GOLDEN)[1] if g.name == "long")
    tokens = list(golden.prompt[:256])
    with import_package(build(tmp_path, "exact", "q8_0")).load(threads=2) as model:
        chunks = record.log_softmax(model.logits(tokens))
        model.engine.prefill(tokens[:200])
        steps = []
        for position in range(200, 216):
            model.engine.seek(position, tokens[position])
            model.engine.run("decode")
            steps.append(model.engine.read_logits())
    p, decoded = record.log_softmax(exact.logits(tokens)), record.log_softmax(np.stack(steps))
    kl = (np.exp(p) * (p - chunks)).sum(axis=-1)
    assert 0 < kl.mean() < 0.003
    # A step reads the same rounded rows as a prompt, and rounds its own before it reads them; later ones part
    # by what a sum in another order makes of a rounding.
    assert np.abs(decoded[0] - chunks[200]).max() < 2e-3
    assert (np.exp(chunks[200:216]) * (chunks[200:216] - decoded)).sum(axis=-1).max() < 0.003


def test_one_thread_and_four_give_the_same_tokens(exact_package: Path, exact: Any) -> None:
    prompt = "The lighthouse keeper wrote"
    expected = exact.generate(prompt, max_tokens=24).tokens
    for threads in (1, 4):
        with import_package(exact_package).load(threads=threads) as model:
            assert model.generate(prompt, max_tokens=24).tokens == expected


def test_unfused_kernels_give_the_same_tokens(tmp_path: Path, exact: Any) -> None:
    """One kernel per operation against the fused ones: a wrong fusion would part them."""
    prompt = "def fibonacci(n: int) -> int:"
    with import_package(build(tmp_path, "exact", "f32", fuse=False)).load(threads=2) as model:
        launches = len(model.manifest.sequences["decode"])
        tokens = model.generate(prompt, max_tokens=16).tokens
    assert launches > 3 * len(exact.manifest.sequences["decode"])
    assert tokens == exact.generate(prompt, max_tokens=16).tokens


def test_sampling_is_reproducible_and_seeded(fast: Any) -> None:
    options = {"max_tokens": 24, "temperature": 1.0, "top_k": 50, "top_p": 0.95}
    first = fast.generate("Once upon a time", seed=7, **options).tokens
    assert fast.generate("Once upon a time", seed=7, **options).tokens == first
    assert fast.generate("Once upon a time", seed=8, **options).tokens != first


def test_command_line_of_the_package(exact_package: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(exact_package), "The capital of France is", "--max-tokens", "8", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(run.stdout)
    assert answer["text"].startswith(" Paris")
    assert len(answer["tokens"]) == 8
    assert answer["finish_reason"] == "length"
    assert set(answer) == {"prompt_tokens", "tokens", "text", "finish_reason", "timings"}
