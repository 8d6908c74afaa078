"""Every model family's tokenizer: cuts, special tokens, ends and holes as llama.cpp has them."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from forgec.frontend.architectures import ARCHITECTURES
from forgec.frontend.tokenizer import build_tokenizer
from tests.test_tokenizer import load_fixture, runtime_tokenizer
from tests.vectors.tokenizer_families import FAMILIES, family_metadata, family_strings

ANSWERS = load_fixture("families.json")["families"]


def test_every_supported_architecture_has_a_tokenizer_family() -> None:
    assert set(ANSWERS) == set(FAMILIES)
    known = {name for family in FAMILIES.values() for name in family.architectures}
    missing = set(ARCHITECTURES) - known
    assert not missing, f"add {sorted(missing)} to a row of tests/vectors/tokenizer_families.py"


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_family_equals_llama_cpp(name: str) -> None:
    family, answers = FAMILIES[name], ANSWERS[name]
    strings = family_strings(family)
    spec = build_tokenizer(family_metadata(family, strings))
    tokenizer = runtime_tokenizer(spec)
    for special, key in ((False, "plain"), (True, "special")):
        found = [tokenizer.encode(text, special=special, add_bos=False) for text in strings]
        assert found == answers[key], key
    assert list(spec.eog_ids) == answers["eog_ids"]
    assert list(spec.special_ids) == answers["control_ids"]
    assert (spec.bos_id, spec.eos_id, spec.add_bos) == tuple(
        answers[k] for k in ("bos_id", "eos_id", "add_bos")
    )
    assert asdict(spec.fim) == answers["fim"]
