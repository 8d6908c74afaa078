"""Damaged GGUF files: whatever bytes are cut or changed, only a ForgeError may come out, soon and cheaply.

A complete small model, and the real header of SmolLM2 in front of a hole in place of its weights, are read
the way a compilation does: opened, described, vocabulary decoded, tensors looked at.
"""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forgec.errors import ForgeError
from forgec.frontend import open_gguf, read_spec
from forgec.inspection import inspect_file
from tests.gguf_files import RawGGUF, TinyModel, array_bytes, string_bytes, value_bytes
from tests.smollm2 import require_smollm2

SECONDS = 5.0
PLACES = 1000
REAL_PLACES = 500  # the same walk through 1.7 MB of header takes 20 ms a time
MEASURED = 60  # of these the allocations are traced, which makes each about five times slower
QUIET = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def read_everything(path: Path, fully: bool) -> None:
    """What a compilation reads; only ``fully`` decodes all strings and tensors."""
    with open_gguf(path) as model:
        for value in model.metadata.values():
            if not isinstance(value, (str, int, float)):
                list(value if fully else value[::101])
        for name, info in model.tensors.items():
            assert model.bytes_of(name).nbytes == info.nbytes
            if fully:
                assert model.array(name).shape == info.shape
        spec = read_spec(model)
        assert spec.vocab_size > 0 and np.isfinite(spec.rope.magnitude)
        if spec.rope.freq_factors is None:
            assert np.isfinite(spec.rope.inverse_frequencies()).all()


def survives(path: Path, fully: bool = True) -> bool:
    """Whether the file is read; any error but a ForgeError, or a long wait, fails the test."""
    begin = time.monotonic()
    try:
        read_everything(path, fully)
    except ForgeError as error:
        assert error.message and "\n" not in error.message and len(error.message) < 500
        return False
    finally:
        elapsed = time.monotonic() - begin
        assert elapsed < SECONDS, f"reading took {elapsed:.1f} s"
    return True


@contextmanager
def memory_limit(nbytes: int) -> Iterator[None]:
    """Fails when Python and NumPy together held more than ``nbytes`` at once."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < nbytes, f"{peak / 1e6:.0f} MB were allocated"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A complete model with every kind of metadata, in Q8_0."""
    extra = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0, "a.list": [1, 2, 3]}
    tiny = TinyModel(block_count=1, vocab_size=262, quant="Q8_0", metadata=extra)
    path = tiny.write(tmp_path_factory.mktemp("fuzz") / "small.gguf")
    assert survives(path)
    return path.read_bytes()


def header_size(path: Path) -> int:
    with open_gguf(path) as model:
        return min(info.offset for info in model.tensors.values())


def flip(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :]


def test_every_bit_flip_is_survived(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(small)
    header = header_size(path)
    rng = np.random.default_rng()
    places = [*rng.integers(0, header, PLACES * 4 // 5), *rng.integers(0, len(small), PLACES // 5)]
    refused = 0
    for index, place in enumerate(places):
        path.write_bytes(flip(small, int(place), int(rng.integers(8))))
        with memory_limit(20 << 20) if index < MEASURED else nullcontext():
            refused += not survives(path)
    # Flips in token texts, numbers and weights leave a readable file; flips in lengths and types do not.
    assert 0 < refused < PLACES


def test_inspect_survives_every_bit_flip(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(small)
    header = header_size(path)
    rng = np.random.default_rng()
    explained = refused = 0
    for place in rng.integers(0, header, PLACES // 2):
        path.write_bytes(flip(small, int(place), int(rng.integers(8))))
        try:
            explained += not inspect_file(path).compiles
        except ForgeError:
            refused += 1
    assert explained > 0 and refused > 0


def test_every_cut_is_refused(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(small)
    header = header_size(path)
    rng = np.random.default_rng()
    cuts = {*range(0, 200), *rng.integers(0, header, 400), *rng.integers(header, len(small), 100)}
    for size in sorted(int(cut) for cut in cuts):
        path.write_bytes(small[:size])
        assert not survives(path), f"a file cut at byte {size} of {len(small)} was read"


@QUIET
@given(data=st.data())
def test_overwritten_numbers_are_survived(
    small: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Hostile numbers, where hypothesis can shrink the place: several words at once."""
    words = st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1)
    changed = bytearray(small)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, min(len(small) - 8, 8000)))
        changed[place : place + 8] = struct.pack("<Q", data.draw(words))
    path = tmp_path_factory.getbasetemp() / "overwritten.gguf"
    path.write_bytes(changed)
    survives(path)


@QUIET
@given(content=st.binary(max_size=400))
def test_any_bytes_after_the_magic_are_survived(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0" + content)
    survives(path)


def encoded_values(depth: int = 0) -> st.SearchStrategy[bytes]:
    """Metadata values with their type, mostly well formed, of any type up to unknown ones."""
    scalars = st.tuples(st.integers(0, 14), st.binary(min_size=8, max_size=8)).map(lambda v: value_bytes(*v))
    strings = st.binary(max_size=20).map(lambda raw: value_bytes(8, string_bytes(raw)))
    kinds = st.sampled_from([0, 4, 6, 7, 8, 10, 12])
    lists = st.tuples(kinds, st.lists(st.binary(max_size=16).map(string_bytes), max_size=4)).map(
        lambda v: value_bytes(9, array_bytes(v[0], v[1]))
    )
    if depth == 3:
        return scalars | strings | lists
    nested = st.lists(encoded_values(depth + 1), max_size=3).map(
        lambda items: value_bytes(9, array_bytes(9, [item[4:] for item in items]))
    )
    return scalars | strings | lists | nested


NAMES = st.sampled_from(
    [
        *["general.architecture", "general.alignment", "llama.block_count", "llama.embedding_length"],
        *[
            "llama.attention.head_count",
            "llama.rope.scaling.type",
            "tokenizer.ggml.tokens",
            "split.count",
            "x",
        ],
    ]
)
TENSORS = st.tuples(
    st.sampled_from(["token_embd.weight", "output.weight", "rope_freqs.weight", "t"]),
    st.lists(st.integers(0, 64) | st.integers(0, 2**64 - 1), max_size=5).map(tuple),
    st.integers(0, 45),
    st.integers(0, 64).map(lambda n: 32 * n) | st.integers(0, 2**64 - 1),
)


@QUIET
@given(
    keys=st.lists(st.tuples(NAMES, encoded_values()), max_size=6),
    tensors=st.lists(TENSORS, max_size=4),
    size=st.integers(0, 4096),
)
def test_any_structure_is_survived(
    tmp_path_factory: pytest.TempPathFactory,
    keys: list[tuple[str | bytes, bytes]],
    tensors: list[tuple[str | bytes, tuple[int, ...], int, int]],
    size: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "structure.gguf"
    RawGGUF(keys=keys, tensors=tensors, data=bytes(size)).write(path)
    survives(path)


SCALARS = {0: ("<B", 0, 255), 1: ("<b", -128, 127), 4: ("<I", 0, 2**32 - 1), 11: ("<q", -(2**63), 2**63 - 1)}


@QUIET
@given(
    values=st.dictionaries(
        st.text(max_size=20).map(lambda name: f"k.{name}"),  # apart from keys that the reader itself heeds
        st.text(max_size=50)
        | st.sampled_from(sorted(SCALARS)).flatmap(
            lambda kind: st.tuples(st.just(kind), st.integers(*SCALARS[kind][1:]))
        )
        | st.lists(st.text(max_size=10), max_size=5),
        max_size=6,
    )
)
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, str | tuple[int, int] | list[str]]
) -> None:
    keys: list[tuple[str | bytes, bytes]] = []
    for key, value in values.items():
        if isinstance(value, str):
            keys.append((key, value_bytes(8, string_bytes(value))))
        elif isinstance(value, tuple):
            keys.append((key, value_bytes(value[0], struct.pack(SCALARS[value[0]][0], value[1]))))
        else:
            keys.append((key, value_bytes(9, array_bytes(8, [string_bytes(item) for item in value]))))
    path = tmp_path_factory.getbasetemp() / "written.gguf"
    RawGGUF(keys=keys).write(path)
    with open_gguf(path) as model:
        assert list(model.metadata) == list(values)
        for key, value in values.items():
            found = model.metadata[key]
            assert (list(found) if isinstance(value, list) else found) == (
                value[1] if isinstance(value, tuple) else value
            )


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """SmolLM2's header in front of a hole of the size of its weights; returns (path, header bytes)."""
    original = require_smollm2()
    header = header_size(original)
    path = tmp_path_factory.mktemp("real") / "m.gguf"
    with original.open("rb") as file:
        path.write_bytes(file.read(header))
    os.truncate(path, original.stat().st_size)
    assert survives(path, fully=False)
    return path, header


def test_bit_flips_in_the_real_header_are_survived(real: tuple[Path, int]) -> None:
    path, header = real
    rng = np.random.default_rng()
    tables = [
        *range(0, 2000),
        *range(header - 20_000, header),
    ]  # outside the vocabulary, where lengths are dense
    places = [*rng.integers(0, header, REAL_PLACES // 2), *rng.choice(tables, REAL_PLACES // 2)]
    refused = 0
    with path.open("r+b", buffering=0) as file:
        for place in places:
            file.seek(int(place))
            byte = file.read(1)[0]
            file.seek(int(place))
            file.write(bytes([byte ^ (1 << int(rng.integers(8)))]))
            refused += not survives(path, fully=False)
            file.seek(int(place))
            file.write(bytes([byte]))
    assert 0 < refused < REAL_PLACES
    assert survives(path, fully=False), "the file was not restored, so the flips were not single ones"


def test_cuts_in_the_real_header_are_refused(real: tuple[Path, int], tmp_path: Path) -> None:
    path, header = real
    cut = tmp_path / "m.gguf"
    with path.open("rb") as file:
        cut.write_bytes(file.read(header))
    rng = np.random.default_rng()
    for index, size in enumerate(sorted(rng.integers(0, header, 40), reverse=True)):
        os.truncate(cut, int(size))
        with memory_limit(100 << 20) if index < 5 else nullcontext():
            assert not survives(cut, fully=False)
