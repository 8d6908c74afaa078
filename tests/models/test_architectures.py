"""Every architecture against llama.cpp, as a graph, and as the package of a CPU and of an emulated Radeon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forgec import reference
from forgec.compiler import compile_model
from forgec.config import load_config
from forgec.frontend.architectures import ARCHITECTURES, build_graph
from forgec.frontend.gguf import open_gguf
from forgec.frontend.spec import read_spec
from forgec.package.loader import import_package
from forgec.passes.pipeline import optimise
from forgec.plan.program import CompileOptions
from forgec.targets import get_target
from forgec.toolchain import open_cache
from tests.emulator.devices import install_entry_points
from tests.models.record import FIXTURES, PROMPT, tokens_of
from tests.models.tiny import CONTEXT, TINY

#: Largest difference of a log-probability. llama.cpp rounds GELU to f16, which is most of what is seen.
TOLERANCE = 5e-3

every_model = pytest.mark.parametrize("name", TINY)
#: Models that add no kernel to those of another one of their architecture: the CPU is enough for these.
VARIANTS = {"falcon-40b", "gptneox-sequential", "llama-3.2", "olmo3", "phi3-long", "stablelm-12b"}


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def check(name: str, logits: np.ndarray) -> None:
    """Logits [1 + decoded, vocabulary] against the fixture: the same best tokens, close probabilities."""
    with np.load(FIXTURES / f"{name}.npz") as fixture:
        expected = fixture["logits"]
    assert logits.shape == expected.shape
    assert log_softmax(expected).std() > 0.5, "a model without an opinion tests little"
    assert np.abs(log_softmax(logits) - log_softmax(expected)).max() <= TOLERANCE
    assert (logits.argmax(axis=-1) == expected.argmax(axis=-1)).all()


def test_every_architecture_has_a_model() -> None:
    assert {tiny.architecture for tiny in TINY.values()} == set(ARCHITECTURES)


@every_model
def test_reference_of_the_graph_before_and_after_all_passes(name: str, tmp_path: Path) -> None:
    tokens = tokens_of(name)
    with open_gguf(TINY[name].write(tmp_path / "tiny.gguf", name)) as gguf:
        imported = build_graph(gguf, read_spec(gguf))
        weights = {tensor: gguf.array(tensor) for tensor in gguf.tensors}.__getitem__
    for graph in (imported, optimise(imported, get_target("gfx1100"))):
        out, state = reference.run(graph, weights, tokens[:PROMPT])
        rows = [out["logits"][0]]
        for position in range(PROMPT, len(tokens)):
            out, state = reference.run(graph, weights, tokens[position : position + 1], position, state)
            rows.append(out["logits"][0])
        check(name, np.stack(rows))


def compiled(name: str, target: str, folder: Path, *, chunk: int = 8, fuse: bool = True) -> Path:
    model = TINY[name].write(folder / "tiny.gguf", name)
    options = CompileOptions(math="exact", context=CONTEXT, kv_dtype="f32", chunk=chunk, fuse=fuse)
    compile_model(model, target, folder / "package", options, cache=open_cache(load_config())[0])
    return folder / "package"


def run(engine: Any, tokens: list[int]) -> np.ndarray:
    """Prompt in chunks, then token by token, whatever the sampler would have chosen."""
    engine.prefill(tokens[:PROMPT])
    engine.head()
    rows = [engine.read_logits()]
    for position in range(PROMPT, len(tokens)):
        engine.seek(position, tokens[position])
        engine.run("decode")
        rows.append(engine.read_logits())
    return np.stack(rows)


@every_model
def test_cpu(name: str, tmp_path: Path) -> None:
    with import_package(compiled(name, "x86-64-v3", tmp_path)).load(threads=2) as model:
        check(name, run(model.engine, tokens_of(name)))


@pytest.mark.parametrize("name", ["gemma3", "gpt2", "stablelm-12b"])
def test_cpu_without_fusion(name: str, tmp_path: Path) -> None:
    with import_package(compiled(name, "x86-64-v3", tmp_path, fuse=False)).load(threads=2) as model:
        check(name, run(model.engine, tokens_of(name)))


@pytest.mark.parametrize("name", [name for name in TINY if name not in VARIANTS])
def test_emulated_gfx1100(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = compiled(name, "gfx1100", tmp_path, chunk=16)  # one chunk: half of the time
    install_entry_points(monkeypatch)
    with import_package(package).load(device="emulated", threads=2) as model:
        check(name, run(model.engine, tokens_of(name)))
