"""The real model from the very code objects that a Radeon would load: SmolLM2 on emulated gfx1100."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from forgec.compiler import compile_model
from forgec.config import load_config
from forgec.golden import record
from forgec.package.loader import import_package
from forgec.plan.program import CompileOptions
from forgec.toolchain import open_cache
from tests.emulator.devices import install_entry_points
from tests.smollm2 import require_smollm2

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden" / "smollm2.json"
TOKENS = 16


def test_greedy_tokens_are_llama_cpps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 tokens after a prompt of 33: llama.cpp's, and so the CPU package's (test_model_cpu.py)."""
    golden = next(g for g in record.load(GOLDEN)[1] if g.name == "code")
    assert len(golden.prompt) >= 32
    assert min(step.gap for step in golden.steps[:TOKENS]) > record.TIE
    package = tmp_path / "smollm2"
    options = CompileOptions(math="exact", context=128)
    compile_model(require_smollm2(), "gfx1100", package, options, cache=open_cache(load_config())[0])
    install_entry_points(monkeypatch)
    with import_package(package).load(device="emulated", threads=2) as model:
        stream = model.stream(golden.prompt, max_tokens=TOKENS, ignore_eos=True)
        next(stream)
        before = time.process_time()
        for _ in stream:
            pass
        seconds = (time.process_time() - before) / (TOKENS - 1)
    assert stream.result.tokens == golden.tokens[:TOKENS]
    # CPU time of both threads together, which another load on the machine does not change much.
    assert seconds < 2
