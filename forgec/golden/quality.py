"""Agreement, KL divergence and perplexity of two runs over the same text.

Logits go in as arrays [positions, vocab]; log-probabilities are kept in float32, 400 MB for 2,048 positions
of SmolLM2's vocabulary. Nothing here knows a device.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from forgec.golden.llama_cpp import LlamaCpp
from forgec.golden.rewrite import write_f32

__all__ = ["Divergence", "Scores", "divergence", "llama_cpp_scores", "standard_text", "windowed"]

Logits = npt.NDArray[np.float32]
#: Tokens of one window: every window starts from an empty cache, as llama.cpp's perplexity tool does.
WINDOW = 512


def standard_text() -> str:
    """English prose and code that CPython carries (pydoc's topics): a text without a download."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def windowed(run: Callable[[Sequence[int]], Logits], tokens: Sequence[int], context: int) -> Logits:
    """Logits [len(tokens), vocab] of a text cut into windows of at most ``WINDOW`` tokens."""
    size = min(WINDOW, context)
    return np.concatenate([run(tokens[at : at + size]) for at in range(0, len(tokens), size)])


@dataclass(frozen=True)
class Scores:
    """Log-probabilities f32 [positions, vocab] and the mean negative log-likelihood of the next tokens."""

    logprobs: Logits
    loss: float

    @staticmethod
    def of(logits: Logits, tokens: Sequence[int]) -> Scores:
        """From logits of a windowed run, which are overwritten; the last of a window predicts nothing."""
        for row in logits:
            row -= row.max()
            row -= np.log(np.exp(row).sum(dtype=np.float64)).astype(np.float32)
        at = np.array([i for i in range(len(tokens) - 1) if (i + 1) % WINDOW])
        following = np.asarray(tokens)[at + 1]
        return Scores(logits, float(-logits[at, following].mean(dtype=np.float64)))

    @property
    def positions(self) -> int:
        return len(self.logprobs)

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.loss))


@dataclass(frozen=True)
class Divergence:
    """How far one run is from another, over ``positions`` positions; KL in nats."""

    positions: int
    agreement: float
    mean_kl: float
    median_kl: float
    largest_kl: float

    def __str__(self) -> str:
        return (
            f"top-1 agreement {self.agreement:.2%}, KL mean {self.mean_kl:.6f}, median {self.median_kl:.6f}, "
            f"largest {self.largest_kl:.4f} over {self.positions} positions"
        )


def divergence(exact: Scores, other: Scores) -> Divergence:
    """KL(exact || other) and top-1 agreement, position by position."""
    kl = np.empty(exact.positions)
    for i, (p, q) in enumerate(zip(exact.logprobs, other.logprobs, strict=True)):
        wide = p.astype(np.float64)
        kl[i] = float((np.exp(wide) * (wide - q)).sum())
    agree = exact.logprobs.argmax(axis=-1) == other.logprobs.argmax(axis=-1)
    return Divergence(len(kl), float(agree.mean()), float(kl.mean()), float(np.median(kl)), float(kl.max()))


def llama_cpp_scores(model: Path, tokens: Sequence[int], threads: int) -> tuple[Scores, Scores]:
    """llama.cpp's scores on the file as it is, and on its weights dequantised to F32."""
    with tempfile.TemporaryDirectory(prefix="forgec-quality-") as folder:
        exact = Path(folder) / "f32.gguf"
        write_f32(model, exact)
        return _score(model, tokens, threads), _score(exact, tokens, threads)


def _score(model: Path, tokens: Sequence[int], threads: int) -> Scores:
    with LlamaCpp(model, context=WINDOW, threads=threads) as oracle:

        def run(window: Sequence[int]) -> Logits:
            oracle.reset()
            return oracle.decode(window, every=True)

        return Scores.of(windowed(run, tokens, WINDOW), tokens)
