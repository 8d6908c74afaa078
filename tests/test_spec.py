"""ModelSpec from metadata and tensors: what is read, whence the vocabulary size, what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from forgec.errors import ForgeError, GGUFError, UnsupportedModelError
from forgec.frontend import ModelSpec, open_gguf, read_spec
from tests.gguf_files import TinyModel, write_gguf
from tests.smollm2 import require_smollm2

RECONVERT = "Convert the model again with a current convert_hf_to_gguf.py."


def spec_of(path: Path) -> ModelSpec:
    with open_gguf(path) as model:
        return read_spec(model)


def tiny_spec(folder: Path, tiny: TinyModel) -> ModelSpec:
    return spec_of(tiny.write(folder / "m.gguf"))


def with_metadata(folder: Path, **changes: Any) -> ModelSpec:
    """The spec of a tiny llama with changed keys; '__' stands for '.', None removes the key."""
    metadata = {"llama." + key.replace("__", "."): value for key, value in changes.items()}
    return tiny_spec(folder, TinyModel(metadata=metadata))


def refusal(folder: Path, kind: type[ForgeError] = GGUFError, **changes: Any) -> str:
    """The message with which a tiny llama with changed keys is refused."""
    with pytest.raises(kind) as caught:
        with_metadata(folder, **changes)
    assert type(caught.value) is kind
    return caught.value.message


class TestReading:
    def test_the_real_model(self) -> None:
        spec = spec_of(require_smollm2())
        assert (spec.architecture, spec.name) == ("llama", "Smollm2 135M 8k Lc100K Mix1 Ep2")
        assert (spec.vocab_size, spec.vocab_size_source, spec.context_length) == (49152, "metadata", 8192)
        assert (spec.embedding_length, spec.block_count, spec.feed_forward_length) == (576, 30, 1536)
        assert (spec.head_count, spec.head_count_kv, spec.key_length, spec.value_length) == (9, 3, 64, 64)
        assert spec.norm_epsilon == np.float32(1e-5) and spec.tied_embeddings
        assert spec.parameter_count == 134_515_008
        assert spec.quant_types == (("Q4_1", 210), ("F32", 61), ("Q8_0", 1))
        assert (spec.rope.dimension_count, spec.rope.freq_base) == (64, 100_000.0)
        assert (spec.rope.scaling, spec.rope.factor, spec.rope.interleaved) == ("none", 1.0, True)

    def test_random_shapes_under_any_prefix(self, tmp_path: Path) -> None:
        rng = np.random.default_rng()
        kv = int(rng.integers(1, 4))
        tiny = TinyModel(
            architecture="some-new.model_3",
            block_count=int(rng.integers(1, 4)),
            embedding_length=int(rng.integers(3, 70)),
            feed_forward_length=int(rng.integers(3, 70)),
            head_count=kv * int(rng.integers(1, 4)),
            head_count_kv=kv,
            key_length=2 * int(rng.integers(1, 20)),
            vocab_size=int(rng.integers(259, 400)),
            context_length=int(rng.integers(1, 10_000)),
        )
        spec = tiny_spec(tmp_path, tiny)
        for field in (
            *("architecture", "block_count", "embedding_length", "feed_forward_length", "head_count"),
            *("head_count_kv", "key_length", "vocab_size", "context_length"),
        ):
            assert getattr(spec, field) == getattr(tiny, field), field
        assert spec.parameter_count == sum(int(np.prod(shape)) for shape in tiny.shapes().values())
        assert not spec.tied_embeddings and not spec.rope.interleaved
        assert spec.quant_types == (("F32", len(tiny.shapes())),)

    def test_defaults_of_optional_keys(self, tmp_path: Path) -> None:
        removed = (
            *("attention.head_count_kv", "attention.key_length", "attention.value_length"),
            *("rope.dimension_count", "rope.freq_base"),
        )
        changes: Mapping[str, Any] = {key.replace(".", "__"): None for key in removed}
        spec = with_metadata(tmp_path, **changes)
        assert (spec.head_count_kv, spec.key_length, spec.value_length) == (4, 16, 16)
        assert (spec.rope.dimension_count, spec.rope.freq_base) == (16, 10000.0)

    def test_the_name_defaults_to_that_of_the_file(self, tmp_path: Path) -> None:
        assert tiny_spec(tmp_path, TinyModel(metadata={"general.name": None})).name == "m"

    def test_equal_values_per_layer_are_one_value(self, tmp_path: Path) -> None:
        per_layer = {"attention__head_count": [4, 4], "attention__head_count_kv": [2, 2]}
        spec = with_metadata(tmp_path, feed_forward_length=[96, 96], **per_layer)
        assert (spec.head_count, spec.head_count_kv, spec.feed_forward_length) == (4, 2, 96)

    def test_the_epsilon_of_layer_norms(self, tmp_path: Path) -> None:
        changes = {"attention__layer_norm_rms_epsilon": None, "attention__layer_norm_epsilon": 0.125}
        assert with_metadata(tmp_path, **changes).norm_epsilon == 0.125

    @pytest.mark.parametrize("name", ["output.weight", "lm_head.weight", "model.lm_head.weight"])
    def test_an_output_matrix_unties_the_embedding(self, tmp_path: Path, name: str) -> None:
        tied = TinyModel(tied=True)
        assert tiny_spec(tmp_path, tied).tied_embeddings
        output = np.zeros((tied.vocab_size, tied.embedding_length), np.float32)
        assert not tiny_spec(tmp_path, replace(tied, tensors={name: output})).tied_embeddings


class TestMissingAndImplausible:
    @pytest.mark.parametrize(
        "key",
        [
            *("block_count", "context_length", "embedding_length", "feed_forward_length"),
            *("attention.head_count", "attention.layer_norm_rms_epsilon"),
        ],
    )
    def test_a_required_key_is_named(self, tmp_path: Path, key: str) -> None:
        path = TinyModel(metadata={f"llama.{key}": None}).write(tmp_path / "m.gguf")
        with pytest.raises(GGUFError) as caught:
            spec_of(path)
        assert (caught.value.message, caught.value.hint) == (
            f"'m.gguf' lacks the metadata key 'llama.{key}'",
            RECONVERT,
        )

    def test_no_architecture(self, tmp_path: Path) -> None:
        writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
        del writer.kv_data[0]["general.architecture"]
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        with pytest.raises(GGUFError) as caught:
            spec_of(tmp_path / "m.gguf")
        assert caught.value.message == "'m.gguf' lacks the metadata key 'general.architecture'"

    def test_an_architecture_that_is_no_word(self, tmp_path: Path) -> None:
        with pytest.raises(GGUFError) as caught:
            spec_of(write_gguf(tmp_path / "m.gguf", {"general.architecture": "../llama"}))
        assert caught.value.message == (
            "metadata key 'general.architecture' must be one word, found '../llama'"
        )

    def test_a_name_that_is_no_text(self, tmp_path: Path) -> None:
        with pytest.raises(GGUFError) as caught:
            tiny_spec(tmp_path, TinyModel(metadata={"general.name": 7}))
        assert caught.value.message == "metadata key 'general.name' must be a string, found 7"

    @pytest.mark.parametrize(
        ("key", "value", "shown"),
        [
            ("block_count", 0, "must be from 1 to 4096, found 0"),
            ("block_count", 4097, "must be from 1 to 4096, found 4097"),
            ("block_count", -1, "must be from 1 to 4096, found -1"),
            ("block_count", "two", "must be an integer, found 'two'"),
            ("block_count", 2.0, "must be an integer, found 2.0"),
            ("block_count", True, "must be an integer, found True"),
            ("block_count", [2, 2], "must be an integer, found an array of 2 items"),
            ("context_length", 2**31, "must be from 1 to 1073741824, found 2147483648"),
            ("embedding_length", 2**21, "must be from 1 to 1048576, found 2097152"),
            ("feed_forward_length", 0, "must be from 1 to 4194304, found 0"),
            ("feed_forward_length", [96], "has 1 values for 2 layers"),
            ("feed_forward_length", [0, 0], "must be from 1 to 4194304, found 0"),
            ("feed_forward_length", [9.0, 9.0], "must be an integer or an array of integers"),
            ("feed_forward_length", ["a", "b"], "must be an integer or an array of integers"),
            ("attention.head_count", 5000, "must be from 1 to 4096, found 5000"),
            ("attention.key_length", 2**15, "must be from 1 to 16384, found 32768"),
            ("attention.layer_norm_rms_epsilon", 0.0, "must be from 1e-30 to 1, found 0"),
            ("attention.layer_norm_rms_epsilon", 2.0, "must be from 1e-30 to 1, found 2"),
            ("attention.layer_norm_rms_epsilon", float("nan"), "must be from 1e-30 to 1, found nan"),
            ("attention.layer_norm_rms_epsilon", "small", "must be a number, found 'small'"),
            ("rope.dimension_count", 18, "must be from 1 to 16, found 18"),
            ("rope.dimension_count", 7, "must be even, found 7"),
            ("rope.freq_base", 1.0, "must be from 1.01 to 1e+15, found 1"),
            ("rope.freq_base", float("inf"), "must be from 1.01 to 1e+15, found inf"),
            ("rope.scaling.factor", -2.0, "must be from 0 to 1e+06, found -2"),
            ("rope.scaling.type", 3, "must be a string, found 3"),
            ("vocab_size", 0, "must be from 1 to 16777216, found 0"),
        ],
    )
    def test_a_value_is_refused(self, tmp_path: Path, key: str, value: Any, shown: str) -> None:
        message = refusal(tmp_path, **{key.replace(".", "__"): value})
        assert message == f"metadata key 'llama.{key}' {shown}"

    def test_heads_that_do_not_divide(self, tmp_path: Path) -> None:
        assert refusal(tmp_path, attention__head_count_kv=3) == (
            "metadata key 'llama.attention.head_count' is 4, which is not a multiple of "
            "'llama.attention.head_count_kv', 3"
        )

    @pytest.mark.parametrize("key", ["key_length", "value_length"])
    def test_a_head_length_that_cannot_be_derived(self, tmp_path: Path, key: str) -> None:
        changes = {f"attention__{key}": None, "attention__head_count": 10}
        assert refusal(tmp_path, **changes) == (
            f"'m.gguf' lacks the metadata key 'llama.attention.{key}', and 'llama.embedding_length', 64, "
            "is not a multiple of 'llama.attention.head_count', 10"
        )

    @pytest.mark.parametrize(
        ("key", "values", "shown"),
        [
            ("attention.head_count", [4, 8], "4, 8"),
            ("attention.head_count_kv", [0, 4], "0, 4"),
            ("feed_forward_length", [96, 64], "64, 96"),
        ],
    )
    def test_layers_that_differ(self, tmp_path: Path, key: str, values: list[int], shown: str) -> None:
        message = refusal(tmp_path, UnsupportedModelError, **{key.replace(".", "__"): values})
        assert message == (
            f"metadata key 'llama.{key}' differs between layers ({shown}); all layers must be equal"
        )


class TestVocabularySize:
    """Three tiers: metadata, the shape of a tensor, the architecture's default."""

    HIDDEN = 64

    def model(self, architecture: str = "llama", **changes: Any) -> TinyModel:
        """A tiny model without any metadata on the vocabulary, and without its two matrices."""
        vocabulary = {key: None for key in TinyModel().all_metadata() if key.startswith("tokenizer.")}
        metadata = {**vocabulary, f"{architecture}.vocab_size": None, **changes.pop("metadata", {})}
        matrices = {"token_embd.weight": None, "output.weight": None}
        tensors = {**matrices, **changes.pop("tensors", {})}
        # The generated names come first, so that a test's own value of the same name replaces them.
        return TinyModel(architecture, metadata=metadata, tensors=tensors, **changes)

    def found(self, folder: Path, tiny: TinyModel) -> tuple[int, str]:
        spec = tiny_spec(folder, tiny)
        return spec.vocab_size, spec.vocab_size_source

    def refuse(self, folder: Path, tiny: TinyModel) -> str:
        with pytest.raises(GGUFError) as caught:
            tiny_spec(folder, tiny)
        return caught.value.message

    def matrix(self, *shape: int) -> np.ndarray:
        return np.zeros(shape, np.float32)

    def test_metadata_alone(self, tmp_path: Path) -> None:
        size = int(np.random.default_rng().integers(1, 10_000))
        assert self.found(tmp_path, self.model(metadata={"llama.vocab_size": size})) == (size, "metadata")

    def test_the_number_of_tokens(self, tmp_path: Path) -> None:
        tokens = {"tokenizer.ggml.tokens": ["a", "b", "c"]}
        assert self.found(tmp_path, self.model(metadata=tokens)) == (3, "metadata")

    def test_the_key_comes_before_the_tokens(self, tmp_path: Path) -> None:
        metadata = {"llama.vocab_size": 5, "tokenizer.ggml.tokens": ["a", "b", "c"]}
        assert self.found(tmp_path, self.model(metadata=metadata)) == (5, "metadata")

    @pytest.mark.parametrize(
        "name",
        [
            *("token_embd.weight", "output.weight", "lm_head.weight", "embed_tokens.weight"),
            *("model.embed_tokens.weight", "model.language_model.embed_tokens.weight"),
            *("transformer.wte.weight", "tok_embeddings.weight", "transformer.word_embeddings.weight"),
        ],
    )
    def test_the_shape_of_a_tensor_under_any_usual_name(self, tmp_path: Path, name: str) -> None:
        size = int(np.random.default_rng().integers(65, 500))
        tiny = self.model(tensors={name: self.matrix(size, self.HIDDEN)})
        assert self.found(tmp_path, tiny) == (size, f"tensor {name} axis 0")

    def test_the_hidden_size_tells_the_axis(self, tmp_path: Path) -> None:
        tiny = self.model(tensors={"token_embd.weight": self.matrix(self.HIDDEN, 100)})
        assert self.found(tmp_path, tiny) == (100, "tensor token_embd.weight axis 1")

    def test_rows_count_where_both_axes_fit(self, tmp_path: Path) -> None:
        tiny = self.model(tensors={"token_embd.weight": self.matrix(self.HIDDEN, self.HIDDEN)})
        assert self.found(tmp_path, tiny) == (self.HIDDEN, "tensor token_embd.weight axis 0")

    @pytest.mark.parametrize(
        "name", ["blk.0.attn_output.weight", "encoder.layer.0.output.weight", "output.bias"]
    )
    def test_other_tensors_do_not_count(self, tmp_path: Path, name: str) -> None:
        tiny = self.model(tensors={name: self.matrix(77, self.HIDDEN)})
        assert self.found(tmp_path, tiny) == (32000, "architecture default")

    @pytest.mark.parametrize(
        ("architecture", "size"),
        [("qwen2", 151936), ("llama", 32000), ("glm", 151552), ("glm4", 151552), ("chatglm", 151552)],
    )
    def test_the_default_of_an_architecture(self, tmp_path: Path, architecture: str, size: int) -> None:
        assert self.found(tmp_path, self.model(architecture)) == (size, "architecture default")

    def test_no_source_at_all(self, tmp_path: Path) -> None:
        assert self.refuse(tmp_path, self.model("gemma")) == (
            "the vocabulary size of 'm.gguf' is unknown: it has neither 'gemma.vocab_size' nor "
            "'tokenizer.ggml.tokens' nor an embedding tensor"
        )

    @pytest.mark.parametrize(
        ("metadata", "source"),
        [
            ({"llama.vocab_size": 100}, "metadata key 'llama.vocab_size'"),
            ({"tokenizer.ggml.tokens": ["x"] * 100}, "metadata key 'tokenizer.ggml.tokens'"),
        ],
    )
    def test_metadata_and_tensor(self, tmp_path: Path, metadata: dict[str, Any], source: str) -> None:
        def tiny(rows: int) -> TinyModel:
            tensors = {"token_embd.weight": self.matrix(rows, self.HIDDEN)}
            return self.model(metadata=metadata, tensors=tensors)

        assert self.found(tmp_path, tiny(100)) == (100, "metadata")
        assert self.found(tmp_path, tiny(128)) == (128, "tensor token_embd.weight axis 0")  # padded
        assert self.refuse(tmp_path, tiny(99)) == (
            f"{source} gives 100 tokens, but tensor 'token_embd.weight' has rows for only 99"
        )

    def test_more_tokens_than_the_key_says(self, tmp_path: Path) -> None:
        metadata = {"llama.vocab_size": 90, "tokenizer.ggml.tokens": ["x"] * 100}
        tiny = self.model(metadata=metadata, tensors={"token_embd.weight": self.matrix(90, self.HIDDEN)})
        assert self.refuse(tmp_path, tiny) == (
            "metadata key 'tokenizer.ggml.tokens' gives 100 tokens, "
            "but tensor 'token_embd.weight' has rows for only 90"
        )

    def test_embedding_and_output_that_differ(self, tmp_path: Path) -> None:
        tensors = {
            "token_embd.weight": self.matrix(100, self.HIDDEN),
            "output.weight": self.matrix(101, self.HIDDEN),
        }
        assert self.refuse(tmp_path, self.model(tensors=tensors)) == (
            "tensor 'token_embd.weight' is for 100 tokens, but 'output.weight' for 101"
        )

    def test_an_embedding_of_another_width(self, tmp_path: Path) -> None:
        tiny = self.model(tensors={"token_embd.weight": self.matrix(100, 60)})
        assert self.refuse(tmp_path, tiny) == (
            "tensor 'token_embd.weight' has shape [100, 60], in which no axis is 'llama.embedding_length', 64"
        )

    def test_an_embedding_for_too_many_tokens(self, tmp_path: Path) -> None:
        tensors = {"token_embd.weight": np.zeros((2**24 + 1, 1), np.int8)}
        tiny = self.model(embedding_length=1, tensors=tensors)
        assert self.refuse(tmp_path, tiny) == (
            "tensor 'token_embd.weight' is for 16777217 tokens; at most 16777216 are accepted"
        )

    @pytest.mark.parametrize(("tokens", "shown"), [("abc", "'abc'"), ([1, 2], "an array of 2 items")])
    def test_tokens_that_are_no_strings(self, tmp_path: Path, tokens: Any, shown: str) -> None:
        message = self.refuse(tmp_path, self.model(metadata={"tokenizer.ggml.tokens": tokens}))
        assert message == f"metadata key 'tokenizer.ggml.tokens' must be an array of strings, found {shown}"
