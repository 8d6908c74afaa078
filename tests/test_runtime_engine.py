"""The engine and the Python API on toy packages: tokens, positions, ring, KV cache, streams and stops."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import runtime
from runtime.driver import DriverOptions
from runtime.driver_recording import Call, RecordingDriver
from runtime.engine import Engine, Sampling
from runtime.errors import ChatTemplateError, ContextOverflowError, DeviceError, UsageError
from runtime.generate import Model
from runtime.manifest import load_manifest
from runtime.weights import Weights
from tests.toy_package import CHUNK, CONTEXT, END, RING, VOCAB, expected_tokens, write_package


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(tmp_path_factory.mktemp("toy"))


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"])
def model(package: Path, request: pytest.FixtureRequest) -> Iterator[Model]:
    with runtime.load(package, threads=request.param) as model:
        yield model


def recording_engine(package: Path, memory: int = 1 << 30) -> tuple[Engine, RecordingDriver]:
    manifest = load_manifest(package)
    driver = RecordingDriver(DriverOptions(package, "x86-64-v2", 1), memory=memory)
    return Engine(manifest, driver, Weights(manifest)), driver


def prompt_of(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(256) for _ in range(length)]


def test_tokens_of_random_prompts(model: Model) -> None:
    rng = random.Random()
    for length in (1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, rng.randrange(1, CONTEXT - 20)):
        prompt = prompt_of(rng, length)
        count = CONTEXT - length + 1
        result = model.generate(prompt, max_tokens=None, ignore_eos=True)
        assert list(result.tokens) == expected_tokens(prompt, count, ignore_eos=True)
        assert (result.finish_reason, result.prompt_tokens) == ("context", length)
        assert result.prompt_ids == tuple(prompt)


def test_the_ring_wraps(model: Model) -> None:
    prompt = [65, 66]
    count = 2 * RING + 3
    tokens = expected_tokens(prompt, count, ignore_eos=True)
    assert list(model.generate(prompt, max_tokens=count, ignore_eos=True).tokens) == tokens
    assert model.engine.read_ring(count - RING, RING) == tokens[-RING:]


def test_max_tokens_and_finish_reasons(model: Model) -> None:
    result = model.generate("hello", max_tokens=7)
    assert result.finish_reason == "length"
    assert result.text == bytes(expected_tokens(b"hello", 7)).decode()
    exact = CONTEXT - 5 + 1
    assert model.generate("hello", max_tokens=exact, ignore_eos=True).finish_reason == "length"
    full = model.generate("x" * CONTEXT, ignore_eos=True)
    assert (len(full.tokens), full.finish_reason) == (1, "context")


def ending_prompt() -> str:
    """A prompt whose answer ends with END after a few tokens."""
    for first in "abcdefghijklmnopqrstuvwxyz":
        for second in "abcdefghijklmnopqrstuvwxyz":
            tokens = expected_tokens((first + second).encode(), 20)
            if tokens[-1] == END and len(tokens) > 4:
                return first + second
    raise AssertionError("the toy model never ends")


def test_end_of_generation(model: Model) -> None:
    prompt = ending_prompt()
    expected = expected_tokens(prompt.encode(), 20)
    result = model.generate(prompt, max_tokens=20)
    assert (list(result.tokens), result.finish_reason) == (expected, "stop")
    assert result.text == bytes(expected[:-1]).decode()
    longer = model.generate(prompt, max_tokens=20, ignore_eos=True)
    assert len(longer.tokens) == 20
    assert longer.text == bytes(token for token in longer.tokens if token < 256).decode()


def test_stop_strings(model: Model) -> None:
    text = model.generate("hello", max_tokens=20).text
    stop = text[6:9]
    assert text.index(stop) == 6
    result = model.generate("hello", max_tokens=20, stop=["never there", stop])
    assert (result.text, result.finish_reason) == (text[:6], "stop")
    assert len(result.tokens) == 9
    assert model.generate("hello", max_tokens=20, stop=stop).text == text[:6]
    # The beginning of a stop string at the very end is text after all.
    assert model.generate("hello", max_tokens=8, stop=text[6:8] + "!").text == text[:8]


def test_streams_give_the_text_in_pieces(model: Model) -> None:
    stream = model.stream("hello", max_tokens=12)
    with pytest.raises(UsageError, match="known when its text has ended"):
        _ = stream.result
    pieces = list(stream)
    assert len(pieces) == 12
    assert "".join(pieces) == stream.result.text == model.generate("hello", max_tokens=12).text


def test_a_closed_stream_has_a_partial_result(model: Model) -> None:
    stream = model.stream("hello", max_tokens=12)
    first = next(stream)
    stream.close()
    assert (stream.result.text, stream.result.finish_reason) == (first, "cancelled")
    untouched = model.stream("hello", max_tokens=12)
    untouched.close()
    assert (untouched.result.tokens, untouched.result.finish_reason) == ((), "cancelled")


def test_a_later_generation_ends_a_stream(model: Model) -> None:
    stream = model.stream("hello", max_tokens=12)
    next(stream)
    other = model.generate("other", max_tokens=3)
    assert list(other.tokens) == expected_tokens(b"other", 3)
    with pytest.raises(UsageError, match="ended by a later generation"):
        list(stream)


def test_sampling_reaches_the_device(model: Model) -> None:
    def letters(seed: int, top_k: int) -> list[int]:
        base = (seed & 0xFFFF_FFFF) + (seed >> 32) * 3 + top_k
        return [65 + (base + 5 * step) % 26 for step in range(6)]

    for seed, top_k in ((0, 0), (7, 3), (5 << 32 | 11, 40)):
        result = model.generate("hello", max_tokens=6, temperature=0.8, seed=seed, top_k=top_k)
        assert list(result.tokens) == letters(seed, top_k)
    greedy = model.generate("hello", max_tokens=6, seed=7, top_k=3)
    assert list(greedy.tokens) == expected_tokens(b"hello", 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 1 << 64}, "seed is 18446744073709551616"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"stop": [""]}, "a stop string is ''"),
    ],
)
def test_impossible_options(model: Model, options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        model.generate("hello", **options)
    assert message in caught.value.message


def test_impossible_prompts(model: Model) -> None:
    with pytest.raises(UsageError, match="the prompt is empty"):
        model.generate("")
    with pytest.raises(ContextOverflowError) as caught:
        model.generate("x" * (CONTEXT + 1))
    assert caught.value.message == (
        f"the prompt has {CONTEXT + 1} tokens, and the package was compiled for a context of {CONTEXT}"
    )
    assert f"--ctx {CONTEXT + 1}" in caught.value.hint
    with pytest.raises(UsageError, match=f"token id {VOCAB} is outside the vocabulary of {VOCAB}"):
        model.generate([1, VOCAB])
    with pytest.raises(UsageError, match="token id -1 is outside"):
        model.generate([-1])
    assert list(model.generate("ok", max_tokens=2).tokens) == expected_tokens(b"ok", 2)


def test_logits_of_every_position(model: Model) -> None:
    prompt = prompt_of(random.Random(), 2 * CHUNK + 3)
    logits = model.logits(prompt)
    assert (logits.shape, logits.dtype) == ((len(prompt), VOCAB), np.float32)
    for row in range(len(prompt)):
        target = expected_tokens(prompt[: row + 1], 1)[0]
        assert np.array_equal(logits[row], -0.5 * np.abs(np.arange(VOCAB) - target).astype(np.float32))


def test_reuse_processes_only_what_is_new(model: Model) -> None:
    first = model.generate("hello", max_tokens=4, reuse=True, ignore_eos=True)
    assert first.timings.reused_tokens == 0
    prompt = [*b"hello", *first.tokens, *b" and"]
    second = model.generate(prompt, max_tokens=5, reuse=True)
    # The last token was sampled but never processed, so its key and value are not in the cache.
    assert second.timings.reused_tokens == 5 + 3
    assert list(second.tokens) == expected_tokens(prompt, 5)
    changed = [*b"help", *prompt[4:]]
    third = model.generate(changed, max_tokens=5, reuse=True)
    assert third.timings.reused_tokens == 3
    assert list(third.tokens) == expected_tokens(changed, 5)
    again = model.generate(changed, max_tokens=5, reuse=True)
    assert again.timings.reused_tokens == len(changed) - 1
    assert again.tokens == third.tokens
    assert model.generate(changed, max_tokens=5).timings.reused_tokens == 0


def test_chat_goes_through_the_template(model: Model) -> None:
    messages = [{"role": "user", "content": "a<turn>b"}]
    ids = model.encode_chat(messages)
    # The template's <turn> is a control token, the one in the message is text.
    assert ids == [258, *b"user\na<turn>b\n", 258, *b"assistant\n"]
    answer = model.chat(messages, max_tokens=4)
    assert list(answer.tokens) == expected_tokens(ids, 4)
    assert list(model.chat_stream(messages, max_tokens=4)) == list(answer.text)
    with pytest.raises(UsageError, match="at least one message"):
        model.chat([])


def test_a_text_between_two(model: Model) -> None:
    ids = [258, *b"a<turn>", 259, *b"b", 257]  # prefix, suffix, middle; the texts hold no control token
    answer = model.generate("a<turn>", suffix="b", max_tokens=4)
    assert list(answer.prompt_ids) == ids and list(answer.tokens) == expected_tokens(ids, 4)
    with pytest.raises(UsageError, match="a suffix needs a prompt that is a text"):
        model.generate([1, 2], suffix="b")


def test_a_model_without_a_template(package: Path, tmp_path: Path) -> None:
    with runtime.load(package, threads=1) as model:
        section = {**model.manifest.tokenizer, "chat_template": None}
        object.__setattr__(model.manifest, "tokenizer", section)
        with pytest.raises(ChatTemplateError, match="the model 'Toy' has no chat template"):
            model.chat([{"role": "user", "content": "x"}])


def test_engine_limits(package: Path) -> None:
    engine, _ = recording_engine(package)
    with pytest.raises(UsageError, match="no tokens to process"):
        engine.prefill([])
    with pytest.raises(
        ContextOverflowError, match=f"{CONTEXT + 1} tokens do not fit the context of {CONTEXT}"
    ):
        engine.prefill([1] * CHUNK, CONTEXT + 1 - CHUNK)
    engine.prefill([1] * CONTEXT)
    with pytest.raises(ContextOverflowError, match=f"the context of {CONTEXT} tokens is full"):
        engine.decode()
    engine.reset()
    assert (engine.position, engine.step) == (0, 0)
    engine.close()
    engine.close()


def test_the_calls_of_a_generation(package: Path) -> None:
    """What a device is asked to do, in order: this is the launch sequence of a package."""
    engine, driver = recording_engine(package)
    del driver.calls[:]
    engine.start(Sampling(0.5, 3, 0.25, 7))
    engine.prefill([9, 8, 7, 6, 5, 4])
    engine.head()
    engine.token(engine.sample())
    engine.token(engine.decode())
    names = [call.name for call in driver.calls]
    chunk = ["upload", "upload", "graph_launch"]
    first = ["upload", "upload", "graph", "graph_launch"]
    step = ["graph", "graph_launch", "fetch", "wait"]
    assert names == ["upload", *first, *chunk, "graph", "graph_launch", *step, *step]
    uploads = [call.arguments[1] for call in driver.calls if call.name == "upload"]
    assert uploads[1] == np.array([9, 8, 7, 6, 5], "<i4").tobytes()
    assert uploads[3] == np.array([4], "<i4").tobytes()
    state = np.frombuffer(uploads[4], "<i4")
    assert state[:3].tolist() == [1, CHUNK, 0]  # rows, position, row of the second chunk
    assert state[5] == 7 and state[8] == 3 and state[10] == RING - 1
    assert np.frombuffer(uploads[4], "<f4")[[7, 9]].tolist() == [0.5, 0.25]
    graphs = {call.arguments[0]: call.arguments[1] for call in driver.calls if call.name == "graph"}
    assert [[launch.arguments[0] for launch in graph] for graph in graphs.values()] == [
        ["toy_append", "toy_checksum"],
        ["toy_head"],
        ["toy_sample"],
        ["toy_append", "toy_checksum", "toy_head", "toy_sample"],
    ]
    grid_and_block = [launch.arguments[1:3] for launch in graphs["graph0"]]
    assert grid_and_block == [(3, 32), (3, 32)]
    fetches = [call.arguments[0] for call in driver.calls if call.name == "fetch"]
    assert fetches[1] - fetches[0] == 4
    engine.close()


def test_recorded_steps_stay_ahead_of_the_host(package: Path) -> None:
    """With a queue depth of 4, four steps are under way before the first token is waited for."""
    with runtime.load(package, device="recording") as model:
        driver = model.engine.driver
        assert isinstance(driver, RecordingDriver)
        result = model.generate("hello", max_tokens=6)
        order = "".join({"fetch": "f", "wait": "w"}.get(call.name, "") for call in driver.calls)
        assert order == "ffffwfwfwwww"
        assert result.tokens == (0,) * 6


def test_nothing_stays_behind_when_loading_fails(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: RecordingDriver, module: str, symbol: str) -> str:
        raise DeviceError("no such kernel")

    drivers: list[RecordingDriver] = []
    original = RecordingDriver.malloc

    def malloc(self: RecordingDriver, size: int) -> int:
        drivers.append(self)
        return original(self, size)

    monkeypatch.setattr(RecordingDriver, "get_function", fail)
    monkeypatch.setattr(RecordingDriver, "malloc", malloc)
    with pytest.raises(DeviceError, match="no such kernel"):
        runtime.load(package, device="recording")
    names = [call.name for call in drivers[0].calls]
    assert names.count("malloc") == names.count("free") == 6
    assert names[-1] == "close" and "module_unload" in names


def test_too_little_memory(package: Path) -> None:
    with pytest.raises(DeviceError) as caught:
        recording_engine(package, memory=10_000)
    assert caught.value.message == (
        "the model needs 13.7 KiB on 'recording', where 9.8 KiB of 9.8 KiB are free"
    )
    assert "the KV cache for 48 tokens takes 192 bytes" in caught.value.hint


def test_a_device_that_samples_nonsense_is_reported(package: Path) -> None:
    engine, driver = recording_engine(package)
    driver._view(engine._addresses["ring"], 4)[:] = (VOCAB).to_bytes(4, "little")
    with pytest.raises(DeviceError, match=f"sampled token {VOCAB}, outside the vocabulary"):
        engine.token(engine.sample())
    engine.close()


def test_recording_refuses_foreign_addresses(package: Path) -> None:
    driver = RecordingDriver(DriverOptions(package, "x86-64-v2", 1))
    address = driver.malloc(100)
    driver.upload(address + 90, bytes(10))
    with pytest.raises(DeviceError, match="are in no allocation"):
        driver.upload(address + 91, bytes(10))
    with pytest.raises(DeviceError, match="is not allocated"):
        driver.free(address + 1)
    assert driver.calls[-1] == Call("upload", (address + 90, bytes(10)))


class MinimalDriver(RecordingDriver):
    """A driver from elsewhere, which has only the protocol's required members."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("fetch", "wait", "adopt", "queue_depth"):
            raise AttributeError(name)
        return super().__getattribute__(name)


def test_drivers_may_leave_out_what_is_optional(package: Path) -> None:
    manifest = load_manifest(package)
    driver = MinimalDriver(DriverOptions(package, "x86-64-v2", 1))
    engine = Engine(manifest, driver, Weights(manifest))
    assert engine.queue_depth == 1
    engine.prefill([1])
    engine.head()
    assert engine.token(engine.sample()) == 0
    assert [call.name for call in driver.calls][-1] == "download"
    engine.close()
