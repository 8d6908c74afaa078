"""forgec tune: candidates of a package's kernels, their timing, and the table that later compilations use."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from forgec.errors import DeviceError, PackageError, UsageError, VerifyError
from forgec.package.loader import read_manifest
from forgec.plan import tuning
from forgec.plan.geometry import matvec_tuning, retuned
from forgec.plan.stages import MatvecParams, Segment
from forgec.plan.tuning import Tuning, lookup, measured_rows, shape_class
from forgec.targets import get_target
from forgec.tune.candidates import candidates_of, groups_of, matvec_params, prepare
from forgec.tune.groups import Candidate, Group, read_candidates
from forgec.tune.measure import Timed, time_groups
from forgec.tune.table import result_text, write_table
from tests.cli_files import CPU, Forgec, compiled, tiny_model


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer of TQ2_0: a format that the CPU runs with the common templates, which use the geometry."""
    folder = tmp_path_factory.mktemp("tune")
    shape = {"embedding_length": 256, "feed_forward_length": 256, "key_length": 64, "block_count": 1}
    model = tiny_model(folder / "tiny.gguf", quant="TQ2_0", **shape)
    return compiled(model, CPU, folder / "tiny-cpu")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Forgec:
    return Forgec(capsys)


def params(target: str, **changes: Any) -> MatvecParams:
    chip = get_target(target)
    given = MatvecParams(
        chip.family, chip.wave, chip.block_size, cols=2048, segments=(Segment("q4_0", 8192),) * 2,
        layout="rows8" if chip.wave == 1 else "rows", act="q8", epilogue="gated", then="silu", bias=False,
        prologue="rmsnorm", eps=1e-5, row_select=False, lanes_per_row=1, rows_per_group=1, **changes,
    )  # fmt: skip
    return retuned(given, matvec_tuning(given.segments, given.cols, given.epilogue, chip), chip)


@pytest.mark.parametrize("target", ["gfx1100", "gfx942", "sm_90"])
def test_candidates_are_legal_and_differ(target: str) -> None:
    chip, present = get_target(target), params(target)
    found = list(candidates_of(present, chip))
    assert found[0][1] == present  # what the table has comes first
    assert len({(tuned.symbol, grid) for _, tuned, grid in found}) == len(found) > 20
    for row, tuned, grid in found:
        assert tuned.block % chip.wave == 0 and tuned.block <= chip.max_threads
        assert 1 <= grid <= chip.compute_units * row.blocks_per_unit
        assert tuned == retuned(present, row, chip)
        assert (row.format, row.shape, row.target) == ("q4_0", "gated_16384x2048", target)
    assert {tuned.args for _, tuned, _ in found} == {present.args}


def test_what_a_family_does_not_use_is_no_candidate() -> None:
    """The CPU's own kernels take eight rows whatever the table says."""
    assert len(list(candidates_of(params("x86-64-v3"), get_target("x86-64-v3")))) == 1


def test_the_manifest_holds_the_parameters(package: Path) -> None:
    manifest = read_manifest(package)
    groups = list(groups_of(manifest))
    assert groups
    chip = get_target(CPU)
    for index, found, launches, size in groups:
        assert found.symbol == manifest["kernels"][index]["symbol"]
        assert found == retuned(found, matvec_tuning(found.segments, found.cols, found.epilogue, chip), chip)
        assert all(manifest["sequences"]["decode"][i]["kernel"] == index for i in launches)
        assert size > 0
    with pytest.raises(PackageError, match="described in another way"):
        matvec_params({"segments": [], "rope": None, "nonsense": 1})


def test_tune_from_beginning_to_end(
    run: Forgec, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, table = tmp_path / "candidates", tmp_path / f"{CPU}.json"
    said = run("tune", package, "--prepare", folder)
    assert (said.code, said.err) == (0, "")
    groups = read_candidates(folder)
    count = sum(len(group.candidates) for group in groups)
    assert said.out == f"{folder}: {count} candidates of {len(groups)} kernels for {CPU}\n"
    assert count > len(groups)
    said = run("tune", package, "--candidates", folder, "-o", table, "--threads", "1", "--repeat", "1")
    assert (said.code, said.err) == (0, "")
    rows = json.loads(table.read_text())["rows"]
    assert len(rows) == len({(r["tuning"]["format"], r["tuning"]["shape"]) for r in rows})
    assert said.out.splitlines()[-1].startswith(f"{table}: {len(groups)} rows measured on ")
    assert all(0 < row["microseconds"] <= row["before"] for row in rows)
    # The next compilation finds the rows, by the shapes of the same kernels.
    monkeypatch.setattr(tuning, "tuning_file", lambda target: tmp_path / f"{target}.json")
    measured_rows.cache_clear()
    try:
        for _, found, _, _ in groups_of(read_manifest(package)):
            row = matvec_tuning(found.segments, found.cols, found.epilogue, get_target(CPU))
            assert row.measured != "unmeasured" and row.target == CPU
        assert lookup("matvec", "f16", get_target(CPU), "store_2x2").measured == "unmeasured"
    finally:
        measured_rows.cache_clear()


def test_candidates_that_are_not_there(run: Forgec, package: Path, tmp_path: Path) -> None:
    code, message, hint = run.refused("tune", package, "--candidates", tmp_path)
    assert (code, hint) == (8, "Make them with 'forgec tune PACKAGE --prepare'.")
    assert message.startswith(f"'{tmp_path}' holds no candidates: ")
    with pytest.raises(PackageError, match="no kernel that can be tuned"):
        prepare({**read_manifest(package), "kernels": []}, tmp_path)


# -- timing, with a device whose kernels take as long as their symbols say


class Clock:
    """A driver without a device: a launch takes as many microseconds as the number in its symbol."""

    name = "clock"

    def __init__(self) -> None:
        self.now = 0.0
        self.flushed = 0
        self.replays: dict[str, int] = {}
        self.order: list[str] = []

    def describe(self) -> Any:
        return SimpleNamespace(memory_free=1 << 20)

    def malloc(self, size: int) -> int:
        return 4096

    def free(self, address: int) -> None:
        assert address == 4096

    def memset(self, address: int, byte: int, size: int) -> None:
        self.flushed += 1

    def load_module(self, data: bytes, name: str, path: Path) -> str:
        return path.name

    def module_unload(self, module: str) -> None: ...

    def get_function(self, module: str, symbol: str) -> str:
        return symbol

    def graph_begin(self) -> None:
        self.graph: list[tuple[str, bytes]] = []

    def launch(self, function: str, grid: int, block: int, kernarg: bytes) -> None:
        self.graph.append((function, kernarg))

    def graph_end(self) -> list[tuple[str, bytes]]:
        return self.graph

    def graph_launch(self, graph: list[tuple[str, bytes]]) -> None:
        assert [kernarg for _, kernarg in graph] == [b"1", b"3"]
        self.replays[graph[0][0]] = self.replays.get(graph[0][0], 0) + 1
        self.order.append(graph[0][0])
        self.now += sum(float(function.removeprefix("k")) * 1e-6 for function, _ in graph)

    def graph_destroy(self, graph: object) -> None: ...

    def synchronize(self) -> None: ...

    def timestamp(self) -> float:
        return self.now

    def elapsed(self, start: float, stop: float) -> float:
        return stop - start


class Engine:
    """As much of a loaded package as timing uses."""

    def __init__(self) -> None:
        self.driver = Clock()

    def start(self, sampling: object) -> None: ...

    def seek(self, position: int) -> None: ...

    def packed(self, sequence: str) -> tuple[Any, ...]:
        return tuple(SimpleNamespace(kernarg=str(i).encode()) for i in range(5))


class Sampling:
    """Found in the engine's module."""


def group_of(folder: Path, *microseconds: float) -> Group:
    rows = []
    for i in range(len(microseconds)):
        rows.append(Tuning("matvec", "q8_0", "sm_90", 64 * (i + 1), 1, 1, shape="s"))
    for value in microseconds:
        (folder / f"{value}.ptx").write_bytes(b"x")
    found = (
        Candidate(row, f"k{value}", f"{value}.ptx", row.block, 7)
        for row, value in zip(rows, microseconds, strict=True)
    )
    return Group(0, (1, 3), 8_000_000, tuple(found))


def test_timing_takes_the_quickest_and_leaves_the_hopeless(tmp_path: Path) -> None:
    model = SimpleNamespace(engine=Engine())
    (timed,) = time_groups(model, [group_of(tmp_path, 20.0, 10.0, 30.0, 14.0)], tmp_path, repeat=3)
    assert timed.seconds == pytest.approx((20e-6, 10e-6, 30e-6, 14e-6))
    assert timed.best == 1
    driver = model.engine.driver
    # One replay to warm up, then three, but one of those that took more than 1.5 times as long as the best.
    assert driver.replays == {"k20.0": 2, "k10.0": 4, "k30.0": 2, "k14.0": 4}
    assert driver.flushed == 1 + 3 + 1 + 3
    assert driver.order[4:] == ["k20.0", "k10.0", "k30.0", "k14.0", "k10.0", "k14.0", "k10.0", "k14.0"]
    assert result_text([timed]) == (
        "k20.0: 20.0 us -> 10.0 us (2.00 x, 400 GB/s) with block 128, grid 7, 1 rows a group, 1 slices a lane"
    )
    with pytest.raises(DeviceError, match=r"'.*5.0.ptx' cannot be read"):
        (group,) = [group_of(tmp_path, 5.0)]
        (tmp_path / "5.0.ptx").unlink()
        time_groups(model, [group], tmp_path)


def test_a_gain_of_a_hundredth_is_none(tmp_path: Path) -> None:
    assert Timed(group_of(tmp_path, 10.0, 9.9), (10e-6, 9.9e-6)).best == 0


def test_the_table_keeps_what_was_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "sm_90.json"
    group = group_of(tmp_path, 10.0, 8.0)
    write_table(path, [Timed(group, (10e-6, 8e-6))], "sm_90", "H100", "2026-11-22", "first")
    other = Group(1, (2,), 5, tuple(
        Candidate(Tuning("matvec", "q4_0", "sm_90", 32, 1, 1, shape="t"), "k", "f", 32, 1) for _ in range(2)
    ))  # fmt: skip
    write_table(path, [Timed(other, (2e-6, 2e-6))], "sm_90", "H100", "2026-11-23", "second")
    write_table(path, [Timed(group, (10e-6, 12e-6))], "sm_90", "H100", "2026-11-24", "third")
    rows = json.loads(path.read_text())["rows"]
    assert [(r["tuning"]["format"], r["tuning"]["block"], r["package"]) for r in rows] == [
        ("q4_0", 32, "second"),
        ("q8_0", 64, "third"),  # the present geometry again, under the key of this kernel
    ]
    assert rows[1]["tuning"]["measured"] == "H100, 2026-11-24"
    assert (rows[1]["microseconds"], rows[1]["before"], rows[1]["candidates"]) == (10.0, 10.0, 2)
    path.write_text("{}")
    with pytest.raises(UsageError, match="is no tuning table"):
        write_table(path, [], "sm_90", "H100", "2026-11-22", "x")


def test_a_broken_table_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "tuning_file", lambda target: tmp_path / f"{target}.json")
    (tmp_path / "broken.json").write_text('{"rows": [{"tuning": {"stage": 1}}]}')
    with pytest.raises(VerifyError, match="is no tuning table"):
        measured_rows("broken")
    assert measured_rows("absent") == ()


def test_committed_tables_are_sound() -> None:
    """Every table beside the module is for a target that exists, and each row has its device and date."""
    for path in Path(tuning.__file__).parent.glob("*.json"):
        target = get_target(path.stem)
        for row in measured_rows(path.stem):
            assert row.target == target.name and row.measured != "unmeasured"
            assert row.block % target.wave == 0 and row.block <= target.max_threads


@pytest.mark.parametrize(
    ("rows", "cols", "expected"),
    [(1, 1, "store_1x1"), (4096, 4097, "store_4096x8192"), (3072, 2048, "store_4096x2048")],
)
def test_shape_classes(rows: int, cols: int, expected: str) -> None:
    assert shape_class("store", rows, cols) == expected
