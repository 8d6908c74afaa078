"""The persistent schedule: a token in one kernel whose blocks wait for each other, on emulated chips."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import pytest

from forgec.compiler import compile_model, plan_model
from forgec.config import load_config
from forgec.errors import UnsupportedModelError
from forgec.frontend.gguf import open_gguf
from forgec.frontend.spec import read_spec
from forgec.package.loader import import_package
from forgec.plan.program import CompileOptions, Program
from forgec.plan.stages.token import TokenParams
from forgec.plan.traffic import cache_bytes_per_position
from forgec.targets import get_target
from forgec.toolchain import open_cache
from tests.emulator.devices import install_entry_points
from tests.models.record import tokens_of
from tests.models.test_architectures import check, run
from tests.models.tiny import CONTEXT, TINY

OPTIONS = CompileOptions(math="exact", context=CONTEXT, kv_dtype="f32", chunk=16, schedule="persistent")


def compiled(name: str, target: str, folder: Path, options: CompileOptions = OPTIONS) -> Path:
    model = TINY[name].write(folder / "tiny.gguf", name)
    compile_model(model, target, folder / "package", options, cache=open_cache(load_config())[0])
    return folder / "package"


def planned(name: str, target: str, folder: Path, options: CompileOptions) -> Program:
    with open_gguf(TINY[name].write(folder / "tiny.gguf", name)) as gguf:
        return plan_model(gguf, read_spec(gguf), get_target(target), options)


@pytest.mark.parametrize(
    ("name", "target", "device"),
    [
        # With checks: races in LDS and missing fences between the blocks are traps.
        ("llama", "gfx1100", "emulated-checked"),
        ("llama", "gfx1030", "emulated"),
        ("qwen2", "gfx1100", "emulated"),
        ("granite", "gfx1100", "emulated"),
    ],
)
def test_a_token_in_one_launch_agrees_with_llama_cpp(
    name: str, target: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = compiled(name, target, tmp_path)
    install_entry_points(monkeypatch)
    with import_package(package).load(device=device, threads=2) as model:
        (launch,) = model.manifest.sequences["decode"]
        assert model.manifest.kernels[launch.kernel].cooperative
        check(name, run(model.engine, tokens_of(name)))


def test_it_is_measured_without_stages_where_it_has_no_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = import_package(compiled("llama", "gfx1100", tmp_path))
    measure = importlib.import_module(f"{package.__name__}.measure")
    install_entry_points(monkeypatch)
    with package.load(device="emulated", threads=2) as model:
        report = measure.measure(model, contexts=(3,), tokens=1, prompt=2, repeat=1)
    assert report.decode[0].tokens_per_second > 0 and report.stages.table == ()
    reason = "one kernel makes a whole token, and on 'gfx1100' it has no clock to stamp"
    assert f"  stages      not timed: {reason}" in measure.report_text(report).splitlines()


def test_the_sampler_draws_what_the_other_schedule_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_entry_points(monkeypatch)
    drawn = []
    for schedule in ("graph", "persistent"):
        folder = tmp_path / schedule
        folder.mkdir()
        package = import_package(compiled("llama", "gfx1100", folder, replace(OPTIONS, schedule=schedule)))
        with package.load(device="emulated", threads=2) as model:
            engine = model.engine
            engine.start(package.Sampling(temperature=1.5, top_k=40, top_p=0.9, seed=11))
            engine.prefill([5, 6, 7])
            engine.head()
            tickets = [engine.sample(), *(engine.decode() for _ in range(5))]
            drawn.append([engine.token(ticket) for ticket in tickets])
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) > 1


@pytest.mark.parametrize(
    ("name", "reason"), [("gpt2", "learned positions"), ("gemma2", "window"), ("mixtral", "no step")]
)
def test_what_has_no_step_is_refused_and_auto_replays_a_graph(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=reason) as caught:
        planned(name, "sm_90", tmp_path, OPTIONS)
    assert "--schedule graph" in caught.value.hint
    program = planned(name, "sm_90", tmp_path, replace(OPTIONS, schedule="auto"))
    assert len(program.sequences["decode"]) > 1


def test_waves_of_64_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="scalar registers"):
        planned("llama", "gfx942", tmp_path, OPTIONS)


def test_auto_is_what_the_target_is_faster_with(tmp_path: Path) -> None:
    for target, persistent in (("sm_90", True), ("sm_80", False), ("gfx1100", False), ("x86-64-v3", False)):
        program = planned("llama", target, tmp_path, replace(OPTIONS, schedule="auto"))
        kernels = [launch.kernel for launch in program.sequences["decode"]]
        assert isinstance(kernels[0], TokenParams) == persistent
        assert len(program.steps) > 1
        assert (
            cache_bytes_per_position(program) == 2 * 2 * 2 * 16 * 4
        )  # layers, K and V, heads, elements, bytes


@pytest.mark.parametrize("math", ["exact", "fast"])
def test_the_ring_of_weights_fits_the_block(math: str, tmp_path: Path) -> None:
    target = get_target("sm_90")
    program = planned("llama", "sm_90", tmp_path, replace(OPTIONS, math=math))
    (launch,) = program.sequences["decode"]
    params = launch.kernel
    assert isinstance(params, TokenParams) and params.stream == "copies"
    assert params.threads == params.block + 32
    assert target.dynamic_lds is not None and params.tiles * params.tile_bytes < params.launch_lds
    assert params.launch_lds <= target.dynamic_lds
    table = next(t for t in program.tensors if t.name == "token_table")
    assert len(table.literal) == table.bytes == 64 * params.steps


def test_a_device_that_holds_too_few_blocks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = import_package(compiled("llama", "gfx1100", tmp_path))
    install_entry_points(monkeypatch)
    monkeypatch.setattr("forgec.emulator.driver.resident_blocks", lambda *_: 40)
    with pytest.raises(package.DeviceError, match=r"holds 40 blocks .* compiled for 96"):
        package.load(device="emulated", threads=2)
