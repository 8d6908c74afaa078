"""The NumPy meaning of the ops against formulas written out by hand, and whole models against llama.cpp."""

from __future__ import annotations

import cmath
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forgec import reference
from forgec.errors import UsageError, VerifyError
from forgec.frontend.architectures import build_graph
from forgec.frontend.gguf import open_gguf
from forgec.frontend.spec import read_spec
from forgec.ir import ops
from forgec.reference import SamplerSettings, Step, evaluate, philox_uniform
from tests.gguf_files import TinyModel
from tests.ir_models import imported, random_model
from tests.smollm2 import require_smollm2

FIXTURES = Path(__file__).parent / "fixtures" / "reference"
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(params=range(3))
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    return np.random.default_rng([request.param, 77])


def one(op: ops.Op, *inputs: np.ndarray, step: Step | None = None) -> np.ndarray:
    (output,) = evaluate(op, inputs, step or Step())
    return output


# -- ops


def test_embedding_scales_the_rows_of_the_table(rng: np.random.Generator) -> None:
    table = rng.standard_normal((11, 5))
    np.testing.assert_array_equal(one(ops.Embedding(1.5), np.array([7, 0, 7]), table), 1.5 * table[[7, 0, 7]])


def test_rms_norm(rng: np.random.Generator) -> None:
    x, weight = rng.standard_normal((3, 13)), rng.standard_normal(13)
    found = one(ops.RMSNorm(1e-3), x, weight)
    for row in range(3):
        size = math.sqrt(math.fsum(v * v for v in x[row]) / 13 + 1e-3)
        np.testing.assert_allclose(
            found[row], [v / size * w for v, w in zip(x[row], weight, strict=True)], **CLOSE
        )


def test_rms_norm_of_zeros_is_zero() -> None:
    np.testing.assert_array_equal(one(ops.RMSNorm(1e-6), np.zeros((1, 4)), np.ones(4)), np.zeros((1, 4)))


def test_linear(rng: np.random.Generator) -> None:
    x, weight, bias = rng.standard_normal((2, 7)), rng.standard_normal((5, 7)), rng.standard_normal(5)
    expected = [[math.fsum(x[r] * weight[o]) for o in range(5)] for r in range(2)]
    np.testing.assert_allclose(one(ops.Linear(), x, weight), expected, **CLOSE)
    np.testing.assert_allclose(one(ops.Linear(), x, weight, bias), expected + bias, **CLOSE)


@pytest.mark.parametrize("interleaved", [True, False])
def test_rope_turns_complex_numbers(rng: np.random.Generator, interleaved: bool) -> None:
    heads, length, dims, position = 3, 10, 6, 4
    x, angles = rng.standard_normal((5, heads * length)), rng.uniform(0, 7, (16, dims // 2))
    table = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    found = one(ops.Rope(heads, length, dims, interleaved), x, table, step=Step(position))
    for row in range(5):
        for head in range(heads):
            old = x[row, head * length : (head + 1) * length]
            new = found[row, head * length : (head + 1) * length]
            np.testing.assert_array_equal(new[dims:], old[dims:])
            for pair in range(dims // 2):
                a, b = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + dims // 2)
                turned = complex(old[a], old[b]) * cmath.exp(1j * angles[position + row, pair])
                np.testing.assert_allclose([new[a], new[b]], [turned.real, turned.imag], **CLOSE)


def test_kv_append_forgets_what_lies_after_the_position(rng: np.random.Generator) -> None:
    k_cache, v_cache = rng.standard_normal((2, 2, 6, 3))
    k, v = rng.standard_normal((2, 4, 6))
    k_new, v_new = evaluate(ops.KVAppend(2, 3), (k, v, k_cache, v_cache), Step(position=5))
    assert k_new.shape == v_new.shape == (2, 9, 3)
    for head in range(2):
        np.testing.assert_array_equal(k_new[head, :5], k_cache[head, :5])
        np.testing.assert_array_equal(v_new[head, 5:], v[:, 3 * head : 3 * head + 3])


def test_kv_append_without_values(rng: np.random.Generator) -> None:
    cache, k = rng.standard_normal((2, 6, 3)), rng.standard_normal((4, 6))
    op = ops.KVAppend(2, 3, 2, v_from_k=True)
    (k_new,) = evaluate(op, (k, cache), Step(position=5))
    np.testing.assert_array_equal(k_new[:, 5:], k.reshape(4, 2, 3).transpose(1, 0, 2))


def slope_of(head: int, heads: int, max_bias: float) -> float:
    """ALiBi's rule for head counts that are no power of two, as written down in its paper's code."""
    whole = 2 ** math.floor(math.log2(heads))
    if head < whole:
        return float(2.0 ** (-max_bias / whole)) ** (head + 1)
    return float(2.0 ** (-max_bias / (2 * whole))) ** (2 * (head - whole) + 1)


def naive_attention(
    op: ops.Attention, q: np.ndarray, k: np.ndarray, v: np.ndarray, sinks: np.ndarray | None, position: int
) -> np.ndarray:
    """One score after the other, without subtracting a maximum."""
    found = np.zeros((len(q), op.heads * op.v_length))
    for row in range(len(q)):
        for head in range(op.heads):
            group = head // (op.heads // op.kv_heads)
            at = slice(head * op.head_length, (head + 1) * op.head_length)
            out = slice(head * op.v_length, (head + 1) * op.v_length)
            here = position + row
            seen = range(here + 1 if op.causal else k.shape[1])
            seen = range(max(0, here - op.window + 1), seen.stop) if op.window else seen
            scores = [op.scale * math.fsum(q[row, at] * k[group, j]) for j in seen]
            if op.softcap:
                scores = [op.softcap * math.tanh(score / op.softcap) for score in scores]
            if op.alibi:
                slope = slope_of(head, op.heads, op.alibi)
                scores = [score + slope * (j - here) for j, score in zip(seen, scores, strict=True)]
            total = math.fsum(math.exp(score) for score in scores)
            total += 0.0 if sinks is None else math.exp(sinks[head])
            for j, score in zip(seen, scores, strict=True):
                found[row, out] += math.exp(score) / total * v[group, j, : op.v_length]
    return found


FORMS: dict[str, dict[str, Any]] = {
    "causal": {},
    "full": {"causal": False},
    "window": {"window": 3},
    "capped": {"softcap": 1.5},
    "slopes": {"alibi": 8.0},
    "sinks": {"sinks": True},
    "short values": {"value_length": 2},
    "values in keys": {"value_length": 3, "v_from_k": True, "window": 2, "sinks": True},
}


@pytest.mark.parametrize("form", FORMS)
def test_attention_is_a_weighted_mean(rng: np.random.Generator, form: str) -> None:
    kv_heads, group, rows = (int(n) for n in rng.integers(1, 5, size=3))
    length, position = int(rng.integers(3, 7)), int(rng.integers(0, 6))
    op = ops.Attention(kv_heads * group, kv_heads, length, **{"scale": 0.7, "causal": True} | FORMS[form])
    q = rng.standard_normal((rows, op.heads * length))
    k = rng.standard_normal((kv_heads, position + rows, length))
    v = k if op.v_from_k else rng.standard_normal((kv_heads, position + rows, op.v_length))
    sinks = rng.standard_normal(op.heads) if op.sinks else None
    inputs = {"q": q, "k_cache": k, "v_cache": v, "sinks": sinks}
    expected = naive_attention(op, q, k, v, sinks, position)
    found = one(op, *(inputs[name] for name in op.input_names), step=Step(position))
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)


def test_mask_with_a_window() -> None:
    scores = np.zeros((1, 3, 7))
    masked = one(ops.Mask(causal=True, window=2), scores, step=Step(position=4))
    assert [np.flatnonzero(row == 0).tolist() for row in masked[0]] == [[3, 4], [4, 5], [5, 6]]
    assert np.isneginf(masked[masked != 0]).all()


def test_softmax_of_extremes() -> None:
    x = np.array([[[1e300, 0.0], [-np.inf, -np.inf], [-np.inf, 5.0], [2.0, 2.0]]])
    expected = [[[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.5, 0.5]]]
    np.testing.assert_array_equal(one(ops.Softmax(), x), expected)


def test_silu_of_extremes() -> None:
    found = one(ops.SiLU(), np.array([-1e4, -1.0, 0.0, 1.0, 1e4]))
    e = math.e
    np.testing.assert_allclose(found, [0.0, -1 / (1 + e), 0.0, e / (1 + e), 1e4], rtol=1e-15, atol=0)


def test_gelu_and_squared_relu() -> None:
    x = np.array([-1e3, -1.0, 0.0, 0.5, 1e3])
    # The tanh form is within 3e-4 of x times the normal distribution's probability.
    exact = [value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in x]
    np.testing.assert_allclose(one(ops.GELU(), x), exact, rtol=0, atol=3e-4)
    np.testing.assert_array_equal(one(ops.SquaredReLU(), x), [0, 0, 0, 0.25, 1e6])
    np.testing.assert_array_equal(one(ops.Clamp(0.75), x), [-0.75, -0.75, 0, 0.5, 0.75])


def test_layer_norm_and_norm_of_heads(rng: np.random.Generator) -> None:
    x, weight, bias = rng.standard_normal((3, 6)), rng.standard_normal(6), rng.standard_normal(6)
    deviation = np.sqrt(x.var(axis=1) + 1e-3)[:, None]
    expected = (x - x.mean(axis=1)[:, None]) / deviation
    np.testing.assert_allclose(one(ops.LayerNorm(1e-3, False, False), x), expected, **CLOSE)
    np.testing.assert_allclose(
        one(ops.LayerNorm(1e-3, True, True), x, weight, bias), expected * weight + bias, **CLOSE
    )
    own = rng.standard_normal((2, 3))
    halves = [one(ops.RMSNorm(1e-3), x[:, i : i + 3], own[i // 3]) for i in (0, 3)]
    found = one(ops.HeadNorm(2, 1e-3, centred=False), x, own)
    np.testing.assert_allclose(found, np.concatenate(halves, axis=1), **CLOSE)
    added = one(ops.NormAdd(ops.RMSNorm(1e-3)), bias + x, x, weight)
    np.testing.assert_allclose(added, bias + x + one(ops.RMSNorm(1e-3), x, weight), **CLOSE)


def test_learned_positions_follow_the_step(rng: np.random.Generator) -> None:
    table, positions = rng.standard_normal((5, 3)), rng.standard_normal((8, 3))
    found = one(ops.Embedding(2.0), np.array([4, 0]), table, positions, step=Step(position=3))
    np.testing.assert_allclose(found, 2 * table[[4, 0]] + positions[3:5], **CLOSE)


def test_elementwise_and_select(rng: np.random.Generator) -> None:
    a, b = rng.standard_normal((2, 4, 3))
    np.testing.assert_array_equal(one(ops.Add(), a, b), a + b)
    np.testing.assert_array_equal(one(ops.Mul(), a, b), a * b)
    np.testing.assert_array_equal(one(ops.SelectRow(), a, step=Step(row=2)), a[2:3])


def test_sample_uses_the_settings_and_the_index() -> None:
    logits = np.zeros((1, 1000))
    settings = SamplerSettings(temperature=1.0, seed=5)
    tokens = [int(one(ops.Sample(), logits, step=Step(sampler=settings, index=i))[0]) for i in range(3)]
    assert tokens == [int(philox_uniform(5, index) * 1000) for index in range(3)]
    assert len(set(tokens)) == 3
    assert one(ops.Sample(), logits).tolist() == [0]


@pytest.mark.parametrize("bias", [False, True])
def test_fused_linear_is_its_parts(rng: np.random.Generator, bias: bool) -> None:
    x, norm, gate, up = (rng.standard_normal(shape) for shape in ((3, 6), (6,), (5, 6), (5, 6)))
    biases = tuple(rng.standard_normal((2, 5))) if bias else ()
    normed = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + 1e-2) * norm
    y = [normed @ w.T + (biases[s] if bias else 0) for s, w in enumerate((gate, up))]

    def fused(
        epilogue: ops.Epilogue, *weights: np.ndarray, residual: tuple[np.ndarray, ...] = ()
    ) -> np.ndarray:
        op = ops.FusedLinear(ops.RMSNormPrologue(1e-2), epilogue, len(weights), bias)
        return one(op, x, norm, *weights, *biases[: len(weights)], *residual)

    np.testing.assert_allclose(fused(ops.Store(), gate, up), np.concatenate(y, axis=1), **CLOSE)
    np.testing.assert_allclose(
        fused(ops.Gated(ops.SiLU()), gate, up), y[0] / (1 + np.exp(-y[0])) * y[1], **CLOSE
    )
    other = rng.standard_normal((3, 5))
    np.testing.assert_allclose(fused(ops.Residual(), gate, residual=(other,)), other + y[0], **CLOSE)


def test_an_op_without_meaning_is_refused() -> None:
    with pytest.raises(VerifyError, match=r"^op 'Op' has no reference implementation$"):
        evaluate(ops.Op(), (), Step())


# -- whole graphs


@pytest.mark.parametrize("seed", range(3))
def test_tokens_one_by_one_give_what_they_give_together(seed: int) -> None:
    rng = np.random.default_rng([seed, 3])
    case = imported(random_model(rng), seed)
    tokens = rng.integers(0, case.graph.spec.vocab_size, size=9)
    together, final = reference.run(case.graph, case.weights, tokens)
    rows = [reference.run(case.graph, case.weights, tokens, row=row)[0]["logits"] for row in range(9)]
    state = None
    for position, token in enumerate(tokens):
        outputs, state = reference.run(case.graph, case.weights, [token], position, state)
        np.testing.assert_allclose(outputs["logits"], rows[position], rtol=1e-10, atol=1e-10)
    assert state is not None and state.keys() == final.keys()
    for name in final:
        np.testing.assert_allclose(state[name], final[name], rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(together["logits"], rows[-1])


def test_float32_is_close_to_float64() -> None:
    case = imported(TinyModel())
    tokens = np.arange(10)
    exact, _ = reference.run(case.graph, case.weights, tokens)
    rounded, state = reference.run(case.graph, case.weights, tokens, dtype=np.float32)
    assert rounded["logits"].dtype == np.float32 and state["kv.k.0"].dtype == np.float32
    difference = np.abs(rounded["logits"] - exact["logits"]).max()
    # Sums of at most 96 products of numbers around 1, 20 in a row: far below this, and not exact either.
    assert 0 < difference < 96 * np.finfo(np.float32).eps


def test_keep_gives_values_in_between() -> None:
    case = imported(TinyModel())
    outputs, _ = reference.run(case.graph, case.weights, [5, 6], keep=["embedding", "layer0.attn_norm"])
    assert sorted(outputs) == ["embedding", "layer0.attn_norm", "logits", "token"]
    np.testing.assert_array_equal(outputs["embedding"], case.weights("token_embd.weight")[[5, 6]])
    assert outputs["token"] == [np.argmax(outputs["logits"])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": []}, "tokens have shape [0]; expected one row of at least one id"),
        ({"tokens": [[1]]}, "tokens have shape [1, 1]; expected one row of at least one id"),
        ({"tokens": [1, 288]}, "token ids must lie from 0 to 287, found 1 to 288"),
        ({"tokens": [-1]}, "token ids must lie from 0 to 287, found -1 to -1"),
        ({"tokens": [1], "position": -1}, "position is -1; expected 0 or more"),
        ({"tokens": [1], "row": 1}, "row is 1; expected 0 to 0"),
        ({"tokens": [1], "position": 3}, "state 'kv.k.0' is missing, but the step begins at position 3"),
        (
            {"tokens": [1], "position": 3, "state": {"kv.k.0": np.zeros((2, 2, 16))}},
            "state 'kv.k.0' has shape [2, 2, 16]; expected [2, 3, 16]",
        ),
    ],
)
def test_run_refuses(arguments: dict[str, object], message: str) -> None:
    case = imported(TinyModel())
    with pytest.raises(UsageError) as caught:
        reference.run(case.graph, case.weights, **arguments)
    assert caught.value.message == message


def test_run_refuses_weights_of_another_shape() -> None:
    case = imported(TinyModel())
    with pytest.raises(
        UsageError, match=r"^weight 'token_embd.weight' has shape \[3\]; expected \[288, 64\]$"
    ):
        reference.run(case.graph, lambda name: np.zeros(3), [1])


# -- against llama.cpp (tests/fixtures/reference/make.py)


def test_tiny_llama_gives_the_logits_of_llama_cpp(tmp_path: Path) -> None:
    fixture = np.load(FIXTURES / "llama.npz")
    path = tmp_path / "model.gguf"
    path.write_bytes(fixture["gguf"].tobytes())
    with open_gguf(path) as gguf:
        graph = build_graph(gguf, read_spec(gguf))
        rows = [
            reference.run(graph, gguf.array, fixture["tokens"], row=row)[0]["logits"][0]
            for row in range(len(fixture["tokens"]))
        ]
    assert np.ptp(fixture["logits"]) > 4
    np.testing.assert_allclose(rows, fixture["logits"], rtol=0, atol=2e-5)


@pytest.mark.slow
def test_smollm2_gives_the_logits_of_llama_cpp() -> None:
    expected = json.loads((FIXTURES / "smollm2.json").read_text())
    with open_gguf(require_smollm2()) as gguf:
        graph = build_graph(gguf, read_spec(gguf))
        outputs, _ = reference.run(graph, gguf.array, expected["tokens"], dtype=np.float32)
    logits = outputs["logits"][0].astype(np.float64)
    assert np.argsort(-logits, kind="stable")[:8].tolist() == expected["ids"][:8]
    # float32 on both sides; float64 here came within 7.3e-5 of llama.cpp.
    np.testing.assert_allclose(logits[expected["ids"]], expected["logits"], rtol=0, atol=1e-3)
    log_sum = np.log(np.sum(np.exp(logits - logits.max()))) + logits.max()
    assert abs(log_sum - expected["log_sum_exp"]) < 1e-3
