"""docs/support.md says what the tests test, no more and no less."""

from __future__ import annotations

import pytest

from forgec.frontend.architectures import ARCHITECTURES
from forgec.ir.shapes import EXECUTABLE_TYPES
from forgec.plan.formats import FORMATS
from tests.support import PAGE, cases, formats_in_models, formats_run, support_page


def test_the_page_is_not_stale() -> None:
    assert PAGE.read_text(encoding="utf-8") == support_page(), "run: python -m tests.support"


def test_every_row_of_the_tables_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert set(EXECUTABLE_TYPES) == set(FORMATS)
    assert all(f"| {name.upper()} |" in page for name in EXECUTABLE_TYPES)
    assert all(f"| `{name}` |" in page for name in ARCHITECTURES)


@pytest.mark.parametrize("device", ["cpu", "emulated-gfx1100", "emulated-gfx942", "cuda"])
def test_every_type_is_multiplied_on_every_device(device: str) -> None:
    for letter in "VM":
        assert {name for name, where in formats_run(letter) if where == device} == set(EXECUTABLE_TYPES)


def test_every_type_is_in_a_model() -> None:
    assert formats_in_models() == set(EXECUTABLE_TYPES)


def test_rows_of_every_type_are_read_on_a_cpu_and_on_an_emulated_chip() -> None:
    ran = formats_run("E")
    assert {name for name, device in ran if device == "cpu"} == set(EXECUTABLE_TYPES)
    assert {name for name, device in ran if device.startswith("emulated-")} == set(EXECUTABLE_TYPES)


@pytest.mark.parametrize("a", [1, pytest.param(2, marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("b", "c"), [("x", 3), ("y", 4)])
def example(a: int, b: str, c: int) -> None:
    """Not a test: what the next one reads."""


def test_cases_are_read_from_the_marks() -> None:
    found = [
        (case.values["a"], case.values["b"], case.values["c"], set(case.needs)) for case in cases(example)
    ]
    expected = [(a, b, c, {"gpu"} if a == 2 else set()) for a in (1, 2) for b, c in (("x", 3), ("y", 4))]
    assert sorted(found, key=str) == sorted(expected, key=str)
