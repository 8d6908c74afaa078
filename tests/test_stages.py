"""Time per stage of a kernel that makes a whole token: its stamps, who loads it, and what is made of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import runtime
from forgec.codegen.render import render_stage
from forgec.compiler import compile_model, plan_model
from forgec.config import load_config
from forgec.frontend.gguf import open_gguf
from forgec.frontend.spec import read_spec
from forgec.plan.program import CompileOptions
from forgec.plan.stages.token import STAMP_WORDS as PLANNED_WORDS
from forgec.plan.stages.token import TokenParams
from forgec.targets import all_targets, get_target
from forgec.toolchain import Unit, compile_units, open_cache
from runtime import measure
from runtime import stages as runtime_stages
from runtime.driver_recording import RecordedGraph, RecordingDriver
from runtime.errors import DeviceError, PackageError
from runtime.manifest import STAMP_WORDS, Step, load_manifest, parse_manifest
from runtime.stages import StageTime, StepParts, stage_times, stages_text, stamped_times
from tests.models.tiny import CONTEXT as TINY_CONTEXT
from tests.models.tiny import TINY
from tests.token_examples import token_examples
from tests.toy_package import write_package

BLOCKS = 6
STEPS = (Step("embedding", 10), Step("up [8] f16", 200), Step("attention", 0), Step("up [8] f16", 4_700_000))
#: A mark in a step, or the two halves of a wait for weights.
STAMPING = re.compile(
    r"^ *(mark\(.*\);|const u64 begin = wait_begins\(\);|wait_ends\(begin\);)$", re.MULTILINE
)


# -- the kernel


def kernels() -> tuple[TokenParams, TokenParams]:
    """The same kernel without stamps and with them."""
    fast, *_, timed = token_examples(get_target("sm_90"))
    assert isinstance(fast, TokenParams) and isinstance(timed, TokenParams)
    return fast, timed


def test_stamps_cost_other_kernels_nothing() -> None:
    """The compiler makes the same of a kernel that is not timed and of its text without any mark."""
    plain, timed = kernels()
    text = render_stage(plain)
    assert "kStampWords" not in text and "kStampWords" in render_stage(timed)
    stripped, marks = STAMPING.subn("", text)
    assert marks >= 15
    units = [Unit(name, t, (plain.symbol,)) for name, t in (("with", text), ("without", stripped))]
    units.append(Unit("timed", render_stage(timed), (timed.symbol,)))
    listings = [code.assembly for code in compile_units(units, get_target("sm_90"))]
    assert re.sub(r"with(out)?", "", listings[0]) == re.sub(r"with(out)?", "", listings[1])
    assert "%clock64" not in listings[0] and "%globaltimer" not in listings[0]
    assert listings[2].count("%clock64") > 20 and listings[2].count("%globaltimer") == 2


def test_moments_and_rows_are_those_of_the_kernel() -> None:
    """The runtime, which knows nothing of templates, reads stamps as the kernel writes them."""
    _, timed = kernels()
    text = render_stage(timed)
    found = re.search(r"enum Moment \{ (.*) \};", text)
    assert found is not None
    names = [name.removeprefix("k").upper() for name in found[1].split(", ")]
    assert [getattr(runtime_stages, name) for name in names] == list(range(len(names)))
    assert f"row[{found[1].split(', ')[-1]} + 1] = shared().waited" in text
    assert runtime_stages.WAITED == runtime_stages.ENDED + 1 < STAMP_WORDS == PLANNED_WORDS
    rows = re.search(r"kStampWords = (\d+), kStampRows = (\d+);", text)
    assert rows is not None and [int(n) for n in rows.groups()] == [STAMP_WORDS, timed.steps + 1]


def test_only_families_with_a_clock_have_a_timed_kernel() -> None:
    folder = Path(__file__).parents[1] / "templates" / "prelude"
    for target in all_targets():
        prelude = (folder / f"{target.family}.hip.j2").read_text(encoding="utf-8")
        assert target.clock == ("u64 clock_now()" in prelude) == ("u64 nanosecond_now()" in prelude)
        timed = [k for k in token_examples(target) if isinstance(k, TokenParams) and k.timed]
        assert len(timed) == (target.clock and target.wave > 1)


# -- the package


OPTIONS = CompileOptions(context=TINY_CONTEXT, kv_dtype="f32", chunk=16, schedule="persistent")


def test_the_plan_of_a_timed_kernel(tmp_path: Path) -> None:
    with open_gguf(TINY["llama"].write(tmp_path / "tiny.gguf", "llama")) as gguf:
        spec = read_spec(gguf)
        timed = plan_model(gguf, spec, get_target("sm_90"), OPTIONS)
        others = [
            plan_model(gguf, spec, get_target("sm_90"), replace(OPTIONS, schedule="graph")),
            plan_model(gguf, spec, get_target("gfx1100"), OPTIONS),
        ]
    for program in others:
        assert "decode_timed" not in program.sequences
        assert "stamps" not in [buffer.name for buffer in program.buffers]
    (launch,) = timed.sequences["decode_timed"]
    (normal,) = timed.sequences["decode"]
    assert isinstance(launch.kernel, TokenParams) and replace(launch.kernel, timed=False) == normal.kernel
    assert launch.args[:-1] == normal.args and normal.steps == ()
    assert len(launch.steps) == len(timed.steps) == launch.kernel.steps
    roles = [re.split(r" |\.", label)[0] for label in launch.steps]
    layer = ["attn_qkv", "attention", "attn_output", "ffn_gate_up", "ffn_down"]
    assert roles == ["embedding", *layer * timed.spec.block_count, "output", "sample"]
    assert all("[" in label for label, role in zip(launch.steps, roles, strict=True) if role in layer[::2])
    stamps = timed.buffer("stamps")
    assert stamps.bytes == launch.grid * (1 + len(launch.steps)) * STAMP_WORDS * 8
    assert timed.device_bytes == sum(b.bytes for b in timed.buffers) - stamps.bytes


def test_a_compiled_package_is_timed_on_demand(tmp_path: Path) -> None:
    """The manifest that the compiler writes is one that the runtime takes; nothing is loaded in advance."""
    model = TINY["llama"].write(tmp_path / "tiny.gguf", "llama")
    compile_model(model, "sm_90", tmp_path / "package", OPTIONS, cache=open_cache(load_config())[0])
    with runtime.load(tmp_path / "package", device="recording") as loaded:
        steps = loaded.manifest.sequences["decode_timed"][0].steps
        assert (
            sum(step.weight_bytes for step in steps)
            == loaded.manifest.raw["traffic"]["weight_bytes_per_token"]
        )
        loaded.engine.token(loaded.engine.decode())
        driver = loaded.engine.driver
        assert isinstance(driver, RecordingDriver)
        assert not [
            call for call in driver.calls if call.name == "get_function" and "timed" in call.arguments[1]
        ]
        loaded.engine.token(loaded.engine.decode(timed=True))
        (graph,) = [call for call in driver.calls if call.name == "graph"][-1:]
        assert [launch.name for launch in graph.arguments[1]] == ["launch_cooperative"]
        assert graph.arguments[1][0].arguments[0].startswith("token_timed_")


# -- the runtime, on a toy package


def timed_package(folder: Path, change: Callable[[Any], object] = lambda raw: None) -> Path:
    """The toy package as if one kernel made its tokens, and another one in another file stamped clocks."""
    write_package(folder)
    path = folder / "manifest.json"
    raw = json.loads(path.read_text())
    sampler = raw["kernels"][3]
    sampler["cooperative"] = True
    timed = {**sampler, "symbol": "toy_timed", "file": "kernels/timed.so", "kernarg_bytes": 40}
    timed["args"] = [*sampler["args"], {"name": "stamps", "offset": 32, "size": 8, "kind": "pointer"}]
    (folder / "kernels" / "timed.so").write_bytes((folder / sampler["file"]).read_bytes())
    raw["kernels"].append(timed)
    launch = raw["sequences"]["sample"][0]
    steps = [{"label": step.label, "weight_bytes": step.weight_bytes} for step in STEPS]
    args = [*launch["args"], ["stamps", 0]]
    raw["sequences"]["decode_timed"] = [{**launch, "kernel": 4, "grid": BLOCKS, "args": args, "steps": steps}]
    rows = BLOCKS * (1 + len(STEPS))
    raw["buffers"].append({"name": "stamps", "bytes": rows * STAMP_WORDS * 8, "init": "demand"})
    change(raw)
    path.write_text(json.dumps(raw))
    return folder


def names_of(driver: RecordingDriver, name: str) -> list[Any]:
    return [call.arguments[0] for call in driver.calls if call.name == name]


def test_what_stamps_is_loaded_when_it_is_run(tmp_path: Path) -> None:
    with runtime.load(timed_package(tmp_path), device="recording") as model:
        engine, driver = model.engine, model.engine.driver
        assert isinstance(driver, RecordingDriver)
        size = model.manifest.buffer("stamps").bytes
        model.generate("hello", max_tokens=3)
        engine.reset()
        assert names_of(driver, "load_module") == ["kernels/toy.so"]
        assert size not in names_of(driver, "malloc")
        for _ in range(2):
            engine.token(engine.decode(timed=True))
        assert (engine.position, engine.step) == (2, 2)
        assert names_of(driver, "load_module") == ["kernels/toy.so", "kernels/timed.so"]
        assert names_of(driver, "malloc").count(size) == 1
        assert len(engine.read("stamps")) == size
    assert names_of(driver, "module_unload") == ["kernels/toy.so", "kernels/timed.so"]
    assert len(names_of(driver, "malloc")) == len(names_of(driver, "free"))


def test_a_changed_kernel_is_found_when_it_is_loaded(tmp_path: Path) -> None:
    package = timed_package(tmp_path)
    with (package / "kernels" / "timed.so").open("ab") as file:
        file.write(b"x")
    refused = pytest.raises(PackageError, match=r"'kernels/timed.so' does not match its digest")
    with runtime.load(package, device="recording") as model, refused:
        model.engine.decode(timed=True)


def of_timed(change: Callable[[Any], object]) -> Callable[[Any], object]:
    return lambda raw: change(raw["sequences"]["decode_timed"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw["buffers"][-1].update(bytes=100), "'stamps' is 100, expected at least 1920 bytes"),
        (lambda raw: raw["buffers"].pop(), 'is "stamps", expected one of arena'),
        (lambda raw: raw["buffers"][-1].update(init="zero"), "init of buffer 'stamps' is \"zero\""),
        (of_timed(lambda launches: launches[0].pop("steps")), "is [0], expected one launch with steps"),
        (of_timed(lambda launches: launches.clear()), "is [], expected one launch with steps"),
        (of_timed(lambda launches: launches[0]["args"].__setitem__(4, ["kv", 0])), "has no argument that is"),
        (
            of_timed(lambda launches: launches[0]["steps"][1].update(weight_bytes=-1)),
            "sequences.decode_timed[0].steps[1].weight_bytes is -1",
        ),
        (
            lambda raw: raw["sequences"]["decode"][3]["args"].__setitem__(1, ["stamps", 0]),
            "the buffer of sequences.decode[3].args[1] ('logits') is \"stamps\"",
        ),
    ],
)
def test_manifests_that_are_refused(change: Callable[[Any], object], message: str, tmp_path: Path) -> None:
    with pytest.raises(PackageError) as caught:
        load_manifest(timed_package(tmp_path, change))
    assert message in caught.value.message


# -- what stamps mean


def stamps_of(blocks: int, rng: np.random.Generator) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """Stamps of a token, [blocks, 5, STAMP_WORDS], and the clocks of [blocks, 4 steps, 4 parts] they are of.

    The embedding stamps begin and end alone; only the first two blocks take part in attention.
    """
    parts = rng.integers(100, 1000, (blocks, len(STEPS), 4))
    parts[:, 0, :3] = 0
    parts[2:, 2, :3] = 0
    stamps = np.zeros((blocks, 1 + len(STEPS), STAMP_WORDS), np.uint64)
    at = rng.integers(1 << 40, 1 << 41, blocks)  # every block has clocks of its own
    stamps[:, 0, 0] = at
    stamps[:, 0, 1] = 5_000_000
    for step in range(len(STEPS)):
        ends = at[:, None] + np.cumsum(parts[:, step], axis=1)
        moments = np.concatenate([at[:, None], ends], axis=1)
        came = np.ones((blocks, 5), bool)
        came[:, 1:4] = (parts[:, step, :3] > 0).any(axis=1, keepdims=True)
        stamps[:, 1 + step, :5] = np.where(came, moments, 0)
        stamps[:, 1 + step, 5] = parts[:, step, 2] // 3
        at = ends[:, -1]
    stamps[:, 0, 2] = at
    stamps[:, 0, 3] = stamps[:, 0, 1] + (stamps[:, 0, 2] - stamps[:, 0, 0]) // 2  # 2 GHz
    return stamps, parts


def test_the_table_of_stamps() -> None:
    rng = np.random.default_rng()
    stamps, parts = stamps_of(BLOCKS, rng)
    # The same token three times, but one of them twice as slow: a median does not see it.
    slow = np.where(stamps > 0, stamps[:, :1, :1] + 2 * (stamps - stamps[:, :1, :1]), 0)
    slow[..., 0, 1], slow[..., 0, 3] = stamps[..., 0, 1], stamps[..., 0, 3]
    slow[..., 1:, 5] = 2 * stamps[..., 1:, 5]
    times = stamped_times(np.stack([stamps, slow, stamps]), STEPS, 7)
    assert times.context == 7 and times.clock_hz == pytest.approx(2e9, rel=0.01)
    assert times.clock_hz is not None and times.token_seconds is not None
    spans = stamps[:, 0, 3].astype(np.int64) - 5_000_000
    assert times.token_seconds == pytest.approx(1e-9 * spans.max())
    table = {stage.kernel: stage for stage in times.table}
    assert [s.seconds for s in times.table] == sorted((s.seconds for s in times.table), reverse=True)
    for label, numbers, blocks in (
        ("embedding", [0], BLOCKS),
        ("up [8] f16", [1, 3], BLOCKS),
        ("attention", [2], 2),
    ):
        taken = parts[:blocks, numbers]
        middle = np.median(taken, axis=0).sum(axis=0)
        expected = StepParts(
            waiting=middle[0],
            preparing=middle[1],
            products=middle[2],
            weights=np.median(taken[..., 2] // 3, axis=0).sum(),
            rest=middle[3],
            least_waiting=taken[..., 0].min(axis=0).sum(),
            most_products=taken[..., 2].max(axis=0).sum(),
            blocks=blocks,
        )
        stage = table[label]
        assert isinstance(stage, StageTime) and stage.parts is not None and stage.launches == len(numbers)
        assert stage.seconds * times.clock_hz == pytest.approx(np.median(taken.sum(axis=2), axis=0).sum())
        assert stage.weight_bytes == sum(STEPS[i].weight_bytes for i in numbers)
        for name, value in vars(expected).items():
            scale = 1 if name == "blocks" else times.clock_hz
            assert getattr(stage.parts, name) * scale == pytest.approx(float(value)), (label, name)


def test_clocks_that_stand_still_are_refused() -> None:
    stamps = np.zeros((1, BLOCKS, 1 + len(STEPS), STAMP_WORDS), np.uint64)
    with pytest.raises(DeviceError, match="counted 0 clocks in 0 ns"):
        stamped_times(stamps, STEPS, 0)


def test_a_report_of_stamps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured with a device that holds fewer blocks than planned and stamps when it is told to."""
    monkeypatch.setattr(measure, "COPY_BYTES", 1 << 16)
    blocks = BLOCKS - 1
    stamps, _ = stamps_of(blocks, np.random.default_rng())
    package = timed_package(tmp_path)
    with runtime.load(package, device="recording") as model:
        driver = model.engine.driver
        assert isinstance(driver, RecordingDriver)
        monkeypatch.setattr(driver, "_resident", blocks)
        replay = driver.graph_launch
        stamped = []

        def stamp(graph: RecordedGraph) -> None:
            replay(graph)
            if graph.launches[0].arguments[0] != "toy_timed":
                return
            address = int.from_bytes(graph.launches[0].arguments[3][32:40], "little")
            before = bytearray(model.manifest.buffer("stamps").bytes)
            driver.download(address, before)
            assert not any(before)
            driver.upload(address, stamps.astype("<u8").tobytes())
            stamped.append(model.engine.position)

        monkeypatch.setattr(driver, "graph_launch", stamp)
        report = measure.measure(model, contexts=(3,), tokens=4, prompt=9, repeat=2)
        unasked = measure.measure(model, contexts=(3,), tokens=4, prompt=9, repeat=1, stages=False)
        assert stamped == [3 + runtime_stages.TOKENS_AHEAD + 1] * 3
        assert stage_times(model.engine, 3, 1).table
    assert unasked.stages is None and "clocks" not in measure.report_text(unasked)
    found = json.loads(report.to_json())["stages"]
    assert report.stages is not None and found["clock_hz"] == pytest.approx(report.stages.clock_hz)
    (attention,) = [s for s in found["table"] if s["kernel"] == "attention"]
    assert attention["parts"]["blocks"] == 2 and attention["weight_bytes"] == 0
    lines = measure.report_text(report).splitlines()
    (head,) = [i for i, line in enumerate(lines) if "by clocks that the blocks stamp" in line]
    assert lines[head].startswith("  steps at context 3,") and "ms without stamps), 2.0" in lines[head]
    rows = lines[head + 3 :]
    assert [row.split("  ")[-1].strip() for row in rows] == [stage.kernel for stage in report.stages.table]
    (row,) = [row for row in rows if row.endswith("up [8] f16")]
    (up,) = [stage for stage in report.stages.table if stage.kernel == "up [8] f16"]
    assert up.parts is not None
    numbers = [
        float(n) for n in re.findall(r"[\d.]+", re.sub(r",(?=\d)", "", row.removesuffix("up [8] f16")))
    ]
    us = [1e6 * v for v in (up.seconds, up.parts.waiting, up.parts.least_waiting, up.parts.preparing)]
    assert numbers[0] == 2 and numbers[1:5] == pytest.approx(us, abs=0.051)
    assert numbers[-3:-1] == [blocks, 4.7]
    assert numbers[-1] == pytest.approx(4.7002e-3 / up.seconds, abs=0.051)
    assert stages_text(report.stages, None)[0].endswith("GHz;")


def test_the_manifest_reads_itself_again(tmp_path: Path) -> None:
    raw = json.loads((timed_package(tmp_path) / "manifest.json").read_text())
    (launch,) = parse_manifest(raw, tmp_path).sequences["decode_timed"]
    assert launch.steps == STEPS
