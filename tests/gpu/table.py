"""The whole speed table on a GPU machine, in one go.

    python tests/gpu/table.py prepare FOLDER --arch sm_90      where the compiler is; no GPU needed
    python tests/gpu/table.py run FOLDER                       where the GPU is; no compiler needed

``prepare`` compiles the shapes of the table without weights into FOLDER/packages.tar.xz (a few megabytes, to
be carried). ``run`` unpacks them, fills in random weights, measures every package with every schedule at
several contexts and prints one Markdown table. A package folder with real weights that lies in FOLDER (named
like a row of the table, e.g. ``SmolLM2-135M-Q4_1-graph``) is taken instead of the random one.

``run`` needs NumPy, tokenizers, jinja2 and forgec's sources.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tests.gpu.random_weights import fill  # noqa: E402
from tests.gpu.run_model import load  # noqa: E402

ARCHIVE = "packages.tar.xz"
CONTEXTS = (0, 4096, 16384)
#: Context to compile for, where the model allows it: the longest measured one and room for the tokens.
CONTEXT = 16384 + 256
#: Tokens of a repetition, as in llama.cpp's tg128.
TOKENS = 128
#: Steps of loading that are the driver's: opening the device, moving bytes, compiling kernels.
DRIVER_STEPS = ("device", "upload", "kernels")
#: Free space from which weights are kept in memory: the largest package twice, and room to spare.
MEMORY_BYTES = 24 << 30


@dataclass(frozen=True)
class Row:
    """A line of the table: shape and mix, the goal in tok/s at context 0 (and 4096), llama.cpp's figures.

    llama.cpp 0c1e57098 on an H100 80 GB, tg128 with its fastest setting, November 2026.
    """

    shape: str
    mix: str
    goal: int
    llama_cpp: int
    goal_4096: int | None = None
    llama_cpp_4096: int | None = None

    @property
    def name(self) -> str:
        return f"{self.shape}-{self.mix}"


ROWS = (
    Row("SmolLM2-135M", "Q4_1", 3500, 1057),
    Row("Llama-3.2-1B", "Q4_0", 2600, 1024),
    Row("Llama-3.2-1B", "Q4_K_M", 2400, 882),
    Row("Llama-3.2-1B", "Q8_0", 1700, 795),
    Row("Llama-3.2-1B", "F16", 1000, 703),
    Row("Llama-3.1-8B", "Q4_0", 520, 317),
    Row("Llama-3.1-8B", "Q4_K_M", 490, 275, 440, 249),
    Row("Llama-3.1-8B", "Q8_0", 320, 231),
)


def rows_named(names: Sequence[str]) -> tuple[Row, ...]:
    """The rows whose name contains one of ``names``; all without names."""
    return tuple(row for row in ROWS if not names or any(name.lower() in row.name.lower() for name in names))


# -- where the compiler is


def schedules() -> tuple[str, ...]:
    """The schedules that this forgec can compile for."""
    from forgec.commands.compile import command

    option = next(p for p in command.params if p.name == "schedule")
    return tuple(choice for choice in option.type.choices if choice != "auto")  # type: ignore[attr-defined]


def prepare(folder: Path, arch: str, names: Sequence[str], layers: int | None, wanted: Sequence[str]) -> None:
    """Compile every row with every schedule into the archive; what has no kernels yet is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        packages = Path(work, "packages")
        for row in rows_named(names):
            model = Path(work, f"{row.name}.gguf")
            shorter = [] if layers is None else ["--layers", str(layers)]
            forgec("synth", row.shape, "--quant", row.mix, "--sparse", "-o", model, *shorter)
            for schedule in wanted or schedules():
                output = packages / f"{row.name}-{schedule}"
                context = str(min(CONTEXT, _trained_context(row.shape)))
                forgec(
                    "compile", model, "--arch", arch, "--schedule", schedule, "--ctx", context,
                    "--no-weights", "-o", output,
                )  # fmt: skip
            model.unlink()
        archive = folder / ARCHIVE
        with tarfile.open(archive, "w:xz", preset=6) as tar:
            for package in sorted(packages.iterdir()):
                tar.add(package, package.name)
    print(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB")


def forgec(*arguments: str | Path) -> None:
    """Call forgec; a failure leaves the row out and is reported."""
    command = [sys.executable, "-m", "forgec", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode:
        print(f"left out: {' '.join(map(str, arguments))}", file=sys.stderr)


def _trained_context(shape: str) -> int:
    from forgec.synth.shapes import find_shape

    return find_shape(shape).context


# -- where the GPU is


def run(
    folder: Path, names: Sequence[str], device: str | None, contexts: Sequence[int], output: Path | None
) -> int:
    """Measure everything and print the table; the exit status is 1 when a package failed."""
    start, results, failed = time.perf_counter(), [], 0
    with tempfile.TemporaryDirectory(dir=roomy(folder)) as work:
        unpack(folder / ARCHIVE, Path(work))
        compile_ahead(Path(work))
        for row in rows_named(names):
            packages = sorted(Path(work).glob(f"{row.name}-*"))
            source: Path | None = None
            for package in packages:
                real = folder / package.name
                try:
                    if (real / "weights.bin").is_file():
                        package = real
                    else:
                        source = _weights(package, source)
                    results.append(_measure(row, package, device, contexts))
                except Exception:
                    failed += 1
                    print(f"{package.name} failed:\n{traceback.format_exc()}", flush=True)
            for package in packages:
                shutil.rmtree(package)
            if output is not None:
                output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results, contexts))
    print(f"\n{len(results)} packages in {time.perf_counter() - start:.0f} s, {failed} failed")
    return 1 if failed or not results else 0


def unpack(archive: Path, into: Path) -> None:
    """What ``prepare`` packed; Python before 3.11.4 knows no filters."""
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(into, filter="data")
        else:
            tar.extractall(into)


def compile_ahead(folder: Path) -> None:
    """Have the NVIDIA driver compile the PTX of all packages at once, into its cache: one after the other it
    would take minutes of the GPU's time."""
    files: dict[str, Path] = {}
    for file in sorted(folder.glob("*/kernels/*.ptx")):
        files.setdefault(hashlib.sha256(file.read_bytes()).hexdigest(), file)
    if not files:
        return
    begin = time.perf_counter()
    largest = sorted(files.values(), key=lambda file: file.stat().st_size, reverse=True)
    workers = min(len(os.sched_getaffinity(0)), 16)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pool.map(_load_modules, [largest[i::workers] for i in range(workers) if largest[i::workers]])
    print(f"{len(files)} kernels compiled by the driver in {time.perf_counter() - begin:.1f} s", flush=True)


def _load_modules(files: Sequence[Path]) -> None:
    from runtime.driver import DriverOptions
    from runtime.driver_cuda import CudaDriver

    package = files[0].parents[1]  # all of them are for one target
    target = json.loads((package / "manifest.json").read_text(encoding="utf-8"))["target"]
    driver = CudaDriver(DriverOptions(package, target["name"], target["wave"]))
    for file in files:
        driver.load_module(file.read_bytes(), file.name, file)


def roomy(folder: Path) -> Path:
    """Where weights are kept for a while: in memory where there is room, so that no disk is measured."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free >= MEMORY_BYTES
    return memory if roomy else folder


def _weights(package: Path, source: Path | None) -> Path:
    """Random weights for a package; those of ``source`` are linked where the tensors lie equally."""
    start = time.perf_counter()
    if source is not None:
        ours = json.loads((package / "manifest.json").read_text(encoding="utf-8"))
        theirs = json.loads((source / "manifest.json").read_text(encoding="utf-8"))
        if ours["tensors"] == theirs["tensors"]:
            os.link(source / "weights.bin", package / "weights.bin")
            ours["weights"] = theirs["weights"]
            (package / "manifest.json").write_text(json.dumps(ours) + "\n", encoding="utf-8")
            return source
    size = fill(package)
    seconds = time.perf_counter() - start
    print(f"{package.name}: {size / 1e9:.2f} GB of random weights in {seconds:.1f} s", flush=True)
    return package


def _measure(row: Row, package: Path, device: str | None, contexts: Sequence[int]) -> dict[str, Any]:
    """Load a package, time its first token, measure it."""
    import importlib

    begin = time.perf_counter()
    module = load(package)
    with module.load(device=device) as model:
        loaded = time.perf_counter()
        engine = model.engine
        engine.start(module.Sampling())
        engine.prefill([1, 2, 3, 4])
        engine.head()
        engine.token(engine.sample())
        first = time.perf_counter()
        measure = importlib.import_module(f"{module.__name__}.measure")
        report = measure.measure(model, contexts=contexts, tokens=TOKENS)
        print(measure.report_text(report), flush=True)
    for name in [n for n in sys.modules if n == module.__name__ or n.startswith(f"{module.__name__}.")]:
        del sys.modules[name]
    return {
        "row": row.name,
        "schedule": package.name.removeprefix(f"{row.name}-"),
        "goal": row.goal,
        "llama_cpp": row.llama_cpp,
        "goal_4096": row.goal_4096,
        "llama_cpp_4096": row.llama_cpp_4096,
        "load_seconds": loaded - begin,
        "first_token_seconds": first - begin,
        **json.loads(report.to_json()),
        "load_steps": dict(report.load_seconds),
    }


def table(results: Sequence[Mapping[str, Any]], contexts: Sequence[int]) -> str:
    """The Markdown table; "share" is the part of the measured bandwidth."""
    if not results:
        return "nothing was measured"
    first = results[0]
    bandwidth = f"{first['bandwidth'] / 1e12:.3f} TB/s" if first["bandwidth"] else "unknown"
    shown = [f"{'context ' if c else 'tok/s at context '}{c} (share)" for c in contexts]
    heads = [
        "model", "schedule", *shown, "goal", "llama.cpp", "times", "prompt tok/s", "upload GB/s",
        "first token s", "of which own code",
    ]  # fmt: skip
    lines = [
        f"{first['device']}, bandwidth {bandwidth} ({first['bandwidth_source']}), math {first['math']}",
        "",
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
    ]
    lines += [f"| {' | '.join(_cells(result, contexts))} |" for result in results]
    return "\n".join(lines)


def _cells(result: Mapping[str, Any], contexts: Sequence[int]) -> list[str]:
    decode = {row["context"]: row for row in result["decode"]}
    speeds = []
    for context in contexts:
        row = decode.get(context)
        share = f" ({row['fraction']:.0%})" if row and row["fraction"] is not None else ""
        speeds.append(f"{row['tokens_per_second']:,.0f}{share}" if row else "–")
    steps = result["load_steps"]
    upload = steps.get("upload", 0.0)
    own = result["first_token_seconds"] - sum(steps.get(name, 0.0) for name in DRIVER_STEPS)
    best = decode.get(0)
    goal, peer = f"≥ {result['goal']:,}", f"{result['llama_cpp']:,}"
    if result["goal_4096"]:
        goal += f"; ≥ {result['goal_4096']} at 4096"
        peer += f"; {result['llama_cpp_4096']} at 4096"
    return [
        result["row"].replace("-Q", " Q").replace("-F16", " F16"),
        result["schedule"],
        *speeds,
        goal,
        peer,
        f"{best['tokens_per_second'] / result['llama_cpp']:.2f}" if best else "–",
        f"{result['prompt_tokens_per_second']:,.0f}",
        f"{result['weights_bytes'] / upload / 1e9:.1f}" if upload else "–",
        f"{result['first_token_seconds']:.2f}",
        f"{own:.2f}",
    ]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=("prepare", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--row", action="append", default=[], help="only rows whose name contains this")
    parser.add_argument("--arch", default="sm_90", help="prepare: target")
    parser.add_argument("--schedule", action="append", default=[], help="prepare: only these schedules")
    parser.add_argument("--layers", type=int, help="prepare: shorten the models, to try the script")
    parser.add_argument("--device", help="run: as for a package")
    parser.add_argument("--contexts", default=",".join(map(str, CONTEXTS)), help="run")
    parser.add_argument("--json", type=Path, help="run: write all figures there")
    options = parser.parse_args(arguments)
    if options.mode == "prepare":
        prepare(options.folder, options.arch, options.row, options.layers, options.schedule)
        return 0
    contexts = [int(part) for part in options.contexts.split(",")]
    return run(options.folder, options.row, options.device, contexts, options.json)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
