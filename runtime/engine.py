"""One loaded model on one device: its buffers, its captured sequences, and the steps that replay them.

In come a checked manifest, the mapped weights and a driver; tokens go in as ids, logits and sampled ids come
out. Knows positions and the KV cache, nothing of text: that is ``generate.py``.
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .driver import Driver, format_bytes
from .errors import ContextOverflowError, DeviceError, UsageError
from .launch import PackedLaunch, pack_sequence
from .manifest import SEQUENCES, TIMED, BufferSpec, Kernel, Manifest, Pointer
from .weights import Weights, read_file

__all__ = ["Engine", "Sampling"]

_STATE_BYTES = 64
_SMALLEST_ALLOCATION = 256
_TOKEN_BYTES = 4


@dataclass(frozen=True)
class Sampling:
    """How the device chooses a token: temperature, then top-k, then top-p, then one draw from ``seed``.

    ``temperature`` 0 is greedy (the lowest id among equal maxima), ``top_k`` 0 and ``top_p`` 1 are off.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 1000:  # NaN fails too
            raise UsageError(f"temperature is {self.temperature}, expected a number from 0 (greedy) to 1000")
        if not 0 <= self.top_k < 1 << 31:
            raise UsageError(f"top_k is {self.top_k}, expected a whole number of tokens, or 0 for all")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}, expected a probability above 0 and up to 1 (1: off)")
        if not 0 <= self.seed < 1 << 64:
            raise UsageError(f"seed is {self.seed}, expected a whole number from 0 to 2^64 - 1")


class Engine:
    """The device's side of a package.

    ``position`` is the number of tokens whose keys and values the cache holds, and ``step`` the number of
    tokens sampled since ``start``; both follow what has been queued, which may be ahead of what the device
    has done.
    """

    def __init__(self, manifest: Manifest, driver: Driver, weights: Weights, *, verify: bool = True) -> None:
        """Allocate, upload, load and pack; ``driver`` and ``weights`` belong to the engine, also on failure.

        ``verify``: compare kernels and weights with their digests (a check that was begun is waited for).

        Raises: DeviceError (memory, with numbers; kernels), PackageError (a digest).
        """
        self._manifest = manifest
        self._driver = driver
        self._weights = weights
        self._verify = verify
        self._addresses: dict[str, int] = {}
        self._allocated: list[int] = []
        self._modules: dict[str, Any] = {}  # by file
        self._functions: dict[int, Any] = {}  # by kernel
        self._packed: dict[str, tuple[PackedLaunch, ...]] = {}
        self._graphs: dict[str, Any] = {}
        self._state = bytearray(_STATE_BYTES)
        self._closed = False
        self.position = 0
        self.step = 0
        self.load_seconds: dict[str, float] = {}  # by step of what follows
        # What a driver from elsewhere may leave out: see driver.py.
        self._fetch: Callable[[int, int], Any] = getattr(driver, "fetch", None) or self._fetch_now
        self._wait: Callable[[Any], bytes] = getattr(driver, "wait", None) or bytes
        self.queue_depth = max(1, min(int(getattr(driver, "queue_depth", 1)), manifest.ring))
        try:
            if verify and not weights.verifying:
                weights.start_verify()
            with self._timed("memory"):
                self._allocate()
            if self._addresses["weights"] in self._allocated:
                with self._timed("upload"):
                    self._upload_weights(self._addresses["weights"])
            with self._timed("kernels"):
                for sequence in SEQUENCES:
                    self._prepare(sequence)
            with self._timed("digests"):
                weights.finish_verify()
            self.reset()
        except BaseException:
            self.close()
            raise

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def context_length(self) -> int:
        return self._manifest.context_length

    @property
    def vocab_size(self) -> int:
        return self._manifest.vocab_size

    @property
    def chunk(self) -> int:
        return self._manifest.chunk

    @property
    def driver(self) -> Driver:
        return self._driver

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.load_seconds[name] = time.perf_counter() - start

    def _allocate(self) -> None:
        adopt = getattr(self._driver, "adopt", None)
        address = adopt(self._weights.view) if adopt is not None and len(self._weights.view) else None
        if address is not None:
            self._addresses["weights"] = address
        self._make(
            [b for b in self._manifest.buffers if b.init != "demand" and b.name not in self._addresses]
        )

    def _upload_weights(self, address: int) -> None:
        upload_file = getattr(self._driver, "upload_file", None)
        if upload_file is None:
            self._driver.upload(address, self._weights.view)
        else:
            upload_file(address, self._weights.path, len(self._weights.view))

    def _make(self, wanted: Sequence[BufferSpec]) -> None:
        if not wanted:
            return
        self._check_memory(sum(buffer.bytes for buffer in wanted))
        for buffer in wanted:
            address = self._driver.malloc(max(buffer.bytes, _SMALLEST_ALLOCATION))
            self._addresses[buffer.name] = address
            self._allocated.append(address)

    def _check_memory(self, needed: int) -> None:
        info = self._driver.describe()
        if not info.memory_total or needed <= info.memory_free:
            return
        kv = sum(buffer.bytes for buffer in self._manifest.buffers if buffer.name == "kv")
        raise DeviceError(
            f"the model needs {format_bytes(needed)} on '{info.name}', where "
            f"{format_bytes(info.memory_free)} of {format_bytes(info.memory_total)} are free",
            f"free memory there, or compile with a smaller --ctx or --kv f16: the KV cache for "
            f"{self.context_length} tokens takes {format_bytes(kv)}",
        )

    def _prepare(self, sequence: str) -> None:
        """Make, load and pack what a sequence needs and none before it did.

        Raises: DeviceError, PackageError (a kernel's digest).
        """
        launches = self._manifest.sequences[sequence]
        named = {
            argument.buffer
            for launch in launches
            for argument in launch.args
            if isinstance(argument, Pointer)
        }
        self._make([b for b in self._manifest.buffers if b.name in named and b.name not in self._addresses])
        for launch in launches:
            if launch.kernel not in self._functions:
                self._functions[launch.kernel] = self._load(self._manifest.kernels[launch.kernel])
        packed = pack_sequence(self._manifest, sequence, self._addresses)
        self._packed[sequence] = tuple(self._resident(launch) for launch in packed)

    def _load(self, kernel: Kernel) -> Any:
        if kernel.file not in self._modules:
            data = read_file(self._manifest, kernel.file, verify=self._verify)
            path = self._manifest.package / kernel.file
            self._modules[kernel.file] = self._driver.load_module(data, kernel.file, path)
        return self._driver.get_function(self._modules[kernel.file], kernel.symbol)

    def reset(self) -> None:
        """Forget all tokens: buffers that start as zero are zero again."""
        for buffer in self._manifest.buffers:
            if buffer.init == "zero" and buffer.bytes:
                self._driver.memset(self._addresses[buffer.name], 0, buffer.bytes)
        self.position = self.step = 0

    def start(self, sampling: Sampling) -> None:
        """Set the sampler for the tokens that follow; the next one is number 0 of its seed."""
        self.step = 0
        self._set("step", "<I", 0)
        self._set("seed_lo", "<I", sampling.seed & 0xFFFF_FFFF)
        self._set("seed_hi", "<I", sampling.seed >> 32)
        self._set("temperature", "<f", sampling.temperature)
        self._set("top_k", "<i", sampling.top_k)
        self._set("top_p", "<f", sampling.top_p)
        self._set("ring_mask", "<I", self._manifest.ring - 1)
        self._upload_state()

    def seek(self, position: int, token: int = 0) -> None:
        """Go on as if ``position`` tokens were in the cache and ``token`` had just been sampled.

        Whatever the cache holds is taken for them; what measures long contexts does not compute them.
        """
        for field, value in (("rows", 1), ("position", position), ("row", 0), ("token", token)):
            self._set(field, "<i", value)
        self._set("step", "<I", self.step)
        self._upload_state()
        self.position = position

    def reusable(self, count: int) -> int:
        """``count``, or 0 where the cache lacks keys that a sequence of so many tokens needs to go on."""
        rollback = self._manifest.rollback
        return count if rollback is None or self.position - count <= rollback else 0

    def fill(self, buffer: str, byte: int) -> None:
        """Set every byte of one of the manifest's buffers."""
        self._driver.memset(self._addresses[buffer], byte, self._manifest.buffer(buffer).bytes)

    def read(self, buffer: str) -> bytes:
        """All bytes of one of the manifest's buffers; waits for the device."""
        data = bytearray(self._manifest.buffer(buffer).bytes)
        self._driver.download(self._addresses[buffer], data)
        return bytes(data)

    def prefill(self, tokens: Sequence[int], position: int = 0) -> None:
        """Put ``tokens`` into the cache from ``position`` on; ``head`` and ``logits`` then see the last
        chunk's rows.

        Raises: ContextOverflowError, and UsageError for an id outside the vocabulary or an empty list.
        """
        self._check_tokens(tokens, position)
        for start in range(0, len(tokens), self.chunk):
            self._prefill_chunk(tokens[start : start + self.chunk], position + start)

    def _prefill_chunk(self, tokens: Sequence[int], position: int) -> None:
        ids = np.asarray(tokens, dtype="<i4")
        self._driver.upload(self._addresses["tokens"], ids.data.cast("B"))
        self._set("rows", "<i", len(tokens))
        self._set("position", "<i", position)
        self._set("row", "<i", len(tokens) - 1)
        self._set("step", "<I", self.step)
        self._upload_state()
        self.run("prefill")
        self.position = position + len(tokens)

    def _check_tokens(self, tokens: Sequence[int], position: int) -> None:
        if not tokens:
            raise UsageError("there are no tokens to process", "give a prompt of at least one token")
        if position < 0 or position + len(tokens) > self.context_length:
            raise ContextOverflowError(
                f"{position + len(tokens)} tokens do not fit the context of {self.context_length}",
                "shorten the prompt, or compile the model with a larger --ctx",
            )
        low, high = min(tokens), max(tokens)
        if low < 0 or high >= self.vocab_size:
            raise UsageError(
                f"token id {low if low < 0 else high} is outside the vocabulary of {self.vocab_size}",
                "use ids of this model's tokenizer",
            )

    def head(self, row: int | None = None) -> None:
        """Compute the logits of one row of the last prefill chunk (None: the last row)."""
        if row is not None:
            self._set("row", "<i", row)
            offset = self._manifest.state["row"]
            self._driver.upload(self._addresses["state"] + offset, bytes(self._state[offset : offset + 4]))
        self.run("head")

    def read_logits(self, into: npt.NDArray[np.float32] | None = None) -> npt.NDArray[np.float32]:
        """The logits as they are, f32 [vocab_size]; waits for the device."""
        logits = np.empty(self.vocab_size, dtype=np.float32) if into is None else into
        symbol = self._manifest.symbols["logits"]
        self._driver.download(self._addresses[symbol.buffer] + symbol.offset, logits.data.cast("B"))
        return logits

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Logits after every token, f32 [len(tokens), vocab_size], from an empty cache.

        Raises: as ``prefill``.
        """
        self._check_tokens(tokens, 0)
        result = np.empty((len(tokens), self.vocab_size), dtype=np.float32)
        self.start(Sampling())
        for start in range(0, len(tokens), self.chunk):
            piece = tokens[start : start + self.chunk]
            self._prefill_chunk(piece, start)
            for row in range(len(piece)):
                self.head(row)
                self.read_logits(result[start + row])
        return result

    def sample(self) -> Any:
        """Choose a token from the logits. Returns a ticket for ``token``."""
        return self._step("sample")

    def decode(self, *, timed: bool = False) -> Any:
        """Run the last sampled token through the model and choose the next. Returns a ticket for ``token``.

        ``timed``: by the sequence that measures, which not every package has.

        Raises: ContextOverflowError when the cache is full.
        """
        if self.position >= self.context_length:
            raise ContextOverflowError(
                f"the context of {self.context_length} tokens is full",
                "start again with a shorter text, or compile the model with a larger --ctx",
            )
        self.position += 1
        return self._step(TIMED if timed else "decode")

    def _step(self, sequence: str) -> Any:
        slot = self.step & (self._manifest.ring - 1)
        self.run(sequence)
        self.step += 1
        return self._fetch(self._addresses["ring"] + _TOKEN_BYTES * slot, _TOKEN_BYTES)

    def token(self, ticket: Any) -> int:
        """Wait for the token of one ``sample`` or ``decode``. Raises: DeviceError for an impossible id."""
        token = int.from_bytes(self._wait(ticket), "little", signed=True)
        if not 0 <= token < self.vocab_size:
            raise DeviceError(
                f"the device sampled token {token}, outside the vocabulary of {self.vocab_size}",
                "check the device for faults and the driver's version",
            )
        return token

    def read_ring(self, first: int, count: int) -> list[int]:
        """The tokens of steps ``first`` to ``first + count - 1``; the ring keeps the last ``ring`` steps."""
        ring = np.empty(self._manifest.ring, dtype="<i4")
        self._driver.download(self._addresses["ring"], ring.data.cast("B"))
        return [int(ring[step & (self._manifest.ring - 1)]) for step in range(first, first + count)]

    def run(self, sequence: str) -> None:
        """Queue one of the manifest's sequences; its graph is captured the first time."""
        graph = self._graphs.get(sequence)
        if graph is None:
            graph = self._graphs[sequence] = self._capture(sequence)
        self._driver.graph_launch(graph)

    def _resident(self, launch: PackedLaunch) -> PackedLaunch:
        """A cooperative launch with as many blocks as the device holds at once, at most those planned.

        Raises: DeviceError where that is less than half of them (rows of a block then have no room in LDS).
        """
        if not launch.cooperative:
            return launch
        count = getattr(self._driver, "resident_blocks", None)
        most = 0 if count is None else count(self._functions[launch.kernel], launch.block, launch.lds)
        if 2 * most < launch.grid:
            raise DeviceError(
                f"the device holds {most} blocks of the kernel that makes a token at once, "
                f"it was compiled for {launch.grid}",
                "compile the model with --schedule graph",
            )
        return replace(launch, grid=min(launch.grid, most))

    def _launch(self, launch: PackedLaunch) -> None:
        go = self._driver.launch_cooperative if launch.cooperative else self._driver.launch
        go(self._functions[launch.kernel], launch.grid, launch.block, launch.kernarg, launch.lds)

    def _capture(self, sequence: str) -> Any:
        packed = self.packed(sequence)
        self._driver.graph_begin()
        try:
            for launch in packed:
                self._launch(launch)
        except BaseException:
            # Ctrl-C included: a device that is still capturing would refuse everything that follows.
            self._driver.graph_destroy(self._driver.graph_end())
            raise
        return self._driver.graph_end()

    def launch_times(self, sequence: str) -> list[float]:
        """Device seconds of each launch of a sequence, run once, launch by launch and not as a graph."""
        marks = []
        for launch in self.packed(sequence):
            start = self._driver.timestamp()
            self._launch(launch)
            marks.append((start, self._driver.timestamp()))
        return [self._driver.elapsed(start, stop) for start, stop in marks]

    def packed(self, sequence: str) -> tuple[PackedLaunch, ...]:
        """The launches of a sequence with their argument segments; what only it needs is loaded now.

        Raises: DeviceError, PackageError.
        """
        if sequence not in self._packed:
            self._prepare(sequence)
        return self._packed[sequence]

    def synchronize(self) -> None:
        """Wait until the device has done everything."""
        self._driver.synchronize()

    def _fetch_now(self, address: int, size: int) -> bytes:
        data = bytearray(size)
        self._driver.download(address, data)
        return bytes(data)

    def _set(self, field: str, form: str, value: float) -> None:
        struct.pack_into(form, self._state, self._manifest.state[field], value)

    def _upload_state(self) -> None:
        self._driver.upload(self._addresses["state"], bytes(self._state))

    def close(self) -> None:
        """Release the device and the weights; harmless when called again."""
        if self._closed:
            return
        self._closed = True
        driver = self._driver
        try:
            # After a fault every call fails, and the fault has been reported by the call that met it.
            with contextlib.suppress(DeviceError):
                for graph in self._graphs.values():
                    driver.graph_destroy(graph)
                for module in self._modules.values():
                    driver.module_unload(module)
                for address in self._allocated:
                    driver.free(address)
        finally:
            self._driver.close()
            self._weights.close()
