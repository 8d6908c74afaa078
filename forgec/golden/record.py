"""Record and check goldens: greedy tokens and the best logits of a few prompts, from llama.cpp.

A golden file is JSON: how it was made, then per prompt its token ids, the greedy continuation and, for every
step, the best ``TOP`` tokens with their log-probabilities. ``check`` compares a loaded package with it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from forgec.errors import UsageError
from forgec.golden.llama_cpp import LlamaCpp, oracle_version
from forgec.golden.prompts import PROMPTS, Prompt
from forgec.golden.rewrite import write_f32

__all__ = ["Comparison", "Golden", "Step", "check", "golden_text", "load", "record"]

TOP = 4
#: Two best logits closer than this may swap: the order of float32 additions decides.
TIE = 1e-3


@dataclass(frozen=True)
class Step:
    """One position: the best token ids, best first, and their natural-log probabilities."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def gap(self) -> float:
        """Difference of the two best logits."""
        return self.logprobs[0] - self.logprobs[1]


@dataclass(frozen=True)
class Golden:
    """A prompt's token ids, its greedy continuation, and what the oracle thought at every step."""

    name: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Comparison:
    """How a package did on one golden: steps compared and equal, where it left, the largest logit error."""

    name: str
    steps: int
    equal: int
    tie: bool  # it left the golden where the two best tokens were tied
    error: float  # largest |difference| of log-probability over the stored best tokens of equal steps

    @property
    def passed(self) -> bool:
        return self.equal == self.steps or self.tie


class Model(Protocol):
    """What ``check`` needs of a loaded package."""

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits f32 [len(tokens), vocab]."""


def record(
    model: Path,
    encode: Callable[[Prompt], list[int]],
    *,
    count: int = 64,
    threads: int = 2,
    prompts: Sequence[Prompt] = PROMPTS,
    progress: Callable[[str], None] = lambda name: None,
) -> tuple[dict[str, str], tuple[Golden, ...]]:
    """Goldens of a GGUF model from llama.cpp on its weights dequantised to F32, KV cache in float32.

    ``encode`` gives a prompt's token ids. Returns how they were made and the goldens.
    """
    ids = [encode(p) for p in prompts]
    context = max(len(i) for i in ids) + count + 8
    with tempfile.TemporaryDirectory(prefix="forgec-golden-") as folder:
        exact = Path(folder) / "f32.gguf"
        write_f32(model, exact)
        goldens = []
        with LlamaCpp(exact, context=context, threads=threads, kv="f32") as oracle:
            for prompt, tokens in zip(prompts, ids, strict=True):
                progress(prompt.name)
                goldens.append(_golden(prompt.name, tokens, oracle, count))
    made = {
        "model": model.name,
        "oracle": oracle_version(),
        "method": "greedy on the same weights dequantised to an F32 GGUF, KV cache F32, no flash attention",
        "command": f"forgec golden record {model.name} -o FILE --tokens {count}",
    }
    return made, tuple(goldens)


def _golden(name: str, prompt: Sequence[int], oracle: LlamaCpp, count: int) -> Golden:
    tokens, logits = oracle.greedy(prompt, count)
    return Golden(name, tuple(prompt), tuple(tokens), tuple(_step(row) for row in logits))


def log_softmax(row: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Natural-log probabilities f64 of one or more rows of logits."""
    wide = row.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True)))


def _step(row: npt.NDArray[np.float32]) -> Step:
    logprobs = log_softmax(row)
    best = np.argsort(-logprobs, kind="stable")[:TOP]
    return Step(tuple(int(i) for i in best), tuple(round(float(logprobs[i]), 5) for i in best))


def check(model: Model, goldens: Sequence[Golden], *, limit: int | None = None) -> tuple[Comparison, ...]:
    """Compare a package's greedy choices with the goldens, teacher-forced along each golden's tokens.

    Forcing the golden's tokens compares every step on the same history; the first step at which the package
    would have chosen another token ends the count, as free generation would have left the golden there.
    """
    return tuple(_compare(model, golden, limit) for golden in goldens)


def _compare(model: Model, golden: Golden, limit: int | None) -> Comparison:
    steps = golden.steps[:limit]
    history = [*golden.prompt, *golden.tokens[: len(steps) - 1]]
    logits = model.logits(history)[len(golden.prompt) - 1 :]
    error = 0.0
    for at, (row, step) in enumerate(zip(logits, steps, strict=True)):
        if int(row.argmax()) != step.ids[0]:
            return Comparison(golden.name, len(steps), at, step.gap < TIE, error)
        found = log_softmax(row)[list(step.ids)]
        error = max(error, float(np.abs(found - np.array(step.logprobs)).max()))
    return Comparison(golden.name, len(steps), len(steps), False, error)


def golden_text(made: dict[str, str], goldens: Sequence[Golden]) -> str:
    """The text of a golden file, one golden a line."""
    body = ",\n".join(json.dumps(asdict(g), separators=(",", ":")) for g in goldens)
    return f'{{"made": {json.dumps(made)},\n"goldens": [\n{body}\n]}}\n'


def load(path: Path) -> tuple[dict[str, str], tuple[Golden, ...]]:
    """Read a golden file; UsageError when it is missing or not one."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return data["made"], tuple(_parse(g) for g in data["goldens"])
    except OSError as error:
        raise UsageError(
            f"cannot read '{path}': {error.strerror}", "Record one with 'forgec golden record'."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"'{path}' is not a golden file", "Record one with 'forgec golden record'."
        ) from error


def _parse(data: dict[str, Any]) -> Golden:
    steps = tuple(Step(tuple(s["ids"]), tuple(s["logprobs"])) for s in data["steps"])
    return Golden(data["name"], tuple(data["prompt"]), tuple(data["tokens"]), steps)
