"""The examples that show how the compiler is extended, executed."""

from __future__ import annotations

from examples import add_a_quant_type


def test_a_quantisation_type_is_a_row_and_a_struct() -> None:
    # A sum of 256 float32 products.
    assert add_a_quant_type.main() < 1e-5
    assert "toy" not in add_a_quant_type.FORMATS
