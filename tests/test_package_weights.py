"""weights.bin is the same however it is cut into bands, and its digests are those of its bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from forgec.compiler import plan_model
from forgec.frontend.gguf import open_gguf
from forgec.frontend.spec import read_spec
from forgec.package import weights
from forgec.plan.program import CompileOptions, Program
from forgec.quantise import WeightOptions, open_model
from forgec.targets import get_target
from tests.gguf_files import TinyModel

TINY = TinyModel(
    embedding_length=256,
    feed_forward_length=512,
    head_count=8,
    key_length=32,
    quants={"blk.0.ffn_up.weight": "Q4_K", "blk.1.ffn_up.weight": "Q6_K", "blk.0.attn_q.weight": "F16"},
)


def plan(path: Path, arch: str) -> Program:
    with open_gguf(path) as gguf:
        return plan_model(gguf, read_spec(gguf), get_target(arch), CompileOptions(context=64))


@pytest.mark.parametrize("arch", ["gfx1100", "x86-64-v3"])
def test_bands_and_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str) -> None:
    path = TINY.write(tmp_path / "m.gguf", np.random.default_rng())
    program = plan(path, arch)
    files = []
    for elements, chunk in ((1 << 20, 4 << 20), (2000, 5000), (1, 4096)):
        monkeypatch.setattr(weights, "BAND_ELEMENTS", elements)
        monkeypatch.setattr(weights, "CHUNK_BYTES", chunk)
        heard: list[int] = []
        file = tmp_path / f"{elements}.bin"
        with open_gguf(path) as gguf:
            digest = weights.write_weights(file, gguf, program, lambda done, total, to=heard: to.append(done))
        data = file.read_bytes()
        assert digest.bytes == len(data) == program.buffer("weights").bytes
        assert digest.chunks == tuple(
            hashlib.sha256(data[at : at + chunk]).hexdigest() for at in range(0, len(data), chunk)
        )
        assert heard == sorted(heard) and len(heard) >= len(program.tensors)
        files.append(data)
    assert files[0] == files[1] == files[2]


def test_requantised_bands_are_those_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = TINY.write(tmp_path / "m.gguf", np.random.default_rng())
    options = WeightOptions("Q4_K", requantize=True)
    written, errors = [], []
    for elements in (1 << 20, 3000):
        monkeypatch.setattr(weights, "BAND_ELEMENTS", elements)
        with open_model(path, options) as gguf:
            program = plan_model(gguf, read_spec(gguf), get_target("gfx1100"), CompileOptions(context=64))
            weights.write_weights(tmp_path / "w.bin", gguf, program)
            errors.append([entry["error"] for entry in gguf.history()["tensors"]])
        written.append((tmp_path / "w.bin").read_bytes())
    assert written[0] == written[1]
    np.testing.assert_allclose(errors[0], errors[1], rtol=1e-6)


def test_rows_that_were_given_back_are_read_again(tmp_path: Path) -> None:
    path = TinyModel(block_count=1, vocab_size=300, embedding_length=256).write(tmp_path / "m.gguf")
    with open_gguf(path) as gguf:
        name = "token_embd.weight"
        before = gguf.rows_of(name, 3, 200).copy()
        gguf.release(name, 0, gguf.tensors[name].rows)
        assert np.array_equal(gguf.rows_of(name, 3, 200), before)
        assert np.array_equal(gguf.array(name)[3:203], gguf.array_rows(name, 3, 200))
