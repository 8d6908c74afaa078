"""``forgec report``: static counts, counts of kernels that ran, and a prediction that says it is one."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from forgec.commands.report import build_report, command
from forgec.commands.report_emulated import KernelCounts, count_kernels, issue_rate, predict
from forgec.compiler import plan_model, program_units
from forgec.config import load_config
from forgec.frontend.gguf import open_gguf
from forgec.frontend.spec import read_spec
from forgec.plan.program import CompileOptions, Program
from forgec.plan.stages import MatvecParams
from forgec.plan.traffic import launch_traffic
from forgec.synth.shapes import find_shape
from forgec.synth.write import write_model
from forgec.targets import get_target
from forgec.toolchain import CodeObject, compile_units, open_cache
from tests.gguf_files import TinyModel

#: Vector instructions per weight byte that the inner loops of products with int8 activations may take.
BUDGETS = {"q4_k": 4.0, "q6_k": 3.0, "q8_0": 1.2, "q4_0": 2.5, "q4_1": 2.5}


def planned(model: Path, **options: object) -> Program:
    with open_gguf(model) as gguf:
        return plan_model(gguf, read_spec(gguf), get_target("gfx1100"), CompileOptions(**options))  # type: ignore[arg-type]


def compiled(program: Program) -> tuple[CodeObject, ...]:
    return compile_units(program_units(program), program.target, cache=open_cache(load_config())[0])


@cache
def products(folder: Path, mix: str) -> tuple[Program, tuple[CodeObject, ...]]:
    """The products of a Llama-3.2-1B layer whose activations are int8: what reads most of a token's bytes."""
    path = folder / f"{mix}.gguf"
    write_model(path, find_shape("Llama-3.2-1B"), mix, layers=1, sparse=True)
    program = planned(path, context=256)
    launches = tuple(
        launch
        for launch in program.sequences["decode"]
        if isinstance(launch.kernel, MatvecParams) and launch.kernel.act == "q8"
    )
    assert len(launches) >= 3, "attention output, gate and up, down"
    kernels = tuple({launch.kernel.symbol: launch.kernel for launch in launches}.values())
    program = replace(program, kernels=kernels, sequences={"decode": launches})
    return program, compiled(program)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return TinyModel(quant="Q4_1").write(folder / "tiny.gguf", np.random.default_rng(3))


@pytest.mark.parametrize(
    ("mix", "formats"),
    [("Q4_K_M", {"q4_k", "q6_k"}), ("Q8_0", {"q8_0"}), ("Q4_0", {"q4_0"}), ("Q4_1", {"q4_1"})],
)
def test_inner_loops_stay_within_their_budget(folder: Path, mix: str, formats: set[str]) -> None:
    program, objects = products(folder, mix)
    format_of = {k.symbol: k.segments[0].format for k in program.kernels if isinstance(k, MatvecParams)}
    assert set(format_of.values()) == formats
    for kernel in build_report(program, objects, 128):
        assert kernel.valu_per_weight_byte is not None
        assert 0.2 < kernel.valu_per_weight_byte <= BUDGETS[format_of[kernel.symbol]], kernel.symbol
        assert (kernel.scratch_bytes, kernel.spills) == (0, 0)
        assert kernel.instructions["dot"] > 0


@pytest.mark.parametrize("mix", ["Q4_K_M", "Q8_0", "Q4_0"])
def test_every_fetched_line_of_the_weights_is_used(folder: Path, mix: str) -> None:
    program, objects = products(folder, mix)
    counts = count_kernels(program, objects, 10)
    assert len(counts) == len(program.kernels)
    for k in counts:
        (launch, *_) = [x for x in program.sequences["decode"] if x.kernel.symbol == k.symbol]
        matrix = launch_traffic(launch, program, 1, 10).weights
        assert 0.99 < k.weight_used / matrix <= 1 and matrix > 2_000_000
        assert k.line_use >= 0.9, f"{k.symbol}: {k.line_use:.1%} of the fetched lines"
        assert 0 <= k.repeats < 0.6
        assert k.scratch == 0


def test_a_layer_takes_five_launches(folder: Path) -> None:
    path = folder / "8b.gguf"
    write_model(path, find_shape("Llama-3.1-8B"), "Q4_K_M", sparse=True)
    program = planned(path, context=4096)
    layers = program.spec.block_count
    assert layers == 32
    # embedding, output matrix and sampler besides
    launches = program.sequences["decode"]
    assert len(launches) <= 5 * layers + 3
    moved = sum(launch_traffic(launch, program, 1, 128).bytes for launch in launches)
    assert 1 / (moved / 800e9 + 3.9e-6 * len(launches)) > 150  # tokens/s, RX 7900 XT at its full bandwidth


def test_counts_cover_every_kernel(model: Path) -> None:
    program = planned(model)
    sequences = {"prefill": program.sequences["prefill"][:2], "decode": program.sequences["decode"]}
    program = replace(program, sequences=sequences)
    counts = count_kernels(program, compiled(program), 5, ("prefill", "decode"))
    for sequence in ("prefill", "decode"):
        own = [k for k in counts if k.sequence == sequence]
        launches = program.sequences[sequence]
        assert sum(k.launches for k in own) == len(launches)
        assert {k.symbol for k in own} == {x.kernel.symbol for x in launches}
    for k in counts:
        assert 0 < k.valu < k.instructions
        assert 0 < k.used <= 128 * k.lines and k.lines <= k.fetched
        assert k.used <= k.loaded
        assert k.scratch == 0


def counts_of(launches: int, valu: int, lines: int, stored: int) -> KernelCounts:
    return KernelCounts(
        "decode", "k", launches, 32, valu, 2 * valu, 0, stored, 0, 0, 0, lines, lines, 128 * lines, 0, 0, 0
    )


def test_a_prediction_is_the_sum_of_its_parts() -> None:
    card = replace(get_target("gfx1100"), bandwidth=800e9, launch_seconds=4e-6, compute_units=84)
    assert issue_rate(card) == 84 * 2 * card.clock_hz
    bound_by_bytes = counts_of(2, 10, 6_000_000, 32_000_000)  # 800 MB
    assert bound_by_bytes.seconds(card) == pytest.approx(1e-3 + 4e-6)
    bound_by_issues = counts_of(3, int(issue_rate(card)), 0, 8)
    assert bound_by_issues.seconds(card) == pytest.approx(1 + 4e-6)
    both = predict([bound_by_bytes, bound_by_issues], card)
    assert (both.launches, both.bytes) == (5, 2 * 800_000_000 + 24)
    assert both.memory_seconds == pytest.approx(2e-3)
    assert both.issue_seconds == pytest.approx(3)
    assert both.node_seconds == pytest.approx(2e-5)
    assert both.seconds == pytest.approx(2 * (1e-3 + 4e-6) + 3 * (1 + 4e-6))


def test_command_line(model: Path) -> None:
    arguments = [str(model), "--arch", "gfx1100", "--position", "3", "--emulate"]
    card = ["--bandwidth", "800", "--node-us", "2.5", "--compute-units", "84"]
    result = CliRunner().invoke(command, [*arguments, *card])
    assert result.exit_code == 0, result.output
    assert "roofline of gfx1100 (800 GB/s, 2.5 us a launch)" in result.output
    assert "counted by the emulator" in result.output
    assert "PREDICTION for gfx1100, not a measurement: a token takes" in result.output
    assert "at 800 GB/s" in result.output and "launches of 2.5 us" in result.output
    assert "at 420 G/s" in result.output
    assert "at 80% of the bandwidth" in result.output


def test_a_target_without_an_emulator_is_refused(model: Path) -> None:
    result = CliRunner().invoke(command, [str(model), "--arch", "x86-64-v3", "--emulate"])
    assert result.exit_code != 0
    assert "the emulator runs AMD code objects" in str(result.exception)
