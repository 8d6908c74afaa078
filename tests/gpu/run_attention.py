"""Decode attention alone on an NVIDIA GPU: right against float64, then microseconds and bandwidth.

    python tests/gpu/run_attention.py prepare FOLDER      where the compiler is: PTX and an index of it
    python tests/gpu/run_attention.py run FOLDER          where the GPU is: needs NumPy and the NVIDIA driver

Every launch reads another cache, all of them together larger than the last-level cache, as between two
layers of a model. Times are those of one node of a captured graph. Exits with 1 when an output is wrong.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import struct
import sys
import types
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
TARGET = "sm_90"
#: Heads, KV heads and head length of what is measured.
SHAPES = {"Llama-3.1-8B": (32, 8, 128), "Llama-3.2-1B": (32, 8, 64), "SmolLM2-135M": (9, 3, 64)}
CONTEXTS = (128, 1024, 4096, 16384, 32768)
DTYPES = ("f16", "q8_0")
#: Bytes of rotating caches, several times the last-level cache of any GPU.
ROTATING = 256 << 20
INDEX = "attention.json"


@dataclass(frozen=True)
class Kernel:
    """A prepared kernel; ``offsets`` are those of its arguments by name, ``k_bytes`` the size of K, or V."""

    name: str
    heads: int
    kv_heads: int
    head_length: int
    context: int
    dtype: str
    scale: float
    symbol: str
    block: int
    grid: int
    offsets: dict[str, int]
    kernarg_bytes: int
    partial_floats: int
    k_bytes: int

    @property
    def file(self) -> str:
        return f"{self.symbol}.ptx"

    @property
    def bytes(self) -> int:
        """Bytes of cache that a launch must read."""
        return 2 * self.k_bytes


# ---- where the compiler is


def prepare(folder: Path, plain: bool) -> None:
    sys.path.insert(0, str(ROOT))
    from forgec.codegen.render import render_stage
    from forgec.plan.geometry import lanes_per_key, matrix_decode
    from forgec.plan.stages import AttentionDecodeParams, KVCache
    from forgec.plan.stages.cache import rows_bytes
    from forgec.plan.tuning import attention_splits
    from forgec.targets import get_target
    from forgec.toolchain import Unit, compile_units

    target = get_target(TARGET)
    kernels, units = [], []
    for name, (heads, kv_heads, length) in SHAPES.items():
        for context in CONTEXTS:
            for dtype in DTYPES:
                cache = KVCache(kv_heads, length, length, context, dtype)
                params = AttentionDecodeParams(
                    target.family,
                    target.wave,
                    target.block_size,
                    heads,
                    cache,
                    length**-0.5,
                    splits=attention_splits(kv_heads, context, target),
                    lanes_per_key=lanes_per_key(length, target),
                    matrix=matrix_decode(cache, target) and not plain,
                )
                units.append(Unit(params.symbol, render_stage(params), (params.symbol,)))
                kernels.append(
                    Kernel(
                        name,
                        heads,
                        kv_heads,
                        length,
                        context,
                        dtype,
                        params.scale,
                        params.symbol,
                        params.block,
                        target.compute_units,
                        {arg.name: offset for arg, offset in params.unpack},
                        params.kernarg_bytes,
                        params.partial_floats,
                        rows_bytes(dtype, kv_heads * context, length),
                    )
                )
    folder.mkdir(parents=True, exist_ok=True)
    for kernel, code in zip(kernels, compile_units(units, target), strict=True):
        (folder / kernel.file).write_bytes(code.data)
    (folder / INDEX).write_text(
        json.dumps([asdict(kernel) for kernel in kernels], indent=1), encoding="utf-8"
    )
    print(f"{len(kernels)} kernels in '{folder}'")


# ---- where the GPU is


def open_driver() -> Any:
    """The runtime's CUDA driver, without the rest of the runtime."""
    package = types.ModuleType("runtime_drivers")
    package.__path__ = [str(ROOT / "runtime")]
    sys.modules[package.__name__] = package
    options = importlib.import_module("runtime_drivers.driver").DriverOptions(Path(), TARGET, 32)
    return importlib.import_module("runtime_drivers.driver_cuda").CudaDriver(options)


def random_cache(rng: np.random.Generator, kernel: Kernel) -> tuple[np.ndarray, np.ndarray]:
    """The bytes of a random K (or V), and its values f32 [kv_heads, context, head_length]."""
    shape = (kernel.kv_heads, kernel.context, kernel.head_length)
    values = rng.standard_normal(shape, np.float32)
    if kernel.dtype == "f16":
        half = values.astype(np.float16)
        return half.view(np.uint8).ravel(), half.astype(np.float32)
    blocks = values.reshape(*shape[:2], -1, 32)
    scales = (np.abs(blocks).max(-1) / 127).astype(np.float16)
    quants = np.clip(np.rint(blocks / scales.astype(np.float32)[..., None]), -127, 127).astype(np.int8)
    image = np.concatenate([quants.view(np.uint8).ravel(), scales.view(np.uint8).ravel()])
    return image, (quants * scales.astype(np.float32)[..., None]).reshape(shape)


def exact(kernel: Kernel, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Attention over the whole context in float64: [heads, head_length]."""
    group = kernel.heads // kernel.kv_heads
    out = np.empty(q.shape, np.float64)
    for head in range(kernel.heads):
        scores = k[head // group].astype(np.float64) @ q[head].astype(np.float64) * kernel.scale
        weights = np.exp(scores - scores.max())
        out[head] = weights @ v[head // group].astype(np.float64) / weights.sum()
    return out


class Bench:
    """One kernel with its rotating caches on the device."""

    def __init__(self, driver: Any, kernel: Kernel, folder: Path, seed: int) -> None:
        self.driver, self.kernel = driver, kernel
        rng = np.random.default_rng(seed)
        self.q = rng.standard_normal((kernel.heads, kernel.head_length), np.float32)
        self.count = max(2, -(-ROTATING // kernel.bytes))
        self.memory: list[int] = []
        module = driver.load_module((folder / kernel.file).read_bytes(), kernel.symbol)
        self.function = driver.get_function(module, kernel.symbol)
        images, self.values = zip(*(random_cache(rng, kernel) for _ in range(2)), strict=True)
        state = struct.pack("<iiii48x", 1, kernel.context - 1, 0, 0)
        self.fixed = {
            "state": self.put(state),
            "q": self.put(self.q.tobytes()),
            "partial": self.put(bytes(4 * kernel.partial_floats)),
            "counters": self.put(bytes(4 * kernel.kv_heads)),
            "out": self.put(bytes(self.q.nbytes)),
        }
        first = tuple(self.put(image.tobytes()) for image in images)
        self.caches = [first] + [self.copies(first) for _ in range(self.count - 1)]

    def put(self, data: bytes) -> int:
        self.memory.append(self.driver.malloc(len(data)))
        self.driver.upload(self.memory[-1], data)
        return self.memory[-1]

    def copies(self, caches: tuple[int, ...]) -> tuple[int, ...]:
        made = []
        for cache in caches:
            made.append(self.driver.malloc(self.kernel.k_bytes))
            self.driver.copy(made[-1], cache, self.kernel.k_bytes)
        self.memory += made
        return tuple(made)

    def launch(self, cache: tuple[int, ...]) -> None:
        values = self.fixed | {"k_cache": cache[0], "v_cache": cache[1]}
        kernarg = bytearray(self.kernel.kernarg_bytes)
        for name, offset in self.kernel.offsets.items():
            struct.pack_into("<Q", kernarg, offset, values[name])
        self.driver.launch(self.function, self.kernel.grid, self.kernel.block, bytes(kernarg))

    def error(self) -> float:
        """Largest difference from float64, in units of what f32 rounding explains; above 1 is wrong."""
        self.launch(self.caches[-1])
        self.driver.synchronize()
        raw = bytearray(self.q.nbytes)
        self.driver.download(self.fixed["out"], raw)
        out = np.frombuffer(raw, np.float32).reshape(self.q.shape)
        expected = exact(self.kernel, self.q, *self.values)
        bound = 2.0**-23 * (8 + 2 * np.sqrt(self.kernel.context + 128)) * 64 / np.sqrt(self.kernel.context)
        return float(np.abs(out - expected).max() / bound)

    def microseconds(self, repeat: int) -> float:
        """Median over replays of a graph that goes once through all caches."""
        self.driver.graph_begin()
        for cache in self.caches:
            self.launch(cache)
        graph = self.driver.graph_end()
        times = []
        for _ in range(repeat + 2):
            start = self.driver.timestamp()
            self.driver.graph_launch(graph)
            times.append(self.driver.elapsed(start, self.driver.timestamp()) / self.count * 1e6)
        self.driver.graph_destroy(graph)
        return statistics.median(times[2:])

    def close(self) -> None:
        for address in self.memory:
            self.driver.free(address)


def run(folder: Path, repeat: int, only: str) -> int:
    kernels = [Kernel(**entry) for entry in json.loads((folder / INDEX).read_text(encoding="utf-8"))]
    driver = open_driver()
    print(f"{driver.describe().name}: cache of a layer, one token, microseconds of a graph node and GB/s")
    status = 0
    for kernel in kernels:
        if only not in f"{kernel.name} {kernel.dtype} {kernel.context}":
            continue
        bench = Bench(driver, kernel, folder, seed=kernel.context)
        error = bench.error()
        status |= not error <= 1
        us = bench.microseconds(repeat)
        print(
            f"{kernel.name:<14} {kernel.dtype:<5} {kernel.context:6d} tokens {kernel.bytes / 1e6:8.2f} MB "
            f"{us:8.2f} us {kernel.bytes / us / 1e3:8.0f} GB/s  error {error:.2f}"
            f"{'' if error <= 1 else '  WRONG'}",
            flush=True,
        )
        bench.close()
    return status


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=("prepare", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--only", default="", help="part of 'SHAPE DTYPE CONTEXT', e.g. '8B f16'")
    parser.add_argument("--plain", action="store_true", help="prepare kernels without matrix units")
    options = parser.parse_args(arguments)
    if options.mode == "prepare":
        prepare(options.folder, options.plain)
        return 0
    return run(options.folder, options.repeat, options.only)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
