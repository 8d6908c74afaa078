"""Models with random weights: blocks, quantisation mixes and files, against gguf-py and llama.cpp."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from forgec.errors import UnsupportedModelError, UsageError
from forgec.frontend import open_gguf
from forgec.frontend.architectures import build_graph
from forgec.frontend.quant import QUANT_BY_NAME, dequantize
from forgec.frontend.spec import read_spec
from forgec.golden.llama_cpp import LlamaCpp
from forgec.plan.formats import FORMATS
from forgec.reference.interpreter import run
from forgec.synth.blocks import PLAIN, RANDOM_BLOCKS, random_rows
from forgec.synth.mixes import MIXES, TensorPlace, tensor_type
from forgec.synth.shapes import SHAPES, RopeFactors, find_shape
from forgec.synth.vocabulary import vocabulary
from forgec.synth.write import planned_tensors, write_model

#: A shape that takes every type, small enough to run everywhere.
SMALL = replace(
    find_shape("Llama-3.2-1B"), name="small", layers=1, embedding=256, feed_forward=512, heads=4,
    kv_heads=2, head_length=64, vocab=600, context=128,
)  # fmt: skip


@pytest.mark.parametrize("kind", [*PLAIN, *RANDOM_BLOCKS])
def test_random_blocks_decode_to_what_was_asked_for(kind: str) -> None:
    rng = np.random.default_rng()
    cols = 256 * int(rng.integers(1, 20))
    rows = 400_000 // cols + 1
    wanted = float(cols**-0.5)
    raw = random_rows(kind, rows, cols, wanted, rng)
    assert raw.shape == (rows, QUANT_BY_NAME[kind].nbytes(cols))
    values = dequantize(raw, kind, rows, cols)
    assert np.isfinite(values).all()
    # The spread of the scales adds 1 %; a power of two as the scale leaves up to half an octave, an 8-bit
    # float below its smallest normal number up to half a step of three or four.
    assert values.std() == pytest.approx(wanted, rel={"MXFP4": 0.45, "NVFP4": 0.2}.get(kind, 0.05))
    # Formats without a middle level are off by half a step, two-bit ones by more.
    assert abs(values.mean()) < 0.5 * wanted
    assert len(np.unique(values)) > 2


def test_every_format_with_kernels_has_a_random_form() -> None:
    assert {name.upper() for name in FORMATS} <= {*PLAIN, *RANDOM_BLOCKS}


def test_random_blocks_refuse_what_they_cannot_be() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(UnsupportedModelError, match="no random form of type 'Q8_K'"):
        random_rows("Q8_K", 1, 256, 1.0, rng)
    with pytest.raises(UnsupportedModelError, match="576 columns are no whole Q4_K blocks of 256"):
        random_rows("Q4_K", 1, 576, 1.0, rng)


#: Sizes in bytes of the published files of Qwen3-0.6B (huggingface.co/unsloth/Qwen3-0.6B-GGUF), all with a
#: header of 5,952,192 bytes; only mixes whose rules do not depend on an importance matrix.
QWEN3_FILES = {
    "Q8_0": 639_447_744, "Q6_K": 495_107_776, "Q5_K_M": 444_415_680, "Q5_K_S": 436_616_896,
    "Q4_K_M": 396_705_472, "Q4_K_S": 383_270_592, "Q3_K_M": 347_127_488, "Q3_K_S": 323_075_776,
    "Q2_K": 296_238_784,
}  # fmt: skip


@pytest.mark.parametrize("mix", QWEN3_FILES)
def test_mixes_have_the_size_of_published_files(mix: str) -> None:
    total = sum(t.bytes for t in planned_tensors(find_shape("Qwen3-0.6B"), mix))
    assert total == QWEN3_FILES[mix] - 5_952_192


@pytest.mark.parametrize(
    ("name", "mix", "megabytes"),
    # Bytes of weights per token as the peer's loader reports them, the embedding of untied models left out.
    [("Llama-3.2-1B", "Q4_0", 763), ("Llama-3.2-1B", "Q4_K_M", 800), ("Llama-3.2-1B", "Q8_0", 1313),
     ("Llama-3.2-1B", "F16", 2472), ("Llama-3.1-8B", "Q4_0", 4360), ("Llama-3.1-8B", "Q4_K_M", 4620),
     ("Llama-3.1-8B", "Q8_0", 7970)],
)  # fmt: skip
def test_mixes_have_the_bytes_that_a_token_reads(name: str, mix: str, megabytes: int) -> None:
    shape = find_shape(name)
    read = [t for t in planned_tensors(shape, mix) if shape.tied or t.tensor.role != "token_embd"]
    assert sum(t.bytes for t in read) / 1e6 == pytest.approx(megabytes, rel=2e-3)


def test_rows_that_do_not_divide_fall_back() -> None:
    """SmolLM2's rows of 576: llama.cpp reports that 180 of the 272 tensors of its Q4_K_M file fell back."""
    embedding, *others = (t.kind for t in planned_tensors(find_shape("SmolLM2-135M"), "Q4_K_M"))
    assert embedding == "Q8_0" and len(others) == 271
    assert sum(kind in ("Q5_0", "Q8_0") for kind in others) == 180
    place = TensorPlace("ffn_up", 0, 288)
    expected = {"Q2_K": "IQ4_NL", "Q3_K_S": "IQ4_NL", "IQ4_XS": "IQ4_NL", "Q4_K_S": "Q5_0", "Q5_K_S": "Q5_1",
                "Q6_K": "Q8_0", "Q4_0": "Q4_0"}  # fmt: skip
    assert {mix: tensor_type(mix, place, 8, 1, tied=False) for mix in expected} == expected
    assert tensor_type("Q4_0", replace(place, cols=40), 8, 1, tied=False) == "F16"


@pytest.mark.parametrize("name", SHAPES)
def test_every_mix_of_every_shape_can_be_written(name: str) -> None:
    for mix in MIXES:
        for planned in planned_tensors(replace(SHAPES[name], layers=9), mix):
            quant = QUANT_BY_NAME[planned.kind]
            assert planned.tensor.shape[-1] % quant.block == 0, (mix, planned)
            assert not planned.tensor.is_matrix or planned.kind in {*PLAIN, *RANDOM_BLOCKS}, (mix, planned)


def test_an_unknown_mix_is_refused() -> None:
    with pytest.raises(UsageError, match="no quantisation mix 'Q9'"):
        tensor_type("Q9", TensorPlace("ffn_up", 0, 256), 8, 1, tied=False)


def test_file_types_are_llama_cpps() -> None:
    for mix in MIXES.values():
        names = {f"MOSTLY_{mix.name}", f"ALL_{mix.name}"}
        assert gguf.LlamaFileType(mix.file_type).name in names


def test_rope_factors_are_llama_3s() -> None:
    """The values of the published Llama 3.2 files: 1 up to index 14, 32 from index 18 on (64 dimensions)."""
    factors = RopeFactors(32.0).values(64, 500000.0)
    assert len(factors) == 32 and factors[:15] == [1.0] * 15 and factors[18:] == [32.0] * 14
    assert 1.0 < factors[15] < factors[16] < factors[17] < 32.0


#: Parameters as the safetensors files of ``Shape.source`` count them.
PARAMETERS = {
    "SmolLM2-135M": 134_515_008, "SmolLM2-360M": 361_821_120, "SmolLM2-1.7B": 1_711_376_384,
    "Llama-3.2-1B": 1_235_814_400, "Llama-3.2-3B": 3_212_749_824, "Llama-3.1-8B": 8_030_261_248,
    "Qwen2.5-0.5B": 494_032_768, "Qwen2.5-1.5B": 1_543_714_304, "Qwen2.5-3B": 3_085_938_688,
    "Qwen2.5-7B": 7_615_616_512, "Qwen3-0.6B": 596_049_920, "Qwen3-1.7B": 1_720_574_976,
    "Qwen3-4B": 4_022_468_096, "Qwen3-8B": 8_190_735_360, "Mistral-7B": 7_248_023_552,
    "TinyLlama-1.1B": 1_100_048_384, "Gemma-2-2B": 2_614_341_888,
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_count_the_published_parameters(name: str) -> None:
    shape = SHAPES[name]
    total = sum(int(np.prod(t.shape)) for t in shape.tensors() if t.role != "rope_freqs")
    assert total == PARAMETERS[name]


def test_a_vocabulary_needs_room() -> None:
    assert len(vocabulary(260, "gpt-2")["tokenizer.ggml.tokens"]) == 260
    with pytest.raises(UsageError, match="vocabulary of 259 tokens is too small"):
        vocabulary(259, "gpt-2")


@pytest.mark.parametrize(("mix", "tolerance"), [("F32", 2e-3), ("Q8_0", 0.05)])
def test_llama_cpp_reads_the_file_and_agrees(mix: str, tolerance: float, tmp_path: Path) -> None:
    """The same logits from llama.cpp and from the reference; llama.cpp rounds activations to int8 at Q8_0."""
    seed = int(np.random.default_rng().integers(1 << 30))
    write_model(tmp_path / "small.gguf", SMALL, mix, seed=seed)
    tokens = [int(t) for t in np.random.default_rng(seed).integers(3, SMALL.vocab, 9)]
    with LlamaCpp(tmp_path / "small.gguf", context=64, kv="f32") as oracle:
        expected = oracle.decode(tokens)[0]
    with open_gguf(tmp_path / "small.gguf") as file:
        outputs, _ = run(build_graph(file, read_spec(file)), file.array, tokens)
    found = outputs["logits"].reshape(-1)
    assert 0.2 < expected.std() < 5
    assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(expected), f"seed {seed}"


def test_files_are_reproducible_and_whole(tmp_path: Path) -> None:
    digests = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        size = write_model(tmp_path / name, SMALL, "Q4_K_M", seed=seed)
        assert (tmp_path / name).stat().st_size == size
        digests.append(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert digests[0] == digests[1] != digests[2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


def test_a_sparse_file_has_everything_but_the_matrices(tmp_path: Path) -> None:
    shape = replace(SMALL, vocab=40_000)
    size = write_model(tmp_path / "whole", shape, "F16")
    assert write_model(tmp_path / "sparse", shape, "F16", sparse=True) == size
    assert (tmp_path / "sparse").stat().st_blocks * 512 < size / 4
    with open_gguf(tmp_path / "whole") as whole, open_gguf(tmp_path / "sparse") as sparse:
        assert whole.tensors.keys() == sparse.tensors.keys()
        for name, info in whole.tensors.items():
            same = np.array_equal(whole.array(name), sparse.array(name))
            assert same == (len(info.shape) == 1), name
            assert np.isfinite(sparse.array(name)).all()


def test_fewer_layers(tmp_path: Path) -> None:
    write_model(tmp_path / "two.gguf", SMALL, "Q4_0", layers=2)
    with open_gguf(tmp_path / "two.gguf") as file:
        assert read_spec(file).block_count == 2
        assert {int(n.split(".")[1]) for n in file.tensors if n.startswith("blk.")} == {0, 1}


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write"):
        write_model(tmp_path / "none" / "x.gguf", SMALL, "Q4_0")
