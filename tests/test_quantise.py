"""The quantisers against ggml's own by gguf-py's decoder, and ``--quantize`` from file to manifest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgec.compiler import Compiled, compile_model
from forgec.config import load_config
from forgec.errors import GGUFError, UnsupportedModelError, UsageError
from forgec.frontend.gguf import open_gguf
from forgec.frontend.quant import QUANT_BY_NAME, dequantize
from forgec.golden.llama_cpp import ggml_quantise
from forgec.package.loader import loaded
from forgec.plan.program import CompileOptions
from forgec.quantise import QUANTISABLE, EditedFile, WeightOptions, open_model, quantise
from forgec.quantise.choose import new_types
from forgec.toolchain import open_cache
from tests.cli_files import Forgec
from tests.gguf_files import TinyModel

BLOCKED = [t for t in QUANTISABLE if QUANT_BY_NAME[t].block > 1]


def relative_error(x: np.ndarray, data: np.ndarray, kind: str) -> float:
    decoded = dequantize(data, kind, *x.shape).astype(np.float64)
    return float(np.sqrt(np.square(decoded - x).sum() / np.square(x.astype(np.float64)).sum()))


def matrix(rng: np.random.Generator, name: str) -> np.ndarray:
    """Kinds of rows that weights have: bell-shaped, with outliers, flat, and of very different sizes."""
    shape = (int(rng.integers(60, 90)), 512)
    made = {
        "normal": lambda: rng.standard_normal(shape),
        "outliers": lambda: rng.standard_t(3, shape),
        "uniform": lambda: rng.uniform(-1, 1, shape),
        "uneven": lambda: rng.standard_normal(shape) * np.exp(rng.standard_normal((shape[0], 1)) * 2),
    }
    return np.asarray(made[name]() * 0.02, np.float32)


@pytest.mark.parametrize("kind", QUANTISABLE)
@pytest.mark.parametrize("name", ["normal", "outliers", "uniform", "uneven"])
def test_no_worse_than_ggml(kind: str, name: str) -> None:
    rng = np.random.default_rng()
    x = matrix(rng, name)
    entry = QUANT_BY_NAME[kind]
    theirs = relative_error(x, ggml_quantise(x, entry.ggml_id, entry.nbytes(x.shape[1])), kind)
    ours = relative_error(x, quantise(x, kind), kind)
    assert ours <= 1.05 * theirs, f"{ours:.5f} against ggml's {theirs:.5f}"


@pytest.mark.parametrize("kind", ["Q8_0", "F16", "BF16", "F32"])
def test_types_without_a_choice_are_equal_to_ggml(kind: str) -> None:
    x = matrix(np.random.default_rng(), "outliers")
    entry = QUANT_BY_NAME[kind]
    theirs = ggml_quantise(x, entry.ggml_id, entry.nbytes(x.shape[1]))
    assert np.mean(quantise(x, kind) != theirs) < 1e-3


@pytest.mark.parametrize("kind", BLOCKED)
def test_what_a_type_can_hold_comes_back(kind: str) -> None:
    """Zeros, a single value, one outlier, subnormal and huge numbers: finite, as near as the type allows."""
    size = 256
    rows = {
        "zeros": np.zeros(size),
        "constant": np.full(size, 0.25),
        "negative": np.full(size, -0.25),
        "outlier": np.where(np.arange(size) == 77, 8.0, 0.0),
        "tiny": np.full(size, 1e-42),
        "huge": np.linspace(-6e4, 6e4, size),
    }
    x = np.array(list(rows.values()), np.float32)
    decoded = dequantize(quantise(x, kind), kind, *x.shape)
    assert np.isfinite(decoded).all()
    assert not decoded[0].any()
    limits = {"Q2_K": 0.4, "Q3_K": 0.3, "IQ4_NL": 0.12, "MXFP4": 0.25}
    for index in (1, 2, 3, 5):
        error = np.abs(decoded[index] - x[index]).max() / np.abs(x[index]).max()
        assert error < limits.get(kind, 0.08), list(rows)[index]
    assert np.abs(decoded[4]).max() < 1e-6


@pytest.mark.parametrize("kind", BLOCKED)
def test_rows_do_not_depend_on_their_neighbours(kind: str) -> None:
    """A matrix quantised in bands gives the same bytes: what the package writer relies on."""
    x = matrix(np.random.default_rng(), "uneven")
    pieces = [quantise(x[:7], kind), quantise(x[7:8], kind), quantise(x[8:], kind)]
    assert np.array_equal(np.concatenate(pieces), quantise(x, kind))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(BLOCKED),
    st.lists(st.floats(-3e4, 3e4, width=32), min_size=1, max_size=40),
    st.integers(0, 2**32 - 1),
)
def test_any_finite_values_decode_to_finite_ones(kind: str, values: list[float], seed: int) -> None:
    x = np.random.default_rng(seed).choice(np.array(values, np.float32), (2, 256))
    decoded = dequantize(quantise(x, kind), kind, 2, 256)
    assert np.isfinite(decoded).all()
    assert np.abs(decoded).max() <= 2.1 * np.abs(x).max() + 1e-6


def test_refusals() -> None:
    ones = np.ones((2, 64), np.float32)
    with pytest.raises(UnsupportedModelError, match="'IQ1_S'"):
        quantise(ones, "IQ1_S")
    with pytest.raises(GGUFError, match="64 elements are not whole Q4_K blocks"):
        quantise(ones, "Q4_K")
    for bad in (np.nan, np.inf):
        ones[1, 3] = bad
        with pytest.raises(GGUFError, match="not finite"):
            quantise(ones, "Q8_0")


def test_choice_of_types(tmp_path: Path) -> None:
    tiny = TinyModel(embedding_length=256, feed_forward_length=96, head_count=8, key_length=32, quant="F16")
    path = tiny.write(tmp_path / "m.gguf")
    with open_gguf(path) as model:
        choices = new_types(model.tensors, "Q4_K", requantize=False)
        for name, info in model.tensors.items():
            if len(info.shape) == 1:
                assert name not in choices
        assert choices["blk.0.attn_q.weight"].type.name == "Q4_K"
        assert choices["output.weight"].type.name == "Q6_K"
        assert choices["output.weight"].reason == "the output matrix"
        down = choices["blk.1.ffn_down.weight"]  # rows of 96 elements
        assert (down.type.name, down.reason) == ("Q5_0", "Q4_K needs rows of whole blocks of 256")
        assert "blk.0.attn_q.weight" not in new_types(model.tensors, "F16", requantize=False)
        with pytest.raises(UsageError, match="'IQ1_S'"):
            new_types(model.tensors, "IQ1_S", requantize=False)
    narrow = TinyModel(embedding_length=40, feed_forward_length=96, quant="F32").write(tmp_path / "n.gguf")
    with open_gguf(narrow) as model:
        assert new_types(model.tensors, "Q6_K", requantize=False)["output.weight"].type.name == "F16"


def test_quantised_matrices_are_refused_without_requantize(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = TinyModel(quant="Q8_0").write(tmp_path / "m.gguf")
    arguments = ("compile", path, "--arch", "gfx1100", "-o", tmp_path / "p", "--quantize", "q4_0")
    code, message, hint = Forgec(capsys).refused(*arguments)
    assert (code, message) == (2, "tensor 'token_embd.weight' is quantised already, to Q8_0")
    assert "--requantize" in hint
    with open_model(path, WeightOptions("Q8_0")) as same:
        assert not isinstance(same, EditedFile), "nothing to change"
    with open_model(path, WeightOptions("Q4_0", requantize=True)) as model, open_gguf(path) as base:
        name = "blk.0.ffn_up.weight"
        assert model.tensors[name].type.name == "Q4_0"
        assert np.array_equal(model.bytes_of(name), quantise(base.array(name), "Q4_0").reshape(-1))
        assert np.array_equal(model.array_rows(name, 3, 5), model.array(name)[3:8])
        (change,) = (c for c in model.changes() if c.after == "Q4_0")
        assert 0.05 < change.error < 0.12


def test_values_that_are_not_finite_name_their_tensor(tmp_path: Path) -> None:
    bad = np.ones((96, 64), np.float32)
    bad[5, 5] = np.inf
    path = TinyModel(tensors={"blk.1.ffn_up.weight": bad}).write(tmp_path / "m.gguf")
    with (
        open_model(path, WeightOptions("Q8_0")) as model,
        pytest.raises(GGUFError, match=r"tensor 'blk\.1\.ffn_up\.weight'.*not finite"),
    ):
        model.bytes_of("blk.1.ffn_up.weight")


def build(model: Path, output: Path, weights: WeightOptions) -> Compiled:
    options = CompileOptions(math="exact", context=32, kv_dtype="f32")
    cache = open_cache(load_config())[0]
    return compile_model(model, "x86-64-v3", output, options, weights=weights, cache=cache)


def test_a_package_holds_what_was_quantised(tmp_path: Path) -> None:
    """The same logits as a file that was quantised beforehand, and the error in the manifest."""
    rng = np.random.default_rng()
    tiny = TinyModel(block_count=1, quant="F32")
    source = tiny.write(tmp_path / "f32.gguf", rng)
    compiled = build(source, tmp_path / "pkg", WeightOptions("Q8_0"))
    assert [str(c).partition(":")[0] for c in compiled.changes] == ["9 tensors F32 -> Q8_0"]
    record = json.loads((tmp_path / "pkg/manifest.json").read_text())["weights"]["changes"]
    assert record["adapters"] == []
    (entry,) = record["tensors"]
    assert (entry["before"], entry["after"], entry["count"]) == ("F32", "Q8_0", 9)
    assert entry["error"] == compiled.changes[0].error
    assert 0.003 < entry["error"] < 0.01
    with open_gguf(source) as model:
        tensors = {n: model.array(n) for n in model.tensors}
    rounded = {n: dequantize(quantise(t, "Q8_0"), "Q8_0", *t.shape) for n, t in tensors.items() if t.ndim > 1}
    exact = TinyModel(block_count=1, tensors={**tensors, **rounded}).write(tmp_path / "rounded.gguf")
    build(exact, tmp_path / "exact", WeightOptions())
    logits = []
    for package in ("pkg", "exact"):
        with loaded(tmp_path / package) as engine:
            logits.append(engine.logits([5, 9, 200, 31]))
    np.testing.assert_allclose(logits[0], logits[1], atol=2e-4)
