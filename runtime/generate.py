"""Text in, text out: the public API of a loaded package.

In come prompts or messages and sampling options, out go pieces of text as they are made and a ``Result``.
Tokens are queued on the device a few steps ahead of what the host has read; what was made beyond a stop is
dropped.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from .engine import Engine, Sampling
from .errors import ChatTemplateError, ContextOverflowError, UsageError
from .manifest import Manifest
from .stops import StopMatcher
from .tokenizer import Tokenizer

__all__ = ["DEFAULT_MAX_TOKENS", "Model", "Result", "Stream", "Timings"]

DEFAULT_MAX_TOKENS = 512

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds of one generation.

    ``prompt_seconds`` runs until the first token is known, ``generation_seconds`` from there to the last one;
    ``reused_tokens`` are the prompt tokens that were still in the KV cache.
    """

    prompt_seconds: float
    generation_seconds: float
    prompt_tokens: int
    reused_tokens: int
    generated_tokens: int

    @property
    def prompt_tokens_per_second(self) -> float:
        return _rate(self.prompt_tokens - self.reused_tokens, self.prompt_seconds)

    @property
    def generated_tokens_per_second(self) -> float:
        """Of the tokens after the first, which the prompt's time includes."""
        return _rate(self.generated_tokens - 1, self.generation_seconds)

    def to_dict(self) -> dict[str, float]:
        return {
            "prompt_seconds": self.prompt_seconds,
            "generation_seconds": self.generation_seconds,
            "reused_tokens": self.reused_tokens,
            "prompt_tokens_per_second": self.prompt_tokens_per_second,
            "generated_tokens_per_second": self.generated_tokens_per_second,
        }


def _rate(count: int, seconds: float) -> float:
    return count / seconds if count > 0 and seconds > 0 else 0.0


@dataclass(frozen=True)
class Result:
    """What a generation made.

    ``tokens`` are all sampled ids, an end-of-generation token included; ``text`` leaves that token and a stop
    string out. ``prompt_tokens`` is a count, ``prompt_ids`` are the ids. ``finish_reason``: "stop" (end token
    or stop string), "length" (``max_tokens`` reached), "context" (KV cache full) or "cancelled" (the stream
    was closed).
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    finish_reason: str
    timings: Timings
    prompt_ids: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "tokens": list(self.tokens),
            "text": self.text,
            "finish_reason": self.finish_reason,
            "timings": self.timings.to_dict(),
        }


@dataclass(frozen=True)
class _Request:
    """One generation as asked for, with the prompt as ids."""

    prompt: tuple[int, ...]
    sampling: Sampling
    max_tokens: int | None
    stop: tuple[str, ...]
    ignore_eos: bool
    reuse: bool
    strip_space: bool


@dataclass
class _Progress:
    """What a running generation has so far."""

    started: float = 0.0
    first: float = 0.0
    last: float = 0.0
    reused: int = 0
    tokens: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)


class Stream:
    """The text of one generation, piece by piece: iterate over it, then read ``result``.

    A later generation on the same model ends this one: iterating further raises UsageError.
    """

    def __init__(self, generation: _Generation, pieces: Generator[str]) -> None:
        self._generation = generation
        self._pieces = pieces

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Stop early; ``result`` then holds what was made so far."""
        self._pieces.close()
        self._generation.closed = True  # a generator that never ran does not reach its own ``finally``

    @property
    def result(self) -> Result:
        """Raises: UsageError while text is still coming."""
        result = self._generation.result()
        if result is None:
            raise UsageError(
                "the result of a stream is known when its text has ended", "iterate over it, or close it"
            )
        return result


class _Generation:
    """One generation in progress: turns the ids of ``tokens`` into text until something ends it."""

    def __init__(self, request: _Request, tokenizer: Tokenizer, end_ids: frozenset[int]) -> None:
        self.request = request
        self.progress = _Progress()
        self._matcher = StopMatcher(request.stop)
        self._text = tokenizer.stream(strip_space=request.strip_space)
        self._end_ids = frozenset() if request.ignore_eos else end_ids
        self._reason: str | None = None
        self.closed = False

    def pieces(self, tokens: Generator[int]) -> Generator[str]:
        """The pieces of text that are certain to stay."""
        try:
            for token in tokens:
                if token in self._end_ids:
                    self._reason = "stop"
                    break
                piece, stopped = self._matcher.push(self._text.push(token))
                if stopped:
                    self._reason = "stop"
                if piece:
                    self.progress.text.append(piece)
                    yield piece
                if stopped:
                    return
            else:
                limit = self.request.max_tokens
                self._reason = "length" if len(self.progress.tokens) == limit else "context"
            if piece := self._rest():
                self.progress.text.append(piece)
                yield piece
        finally:
            self.closed = True
            tokens.close()

    def _rest(self) -> str:
        """What was held back for an unfinished character or stop string."""
        piece, stopped = self._matcher.push(self._text.flush())
        if stopped:
            self._reason = "stop"
        return piece + self._matcher.flush()

    def result(self) -> Result | None:
        """The outcome; None while the generation goes on."""
        if not self.closed:
            return None
        progress = self.progress
        timings = Timings(
            prompt_seconds=progress.first - progress.started if progress.tokens else 0.0,
            generation_seconds=progress.last - progress.first,
            prompt_tokens=len(self.request.prompt),
            reused_tokens=progress.reused,
            generated_tokens=len(progress.tokens),
        )
        return Result(
            text="".join(progress.text),
            tokens=tuple(progress.tokens),
            prompt_tokens=len(self.request.prompt),
            finish_reason=self._reason or "cancelled",
            timings=timings,
            prompt_ids=self.request.prompt,
        )


class Model:
    """A loaded package. Use one from one thread at a time; ``close`` it, or use it as a context manager."""

    def __init__(self, manifest: Manifest, engine: Engine, tokenizer: Tokenizer) -> None:
        self.manifest = manifest
        self.engine = engine
        self.tokenizer = tokenizer
        self._end_ids = frozenset(manifest.tokenizer.get("eog_ids", ()))
        self._cached: list[int] = []
        self._current: _Generation | None = None

    def generate(self, prompt: str | Sequence[int], **options: Any) -> Result:
        """Complete ``prompt`` (text, or token ids taken as they are). Options: see ``stream``."""
        return _exhaust(self.stream(prompt, **options))

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        suffix: str | None = None,
        max_tokens: int | None = DEFAULT_MAX_TOKENS,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        stop: str | Iterable[str] = (),
        ignore_eos: bool = False,
        reuse: bool = False,
        strip_space: bool = False,
    ) -> Stream:
        """Complete ``prompt`` and hand out the text while it is made.

        ``suffix``: what comes after the text to be made, ``prompt`` being what comes before it (for models
        with fill-in-the-middle tokens). ``max_tokens`` None: until the context is full. ``reuse`` keeps the
        KV cache of a common beginning with the generation before; off by default, so that equal calls give
        equal tokens. ``strip_space``: the text begins a message instead of continuing one.

        Raises: UsageError (options, empty prompt), ContextOverflowError (prompt longer than the context).
        """
        if max_tokens is not None and max_tokens < 1:
            raise UsageError(f"max_tokens is {max_tokens}, expected 1 or more")
        sampling = Sampling(float(temperature), int(top_k), float(top_p), int(seed))
        ids = self._encode_prompt(prompt, suffix)
        self._check_fits(ids)
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        request = _Request(ids, sampling, max_tokens, stops, ignore_eos, reuse, strip_space)
        generation = _Generation(request, self.tokenizer, self._end_ids)
        self._current = generation
        return Stream(generation, generation.pieces(self._tokens(generation)))

    def chat(self, messages: Sequence[Message], **options: Any) -> Result:
        """Answer a conversation of ``{"role", "content"}`` messages. Options: see ``chat_stream``."""
        return _exhaust(self.chat_stream(messages, **options))

    def chat_stream(self, messages: Sequence[Message], *, reuse: bool = True, **options: Any) -> Stream:
        """``stream`` for a conversation, through the model's chat template.

        ``reuse``: turns that are still in the KV cache are not processed again.

        Raises: as ``stream``, and ChatTemplateError (no template, or one that rejects the messages).
        """
        return self.stream(self.encode_chat(messages), reuse=reuse, strip_space=True, **options)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of a conversation, up to where the answer begins.

        Control tokens come from the template alone: in a message their texts are ordinary text.
        """
        template = self.manifest.tokenizer.get("chat_template")
        if not template:
            raise ChatTemplateError(
                f"the model '{self.manifest.model['name']}' has no chat template",
                "give it plain text to complete, or compile it with --chat-template FILE",
            )
        from .chat import render  # brings jinja2, which completing plain text does not need

        tokenizer = self.tokenizer
        text = render(
            template,
            messages,
            bos_token=tokenizer.token_text(tokenizer.bos_id),
            eos_token=tokenizer.token_text(tokenizer.eos_id),
            shield=tokenizer.shield,
        )
        return tokenizer.encode(text, special=True)

    def logits(self, tokens: str | Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits after every token, f32 [len(tokens), vocab_size]. Raises: as ``stream``."""
        ids = self._encode_prompt(tokens)
        self._check_fits(ids)
        self._current = None
        self._cached.clear()
        result = self.engine.logits(ids)
        self._cached.extend(ids)
        return result

    def _encode_prompt(self, prompt: str | Sequence[int], suffix: str | None = None) -> tuple[int, ...]:
        if suffix is not None:
            if not isinstance(prompt, str):
                raise UsageError(
                    "a suffix needs a prompt that is a text", "give both as texts, or both as ids"
                )
            return tuple(self.tokenizer.encode_hole(prompt, suffix))
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        ids = tuple(int(token) for token in ids)
        if not ids:
            raise UsageError("the prompt is empty", "give at least one character, or one token")
        return ids

    def _check_fits(self, ids: Sequence[int]) -> None:
        context = self.engine.context_length
        if len(ids) > context:
            raise ContextOverflowError(
                f"the prompt has {len(ids)} tokens, and the package was compiled for a context of {context}",
                f"shorten the prompt, or compile the model with --ctx {len(ids)} or more",
            )

    def _tokens(self, generation: _Generation) -> Generator[int]:
        """Sampled ids, up to the limit. The device is kept ``queue_depth`` steps ahead of the host."""
        request, progress, engine = generation.request, generation.progress, self.engine
        self._check_current(generation)
        progress.started = time.perf_counter()
        common = _common_prefix(self._cached, request.prompt) if request.reuse else 0
        progress.reused = engine.reusable(common)
        del self._cached[progress.reused :]
        engine.start(request.sampling)
        engine.prefill(request.prompt[progress.reused :], progress.reused)
        engine.head()
        self._cached = list(request.prompt)
        # The last token that is sampled needs no place in the cache.
        limit = 1 + engine.context_length - len(request.prompt)
        if request.max_tokens is not None:
            limit = min(limit, request.max_tokens)
        tickets = deque([engine.sample()])
        for made in range(limit):
            # A depth of 1 (a launch returns when it is done) decodes only once its last token has been used.
            while made + len(tickets) < min(limit, made + engine.queue_depth):
                tickets.append(engine.decode())
            token = engine.token(tickets.popleft())
            progress.last = time.perf_counter()
            if made:  # the step that made this token has put the one before it into the cache
                self._cached.append(progress.tokens[-1])
            else:
                progress.first = progress.last
            progress.tokens.append(token)
            yield token
            self._check_current(generation)

    def _check_current(self, generation: _Generation) -> None:
        if generation is not self._current:
            raise UsageError(
                "the stream was ended by a later generation on the same model",
                "finish one stream before the next, or load the package twice",
            )

    def close(self) -> None:
        """Release the device; the model is unusable afterwards."""
        self._current = None
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _exhaust(stream: Stream) -> Result:
    for _ in stream:
        pass
    return stream.result


def _common_prefix(cached: Sequence[int], prompt: Sequence[int]) -> int:
    """Tokens both begin with, less the prompt's last one: its logits are still needed."""
    count = 0
    for old, new in zip(cached, prompt[:-1], strict=False):
        if old != new:
            break
        count += 1
    return count
