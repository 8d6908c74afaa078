"""The examples that show how the compiler is extended, executed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from examples import add_a_quant_type, add_an_architecture
from forgec.frontend.architectures import ARCHITECTURES


def test_a_quantisation_type_is_a_row_and_a_struct() -> None:
    # A sum of 256 float32 products.
    assert add_a_quant_type.main() < 1e-5
    assert "toy" not in add_a_quant_type.FORMATS


def test_an_architecture_is_a_function(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_an_architecture.main(tmp_path)
    refused, *compared = capsys.readouterr().out.splitlines()
    assert refused == "without the row: architecture 'orion' is not supported"
    assert len(compared) == 2 and "orion" not in ARCHITECTURES
    # Logits of about 1 from float32 sums of 64 and 96 products.
    assert all(float(re.findall(r"\S+$", line)[0]) < 1e-5 for line in compared)
