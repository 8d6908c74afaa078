"""``forgec report --emulate``: counts of real code objects, and a prediction that says it is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from forgec.commands.report import command
from forgec.commands.report_emulated import KernelCounts, count_kernels, issue_rate
from forgec.plan.program import CompileOptions
from forgec.targets import get_target
from tests.gguf_files import TinyModel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "tiny.gguf"
    TinyModel(quant="Q4_1").write(path, np.random.default_rng(3))
    return path


def test_counts_cover_every_launch(model: Path) -> None:
    compiled, counts = count_kernels(model, "gfx1100", CompileOptions(), 5)
    decode = [k for k in counts if k.sequence == "decode"]
    assert sum(k.launches for k in decode) == len(compiled.program.sequences["decode"])
    assert {k.symbol for k in decode} == {x.kernel.symbol for x in compiled.program.sequences["decode"]}
    for k in counts:
        assert 0 < k.valu < k.instructions
        assert k.loaded > 0
        assert k.scratch == 0


def test_the_prediction_is_the_longer_floor_plus_the_launch() -> None:
    target = get_target("gfx1100")
    bound_by_bytes = KernelCounts("decode", "k", 2, 10, 20, 2 * 960_000_000, 0, 0, 0, 0, 0, 0)
    assert bound_by_bytes.predicted_seconds(target) == pytest.approx(1e-3 + target.launch_seconds, rel=0.05)
    bound_by_issues = KernelCounts("decode", "k", 1, int(issue_rate(target)), 0, 1, 0, 0, 0, 0, 0, 0)
    assert bound_by_issues.predicted_seconds(target) == pytest.approx(1.0, rel=1e-3)


def test_command_line(model: Path) -> None:
    result = CliRunner().invoke(command, [str(model), "--arch", "gfx1100", "--position", "3", "--emulate"])
    assert result.exit_code == 0, result.output
    assert "counted by the emulator" in result.output
    assert "PREDICTION for gfx1100, not a measurement" in result.output
