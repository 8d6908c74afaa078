"""``forgec inspect``: whatever a GGUF file is, what it lacks is named by operation, tensor or type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from forgec.errors import UnsupportedModelError
from forgec.frontend.architectures import ARCHITECTURES, supported_spec
from forgec.frontend.foreign import foreign_operations, unknown_tensors
from forgec.frontend.gguf import open_gguf
from forgec.frontend.quant import QUANT_BY_NAME
from forgec.inspection import Inspection, inspect_file
from forgec.plan.program import CompileOptions
from forgec.targets import get_target
from tests.gguf_files import RawGGUF, TinyModel, bpe_vocabulary, text_value, write_gguf

#: Every tensor name that gguf-py knows, as it stands in layer 3 of a file.
TENSORS = {key: f"{name.format(bid=3, xid=1)}.weight" for key, name in gguf.TENSOR_NAMES.items()}
TINY = np.ones((4, 8), np.float32)


def inspect_tensors(
    path: Path, architecture: str, names: list[str], metadata: dict[str, Any] | None = None
) -> Inspection:
    """What is said of a file with tensors of these names, all of the same small shape."""
    keys = {"general.architecture": architecture, **bpe_vocabulary(262), **(metadata or {})}
    return inspect_file(write_gguf(path, keys, dict.fromkeys(names, TINY)))


def problems(found: Inspection) -> list[str]:
    return [problem.problem for problem in found.problems]


def test_the_name_of_every_tensor_is_known() -> None:
    assert unknown_tensors(TENSORS.values()) == ()
    assert unknown_tensors(["blk.7.warp_core.weight", "blk.0.attn_q.bias"]) == ("blk.7.warp_core.weight",)


@pytest.mark.parametrize(
    ("architecture", "tensor", "lacks"),
    [
        ("mamba", "blk.0.ssm_in.weight",
         "a state-space layer (Mamba: causal convolution and selective scan)"),
        ("qwen3next", "blk.1.ssm_ba.weight", "a gated delta-rule recurrence (linear attention)"),
        ("rwkv7", "blk.0.time_mix_w1.weight", "an RWKV layer (token shift and WKV recurrence)"),
        ("lfm2", "blk.2.shortconv.conv.weight", "a gated short convolution"),
        ("t5", "dec.blk.0.cross_attn_q.weight", "an encoder-decoder (cross attention, relative positions)"),
        ("bert", "token_types.weight", "a BERT encoder (segment embeddings, bidirectional attention)"),
        ("gemma3n", "blk.0.laurel_l.weight", "per-layer embeddings or AltUp (Gemma 3n and 4)"),
        ("bitnet", "blk.0.attn_sub_norm.weight", "BitNet layers (ternary weights with inner norms)"),
        ("wavtokenizer-dec", "convnext.3.dw.weight", "an audio decoder (convolutions over time)"),
        ("deepseek32", "blk.0.indexer.proj.weight",
         "sparse attention (an indexer chooses the positions that are attended)"),
    ],
)  # fmt: skip
def test_the_missing_operation_is_named(tmp_path: Path, architecture: str, tensor: str, lacks: str) -> None:
    other = tensor.replace("blk.0", "blk.9").replace("blk.1", "blk.8")
    found = inspect_tensors(tmp_path / "m.gguf", architecture, ["token_embd.weight", tensor])
    assert (found.architecture, found.compiles, found.exit_code) == (architecture, False, 4)
    assert problems(found) == [
        f"architecture '{architecture}' is not supported",
        f"tensor '{tensor}' belongs to {lacks}, an operation that forgec lacks",
    ]
    if other != tensor:
        (foreign,) = foreign_operations([tensor, other], {})
        assert foreign.sentence.startswith(f"tensor '{tensor}' (and 1 more) belongs to ")


def test_attention_to_later_positions_is_named(tmp_path: Path) -> None:
    key = {"neo-bert.attention.causal": False}
    found = inspect_tensors(tmp_path / "m.gguf", "neo-bert", ["token_embd.weight"], key)
    assert problems(found)[1] == (
        "metadata key 'neo-bert.attention.causal' is false: attention to later positions is an operation "
        "that forgec lacks"
    )


def test_an_architecture_that_lacks_only_its_module(tmp_path: Path) -> None:
    found = inspect_tensors(tmp_path / "m.gguf", "xyzzy", ["token_embd.weight", "blk.0.attn_q.weight"])
    (problem,) = found.problems
    assert problem.problem == "architecture 'xyzzy' is not supported"
    assert problem.hint.startswith("Its tensors are of kinds that forgec has operations for")


def test_a_tensor_that_nobody_knows(tmp_path: Path) -> None:
    names = ["token_embd.weight", "blk.0.warp_core.weight", "blk.1.warp_core.weight"]
    found = inspect_tensors(tmp_path / "m.gguf", "xyzzy", names)
    assert problems(found)[1] == "nothing is known of tensor 'blk.0.warp_core.weight' (and 1 more)"


@pytest.mark.parametrize(
    "arch", sorted(gguf.MODEL_ARCH, key=lambda arch: arch.value), ids=lambda arch: arch.name
)
def test_every_architecture_of_gguf_is_explained(tmp_path: Path, arch: gguf.MODEL_ARCH) -> None:
    name = gguf.MODEL_ARCH_NAMES[arch]
    tensors = list(dict.fromkeys(TENSORS[key] for key in gguf.MODEL_TENSORS[arch]))
    found = inspect_tensors(tmp_path / "m.gguf", name, tensors)
    assert found.architecture == name and found.problems
    if name == "clip":
        assert problems(found) == ["the file is the image or audio encoder of a model, not a language model"]
    elif name not in ARCHITECTURES:
        assert problems(found)[0] == f"architecture '{name}' is not supported"
        assert len(found.problems) > 1 or "what is missing is a module" in found.problems[0].hint


@pytest.mark.parametrize(
    ("metadata", "problem", "hint"),
    [
        ({"general.type": "adapter"}, "the file is an adapter, not a model", "--lora"),
        ({"general.type": "imatrix"}, "the file is an importance matrix, not a model", "llama-quantize"),
        ({"general.type": "mmproj"},
         "the file is the image or audio encoder of a model, not a language model",
         "main file"),
    ],
)  # fmt: skip
def test_files_that_are_no_models(tmp_path: Path, metadata: dict[str, str], problem: str, hint: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", {"general.architecture": "llama", **metadata}, {"x": TINY})
    found = inspect_file(path)
    (only,) = found.problems
    assert only.problem == problem and hint in only.hint and found.tokenizer is None


@pytest.mark.parametrize(
    ("metadata", "message", "hint"),
    [
        ({"general.architecture": "rwkv6"}, "architecture 'rwkv6' is not supported",
         "Tensor 'blk.0.time_mix_w1.weight' belongs to an RWKV layer (token shift and WKV recurrence), an "
         "operation that forgec lacks. Supported: "),
        ({"general.type": "adapter", "general.architecture": "llama"}, "'m.gguf' is an adapter, not a model",
         "Give it with its model: forgec compile MODEL --lora FILE."),
        ({"general.architecture": "clip"},
         "'m.gguf' is the image or audio encoder of a model, not a language model",
         "Give the model's main file."),
    ],
)  # fmt: skip
def test_compiling_says_the_same_instead_of_asking_for_keys(
    tmp_path: Path, metadata: dict[str, str], message: str, hint: str
) -> None:
    path = write_gguf(tmp_path / "m.gguf", metadata, {"blk.0.time_mix_w1.weight": TINY})
    with open_gguf(path) as model, pytest.raises(UnsupportedModelError) as caught:
        supported_spec(model)
    assert caught.value.message == message and caught.value.hint.startswith(hint)


def test_a_vocabulary_without_a_model(tmp_path: Path) -> None:
    found = inspect_file(
        write_gguf(tmp_path / "m.gguf", {"general.architecture": "llama", **bpe_vocabulary(262)})
    )
    assert problems(found) == ["the file has no tensors: it is a vocabulary without a model"]
    assert found.tokenizer is not None and found.tokenizer.vocab_size == 262


def test_a_file_without_an_architecture(tmp_path: Path) -> None:
    found = inspect_file(RawGGUF(keys=[("general.name", text_value("x"))]).write(tmp_path / "m.gguf"))
    assert problems(found)[0] == "'m.gguf' lacks the metadata key 'general.architecture'"
    assert (found.architecture, found.exit_code) == ("", 3)


@pytest.mark.parametrize("type_name", sorted(QUANT_BY_NAME))
def test_every_type_of_gguf_is_shown(tmp_path: Path, type_name: str) -> None:
    quant = QUANT_BY_NAME[type_name]
    columns = max(quant.block, 8)
    nbytes = quant.nbytes(columns)
    raw = RawGGUF(
        keys=[("general.architecture", text_value("llama"))],
        tensors=[("token_embd.weight", (columns, 1), quant.ggml_id, 0)],
        data=bytes(nbytes),
    )
    found = inspect_file(raw.write(tmp_path / "m.gguf"))
    assert found.quant_types == {type_name: 1}
    assert (found.parameters, found.weight_bytes) == (columns, nbytes)


def test_targets_are_planned_one_by_one(tmp_path: Path) -> None:
    path = TinyModel(context_length=4096).write(tmp_path / "m.gguf")
    small, large = get_target("gfx1100"), get_target("x86-64-v3")
    found = inspect_file(path, (small, large), CompileOptions(context=1000, kv_dtype="f32"))
    assert found.exit_code == 0 and [needs.target for needs in found.targets] == ["gfx1100", "x86-64-v3"]
    for needs in found.targets:
        assert needs.buffers is not None and needs.problem is None
        assert needs.buffers["kv"] == 2 * 2 * 1000 * 32 * 4
        assert needs.buffers["weights"] >= found.weight_bytes and needs.buffers["arena"] > 0
        assert needs.launches > 0 and needs.kernels > 0
    assert [needs.memory_bytes for needs in found.targets] == [small.memory_bytes, 0]


def test_a_model_that_does_not_fit_a_chip_says_so(tmp_path: Path) -> None:
    path = TinyModel(context_length=1 << 30).write(tmp_path / "m.gguf")
    found = inspect_file(path, (get_target("gfx1100"),), CompileOptions(context=1 << 30))
    (needs,) = found.targets
    assert found.compiles and needs.problem is not None and found.exit_code == 5
    # 2 layers x (K + V) x 32 elements x 2 bytes, and a rope table of 8 pairs of float32, for each token
    assert "needs 320.0 GiB at a context of 1073741824 tokens" in needs.problem.problem


def test_refused_models_are_not_planned(tmp_path: Path) -> None:
    path = TinyModel(architecture="mamba").write(tmp_path / "m.gguf")
    assert inspect_file(path, (get_target("gfx1100"),)).targets == ()
