"""Writes docs/support.md: what forgec compiles, and what each cell was tested on.

    python -m tests.support

The rows come from the compiler's own tables (architectures, weight types, targets), the cells from the
tests: which values their ``parametrize`` marks hold. Nothing is claimed that no test is parametrised with,
and a test fails while the page is stale.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from forgec.frontend.architectures import ARCHITECTURES
from forgec.frontend.quant import QUANT_TYPES, QuantType
from forgec.ir.shapes import EXECUTABLE_TYPES
from forgec.plan.stages import EmbeddingParams, StageParams
from forgec.targets import get_target, target_names
from tests import test_mixed_types, test_templates
from tests.format_examples import format_examples
from tests.kernels import (
    test_cpu_formats,
    test_cpu_matmul,
    test_cpu_matvec,
    test_embedding,
    test_experts,
    test_formats,
    test_matmul,
    test_matvec,
)
from tests.kernels.harness import DEVICES
from tests.models import test_architectures
from tests.models.tiny import TINY
from tests.vectors import chat_families, tokenizer_families

__all__ = ["KERNELS", "PAGE", "Case", "cases", "formats_run", "support_page"]

PAGE = Path(__file__).resolve().parent.parent / "docs" / "support.md"

_HEAD = """# What forgec supports

Written by `python -m tests.support` from the compiler's tables and the tests' parameters; do not edit. A test
fails while this page is stale.
"""
_ARCHITECTURES = """## Architectures

Tiny random models, one or more of every architecture, against llama.cpp: log-probabilities within 5e-3 and
equal best tokens, for a prompt and for decoding; as the graph before and after all passes (NumPy), and as
packages. The last columns name the vocabularies and chat formats that are compared with llama.cpp's.
"""
_TYPES = """## Weight types

Any of these types in any matrix of any architecture; norms and biases are F32. Where a letter stands the
kernel ran against float64 of the dequantised blocks at odd row counts: V matrix times vector, M matrix
times prompt, E embedding rows; L: logits and perplexity of a model with such matrices against llama.cpp.
"built": the three kernels were compiled and the code objects inspected.
"""


@dataclass(frozen=True)
class Case:
    """One parametrised run of a test: its values by name, and the marks that it needs (``gpu``, …)."""

    values: Mapping[str, Any]
    needs: frozenset[str]


def cases(test: Callable[..., Any]) -> tuple[Case, ...]:
    """Every case of a test function, from its ``parametrize`` marks."""
    axes = [list(_axis(mark)) for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    return tuple(
        Case(
            {name: value for case in chosen for name, value in case.values.items()},
            frozenset().union(*(case.needs for case in chosen)),
        )
        for chosen in itertools.product(*axes)
    )


def _axis(mark: Any) -> Iterator[Case]:
    """The cases of one mark: argument names as one text or several, values bare or as ``pytest.param``."""
    names, rows = mark.args[:2]
    if isinstance(names, str):
        names = [name.strip() for name in names.split(",")]
    for row in rows:
        values, marks = (row.values, row.marks) if hasattr(row, "marks") else (row, ())
        if len(names) == 1 and not hasattr(row, "marks"):
            values = (row,)
        yield Case(dict(zip(names, values, strict=True)), frozenset(mark.name for mark in marks))


def _tested(tests: Iterable[Callable[..., Any]], *names: str) -> set[tuple[Any, ...]]:
    """The combinations of the values called ``names`` that any of ``tests`` runs."""
    return {
        tuple(case.values[name] for name in names)
        for test in tests
        for case in cases(test)
        if all(name in case.values for name in names)
    }


def _tests_of(module: ModuleType) -> tuple[Callable[..., Any], ...]:
    return tuple(
        value for name, value in vars(module).items() if name.startswith("test_") and callable(value)
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


# -- architectures


def _architectures() -> str:
    """One row per architecture: its models, what they were compared on, its tokenizers and chat formats."""
    columns = {
        "graph": test_architectures.test_reference_of_the_graph_before_and_after_all_passes,
        "x86-64-v3": test_architectures.test_cpu,
        "gfx1100 (emulated)": test_architectures.test_emulated_gfx1100,
    }
    names = {head: {name for (name,) in _tested([test], "name")} for head, test in columns.items()}
    rows = []
    for architecture in sorted(ARCHITECTURES):
        models = [name for name, tiny in TINY.items() if tiny.architecture == architecture]
        cells = [_share(models, names[head]) for head in columns]
        tokenizers = [n for n, f in tokenizer_families.FAMILIES.items() if architecture in f.architectures]
        chats = [n for n, f in chat_families.FAMILIES.items() if architecture in f.architectures]
        rows.append(
            [
                f"`{architecture}`",
                ", ".join(models),
                *cells,
                ", ".join(tokenizers),
                ", ".join(chats) or "none",
            ]
        )
    heads = ["architecture", "tiny models", *columns, "tokenizers", "chat formats"]
    return _table(heads, rows)


def _share(models: Sequence[str], tested: set[Any]) -> str:
    """How many of the models are tested: "yes" for all of them, "n of m", or "-" for none."""
    found = sum(model in tested for model in models)
    return "-" if found == 0 else "yes" if found == len(models) else f"{found} of {len(models)}"


# -- weight types

#: Letter of a kernel -> the modules and functions whose tests run it in a "format" on a "device".
KERNELS: Mapping[str, tuple[Callable[..., Any], ...]] = {
    "V": (
        *_tests_of(test_matvec),
        *_tests_of(test_cpu_matvec),
        test_formats.test_matvec,
        test_cpu_formats.test_matvec,
    ),
    "M": (
        *_tests_of(test_matmul),
        *_tests_of(test_cpu_matmul),
        test_formats.test_matmul,
        test_cpu_formats.test_matmul,
    ),
    "E": (*_tests_of(test_embedding), test_formats.test_embedding_rows),
}


def formats_run(letter: str) -> set[tuple[str, str]]:
    """(format, device) of every case of a kernel; a case may have several "formats" in one product."""
    found = (case.values for test in KERNELS[letter] for case in cases(test))
    return {
        (name, values["device"])
        for values in found
        if "device" in values
        for name in values.get("formats", [values["format"]] if "format" in values else [])
    }


def formats_in_models() -> set[str]:
    """The formats of the tiny models whose logits are compared with llama.cpp's, on the CPU."""
    test = test_mixed_types.test_the_logits_and_the_perplexity_are_llama_cpps
    return {
        kind for (number,) in _tested([test], "number") for kind in test_mixed_types.types_of(number).values()
    }


def _types() -> str:
    """One row per type that kernels read: where they ran, and for which other chips they were compiled."""
    ran = {letter: {(kind, DEVICES[device]) for kind, device in formats_run(letter)} for letter in KERNELS}
    ran["L"] = {(kind, DEVICES["cpu"]) for kind in formats_in_models()}
    only_compiled = {
        target for (target,) in _tested([test_templates.test_every_weight_format_compiles], "target_name")
    }
    built = {target: set(_formats_of(format_examples(target))) for target in only_compiled}
    columns = [name for name in target_names() if name in built or name in DEVICES.values()]
    rows = []
    for quant in _executable():
        name = quant.name.lower()
        cells = []
        for target in columns:
            letters = "".join(letter for letter, pairs in ran.items() if (name, target) in pairs)
            cells.append(letters or ("built" if name in built.get(target, ()) else "-"))
        rows.append([quant.name, f"{8 * quant.block_bytes / quant.block:.3g}", *cells])
    heads = [f"{name}{_where(name)}" for name in columns]
    return _table(["type", "bits", *heads], rows)


def _executable() -> list[QuantType]:
    return [quant for quant in QUANT_TYPES.values() if quant.name.lower() in EXECUTABLE_TYPES]


def _refused() -> str:
    """The types that GGUF knows and no kernel reads."""
    names = [quant.name for quant in QUANT_TYPES.values() if quant not in _executable()]
    return f"Known to GGUF and refused in a matrix, by the tensor's name: {', '.join(names)}.\n"


def _experts() -> str:
    """The types in which the products with stacked experts are tested."""
    used = {name for _, _, formats, _ in test_experts.UP.values() for name in formats}
    used |= {format for format, *_ in test_experts.DOWN.values()}
    used |= {name for formats, *_ in test_experts.MATMUL.values() for name in formats}
    names = [quant.name for quant in _executable() if quant.name.lower() in used]
    devices = {DEVICES[device] for (device,) in _tested(_tests_of(test_experts), "device")}
    targets = [f"{name}{_where(name)}" for name in target_names() if name in devices]
    return f"Products with stacked experts ran in {', '.join(names)} on {', '.join(targets)}.\n"


def _formats_of(examples: Iterable[StageParams]) -> Iterator[str]:
    for params in examples:
        yield from (segment.format for segment in getattr(params, "segments", ()))
        if isinstance(params, EmbeddingParams):
            yield params.format


# -- targets


def _targets() -> str:
    """One row per target: whether all stages are compiled for it, and on what its kernels run."""
    everywhere, somewhere = _run_targets(with_gpus=False), _run_targets(with_gpus=True)
    compiled = {target for (target,) in _tested([test_templates.test_compiles_as_planned], "target_name")}
    rows = []
    for name in target_names():
        target = get_target(name)
        elsewhere = "where there is one" if name in somewhere else "-"
        ran = f"in every run{_where(name)}" if name in everywhere else elsewhere
        title = "this machine's CPU" if name == "native" else target.title
        rows.append([f"`{name}`", title, target.family, "yes" if name in compiled else "-", ran])
    return _table(["target", "chip", "family", "all stages compiled", "kernels run"], rows)


def _run_targets(*, with_gpus: bool) -> set[str]:
    """The targets on which a kernel of KERNELS runs."""
    found = (case for group in KERNELS.values() for test in group for case in cases(test))
    return {
        DEVICES[case.values["device"]]
        for case in found
        if "device" in case.values and (with_gpus or "gpu" not in case.needs)
    }


def _where(target: str) -> str:
    """How a GPU of the tests is had, in brackets."""
    if get_target(target).wave == 1 or target not in _run_targets(with_gpus=True):
        return ""
    return " (emulated)" if target in _run_targets(with_gpus=False) else " (GPU)"


def support_page() -> str:
    """The whole page."""
    types = (_TYPES, _types(), _experts(), _refused())
    return "\n".join((_HEAD, _ARCHITECTURES, _architectures(), *types, "## Targets\n", _targets()))


if __name__ == "__main__":
    temporary = PAGE.with_suffix(".tmp")
    temporary.write_text(support_page(), encoding="utf-8")
    temporary.replace(PAGE)
    print(PAGE)
