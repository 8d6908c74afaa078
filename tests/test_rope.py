"""RoPE frequencies and tables against the formulas that transformers publishes, rewritten in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from forgec.errors import ForgeError, GGUFError, UnsupportedModelError
from forgec.frontend import RopeSpec, open_gguf, read_spec
from forgec.frontend.rope import INTERLEAVED_ARCHITECTURES
from tests.gguf_files import TinyModel

EXACT = 1e-13  # relative; float64 with a handful of operations and one power

PLAIN = RopeSpec(
    dimension_count=64,
    freq_base=10000.0,
    interleaved=True,
    scaling="none",
    factor=1.0,
    original_context_length=2048,
    attention_factor=1.0,
    beta_fast=32.0,
    beta_slow=1.0,
    freq_factors=None,
)


def random_spec(rng: np.random.Generator, **changes: Any) -> RopeSpec:
    return replace(
        PLAIN,
        dimension_count=2 * int(rng.integers(3, 65)),
        freq_base=float(rng.choice([10000.0, 5e5, 1e6, 12345.0])),
        original_context_length=int(rng.choice([1000, 4096, 8192, 32768])),
        **changes,
    )


def plain_frequencies(spec: RopeSpec) -> np.ndarray:
    """1 / base^(2i/d), one scalar at a time."""
    return np.array(
        [1.0 / spec.freq_base ** (i / spec.dimension_count) for i in range(0, spec.dimension_count, 2)]
    )


def llama3_frequencies(spec: RopeSpec, low: float, high: float) -> np.ndarray:
    """transformers' _compute_llama3_parameters: three bands by wavelength."""
    scaled = []
    for frequency in plain_frequencies(spec):
        wavelength = 2 * math.pi / frequency
        if wavelength < spec.original_context_length / high:
            scaled.append(frequency)
        elif wavelength > spec.original_context_length / low:
            scaled.append(frequency / spec.factor)
        else:
            smooth = (spec.original_context_length / wavelength - low) / (high - low)
            scaled.append((1 - smooth) * frequency / spec.factor + smooth * frequency)
    return np.array(scaled)


def yarn_frequencies(spec: RopeSpec) -> np.ndarray:
    """transformers' _compute_yarn_parameters: a ramp over the dimensions between two corrections."""
    dim, base, original = spec.dimension_count, spec.freq_base, spec.original_context_length

    def correction(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(correction(spec.beta_fast)), 0)
    high = min(math.ceil(correction(spec.beta_slow)), dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
    extrapolation = 1 - ramp
    plain = plain_frequencies(spec)
    return plain / spec.factor * (1 - extrapolation) + plain * extrapolation


class TestFrequencies:
    def test_unscaled(self) -> None:
        spec = random_spec(np.random.default_rng())
        np.testing.assert_allclose(spec.inverse_frequencies(), plain_frequencies(spec), rtol=EXACT)

    def test_linear(self) -> None:
        rng = np.random.default_rng()
        spec = random_spec(rng, scaling="linear", factor=float(rng.uniform(1.1, 16)))
        expected = plain_frequencies(spec) / spec.factor
        np.testing.assert_allclose(spec.inverse_frequencies(), expected, rtol=EXACT)

    def test_llama3_from_parameters(self) -> None:
        rng = np.random.default_rng()
        low, high = float(rng.uniform(0.5, 2)), float(rng.uniform(3, 8))
        factor = float(rng.choice([8.0, 32.0]))
        spec = random_spec(rng, scaling="llama3", factor=factor, beta_slow=low, beta_fast=high)
        expected = llama3_frequencies(spec, low, high)
        np.testing.assert_allclose(spec.inverse_frequencies(), expected, rtol=EXACT)

    def test_llama3_has_all_three_bands(self) -> None:
        spec = replace(PLAIN, dimension_count=128, freq_base=5e5, original_context_length=8192)
        spec = replace(spec, scaling="llama3", factor=8.0, beta_slow=1.0, beta_fast=4.0)
        slowed = plain_frequencies(spec) / spec.inverse_frequencies()
        assert slowed[0] == 1.0 and slowed[-1] == pytest.approx(8.0)
        assert np.any((slowed > 1.01) & (slowed < 7.99))

    def test_llama3_from_the_factors_tensor(self) -> None:
        """What llama.cpp does: the converter wrote unscaled / scaled into 'rope_freqs.weight'."""
        rng = np.random.default_rng()
        spec = random_spec(rng, scaling="llama3", factor=8.0, beta_slow=1.0, beta_fast=4.0)
        wanted = spec.inverse_frequencies()
        factors = (plain_frequencies(spec) / wanted).astype(np.float32)
        found = replace(spec, freq_factors="rope_freqs.weight", factor=1.0).inverse_frequencies(factors)
        np.testing.assert_allclose(found, wanted, rtol=2**-24)  # the factors are float32

    @pytest.mark.parametrize("scaling", ["none", "linear", "yarn"])
    def test_factors_divide_before_any_scaling(self, scaling: str) -> None:
        rng = np.random.default_rng()
        spec = random_spec(rng, scaling=scaling, factor=4.0)
        factors = rng.uniform(0.5, 8, spec.dimension_count // 2)
        found = replace(spec, freq_factors="rope_freqs.weight").inverse_frequencies(factors)
        np.testing.assert_allclose(found, spec.inverse_frequencies() / factors, rtol=EXACT)

    def test_yarn(self) -> None:
        rng = np.random.default_rng()
        fast, slow = float(rng.uniform(16, 64)), float(rng.uniform(0.5, 4))
        factor = float(rng.uniform(1.5, 40))
        spec = random_spec(rng, scaling="yarn", factor=factor, beta_fast=fast, beta_slow=slow)
        np.testing.assert_allclose(spec.inverse_frequencies(), yarn_frequencies(spec), rtol=EXACT)

    def test_yarn_whose_corners_meet(self) -> None:
        """A base so large that every pair but the first is slow: the ramp has no width."""
        spec = replace(PLAIN, dimension_count=6, freq_base=1e15, scaling="yarn", factor=4.0)
        np.testing.assert_allclose(spec.inverse_frequencies(), yarn_frequencies(spec), rtol=EXACT)

    def test_an_unknown_scaling(self) -> None:
        with pytest.raises(UnsupportedModelError) as caught:
            replace(PLAIN, scaling="dynamic").inverse_frequencies()
        assert caught.value.message == "rope scaling 'dynamic' is not supported"

    @pytest.mark.parametrize(
        ("name", "factors", "message"),
        [
            ("f", None, "the rope frequencies need the values of tensor 'f'"),
            (None, np.ones(32), "rope frequency factors were given for a model that has no such tensor"),
            ("f", np.ones(31), "tensor 'f' has shape [31], expected [32]"),
            ("f", np.zeros(32), "tensor 'f' must hold positive numbers"),
            ("f", np.full(32, np.nan), "tensor 'f' must hold positive numbers"),
        ],
    )
    def test_factors_that_do_not_fit(
        self, name: str | None, factors: np.ndarray | None, message: str
    ) -> None:
        with pytest.raises(GGUFError) as caught:
            replace(PLAIN, freq_factors=name).inverse_frequencies(factors)
        assert caught.value.message == message


class TestTable:
    @pytest.mark.parametrize("scaling", ["none", "linear", "llama3", "yarn"])
    def test_cosines_and_sines(self, scaling: str) -> None:
        rng = np.random.default_rng()
        spec = random_spec(rng, scaling=scaling, factor=4.0, attention_factor=float(rng.uniform(0.5, 1.5)))
        context = int(rng.integers(1, 300))
        table = spec.table(context)
        assert table.dtype == np.float32 and table.shape == (context, spec.dimension_count // 2, 2)
        # YaRN's temperature: 0.1 ln(s) + 1, times the model's own factor.
        magnitude = spec.attention_factor * ((0.1 * math.log(4.0) + 1.0) if scaling == "yarn" else 1.0)
        frequencies = spec.inverse_frequencies()
        for position in {0, context // 2, context - 1}:
            for pair in {0, len(frequencies) // 2, len(frequencies) - 1}:
                angle = position * frequencies[pair]
                expected = [magnitude * math.cos(angle), magnitude * math.sin(angle)]
                np.testing.assert_allclose(table[position, pair], expected, rtol=2**-23, atol=1e-12)

    def test_long_contexts_are_computed_in_parts(self) -> None:
        """Each part continues where the last ended, and late angles keep float64's precision."""
        spec = replace(PLAIN, dimension_count=4)
        table = spec.table(10_001)
        for position in (4095, 4096, 8191, 8192, 10_000):
            np.testing.assert_allclose(
                table[position, 0], [math.cos(position), math.sin(position)], atol=1e-7
            )

    def test_factors_reach_the_table(self) -> None:
        spec = replace(PLAIN, freq_factors="rope_freqs.weight", scaling="llama3")
        factors = np.full(32, 2.0)
        np.testing.assert_array_equal(spec.table(9, factors)[::2], PLAIN.table(5))

    def test_rotation_keeps_the_length_of_a_pair(self) -> None:
        table = PLAIN.table(50).astype(np.float64)
        np.testing.assert_allclose(np.sum(table**2, axis=-1), 1.0, atol=3e-7)


def rope_of(
    folder: Path,
    scaling: dict[str, Any],
    architecture: str = "llama",
    tensors: dict[str, np.ndarray] | None = None,
) -> RopeSpec:
    """The rope of a tiny model (16 rotated values, context 128) with '{arch}.rope.*' keys."""
    metadata = {f"{architecture}.rope.{key}": value for key, value in scaling.items()}
    tiny = TinyModel(architecture, metadata=metadata, tensors=tensors or {})
    with open_gguf(tiny.write(folder / "m.gguf")) as model:
        return read_spec(model).rope


class TestReading:
    FACTORS: ClassVar = {"rope_freqs.weight": np.linspace(1, 8, 8, dtype=np.float32)}

    def test_partial_rotation(self, tmp_path: Path) -> None:
        rope = rope_of(tmp_path, {"dimension_count": 6, "freq_base": 5e5})
        assert (rope.dimension_count, rope.freq_base, rope.scaling) == (6, 5e5, "none")

    def test_llama_pairs_neighbours_and_qwen_halves(self, tmp_path: Path) -> None:
        assert rope_of(tmp_path, {}, "llama").interleaved
        assert not rope_of(tmp_path, {}, "qwen2").interleaved
        assert not rope_of(tmp_path, {}, "qwen3").interleaved
        assert {"llama", "granite", "smollm3", "glm4", "chatglm"} <= INTERLEAVED_ARCHITECTURES
        assert not {"gemma3", "phi3", "olmo2", "gpt-oss"} & INTERLEAVED_ARCHITECTURES

    @pytest.mark.parametrize("scaling", [{"scaling.factor": 4.0}, {"scale_linear": 4.0}])
    def test_a_factor_without_a_type_is_linear(self, tmp_path: Path, scaling: dict[str, Any]) -> None:
        rope = rope_of(tmp_path, scaling)
        assert (rope.scaling, rope.factor) == ("linear", 4.0)

    @pytest.mark.parametrize(
        "scaling",
        [
            {"scaling.type": "none", "scaling.factor": 4.0},
            {"scaling.type": "linear", "scaling.factor": 1.0},
            {"scaling.type": "linear", "scaling.factor": 0.0},
        ],
    )
    def test_no_scaling(self, tmp_path: Path, scaling: dict[str, Any]) -> None:
        rope = rope_of(tmp_path, scaling)
        assert (rope.scaling, rope.factor) == ("none", 1.0)

    def test_yarn(self, tmp_path: Path) -> None:
        scaling = {"type": "yarn", "factor": 4.0, "original_context_length": 32, "attn_factor": 1.5}
        corners = {"yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0}
        rope = rope_of(tmp_path, {f"scaling.{k}": v for k, v in (scaling | corners).items()})
        assert (rope.scaling, rope.factor, rope.original_context_length) == ("yarn", 4.0, 32)
        assert (rope.beta_fast, rope.beta_slow, rope.attention_factor) == (16.0, 2.0, 1.5)
        assert rope.magnitude == pytest.approx(1.5 * (1 + 0.1 * math.log(4)), rel=EXACT)

    def test_yarn_defaults(self, tmp_path: Path) -> None:
        rope = rope_of(tmp_path, {"scaling.type": "yarn", "scaling.factor": 2.0})
        assert (rope.beta_fast, rope.beta_slow, rope.attention_factor) == (32.0, 1.0, 1.0)
        assert rope.original_context_length == 128

    def test_the_log_multiplier_cancels_the_magnitude(self, tmp_path: Path) -> None:
        """DeepSeek and Mistral: mscale / mscale_all_dim, which is 1 when both are 1."""
        scaling = {"scaling.type": "yarn", "scaling.factor": 40.0, "scaling.yarn_log_multiplier": 1.0}
        assert rope_of(tmp_path, scaling).magnitude == pytest.approx(1.0, rel=EXACT)

    def test_the_factors_tensor_makes_llama3(self, tmp_path: Path) -> None:
        rope = rope_of(tmp_path, {}, tensors=self.FACTORS)
        assert (rope.scaling, rope.freq_factors) == ("llama3", "rope_freqs.weight")
        found = rope.inverse_frequencies(self.FACTORS["rope_freqs.weight"])
        expected = plain_frequencies(rope) / self.FACTORS["rope_freqs.weight"].astype(np.float64)
        np.testing.assert_allclose(found, expected, rtol=EXACT)

    def test_the_factors_tensor_beside_another_scaling(self, tmp_path: Path) -> None:
        rope = rope_of(tmp_path, {"scaling.factor": 2.0}, tensors=self.FACTORS)
        assert (rope.scaling, rope.freq_factors) == ("linear", "rope_freqs.weight")

    def test_llama3_from_parameters(self, tmp_path: Path) -> None:
        scaling = {"type": "llama3", "factor": 8.0, "original_context_length": 64, "high_freq_factor": 5.0}
        rope = rope_of(tmp_path, {f"scaling.{k}": v for k, v in scaling.items()})
        assert (rope.scaling, rope.factor, rope.original_context_length) == ("llama3", 8.0, 64)
        expected = llama3_frequencies(rope, low=1.0, high=5.0)
        np.testing.assert_allclose(rope.inverse_frequencies(), expected, rtol=EXACT)

    @pytest.mark.parametrize(
        ("scaling", "kind", "message"),
        [
            (
                {"type": "dynamic"},
                UnsupportedModelError,
                "metadata key 'llama.rope.scaling.type' is 'dynamic'; "
                "supported are 'none', 'linear', 'llama3', 'yarn' and 'longrope'",
            ),
            (
                {"type": "yarn", "yarn_ext_factor": 0.5},
                UnsupportedModelError,
                "metadata key 'llama.rope.scaling.yarn_ext_factor' is 0.5; "
                "only the default of 1 is supported",
            ),
            (
                {"type": "yarn", "factor": 0.5},
                GGUFError,
                "'llama.rope.scaling.factor' must be at least 1 for YaRN, found 0.5",
            ),
            (
                {"type": "yarn", "yarn_beta_fast": 1.0},
                GGUFError,
                "metadata key 'llama.rope.scaling.yarn_beta_fast' is 1 and must be more than "
                "'llama.rope.scaling.yarn_beta_slow', which is 1",
            ),
            (
                {"type": "llama3", "factor": 8.0},
                GGUFError,
                "'m.gguf' lacks the metadata key 'llama.rope.scaling.original_context_length'",
            ),
            (
                {"original_context_length": 0},
                GGUFError,
                "metadata key 'llama.rope.scaling.original_context_length' "
                "must be from 1 to 1073741824, found 0",
            ),
        ],
    )
    def test_refused_metadata(
        self, tmp_path: Path, scaling: dict[str, Any], kind: type[ForgeError], message: str
    ) -> None:
        with pytest.raises(kind) as caught:
            rope_of(tmp_path, {f"scaling.{k}": v for k, v in scaling.items()})
        assert type(caught.value) is kind and caught.value.message == message

    def test_factors_of_another_length(self, tmp_path: Path) -> None:
        with pytest.raises(GGUFError) as caught:
            rope_of(tmp_path, {}, tensors={"rope_freqs.weight": np.ones(9, np.float32)})
        assert caught.value.message == (
            "tensor 'rope_freqs.weight' has shape [9], expected [8]: half of 'llama.rope.dimension_count'"
        )

    @pytest.mark.parametrize("kind", ["long", "short"])
    def test_long_rope_needs_both_tensors(self, tmp_path: Path, kind: str) -> None:
        name = f"rope_factors_{kind}.weight"
        with pytest.raises(GGUFError) as caught:
            rope_of(tmp_path, {}, tensors={name: np.ones(8, np.float32)})
        other = name.replace(kind, {"long": "short", "short": "long"}[kind])
        assert caught.value.message == f"tensor '{other}' of [8] is missing; LongRoPE needs both"

    def test_long_rope_chooses_its_factors_by_the_context(self, tmp_path: Path) -> None:
        tensors = {
            f"rope_factors_{kind}.weight": np.full(8, f, np.float32)
            for kind, f in (("short", 2), ("long", 4))
        }
        scaling = {
            "scaling.type": "longrope",
            "scaling.original_context_length": 32,
            "scaling.attn_factor": 1.5,
        }
        rope = rope_of(tmp_path, scaling, tensors=tensors)
        assert rope.factors_tensor(32) == "rope_factors_short.weight"
        assert rope.factors_tensor(33) == "rope_factors_long.weight"
        assert (rope.scaling, rope.magnitude) == ("none", 1.5)
        plain = rope.local(rope.freq_base)
        np.testing.assert_allclose(
            rope.inverse_frequencies(np.full(8, 4.0)), plain.inverse_frequencies() / 4, rtol=EXACT
        )
        assert plain.factors_tensor(33) is None and plain.magnitude == 1.0
