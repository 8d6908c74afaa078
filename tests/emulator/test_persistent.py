"""The persistent schedule: a token in one kernel whose blocks wait for each other, on emulated chips."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from forgec import compiler
from forgec.compiler import compile_model, plan_model
from forgec.config import load_config
from forgec.errors import UnsupportedModelError
from forgec.frontend.gguf import open_gguf
from forgec.frontend.spec import read_spec
from forgec.package.loader import import_package
from forgec.plan.program import CompileOptions, Program
from forgec.plan.stages.token import TokenParams
from forgec.plan.traffic import cache_bytes_per_position
from forgec.targets import base, get_target
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


#: Where the kernel's text comes to stamps.
STAMPS = "// ---- stamps ----"
#: A clock that every look at it puts forward, for a chip whose real one no kernel reads.
CLOCK = """
__attribute__((device)) u32 ticks[1] = {1000u};
DEVICE u64 clock_now() { return (u64)atomic_add_u32(ticks, 10u); }
DEVICE u64 nanosecond_now() { return clock_now(); }
"""


def test_what_the_blocks_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timed kernel, run: it makes the same tokens, and every block stamps every step in its own rows."""
    monkeypatch.setitem(base.FAMILIES, "gfx11", replace(base.FAMILIES["gfx11"], clock=True))
    render = compiler.render_stage
    monkeypatch.setattr(compiler, "render_stage", lambda k: render(k).replace(STAMPS, CLOCK + STAMPS))
    package = import_package(compiled("llama", "gfx1100", tmp_path))
    stages = importlib.import_module(f"{package.__name__}.stages")
    install_entry_points(monkeypatch)
    tokens = []
    with package.load(device="emulated", threads=2) as model:
        engine = model.engine
        for timed in (False, True):
            engine.start(package.Sampling())
            engine.prefill([5, 6, 7])
            engine.head()
            first = engine.sample()
            tokens.append(
                [engine.token(first), *(engine.token(engine.decode(timed=timed)) for _ in range(2))]
            )
        (launch,) = model.manifest.sequences["decode_timed"]
        stamps = np.frombuffer(engine.read("stamps"), "<u8").reshape(launch.grid, len(launch.steps) + 1, -1)
    assert tokens[0] == tokens[1]
    token, steps = stamps[:, 0, :4], stamps[:, 1:].astype(np.int64)
    assert (np.diff(token.astype(np.int64)) > 0).all()
    begun, ended = steps[..., 0], steps[..., 4]
    assert (begun[:, 0] > token[:, 1]).all() and (ended[:, -1] < token[:, 2]).all()
    assert (begun[:, 1:] > ended[:, :-1]).all() and (begun < ended).all()
    roles = [step.label.split(" ")[0] for step in launch.steps]
    for number, role in enumerate(roles):
        came = steps[:, number, 1:4] > 0
        if role in ("embedding", "sample"):
            assert not came[1:].any()
            continue
        # Those that take part stamp every moment, in order.
        taking = came.all(axis=1)
        assert (came == taking[:, None]).all() and taking.any()
        assert (np.diff(steps[taking, number, :5]) > 0).all()
        # Only blocks that have rows, and all have some of the output matrix.
        assert taking.all() == (role == "output")
        # Nobody has a vector before somebody has made some of it.
        made = steps[:, number - 1, 3 if number > 1 else 0]
        assert steps[taking, number, 1].min() > made[made > 0].min()
    times = stages.stamped_times(stamps[None], launch.steps, 3)
    assert {stage.kernel.split(" ")[0] for stage in times.table} == set(roles)


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
    assert params.threads == params.block + 32 * params.copiers
    # Filled by another wave, a place could be a phase ahead of the one that waits for it, for ever.
    assert params.slots % params.copiers == 0
    assert target.dynamic_lds is not None and params.slots * params.slot_bytes < params.launch_lds
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
