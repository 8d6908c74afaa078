"""manifest.json: what is refused, and how it is said."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import PackageError
from runtime.launch import pack_arguments
from runtime.manifest import Manifest, Pointer, load_manifest, parse_manifest
from tests import toy_package

RAW = toy_package.manifest(
    "cpu",
    "kernels/toy.so",
    {"kernels/toy.so": "a" * 64, "tokenizer.json": "b" * 64, "src/toy.hip": "c" * 64},
    bytes(toy_package.WEIGHTS_BYTES),
)


def parse(raw: Any) -> Manifest:
    return parse_manifest(raw, Path("package"))


def changed(change: Callable[[Any], object]) -> Any:
    raw = copy.deepcopy(RAW)
    change(raw)
    return raw


def put(*path: Any) -> Callable[[Any], object]:
    """A change that sets the value at ``path[:-1]`` to ``path[-1]``."""

    def change(raw: Any) -> None:
        for key in path[:-2]:
            raw = raw[key]
        raw[path[-2]] = path[-1]

    return change


def drop(*path: Any) -> Callable[[Any], object]:
    def change(raw: Any) -> None:
        for key in path[:-1]:
            raw = raw[key]
        del raw[path[-1]]

    return change


def test_a_sound_manifest() -> None:
    manifest = parse(copy.deepcopy(RAW))
    assert (manifest.vocab_size, manifest.context_length, manifest.chunk, manifest.ring) == (260, 48, 5, 16)
    assert [len(manifest.sequences[name]) for name in ("prefill", "head", "sample", "decode")] == [2, 1, 1, 4]
    assert manifest.sequences["prefill"][0].args == (
        Pointer("state", 0), Pointer("tokens", 0), Pointer("kv", 0), 0,
    )  # fmt: skip
    assert manifest.target.wave == 1
    assert manifest.buffer("kv").init == "zero"
    assert manifest.files == {"kernels/toy.so": "a" * 64, "tokenizer.json": "b" * 64, "src/toy.hip": "c" * 64}
    assert manifest.weights.bytes == toy_package.WEIGHTS_BYTES


LAUNCH = ("sequences", "decode", 0)
CASES: list[tuple[str, Callable[[Any], object], str]] = [
    ("no format", drop("format"), "format is null, expected the number 1"),
    ("format text", put("format", "1"), 'format is "1", expected the number 1'),
    ("missing section", drop("buffers"), "the top level lacks 'buffers'"),
    ("unknown section", put("extra", 1), "the top level has the unknown field 'extra'"),
    ("model", put("model", []), "model is [], expected an object"),
    ("vocabulary", put("model", "vocab_size", 0), "model.vocab_size is 0, expected a whole number from 1"),
    ("name", put("model", "name", ""), 'model.name is "", expected a non-empty string'),
    ("boolean", put("chunk", True), "chunk is true, expected a whole number from 1 to 1048576"),
    ("ring", put("ring", 32), "the size of buffer 'ring' is 64, expected at least 128 bytes"),
    ("ring power", put("ring", 12), "ring is 12, expected a power of two"),
    ("wave", put("target", "wave", 128), "target.wave is 128, expected a whole number from 1 to 64"),
    ("requires", put("target", "requires", [3]), "target.requires is 3, expected a non-empty string"),
    ("buffer field", put("buffers", 1, "size", 3), "buffers[1] has the unknown field 'size'"),
    (
        "buffer init",
        put("buffers", 1, "init", "ones"),
        'buffers[1].init is "ones", expected "file", "zero", "none" or "demand"',
    ),
    ("buffer twice", put("buffers", 1, "name", "arena"), "two buffers are called 'arena'"),
    ("no state", put("buffers", 3, "name", "stale"), "there is no buffer 'state'"),
    ("demand init", put("buffers", 2, "init", "demand"), "init of buffer 'arena' is \"demand\""),
    ("file init", put("buffers", 2, "init", "file"), "init of buffer 'arena' is \"file\""),
    (
        "negative size",
        put("buffers", 1, "bytes", -1),
        "buffers[1].bytes is -1, expected a whole number from 0",
    ),
    (
        "weights size",
        put("buffers", 0, "bytes", 5),
        "the size of buffer 'weights' is 5, expected 12388 bytes",
    ),
    ("state size", put("buffers", 3, "bytes", 128), "the size of buffer 'state' is 128, expected 64 bytes"),
    ("chunk size", put("chunk", 6), "the size of buffer 'tokens' is 20, expected at least 24 bytes"),
    ("kernel field", drop("kernels", 0, "sha256"), "kernels[0] lacks 'sha256'"),
    ("kernel block", put("kernels", 0, "block", 0), "kernels[0].block is 0, expected a whole number from 1"),
    ("kernel digest", put("kernels", 0, "sha256", "A" * 64), "kernels[0].sha256 is"),
    (
        "kernel path",
        put("kernels", 0, "file", "../x.so"),
        'kernels[0].file is "../x.so", expected a plain rel',
    ),
    ("absolute path", put("kernels", 0, "file", "/x.so"), 'kernels[0].file is "/x.so", expected a plain rel'),
    ("digests differ", put("kernels", 0, "sha256", "d" * 64), "two digests are given for 'kernels/toy.so'"),
    ("argument kind", put("kernels", 0, "args", 0, "kind", "ptr"), 'kernels[0].args[0].kind is "ptr"'),
    (
        "argument size",
        put("kernels", 0, "args", 0, "size", 4),
        "kernels[0].args[0].size is 4, expected 8 for",
    ),
    ("argument place", put("kernels", 0, "args", 0, "offset", 24), "kernels[0].args[0].offset is 24"),
    (
        "argument parity",
        put("kernels", 0, "args", 0, "offset", 4),
        "offset is 4, expected a multiple of its size 8",
    ),
    (
        "overlap",
        put("kernels", 0, "args", 1, "offset", 0),
        "kernels[0]: argument 'tokens' overlaps the one before",
    ),
    ("sequence", drop("sequences", "head"), "sequences lacks 'head'"),
    ("sequence name", put("sequences", "bench", []), "sequences has the unknown field 'bench'"),
    (
        "kernel index",
        put(*LAUNCH, "kernel", 4),
        "sequences.decode[0].kernel is 4, expected a whole number from 0 to 3",
    ),
    ("grid", put(*LAUNCH, "grid", 0), "sequences.decode[0].grid is 0, expected a whole number from 1"),
    (
        "argument count",
        drop(*LAUNCH, "args", 3),
        "sequences.decode[0] has 3 arguments, kernel 'toy_append' takes 4",
    ),
    (
        "buffer name",
        put(*LAUNCH, "args", 2, ["kw", 0]),
        "the buffer of sequences.decode[0].args[2] ('kv') is \"kw\"",
    ),
    (
        "past the end",
        put(*LAUNCH, "args", 2, ["kv", 192]),
        "is 192, expected one inside the 192 bytes of 'kv'",
    ),
    ("before", put(*LAUNCH, "args", 2, ["kv", -4]), "the offset of sequences.decode[0].args[2] ('kv') is -4"),
    ("no pointer", put(*LAUNCH, "args", 2, 7), "sequences.decode[0].args[2] ('kv') is 7, expected a pair"),
    ("no value", put(*LAUNCH, "args", 3, ["kv", 0]), "sequences.decode[0].args[3] ('decode') is"),
    (
        "wide value",
        put(*LAUNCH, "args", 3, 1 << 32),
        "is 4294967296, expected a whole number from -2147483648 to",
    ),
    ("infinite", put(*LAUNCH, "args", 3, float("inf")), "sequences.decode[0].args[3] ('decode') is Infinity"),
    ("logits", drop("symbols", "logits"), "symbols lacks 'logits'"),
    ("logits room", put("symbols", "logits", ["arena", 260]), "symbols.logits is"),
    ("state place", put("state", "step", 62), "state.step is 62, expected a whole number from 0 to 60"),
    (
        "state twice",
        put("state", "step", 12),
        "state.step is 12, expected a multiple of 4 that no other field",
    ),
    (
        "chunks",
        drop("weights", "chunks", 0),
        "the length of weights.chunks is 3, expected 4 digests for 12388",
    ),
    ("tokenizer file", put("tokenizer", "file", None), "tokenizer.file is null, expected a non-empty string"),
    (
        "files",
        put("files", "a/../b", "a" * 64),
        'a path of files is "a/../b", expected a plain relative path',
    ),
]


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_refused(change: Callable[[Any], object], message: str) -> None:
    with pytest.raises(PackageError) as caught:
        parse(changed(change))
    assert message in caught.value.message
    assert "compile the model again" in caught.value.hint


def test_a_newer_format() -> None:
    with pytest.raises(PackageError) as caught:
        parse(changed(put("format", 2)))
    assert caught.value.message == "the package has format 2, and this runtime reads formats up to 1"
    assert caught.value.hint == (
        "run the package with the runtime it came with, or compile the model with this version of forgec"
    )


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(PackageError) as caught:
        parse(changed(put("chunk", "x" * 1000)))
    assert len(caught.value.message) < 150


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"\xff\xfe", "cannot be read"),
        (b"[]", "the top level is [], expected an object"),
    ],
)
def test_unreadable_manifests(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(PackageError, match="manifest") as caught:
        load_manifest(tmp_path)
    assert message in caught.value.message


def test_no_package(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="is no forgec package: it has no manifest"):
        load_manifest(tmp_path)
    with pytest.raises(PackageError, match="is no forgec package"):
        load_manifest(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(PackageError, match="is a file, not the folder of a package"):
        load_manifest(tmp_path / "file")


def test_sound_manifest_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(RAW))
    assert load_manifest(tmp_path).raw == RAW


def test_arguments_are_packed_by_their_offsets() -> None:
    raw = changed(put("kernels", 2, "args", 3, "offset", 40))
    raw["kernels"][2]["kernarg_bytes"] = 48
    raw["sequences"]["head"][0]["args"] = [["state", 4], ["arena", 8], ["arena", 256], 0xFFFF_FFFE, 0.1]
    manifest = parse(raw)
    addresses = {"state": 0x1000, "arena": 0x2_0000_0000}
    launch = manifest.sequences["head"][0]
    segment = pack_arguments(manifest.kernels[2], launch, addresses)
    assert len(segment) == 48
    assert struct.unpack_from("<QQQ", segment) == (0x1004, 0x2_0000_0008, 0x2_0000_0100)
    assert segment[24:28] == bytes(4)
    assert struct.unpack_from("<f", segment, 28)[0] == struct.unpack("<f", struct.pack("<f", 0.1))[0]
    assert struct.unpack_from("<I", segment, 40)[0] == 0xFFFF_FFFE
    assert parse(changed(put(*LAUNCH, "args", 3, -1))).sequences["decode"][0].args[3] == -1


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every path into a JSON value, the root excluded."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


PLACES = list(places(RAW))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=1000, deadline=None)
@given(place=st.sampled_from(PLACES), value=JSON)
def test_any_value_anywhere_is_accepted_or_refused_by_name(place: tuple[Any, ...], value: Any) -> None:
    try:
        parse(changed(put(*place, value)))
    except PackageError as error:
        assert "\n" not in error.message and len(error.message) < 400
