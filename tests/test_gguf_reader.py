"""The GGUF reader: files of gguf-py read back exactly, shards and paths that do not work refused."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from forgec.errors import GGUFError
from forgec.frontend import open_gguf
from forgec.frontend.quant import QUANT_BY_NAME
from tests.gguf_files import (
    Encoded,
    RawGGUF,
    TinyModel,
    array_bytes,
    encode,
    refusal,
    string_bytes,
    text_value,
    u32_value,
    value_bytes,
    write_gguf,
)
from tests.smollm2 import require_smollm2

STRING, ARRAY, U32 = 8, 9, 4


class TestReading:
    def test_every_scalar_type(self, tmp_path: Path) -> None:
        writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
        kinds = gguf.GGUFValueType
        values = {
            kinds.UINT8: 255,
            kinds.INT8: -128,
            kinds.UINT16: 65535,
            kinds.INT16: -32768,
            kinds.UINT32: 2**32 - 1,
            kinds.INT32: -(2**31),
            kinds.UINT64: 2**64 - 1,
            kinds.INT64: -(2**63),
            kinds.FLOAT32: 0.15625,
            kinds.FLOAT64: 1e-300,
            kinds.BOOL: True,
            kinds.STRING: "schön ☃",
        }
        for kind, value in values.items():
            writer.add_key_value(f"a.{kind.name}", value, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        with open_gguf(tmp_path / "m.gguf") as model:
            assert model.version == 3
            for kind, value in values.items():
                found = model.metadata[f"a.{kind.name}"]
                assert found == value and type(found) is type(value)

    def test_arrays_of_numbers_bools_and_strings(self, tmp_path: Path) -> None:
        rng = np.random.default_rng()
        numbers = [int(n) for n in rng.integers(-(2**31), 2**31, int(rng.integers(1, 50)))]
        floats = [float(x) for x in rng.standard_normal(7, np.float32)]
        strings = ["", "a", "ü" * 300, "\n", "Ġthe"]
        path = write_gguf(
            tmp_path / "m.gguf",
            {"n": numbers, "f": floats, "b": [True, False, True], "s": strings, "none": "x"},
        )
        with open_gguf(path) as model:
            assert model.metadata["n"].tolist() == numbers and model.metadata["n"].dtype == np.int32
            assert model.metadata["f"].tolist() == floats and model.metadata["f"].dtype == np.float32
            assert model.metadata["b"].tolist() == [True, False, True]
            found = model.metadata["s"]
            assert list(found) == strings and len(found) == 5
            assert found[1:4] == strings[1:4] and found[-1] == "Ġthe" and "a" in found
            with pytest.raises(IndexError, match="index 5 is outside the 5 strings of 's'"):
                found[5]

    def test_nested_arrays_become_tuples(self, tmp_path: Path) -> None:
        inner = [array_bytes(U32, [struct.pack("<I", i)] * i) for i in range(3)]
        raw = RawGGUF(keys=[("k", value_bytes(ARRAY, array_bytes(ARRAY, inner)))])
        with open_gguf(raw.write(tmp_path / "m.gguf")) as model:
            assert [item.tolist() for item in model.metadata["k"]] == [[], [1], [2, 2]]

    @pytest.mark.parametrize("name", [n for n in QUANT_BY_NAME if n not in ("Q8_1", "Q8_K", "Q2_0")])
    def test_tensors_of_every_type(self, tmp_path: Path, name: str) -> None:
        rng = np.random.default_rng()
        quant = QUANT_BY_NAME[name]
        rows, cols = int(rng.integers(1, 9)), quant.block * int(rng.integers(1, 4))
        raw = rng.integers(0, 256, (rows, quant.nbytes(cols)), dtype=np.uint8)
        vector = rng.standard_normal(int(rng.integers(1, 40)), np.float32)
        tensors = {"v": vector, "m": Encoded(raw, name), "w": vector}
        with open_gguf(write_gguf(tmp_path / "m.gguf", {}, tensors)) as model:
            assert list(model.tensors) == ["v", "m", "w"]
            info = model.tensors["m"]
            assert (info.shape, info.type, info.shard) == ((rows, cols), quant, 0)
            assert (info.nbytes, info.elements) == (raw.size, rows * cols)
            assert info.offset % 32 == 0
            np.testing.assert_array_equal(model.bytes_of("m").reshape(raw.shape), raw)
            np.testing.assert_array_equal(model.array("v"), vector)
            np.testing.assert_array_equal(model.array("w"), vector)
            assert model.array("m").shape == (rows, cols)

    def test_tensors_of_three_dimensions_keep_their_shape(self, tmp_path: Path) -> None:
        experts = np.random.default_rng().standard_normal((3, 5, 32), np.float32)
        tensors = {"e": experts, "q": encode(experts, "Q8_0")}
        with open_gguf(write_gguf(tmp_path / "m.gguf", {}, tensors)) as model:
            assert model.tensors["e"].shape == (3, 5, 32) == model.array("q").shape
            np.testing.assert_array_equal(model.array("e"), experts)
            # Q8_0 rounds to 1/127 of each block's largest value, which itself is rounded to float16.
            assert np.abs(model.array("q") - experts).max() <= np.abs(experts).max() * (0.5 / 127 + 2**-11)

    def test_bytes_are_a_read_only_view(self, tmp_path: Path) -> None:
        path = write_gguf(tmp_path / "m.gguf", {}, {"v": np.ones(4, np.float32)})
        with open_gguf(path) as model:
            view = model.bytes_of("v")
            assert not view.flags.writeable and not view.flags.owndata
            assert model.array("v").flags.writeable

    @pytest.mark.parametrize("alignment", [1, 8, 64, 4096])
    def test_custom_alignment(self, tmp_path: Path, alignment: int) -> None:
        raw = RawGGUF(
            keys=[("general.alignment", u32_value(alignment))],
            tensors=[("a", (3,), 24, 0), ("b", (2,), 24, -(-3 // alignment) * alignment)],
            data=bytes([1, 2, 3]) + bytes(-3 % alignment) + bytes([4, 5]),
            alignment=alignment,
        )
        with open_gguf(raw.write(tmp_path / "m.gguf")) as model:
            assert model.array("a").tolist() == [1, 2, 3] and model.array("b").tolist() == [4, 5]

    def test_version_2(self, tmp_path: Path) -> None:
        raw = RawGGUF(version=2, keys=[("k", u32_value(7))], tensors=[("a", (1,), 24, 0)], data=b"\x05")
        with open_gguf(raw.write(tmp_path / "m.gguf")) as model:
            assert (model.version, model.metadata["k"]) == (2, 7)
            assert model.array("a").tolist() == [5]

    def test_a_file_without_tensors_opens(self, tmp_path: Path) -> None:
        with open_gguf(RawGGUF(keys=[("k", u32_value(1))]).write(tmp_path / "m.gguf")) as model:
            assert dict(model.tensors) == {} and model.path == tmp_path / "m.gguf"

    def test_arrays_outlive_close_and_tensors_do_not(self, tmp_path: Path) -> None:
        path = write_gguf(tmp_path / "m.gguf", {"s": ["x", "y"]}, {"v": np.ones(4, np.float32)})
        model = open_gguf(str(path))
        view = model.bytes_of("v")
        model.close()
        model.close()
        assert view.view("<f4").tolist() == [1, 1, 1, 1] and list(model.metadata["s"]) == ["x", "y"]
        with pytest.raises(GGUFError) as caught:
            model.bytes_of("v")
        assert caught.value.message == "'m.gguf' is closed, so tensor 'v' cannot be read"

    def test_an_unknown_tensor_is_named(self, tmp_path: Path) -> None:
        with open_gguf(write_gguf(tmp_path / "m.gguf", {}, {"v": np.ones(4, np.float32)})) as model:
            for read in (model.bytes_of, model.array):
                with pytest.raises(GGUFError) as caught:
                    read("w")
                assert caught.value.message == "'m.gguf' has no tensor 'w'"

    def test_a_262k_token_vocabulary_opens_well_under_a_second(self, tmp_path: Path) -> None:
        count = 262_144
        tokens = [string_bytes(f"token {i} é") for i in range(count)]
        scores = np.arange(count, dtype="<f4").tobytes()
        raw = RawGGUF(
            keys=[
                ("tokenizer.ggml.tokens", value_bytes(ARRAY, array_bytes(STRING, tokens))),
                ("tokenizer.ggml.scores", value_bytes(ARRAY, array_bytes(6, [scores], count))),
                ("tokenizer.ggml.merges", value_bytes(ARRAY, array_bytes(STRING, tokens + tokens))),
            ]
        )
        path = raw.write(tmp_path / "m.gguf")
        begin = time.process_time()
        model = open_gguf(path)
        elapsed = time.process_time() - begin
        found = model.metadata["tokenizer.ggml.tokens"]
        assert (found[0], found[count - 1]) == ("token 0 é", f"token {count - 1} é")
        assert model.metadata["tokenizer.ggml.scores"][-1] == count - 1
        assert elapsed < 1.0, f"opening took {elapsed:.2f} s"  # 0.13 s on an idle core

    def test_the_real_model(self) -> None:
        with open_gguf(require_smollm2()) as model:
            assert len(model.tensors) == 272
            assert model.metadata["tokenizer.ggml.tokens"][:3] == [
                "<|endoftext|>",
                "<|im_start|>",
                "<|im_end|>",
            ]
            info = model.tensors["token_embd.weight"]
            assert (info.shape, info.type.name) == ((49152, 576), "Q8_0")
            last = max(model.tensors.values(), key=lambda t: t.offset)
            assert last.offset + last.nbytes <= model.path.stat().st_size
            norm = model.array("output_norm.weight")
            reader_bytes = model.path.read_bytes()[model.tensors["output_norm.weight"].offset :][
                : norm.nbytes
            ]
            assert norm.tobytes() == reader_bytes


def sharded(folder: Path, tensors: dict[str, np.ndarray], per_shard: int = 2) -> list[Path]:
    """A model split by gguf-py; returns its shards in order."""
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama", split_max_tensors=per_shard)
    writer.add_uint32("llama.block_count", 3)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("*.gguf"))


class TestShards:
    @pytest.fixture
    def tensors(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng()
        return {f"t{i}": rng.standard_normal(int(rng.integers(1, 99)), np.float32) for i in range(5)}

    def test_all_shards_are_read(self, tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
        shards = sharded(tmp_path, tensors)
        assert [path.name for path in shards] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
        with open_gguf(shards[0]) as model:
            assert model.metadata["llama.block_count"] == 3
            assert list(model.tensors) == list(tensors)
            assert [info.shard for info in model.tensors.values()] == [0, 0, 1, 1, 2]
            for name, values in tensors.items():
                np.testing.assert_array_equal(model.array(name), values)

    def test_a_missing_shard_is_named(self, tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
        shards = sharded(tmp_path, tensors)
        shards[1].unlink()
        assert refusal(shards[0]) == (
            f"shard 2 of 3 is missing: '{shards[1]}' does not exist",
            "Put all shards of the model into one folder.",
        )

    def test_a_later_shard_is_refused(self, tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
        shards = sharded(tmp_path, tensors)
        assert refusal(shards[1]) == (
            "'m-00002-of-00003.gguf' is shard 2 of 3; a model is opened through its first shard",
            "Give 'm-00001-of-00003.gguf'.",
        )

    def test_a_renamed_shard_is_refused(self, tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
        renamed = sharded(tmp_path, tensors)[0].rename(tmp_path / "model.gguf")
        assert refusal(renamed) == (
            "'model.gguf' is one of 3 shards but is not named '<model>-00001-of-00003.gguf'",
            "Give the shards back their original names, or merge them with llama-gguf-split --merge.",
        )

    def test_swapped_shards_are_refused(self, tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
        shards = sharded(tmp_path, tensors)
        shards[2].write_bytes(shards[1].read_bytes())
        assert refusal(shards[0]) == (
            "'m-00003-of-00003.gguf' should be shard 3 of 3, but its metadata say shard 2 of 3",
            "The shards do not belong together; download all of them again.",
        )

    def split(
        self, folder: Path, number: int, tensor: str, extra: tuple[str, bytes] | None = None, total: int = 2
    ) -> Path:
        keys = {"split.no": u32_value(number), "split.count": u32_value(2)}
        keys |= {"split.tensors.count": u32_value(total)} | dict([extra] if extra else [])
        raw = RawGGUF(
            keys=list(keys.items()),
            tensors=[(tensor, (1,), 24, 0)],
            data=b"\0",
        )
        return raw.write(folder / f"x-{number + 1:05d}-of-00002.gguf")

    def test_a_tensor_in_two_shards_is_refused(self, tmp_path: Path) -> None:
        first = self.split(tmp_path, 0, "a")
        self.split(tmp_path, 1, "a")
        expected = "tensor 'a' is in 'x-00001-of-00002.gguf' and again in 'x-00002-of-00002.gguf'"
        assert refusal(first)[0] == expected

    @pytest.mark.parametrize(
        ("key", "own", "others"),
        [
            ("split.tensors.count", u32_value(5), "5 and 2"),
            ("general.architecture", text_value("mpt"), "'mpt' and 'llama'"),
            ("general.name", text_value("M 70B"), "'M 70B' and None"),
        ],
    )
    def test_shards_of_two_models_are_refused(
        self, tmp_path: Path, key: str, own: bytes, others: str
    ) -> None:
        first = self.split(tmp_path, 0, "a", ("general.architecture", text_value("llama")))
        self.split(tmp_path, 1, "b", (key, own))
        assert refusal(first) == (
            "'x-00002-of-00002.gguf' is of another model than 'x-00001-of-00002.gguf': "
            f"their metadata key '{key}' is {others}",
            "The shards do not belong together; download all of them again.",
        )

    def test_a_wrong_total_is_refused(self, tmp_path: Path) -> None:
        first = self.split(tmp_path, 0, "a", total=3)
        self.split(tmp_path, 1, "b", total=3)
        assert refusal(first) == (
            "'x-00001-of-00002.gguf' announces 3 tensors in all shards, found 2",
            "The shards do not belong together; download all of them again.",
        )

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (text_value("two"), "metadata key 'split.count' of 'm.gguf' must be a count, found 'two'"),
            (u32_value(4000), "'m.gguf' claims 4000 shards; at most 1024 are accepted"),
            (
                value_bytes(ARRAY, array_bytes(U32, [])),
                "metadata key 'split.count' of 'm.gguf' must be a count, found an array of 0 items",
            ),
        ],
    )
    def test_bad_split_counts(self, tmp_path: Path, value: bytes, message: str) -> None:
        assert refusal(RawGGUF(keys=[("split.count", value)]).write(tmp_path / "m.gguf"))[0] == message

    @pytest.mark.parametrize("count", [0, 1])
    def test_a_split_count_of_nought_or_one_is_a_whole_file(self, tmp_path: Path, count: int) -> None:
        with open_gguf(RawGGUF(keys=[("split.count", u32_value(count))]).write(tmp_path / "m.gguf")) as model:
            assert model.metadata["split.count"] == count


class TestLargeFiles:
    """Holes take no disk: what is beyond 4 GiB is read where it stands."""

    def test_tensors_beyond_four_gib(self, tmp_path: Path) -> None:
        columns, rows = 1 << 16, (1 << 16) + 3  # int8: 4 GiB and three rows
        after = -(-columns * rows // 32) * 32
        raw = RawGGUF(tensors=[("large", (columns, rows), 24, 0), ("last", (6,), 0, after)])
        begin = -(-len(raw.header()) // 32) * 32
        values = np.random.default_rng().standard_normal(6, np.float32)
        path = tmp_path / "m.gguf"
        with path.open("wb") as file:
            file.write(raw.header())
            file.seek(begin + columns * (rows - 1) + 5)
            file.write(bytes([7]))
            file.seek(begin + after)
            file.write(values.tobytes())
        with open_gguf(path) as model:
            large, last = model.tensors["large"], model.tensors["last"]
            assert large.nbytes > 1 << 32 and last.offset > 1 << 32
            data = model.bytes_of("large").reshape(rows, columns)
            assert data[rows - 1].sum() == data[rows - 1, 5] == 7
            np.testing.assert_array_equal(model.array("last"), values)

    def test_a_file_that_ends_before_a_tensor_beyond_four_gib(self, tmp_path: Path) -> None:
        path = tmp_path / "m.gguf"
        path.write_bytes(RawGGUF(tensors=[("x", (1 << 16, 1 << 17), 0, 1 << 33)]).build())
        assert "occupies bytes 8589934688 to 42949673056, but 'm.gguf' has only" in refusal(path)[0]


class TestPaths:
    def test_a_missing_file(self, tmp_path: Path) -> None:
        path = tmp_path / "m.gguf"
        assert refusal(path) == (f"'{path}' does not exist", "Check the path of the .gguf file.")

    def test_a_directory(self, tmp_path: Path) -> None:
        expected = (f"'{tmp_path}' is a directory", "Give the path of a .gguf file inside it.")
        assert refusal(tmp_path) == expected

    def test_an_empty_file(self, tmp_path: Path) -> None:
        path = tmp_path / "m.gguf"
        path.touch()
        hint = "The download has probably failed; fetch the file again."
        assert refusal(path) == (f"'{path}' is empty", hint)

    def test_a_pipe_is_refused_without_waiting(self, tmp_path: Path) -> None:
        path = tmp_path / "m.gguf"
        os.mkfifo(path)
        assert refusal(path)[0] == f"'{path}' is not a regular file"

    def test_a_path_through_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "m.gguf").write_bytes(b"x")
        path = tmp_path / "m.gguf" / "n.gguf"
        assert refusal(path)[0] == f"'{path}' cannot be read: Not a directory"

    def test_a_path_that_no_system_accepts(self) -> None:
        assert refusal(Path("a\0b.gguf"))[0] == "'a\0b.gguf' cannot be read: embedded null byte"

    def test_a_file_without_permission(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_gguf(tmp_path / "m.gguf", {})

        def deny(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", deny)  # chmod does not stop root, who may run the tests
        assert refusal(path)[0] == f"'{path}' cannot be read: Permission denied"


def test_the_tiny_model_of_the_tests_opens(tmp_path: Path) -> None:
    tiny = TinyModel(architecture="qwen3", quant="Q8_0")
    with open_gguf(tiny.write(tmp_path / "m.gguf")) as model:
        assert {name: info.shape for name, info in model.tensors.items()} == tiny.shapes()
        assert len(model.metadata["tokenizer.ggml.tokens"]) == tiny.vocab_size
