"""Fills a package that was compiled without weights with random ones, on the machine that runs it.

    python tests/gpu/random_weights.py PACKAGE [PACKAGE...]

The manifest says where each tensor lies, in which format and layout; the bytes are of the kind that
``forgec synth`` puts into a GGUF file, packed by the compiler's own code. The digests go into the manifest,
so the package is complete afterwards. Needs NumPy and forgec's sources, neither a compiler nor a GGUF file.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from forgec.plan.layouts import matrix_bytes, pack  # noqa: E402
from forgec.synth.blocks import random_rows  # noqa: E402

#: Bytes of weights.bin made at a time, in rows that every layout keeps together.
PIECE_BYTES = 4 << 20
ROW_MULTIPLE = 64
#: Different pieces of a format and a length of row; large matrices repeat them, which no kernel notices.
POOL = 8


def fill(package: Path, seed: int = 0, threads: int | None = None) -> int:
    """Write weights.bin and its digests; returns its size in bytes."""
    manifest_path = package / "manifest.json"
    manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    weights = manifest["weights"]
    path = package / weights["file"]
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    workers = threads or len(os.sched_getaffinity(0))
    try:
        with ThreadPoolExecutor(workers) as pool:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                os.ftruncate(descriptor, weights["bytes"])
                jobs = [job for tensor in manifest["tensors"] for job in _jobs(tensor, seed)]
                for future in [pool.submit(_write_piece, descriptor, *job) for job in jobs]:
                    future.result()
                starts = range(0, weights["bytes"], weights["chunk_bytes"])
                sizes = [(descriptor, start, weights["chunk_bytes"]) for start in starts]
                weights["chunks"] = list(pool.map(_digest, sizes))
            finally:
                os.close(descriptor)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    part = manifest_path.with_name(f"{manifest_path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(manifest_path)
    return int(weights["bytes"])


Job = tuple[Mapping[str, Any], int, int, list[int]]


def _jobs(tensor: Mapping[str, Any], seed: int) -> Iterator[Job]:
    """(tensor, first row, rows, seed) of every piece of a tensor."""
    name = int.from_bytes(hashlib.sha256(tensor["name"].encode()).digest()[:8], "little")
    rows = tensor["rows"]
    total = tensor["bytes"]
    step = max(1, PIECE_BYTES * rows // max(1, total) // ROW_MULTIPLE) * ROW_MULTIPLE
    if tensor["layout"] == "plain":
        step = rows
    for i, first in enumerate(range(0, rows, step)):
        yield tensor, first, min(step, rows - first), [seed, (name + i) % POOL]


def _write_piece(descriptor: int, tensor: Mapping[str, Any], first: int, rows: int, seed: list[int]) -> None:
    """Make and store the rows from ``first`` on: groups of rows follow one another in every layout."""
    if "literal" in tensor:
        _store(descriptor, memoryview(base64.b64decode(tensor["literal"])), tensor["offset"])
        return
    if tensor["layout"] == "plain":
        _store(descriptor, _plain(tensor["name"], tensor["bytes"]).data, tensor["offset"])
        return
    format, layout, cols = tensor["format"], tensor["layout"], tensor["cols"]
    # What the rows before take: whole groups of rows, so every layout has them in front.
    before = matrix_bytes(format, layout, first, cols)
    _store(descriptor, _piece(format, layout, rows, cols, *seed).data, tensor["offset"] + before)


@lru_cache(maxsize=64)
def _piece(format: str, layout: str, rows: int, cols: int, *seed: int) -> npt.NDArray[np.uint8]:
    """Packed random rows."""
    rng = np.random.Generator(np.random.SFC64(seed))
    raw = random_rows(format.upper(), rows, cols, cols**-0.5, rng)
    return pack(raw.reshape(-1), format, layout, rows, cols)


def _plain(name: str, size: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Vectors of float32: ones for norms, a rotation by an eighth of a turn for RoPE, small biases."""
    value = 0.01 if name.endswith(".bias") else 0.5**0.5 if name.startswith("rope_table") else 1.0
    return np.full(size // 4, value, np.float32)


def _store(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _digest(place: tuple[int, int, int]) -> str:
    descriptor, start, size = place
    return hashlib.sha256(os.pread(descriptor, size, start)).hexdigest()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", type=Path, nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for package in options.packages:
        start = time.perf_counter()
        size = fill(package, options.seed)
        seconds = time.perf_counter() - start
        print(f"{package}: {size / 1e9:.2f} GB of random weights in {seconds:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
