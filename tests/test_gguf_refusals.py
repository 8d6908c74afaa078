"""Damaged and foreign GGUF files: each is refused by a sentence pinned here, none costs what it claims."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest

from forgec.errors import GGUFError, UnsupportedModelError
from forgec.frontend import GGUFFile, open_gguf
from forgec.frontend.quant import QUANT_BY_NAME
from tests.gguf_files import (
    RawGGUF,
    array_bytes,
    refusal,
    string_bytes,
    text_value,
    u32_value,
    value_bytes,
    write_gguf,
)

STRING, ARRAY, BOOL, U32 = 8, 9, 7, 4
DAMAGED = "The file is damaged or an incomplete download; fetch it again."


class TestHeader:
    def test_another_format(self, tmp_path: Path) -> None:
        assert refusal(RawGGUF(magic=b"PK\x03\x04").write(tmp_path / "m.gguf")) == (
            "'m.gguf' is not a GGUF file: it begins with b'PK\\x03\\x04', expected b'GGUF'",
            "Convert other formats with llama.cpp's convert_hf_to_gguf.py.",
        )

    def test_a_git_lfs_pointer(self, tmp_path: Path) -> None:
        path = tmp_path / "m.gguf"
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 98\n")
        expected = ("'m.gguf' is a Git LFS pointer, not the model itself", "Run 'git lfs pull' first.")
        assert refusal(path) == expected

    def test_big_endian(self, tmp_path: Path) -> None:
        path = tmp_path / "m.gguf"
        writer = gguf.GGUFWriter(path, "llama", endianess=gguf.GGUFEndian.BIG)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        assert refusal(path) == (
            "'m.gguf' is a big-endian GGUF file; only little-endian files can be read",
            "Convert it with gguf-py's gguf-convert-endian.",
        )

    @pytest.mark.parametrize(
        ("version", "hint"),
        [
            (0, "Convert the model again with a current convert_hf_to_gguf.py."),
            (1, "Convert the model again with a current convert_hf_to_gguf.py."),
            (4, ""),
        ],
    )
    def test_other_versions(self, tmp_path: Path, version: int, hint: str) -> None:
        message = f"'m.gguf' has GGUF version {version}; versions 2 and 3 can be read"
        assert refusal(RawGGUF(version=version).write(tmp_path / "m.gguf")) == (message, hint)

    @pytest.mark.parametrize(
        ("field", "count", "message"),
        [
            ("tensor_count", 2**17 + 1, "claims 131073 tensors; at most 131072 are accepted"),
            ("tensor_count", 5, "claims 5 tensors, but has only 8 bytes for them"),
            ("key_count", 2**63, "claims 9223372036854775808 metadata keys; at most 8192 are accepted"),
            ("key_count", 3, "claims 3 metadata keys, but has only 8 bytes for them"),
        ],
    )
    def test_counts_beyond_the_file(self, tmp_path: Path, field: str, count: int, message: str) -> None:
        path = RawGGUF(**{field: count}).write(tmp_path / "m.gguf")
        assert refusal(path)[0] == f"'m.gguf' {message}"

    def test_a_cut_header(self, tmp_path: Path) -> None:
        path = tmp_path / "m.gguf"
        path.write_bytes(RawGGUF().build()[:10])
        assert refusal(path) == (
            "'m.gguf' ends inside the header: 8 bytes expected at byte 8, 2 left",
            DAMAGED,
        )


class TestMetadata:
    def refuse(self, folder: Path, value: bytes, key: str | bytes = "k") -> str:
        return refusal(RawGGUF(keys=[(key, value)]).write(folder / "m.gguf"))[0]

    def test_a_key_given_twice(self, tmp_path: Path) -> None:
        raw = RawGGUF(keys=[("k", u32_value(1)), ("k", u32_value(1))])
        message = "metadata key 'k' appears twice in 'm.gguf'"
        assert refusal(raw.write(tmp_path / "m.gguf"))[0] == message

    @pytest.mark.parametrize("kind", [13, 2**32 - 1])
    def test_an_unknown_value_type(self, tmp_path: Path, kind: int) -> None:
        path = RawGGUF(keys=[("k", value_bytes(kind, bytes(8)))]).write(tmp_path / "m.gguf")
        assert refusal(path) == (
            f"metadata key 'k' in 'm.gguf' has the unknown value type {kind}",
            "The file is damaged, or newer than this version of forgec.",
        )

    def test_an_unknown_array_type(self, tmp_path: Path) -> None:
        message = self.refuse(tmp_path, value_bytes(ARRAY, array_bytes(99, [bytes(8)])))
        assert message == "metadata key 'k' in 'm.gguf' has the unknown value type 99"

    def test_a_long_key(self, tmp_path: Path) -> None:
        message = self.refuse(tmp_path, u32_value(1), key="k" * 65536)
        expected = "the name of metadata key 0 in 'm.gguf' is 65536 bytes long; at most 65535 are accepted"
        assert message == expected

    def test_a_key_that_is_not_text_value(self, tmp_path: Path) -> None:
        message = self.refuse(tmp_path, u32_value(1), key=b"\xff\xfe")
        assert message == "the name of metadata key 0 in 'm.gguf' is not valid UTF-8"

    def test_a_string_that_is_not_text_value(self, tmp_path: Path) -> None:
        message = self.refuse(tmp_path, text_value(b"a\x80"))
        assert message == "the value of metadata key 'k' in 'm.gguf' is not valid UTF-8"

    def test_control_characters_are_not_printed(self, tmp_path: Path) -> None:
        message = self.refuse(tmp_path, text_value(b"\xff"), key="\x1b[31m" + "x" * 100)
        shown = "\\x1b[31m" + "x" * 74 + "…"
        assert message == f"the value of metadata key '{shown}' in 'm.gguf' is not valid UTF-8"

    def test_a_string_longer_than_the_file(self, tmp_path: Path) -> None:
        raw = RawGGUF(keys=[("k", value_bytes(STRING, struct.pack("<Q", 1000)))])
        assert refusal(raw.write(tmp_path / "m.gguf")) == (
            "'m.gguf' ends inside the value of metadata key 'k': 1000 bytes expected at byte 45, 19 left",
            DAMAGED,
        )

    def test_a_string_of_absurd_length(self, tmp_path: Path) -> None:
        message = self.refuse(tmp_path, value_bytes(STRING, struct.pack("<Q", 2**64 - 1)))
        assert message == (
            "the value of metadata key 'k' in 'm.gguf' is 18446744073709551615 bytes long; "
            "at most 268435456 are accepted"
        )

    def test_a_number_array_longer_than_the_file(self, tmp_path: Path) -> None:
        message = self.refuse(tmp_path, value_bytes(ARRAY, array_bytes(12, [bytes(8)], 2**40)))
        assert message == (
            "'m.gguf' ends inside the value of metadata key 'k': "
            "8796093022208 bytes expected at byte 49, 15 left"
        )

    def test_a_string_array_longer_than_the_file(self, tmp_path: Path) -> None:
        message = self.refuse(tmp_path, value_bytes(ARRAY, array_bytes(STRING, [string_bytes("a")], 2**40)))
        assert message == (
            "the value of metadata key 'k' in 'm.gguf' claims 1099511627776 strings, "
            "but only 15 bytes are left"
        )

    @pytest.mark.parametrize("length", [100, 2**64 - 1, 2**63])
    def test_a_string_array_whose_item_leaves_the_file(self, tmp_path: Path, length: int) -> None:
        items = [string_bytes("ab"), struct.pack("<Q", length)]
        path = RawGGUF(keys=[("k", value_bytes(ARRAY, array_bytes(STRING, items)))]).write(
            tmp_path / "m.gguf"
        )
        assert refusal(path) == ("'m.gguf' ends inside item 1 of metadata key 'k'", DAMAGED)

    def test_a_string_array_whose_length_field_leaves_the_file(self, tmp_path: Path) -> None:
        items = [string_bytes(bytes(20)), string_bytes("")]
        path = tmp_path / "m.gguf"
        path.write_bytes(RawGGUF(keys=[("k", value_bytes(ARRAY, array_bytes(STRING, items)))]).header()[:-3])
        assert refusal(path) == ("'m.gguf' ends inside item 1 of metadata key 'k'", DAMAGED)

    def test_a_string_array_is_checked_when_it_is_read(self, tmp_path: Path) -> None:
        items = [string_bytes("ok"), string_bytes(b"\xc3")]
        path = RawGGUF(keys=[("k", value_bytes(ARRAY, array_bytes(STRING, items)))]).write(
            tmp_path / "m.gguf"
        )
        with open_gguf(path) as model:
            assert model.metadata["k"][0] == "ok"
            with pytest.raises(GGUFError) as caught:
                list(model.metadata["k"])
        assert caught.value.message == "item 1 of metadata key 'k' in 'm.gguf' is not valid UTF-8"

    def test_deep_nesting(self, tmp_path: Path) -> None:
        value = array_bytes(U32, [])
        for _ in range(4):
            value = array_bytes(ARRAY, [value])
        message = self.refuse(tmp_path, value_bytes(ARRAY, value))
        assert message == "the value of metadata key 'k' in 'm.gguf' nests arrays more than 4 deep"

    def test_many_nested_arrays(self, tmp_path: Path) -> None:
        message = self.refuse(tmp_path, value_bytes(ARRAY, array_bytes(ARRAY, [], 2**32)))
        assert message == (
            "the value of metadata key 'k' in 'm.gguf' has 4294967296 nested arrays; "
            "at most 65536 are accepted in a file"
        )

    def test_a_bool_that_is_neither(self, tmp_path: Path) -> None:
        message = self.refuse(tmp_path, value_bytes(BOOL, b"\x02"))
        assert message == "the value of metadata key 'k' in 'm.gguf' is a bool of value 2, expected 0 or 1"

    def test_a_bool_array_with_other_values(self, tmp_path: Path) -> None:
        message = self.refuse(tmp_path, value_bytes(ARRAY, array_bytes(BOOL, [b"\0", b"\1", b"\3"])))
        assert message == (
            "the value of metadata key 'k' in 'm.gguf' is a bool array with values other than 0 and 1"
        )

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            (u32_value(48), "48"),
            (u32_value(0), "0"),
            (value_bytes(5, struct.pack("<i", -32)), "-32"),
            (value_bytes(6, struct.pack("<f", 32.0)), "32.0"),
            (value_bytes(BOOL, b"\1"), "True"),
            (text_value("32"), "'32'"),
        ],
    )
    def test_bad_alignments(self, tmp_path: Path, value: bytes, shown: str) -> None:
        message = self.refuse(tmp_path, value, key="general.alignment")
        assert message == f"'general.alignment' of 'm.gguf' must be a power of two, found {shown}"


class TestTensors:
    def refuse(self, folder: Path, *tensors: tuple[str, tuple[int, ...], int, int], data: int = 4096) -> str:
        return refusal(RawGGUF(tensors=list(tensors), data=bytes(data)).write(folder / "m.gguf"))[0]

    def test_a_name_given_twice(self, tmp_path: Path) -> None:
        message = self.refuse(tmp_path, ("a", (4,), 0, 0), ("a", (4,), 0, 32))
        assert message == "tensor 'a' appears twice in 'm.gguf'"

    def test_a_long_name(self, tmp_path: Path) -> None:
        message = self.refuse(tmp_path, ("a" * 1025, (4,), 0, 0))
        assert message == "the name of tensor 0 in 'm.gguf' is 1025 bytes long; at most 1024 are accepted"

    @pytest.mark.parametrize("dims", [(), (1, 1, 1, 1, 1)])
    def test_dimensions(self, tmp_path: Path, dims: tuple[int, ...]) -> None:
        message = self.refuse(tmp_path, ("a", dims, 0, 0))
        assert message == f"tensor 'a' has {len(dims)} dimensions, expected 1 to 4"

    @pytest.mark.parametrize("dims", [(4, 0), (2**32, 2**31), (2**64 - 1, 2**64 - 1, 2**64 - 1)])
    def test_extents(self, tmp_path: Path, dims: tuple[int, ...]) -> None:
        assert self.refuse(tmp_path, ("a", dims, 0, 0)) == (
            f"tensor 'a' has shape {list(reversed(dims))}; every extent must be at least 1 "
            "and their product at most 2**62"
        )

    def test_an_unknown_type(self, tmp_path: Path) -> None:
        path = RawGGUF(tensors=[("a", (32,), 4711, 0)], data=bytes(64)).write(tmp_path / "m.gguf")
        message, hint = refusal(path, UnsupportedModelError)
        assert message == "tensor 'a' has the unknown type 4711"
        assert hint == f"Known types: {', '.join(QUANT_BY_NAME)}."

    def test_a_removed_type(self, tmp_path: Path) -> None:
        path = RawGGUF(tensors=[("a", (32,), 31, 0)], data=bytes(64)).write(tmp_path / "m.gguf")
        assert refusal(path, UnsupportedModelError) == (
            "tensor 'a' has type 31 (Q4_0_4_4), which was removed from ggml",
            "Convert the model again from its original weights.",
        )

    def test_rows_that_are_not_whole_blocks(self, tmp_path: Path) -> None:
        message = self.refuse(tmp_path, ("a", (96, 8), 12, 0))
        assert (
            message == "tensor 'a' has rows of 96 elements, which are not whole Q4_K blocks of 256 elements"
        )

    def test_an_unaligned_offset(self, tmp_path: Path) -> None:
        message = self.refuse(tmp_path, ("a", (4,), 0, 16))
        assert message == (
            "tensor 'a' begins at byte 16 of the data section, which is not a multiple of the alignment 32"
        )

    def test_data_past_the_end(self, tmp_path: Path) -> None:
        path = RawGGUF(tensors=[("a", (256,), 0, 0)], data=bytes(1023)).write(tmp_path / "m.gguf")
        assert refusal(path) == (
            "tensor 'a' occupies bytes 64 to 1088, but 'm.gguf' has only 1087 bytes",
            "The file is probably an incomplete download; fetch it again.",
        )

    def test_an_offset_past_the_end(self, tmp_path: Path) -> None:
        message = self.refuse(tmp_path, ("a", (4,), 0, 2**63))
        assert message == (
            "tensor 'a' occupies bytes 9223372036854775872 to 9223372036854775888, "
            "but 'm.gguf' has only 4160 bytes"
        )

    def test_overlap_in_any_order(self, tmp_path: Path) -> None:
        tensors = [("a", (9,), 0, 64), ("b", (8,), 0, 0), ("c", (8,), 0, 96)]
        assert self.refuse(tmp_path, *tensors) == "tensors 'a' and 'c' of 'm.gguf' overlap"
        touching = [("a", (8,), 0, 64), ("b", (8,), 0, 0), ("c", (8,), 0, 96)]
        with open_gguf(RawGGUF(tensors=touching, data=bytes(128)).write(tmp_path / "n.gguf")) as model:
            assert list(model.tensors) == ["a", "b", "c"]

    def test_a_cut_tensor_table(self, tmp_path: Path) -> None:
        path = tmp_path / "m.gguf"
        whole = RawGGUF(tensors=[("a" * 40, (4,), 0, 0), ("b", (4,), 0, 32)]).header()
        path.write_bytes(whole[:-3])
        assert refusal(path) == (
            "'m.gguf' ends inside the description of tensor 'b': 8 bytes expected at byte 121, 5 left",
            DAMAGED,
        )


class TestCost:
    """What a small file may claim must not cost what it claims."""

    def measure(self, path: Path) -> tuple[float, int]:
        """(seconds, peak bytes) of opening a file that is refused."""
        tracemalloc.start()
        begin = time.perf_counter()
        try:
            refusal(path)
            return time.perf_counter() - begin, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize(
        "value",
        [
            value_bytes(STRING, struct.pack("<Q", 2**27)),
            value_bytes(ARRAY, array_bytes(12, [], 2**40)),
            value_bytes(ARRAY, array_bytes(STRING, [], 2**40)),
            value_bytes(ARRAY, array_bytes(ARRAY, [], 2**40)),
            value_bytes(ARRAY, array_bytes(ARRAY, [], 2**16)),
        ],
    )
    def test_claims_cost_nothing(self, tmp_path: Path, value: bytes) -> None:
        seconds, peak = self.measure(RawGGUF(keys=[("k", value)]).write(tmp_path / "m.gguf"))
        assert seconds < 5 and peak < 1 << 20

    def test_a_huge_file_of_empty_strings_is_refused_at_once(self, tmp_path: Path) -> None:
        count = 1 << 25
        header = RawGGUF(keys=[("k", value_bytes(ARRAY, array_bytes(STRING, [], count)))]).header()
        path = tmp_path / "m.gguf"
        path.write_bytes(header)
        os.truncate(path, len(header) + 8 * count)  # a hole: 256 MiB of zeros that take no disk
        seconds, peak = self.measure(path)
        assert seconds < 5 and peak < 1 << 20
        assert refusal(path)[0] == (
            "the value of metadata key 'k' in 'm.gguf' has 33554432 strings; "
            "at most 16777216 are accepted in a file"
        )

    def test_a_huge_item_is_refused_when_it_is_read(self, tmp_path: Path) -> None:
        length = (1 << 28) + 1
        items = [struct.pack("<Q", length)]
        header = RawGGUF(keys=[("k", value_bytes(ARRAY, array_bytes(STRING, items)))]).header()
        path = tmp_path / "m.gguf"
        path.write_bytes(header)
        os.truncate(path, len(header) + length)
        with open_gguf(path) as model:
            assert repr(model.metadata["k"]) == "<StringArray 'k' of 1 strings>"
            with pytest.raises(GGUFError) as caught:
                model.metadata["k"][0]
        assert caught.value.message == "item 0 of metadata key 'k' is 268435457 bytes long"

    def test_opening_does_not_copy_tensors(self, tmp_path: Path) -> None:
        path = write_gguf(tmp_path / "m.gguf", {}, {"w": np.zeros((4096, 1024), np.float32)})
        tracemalloc.start()
        try:
            model: GGUFFile = open_gguf(path)
            assert model.bytes_of("w").nbytes == 1 << 24
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()
