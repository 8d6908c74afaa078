"""The script that fills the speed table, from the compiler's side to the printed table, on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu import table

ROOT = Path(__file__).resolve().parent.parent


def test_the_table_from_beginning_to_end(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "tests" / "gpu" / "table.py")]
    arch = ["--arch", "x86-64-v3", "--layers", "1", "--row", "smollm2", "--schedule", "graph"]
    subprocess.run([*script, "prepare", str(tmp_path), *arch], check=True, timeout=300, capture_output=True)
    assert (tmp_path / table.ARCHIVE).stat().st_size < 4 << 20
    options = ["--contexts", "0,100,90000", "--json", str(tmp_path / "figures.json")]
    done = subprocess.run(
        [*script, "run", str(tmp_path), *options], check=True, timeout=300, capture_output=True, text=True
    )
    (figures,) = json.loads((tmp_path / "figures.json").read_text())
    assert [row["context"] for row in figures["decode"]] == [0, 100]
    heads, _, line = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert heads.count("|") == line.count("|")
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:2] == ["SmolLM2-135M Q4_1", "graph"] and cells[4:7] == ["–", "≥ 3,500", "1,057"]
    assert (
        cells[2]
        == f"{figures['decode'][0]['tokens_per_second']:,.0f} ({figures['decode'][0]['fraction']:.0%})"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figures.json", table.ARCHIVE]


def test_tuning_from_beginning_to_end(tmp_path: Path) -> None:
    script = [sys.executable, str(ROOT / "tests" / "gpu" / "tune.py")]
    options = ["--arch", "x86-64-v3", "--layers", "1", "--row", "smollm2"]
    subprocess.run(
        [*script, "prepare", str(tmp_path), *options], check=True, timeout=300, capture_output=True
    )
    output = tmp_path / "table.json"
    done = subprocess.run(
        [*script, "run", str(tmp_path), "-o", str(output)],
        check=True,
        timeout=300,
        capture_output=True,
        text=True,
    )
    rows = json.loads(output.read_text())["rows"]
    assert {row["package"] for row in rows} == {"SmolLM2-135M-Q4_1"}
    assert done.stdout.startswith("SmolLM2-135M-Q4_1: ") and len(done.stdout.splitlines()) == len(rows) + 1


def test_equal_tensors_share_their_weights(tmp_path: Path) -> None:
    tensor = {"name": "w", "format": "q8_0", "layout": "rows8", "rows": 9, "cols": 64}
    tensor |= {"offset": 0, "bytes": 2 * (8 * 64 + 64)}
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        manifest = {
            "weights": {"file": "weights.bin", "bytes": 4096 * 2, "chunk_bytes": 4096, "chunks": []},
            "tensors": [tensor] if name != "c" else [{**tensor, "name": "v"}],
        }
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
    source = table._weights(tmp_path / "a", None)
    assert source == tmp_path / "a"
    assert table._weights(tmp_path / "b", source) == source
    assert table._weights(tmp_path / "c", source) == tmp_path / "c"
    a, b, c = (tmp_path / name / "weights.bin" for name in "abc")
    assert a.samefile(b) and not a.samefile(c)
    assert a.read_bytes() != c.read_bytes()
    chunks = [json.loads((tmp_path / n / "manifest.json").read_text())["weights"]["chunks"] for n in "abc"]
    assert len(chunks[0]) == 2 and chunks[0] == chunks[1] != chunks[2]


def test_rows_are_found_by_a_part_of_their_name() -> None:
    assert table.rows_named([]) == table.ROWS
    assert [row.name for row in table.rows_named(["8b-q4"])] == ["Llama-3.1-8B-Q4_0", "Llama-3.1-8B-Q4_K_M"]
    assert table.table([], [0]) == "nothing was measured"


@pytest.mark.parametrize("row", table.ROWS, ids=lambda row: row.name)
def test_rows_exist(row: table.Row) -> None:
    from forgec.synth.mixes import MIXES
    from forgec.synth.shapes import find_shape

    assert find_shape(row.shape) and row.mix in MIXES
