"""Where KV caches lie: rings of sliding windows, element types, and packages whose rings go round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from forgec.compiler import compile_model, plan_model
from forgec.config import load_config
from forgec.errors import UnsupportedModelError
from forgec.frontend.gguf import open_gguf
from forgec.frontend.spec import read_spec
from forgec.ir import ops
from forgec.ir.graph import Graph
from forgec.package.loader import import_package
from forgec.passes.fuse_attention import fuse_attention
from forgec.plan import kvcache
from forgec.plan.kvcache import kv_cache_bytes, place_caches, readers, rollback
from forgec.plan.program import CompileOptions, Program
from forgec.plan.stages import AttentionDecodeParams, KVAppendParams, RopeKVParams
from forgec.plan.stages.cache import rows_bytes
from forgec.plan.traffic import cache_bytes_per_position, launch_traffic
from forgec.targets import get_target
from forgec.toolchain import open_cache
from tests.emulator.devices import install_entry_points
from tests.gguf_files import TinyModel
from tests.ir_models import imported, with_op
from tests.models.record import tokens_of
from tests.models.test_architectures import check, run
from tests.models.tiny import CONTEXT, TINY
from tests.smollm2 import require_smollm2

CPU = "x86-64-v3"


def two_layers(*windows: int) -> Graph:
    """A model whose layers have the given windows, attention fused."""
    graph = imported(TinyModel(block_count=len(windows))).graph
    for layer, window in enumerate(windows):
        graph = with_op(graph, f"layer{layer}.attn_mask", ops.Mask(causal=True, window=window))
    return fuse_attention(graph)


def test_only_layers_with_a_window_keep_a_ring() -> None:
    caches = place_caches(two_layers(100, 0), context=4096, chunk=128, kv_dtype="f16")
    assert list(caches) == ["kv.k.0", "kv.v.0", "kv.k.1", "kv.v.1"]
    assert [rows.positions for rows in caches.values()] == [256, 256, 4096, 4096]  # 100 + 127, rounded up
    assert [rows.window for rows in caches.values()] == [100, 100, 0, 0]
    kv_heads, length = caches["kv.k.0"].kv_heads, caches["kv.k.0"].length
    assert caches["kv.k.1"].bytes == 2 * kv_heads * 4096 * length
    offset = 0
    for rows in caches.values():
        assert rows.offset >= offset and rows.offset % 256 == 0
        offset = rows.offset + rows.bytes
    assert kv_cache_bytes(caches) == -(-offset // 256) * 256
    assert rollback(caches) == 256 - 100


def test_a_window_as_long_as_the_context_is_no_ring() -> None:
    caches = place_caches(two_layers(100, 50), context=128, chunk=64, kv_dtype="f16")
    assert [rows.positions for rows in caches.values()] == [128] * 4
    assert rollback(caches) is None


def test_a_reader_that_sees_everything_keeps_everything() -> None:
    graph = two_layers(10, 10)
    unfused = with_op(imported(TinyModel()).graph, "layer0.attn_mask", ops.Mask(True, 10))
    assert place_caches(unfused, 4096, 8, "f16")["kv.k.0"].window == 0  # unfused attention reads all scores
    node = readers(graph, "kv.k.0")[0]
    assert isinstance(node.op, ops.Attention)
    full = with_op(graph, node.name, replace(node.op, causal=False))
    assert place_caches(full, 4096, 8, "f16")["kv.k.0"].window == 0


def test_rows_that_are_no_whole_blocks_are_refused() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        place_caches(two_layers(0), 64, 8, "q8_0")
    assert caught.value.message == (
        "the KV cache 'kv.k.0' has rows of 16 elements, which are no whole blocks of 32"
    )
    assert caught.value.hint == "Use --kv f16."


def plan(model: Path, kv: str, *, context: int = 512, fuse: bool = True) -> Program:
    with open_gguf(model) as gguf:
        options = CompileOptions(context=context, kv_dtype=kv, fuse=fuse)
        return plan_model(gguf, read_spec(gguf), get_target("gfx1100"), options)


@pytest.mark.parametrize("kv", ["f16", "f32"])
def test_traffic_counts_what_a_cache_holds(tmp_path: Path, kv: str) -> None:
    program = plan(TINY["llama"].write(tmp_path / "tiny.gguf", "llama"), kv, context=CONTEXT)
    decode = [launch for launch in program.sequences["decode"] if "attention" in launch.note]
    kernel = decode[0].kernel
    assert isinstance(kernel, AttentionDecodeParams)
    per_position = rows_bytes(kv, 2 * kernel.cache.kv_heads, kernel.cache.key_length)
    assert launch_traffic(decode[0], program, 1, 9).cache == 10 * per_position
    assert cache_bytes_per_position(program) == len(decode) * per_position
    windowed = replace(decode[0], kernel=replace(kernel, window=4))
    assert launch_traffic(windowed, program, 1, 9).cache == 4 * per_position


@pytest.mark.parametrize("target", [CPU, "gfx1100"])
@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_rings_that_go_round(name: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """13 rows for a window of 6 and chunks of 8: a prompt of 13 tokens and 5 more wrap around."""
    monkeypatch.setattr(kvcache, "RING_STEP", 1)
    model = TINY[name].write(tmp_path / "tiny.gguf", name)
    options = CompileOptions(math="exact", context=CONTEXT, kv_dtype="f32", chunk=8)
    compile_model(model, target, tmp_path / "package", options, cache=open_cache(load_config())[0])
    install_entry_points(monkeypatch)
    device = "cpu" if target == CPU else "emulated"
    with import_package(tmp_path / "package").load(device=device, threads=2) as package:
        assert package.manifest.rollback == 7
        tokens = tokens_of(name)
        for _ in range(2):  # what the first run left in the rows does not matter
            check(name, run(package.engine, tokens))
        at = package.engine.position
        assert [package.engine.reusable(at - back) for back in (0, 7, 8)] == [at, at - 7, 0]


class TestQuantised:
    """Products cannot write blocks of 32: their rows wait in float32 until somebody appends them."""

    def test_attention_appends_a_tokens_rows(self) -> None:
        program = plan(require_smollm2(), "q8_0")
        kernels = [launch.kernel for launch in program.sequences["decode"]]
        assert not any(isinstance(kernel, KVAppendParams) for kernel in kernels)
        assert all(k.fresh for k in kernels if isinstance(k, AttentionDecodeParams))
        prompt = [launch.kernel for launch in program.sequences["prefill"]]
        follower = prompt[[isinstance(kernel, RopeKVParams) for kernel in prompt].index(True) + 1]
        assert isinstance(follower, KVAppendParams) and follower.from_cache == program.chunk
        positions = 512 * 30 * 2 * 3
        assert program.buffer("kv").bytes == rows_bytes("q8_0", positions, 64) == positions * 68

    def test_unfused_appends_are_stages_of_their_own(self) -> None:
        program = plan(require_smollm2(), "q8_0", fuse=False)
        appends = [k.kernel for k in program.sequences["decode"] if isinstance(k.kernel, KVAppendParams)]
        assert len(appends) == 30 and not any(k.from_cache for k in appends)
