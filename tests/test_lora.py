"""LoRA adapters: merged logits against llama.cpp with the adapter, and every way an adapter can be wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forgec.errors import GGUFError, UnsupportedModelError, UsageError
from forgec.frontend.gguf import open_gguf
from forgec.golden.llama_cpp import LlamaCpp
from forgec.package.loader import loaded
from forgec.quantise import AdapterFile, EditedFile, WeightOptions, open_model, parse_adapter
from tests.cli_files import CPU, Forgec
from tests.gguf_files import Encoded, TinyModel, write_gguf

TOKENS = [5, 9, 200, 31, 77]
TINY = TinyModel(block_count=1)


def write_adapter(
    path: Path, tensors: Mapping[str, np.ndarray | Encoded], alpha: float | None = 6.0, **metadata: Any
) -> Path:
    values: dict[str, Any] = {
        "general.architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": alpha,
        **{key.replace("__", "."): value for key, value in metadata.items()},
    }
    return write_gguf(path, {k: v for k, v in values.items() if v is not None}, tensors)


def factors(
    rng: np.random.Generator, shapes: Mapping[str, tuple[int, ...]], names: list[str], rank: int
) -> dict[str, np.ndarray]:
    """Random factors of some matrices, as convert_lora_to_gguf.py lays them out."""
    made = {}
    for name in names:
        rows, cols = shapes[name]
        a, b = (rows, rank) if name == "token_embd.weight" else (rank, cols), (rows, rank)
        if name == "token_embd.weight":
            b = (cols, rank)
        made[name + ".lora_a"] = rng.standard_normal(a).astype(np.float32) * np.float32(0.2)
        made[name + ".lora_b"] = rng.standard_normal(b).astype(np.float32) * np.float32(0.2)
    return made


def logits_of(run: Forgec, path: Path, output: Path, *adapters: AdapterFile) -> tuple[np.ndarray, str]:
    """Logits of a package made on the command line, and what that said."""
    loras = [word for a in adapters for word in ("--lora", f"{a.path}:{a.scale}")]
    said = run(
        "compile", path, "--arch", CPU, "-o", output, "--math", "exact", "--ctx", "32", "--kv", "f32", *loras
    )
    assert (said.code, said.err) == (0, "")
    with loaded(output) as model:
        return np.asarray(model.logits(TOKENS)), said.out


def test_merged_logits_are_llama_cpps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two adapters of different ranks and scales over every kind of matrix, F16 factors among them."""
    rng = np.random.default_rng()
    path = TINY.write(tmp_path / "m.gguf", rng)
    shapes = {n: s for n, s in TINY.shapes().items() if len(s) > 1}
    first = factors(rng, shapes, list(shapes), 4)
    first = {n: t.astype(np.float16) if "ffn" in n else t for n, t in first.items()}
    second = factors(rng, shapes, ["blk.0.attn_q.weight", "blk.0.ffn_down.weight"], 7)
    adapters = (
        AdapterFile(write_adapter(tmp_path / "a.gguf", first), 0.7),
        AdapterFile(write_adapter(tmp_path / "b.gguf", second, alpha=None), -1.3),
    )
    run = Forgec(capsys)
    plain, said = logits_of(run, path, tmp_path / "plain")
    assert "adapter" not in said
    ours, said = logits_of(run, path, tmp_path / "merged", *adapters)
    assert "  9 tensors F32 -> F32, 9 with an adapter merged: relative RMS error 0\n" in said
    record = json.loads((tmp_path / "merged/manifest.json").read_text())["weights"]["changes"]
    assert record["adapters"] == [{"file": "a.gguf", "scale": 0.7}, {"file": "b.gguf", "scale": -1.3}]
    with LlamaCpp(path, context=32, kv="f32") as oracle:
        np.testing.assert_allclose(plain, oracle.decode(TOKENS, every=True), atol=1e-3)
        oracle.reset()
        oracle.set_adapters([(a.path, a.scale) for a in adapters])
        theirs = oracle.decode(TOKENS, every=True)
    assert np.abs(theirs - plain).max() > 0.5, "the adapters change nothing"
    np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_merging_equals_the_formula_band_by_band(tmp_path: Path) -> None:
    """Experts, a replaced vector and a quantised matrix; rows asked for in pieces across matrices."""
    rng = np.random.default_rng()
    experts = rng.standard_normal((3, 10, 32)).astype(np.float32)
    quantised = TinyModel(block_count=1, quant="Q8_0", tensors={"blk.0.experts.weight": experts})
    path = quantised.write(tmp_path / "m.gguf", rng)
    a, b = rng.standard_normal((3, 2, 32)), rng.standard_normal((3, 10, 2))
    norm = rng.standard_normal(64).astype(np.float32)
    given = factors(rng, TINY.shapes(), ["blk.0.attn_q.weight"], 3)
    tensors = {
        "blk.0.experts.weight.lora_a": a.astype(np.float32),
        "blk.0.experts.weight.lora_b": b.astype(np.float32),
        "blk.0.attn_norm.weight": norm,
        **given,
    }
    adapter = write_adapter(tmp_path / "a.gguf", tensors)
    with (
        open_gguf(path) as base,
        open_model(path, WeightOptions(adapters=(AdapterFile(adapter, 0.5),))) as model,
    ):
        expected = experts + 0.5 * 6.0 / 2 * (b @ a)
        pieces = [model.array_rows("blk.0.experts.weight", i, min(7, 30 - i)) for i in range(0, 30, 7)]
        np.testing.assert_allclose(np.concatenate(pieces), expected.reshape(30, 32), atol=1e-4)
        before = base.array("blk.0.attn_norm.weight")
        np.testing.assert_allclose(model.array("blk.0.attn_norm.weight"), (before + norm) / 2, atol=1e-6)
        name = "blk.0.attn_q.weight"
        change = 0.5 * 6.0 / 3 * (given[name + ".lora_b"] @ given[name + ".lora_a"])
        merged = base.array(name) + change
        assert model.tensors[name].type.name == "Q8_0"
        assert np.abs(model.array(name) - merged).max() < 0.006 * np.abs(merged).max()
        assert np.array_equal(model.bytes_of("blk.0.attn_k.weight"), base.bytes_of("blk.0.attn_k.weight"))
        assert isinstance(model, EditedFile)
        model.bytes_of("blk.0.experts.weight")
        said = [str(change) for change in model.changes()]
        assert said[0].startswith("2 tensors F32 -> F32, 2 with an adapter merged: relative RMS error 0")
        assert said[1].startswith("1 tensor Q8_0 -> Q8_0, 1 with an adapter merged: relative RMS error 0.00")


def test_a_type_that_cannot_be_written_becomes_q4_k(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    tiny = TinyModel(block_count=1, embedding_length=256, head_count=8, key_length=32, quant="IQ4_XS",
                     quants={"blk.0.ffn_down.weight": "F16"})  # fmt: skip
    path = tiny.write(tmp_path / "m.gguf", rng)
    adapter = write_adapter(tmp_path / "a.gguf", factors(rng, tiny.shapes(), ["blk.0.ffn_up.weight"], 2))
    with open_model(path, WeightOptions(adapters=(AdapterFile(adapter),))) as model:
        assert isinstance(model, EditedFile)
        (change,) = model.changes()
        assert (change.after, change.reason) == ("Q4_K", "IQ4_XS cannot be written")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"general__type": "model"}, "'general.type' is 'model', expected 'adapter'"),
    "kind": ({"adapter__type": "ia3"}, "'adapter.type' is 'ia3', expected 'lora'"),
    "architecture": ({"general__architecture": "qwen2"}, "architecture 'qwen2', the model is 'llama'"),
    "alpha": ({"adapter__lora__alpha": "six"}, "'adapter.lora.alpha' of 'a.gguf' must be a finite number"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_metadata(tmp_path: Path, case: str) -> None:
    metadata, message = WRONG[case]
    path = TINY.write(tmp_path / "m.gguf")
    tensors = factors(np.random.default_rng(), TINY.shapes(), ["blk.0.ffn_up.weight"], 2)
    adapter = write_adapter(tmp_path / "a.gguf", tensors, **metadata)
    with pytest.raises(GGUFError) as caught:
        open_model(path, WeightOptions(adapters=(AdapterFile(adapter),)))
    assert message in caught.value.message


def test_activated_adapters_are_refused(tmp_path: Path) -> None:
    path = TINY.write(tmp_path / "m.gguf")
    tensors = factors(np.random.default_rng(), TINY.shapes(), ["blk.0.ffn_up.weight"], 2)
    adapter = write_adapter(tmp_path / "a.gguf", tensors, adapter__alora__invocation_tokens=[1, 2])
    with pytest.raises(UnsupportedModelError, match="activated LoRA"):
        open_model(path, WeightOptions(adapters=(AdapterFile(adapter),)))


def refused(tmp_path: Path, tensors: dict[str, np.ndarray]) -> str:
    path = TINY.write(tmp_path / "m.gguf")
    adapter = write_adapter(tmp_path / "a.gguf", tensors)
    with pytest.raises(GGUFError) as caught:
        open_model(path, WeightOptions(adapters=(AdapterFile(adapter),)))
    return caught.value.message


def test_wrong_tensors(tmp_path: Path) -> None:
    good = factors(np.random.default_rng(), TINY.shapes(), ["blk.0.ffn_up.weight"], 2)
    up = "blk.0.ffn_up.weight"
    stray = {f"blk.{i}.ffn_up.weight.lora_a": good[up + ".lora_a"] for i in range(1, 8)}
    assert (
        "does not have: 'blk.1.ffn_up.weight.lora_a', 'blk.2.ffn_up.weight.lora_a', "
        "'blk.3.ffn_up.weight.lora_a', 'blk.4.ffn_up.weight.lora_a', 'blk.5.ffn_up.weight.lora_a' and 2 more"
    ) in refused(tmp_path, {**good, **stray})
    assert f"has '{up}.lora_b' but not '{up}.lora_a'" in refused(
        tmp_path, {up + ".lora_b": good[up + ".lora_b"]}
    )
    swapped = {up + ".lora_a": good[up + ".lora_b"], up + ".lora_b": good[up + ".lora_a"]}
    assert (
        f"the factors of '{up}' have shapes [96, 2] and [2, 64], expected [64, 64] and [96, 64] "
        "for the model's [96, 64]"
    ) in refused(tmp_path, swapped)
    whole = np.ones((96, 64), np.float32)
    assert "replaces the whole matrix" in refused(tmp_path, {up: whole})
    short = {"blk.0.attn_norm.weight": np.ones(32, np.float32)}
    assert "has shape [32], the model's [64]" in refused(tmp_path, short)


def test_scales_on_the_command_line(tmp_path: Path) -> None:
    assert parse_adapter("a.gguf") == AdapterFile(Path("a.gguf"), 1.0)
    assert parse_adapter("a.gguf:-0.25") == AdapterFile(Path("a.gguf"), -0.25)
    assert parse_adapter("C:/a.gguf") == AdapterFile(Path("C:/a.gguf"), 1.0)
    odd = tmp_path / "a:2"
    odd.touch()
    assert parse_adapter(str(odd)) == AdapterFile(odd, 1.0)
    with pytest.raises(UsageError, match="'nan'"):
        parse_adapter("a.gguf:nan")
