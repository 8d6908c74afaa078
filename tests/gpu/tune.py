"""Launch geometries of many models, measured on a GPU machine that has no compiler.

    python tests/gpu/tune.py prepare FOLDER --arch sm_90     where the compiler is; no GPU needed
    python tests/gpu/tune.py run FOLDER -o sm_90.json        where the GPU is; no compiler needed

``prepare`` compiles the models of the speed table without weights, and the candidates of their kernels, into
FOLDER/tuning.tar.xz. ``run`` fills in random weights, times every candidate and writes the table, which
belongs beside ``forgec/plan/tuning/__init__.py``. ``run`` needs what a package needs, and forgec's sources.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from forgec.tune.groups import read_candidates  # noqa: E402
from forgec.tune.measure import time_groups  # noqa: E402
from forgec.tune.table import result_text, write_table  # noqa: E402
from tests.gpu.random_weights import fill  # noqa: E402
from tests.gpu.run_model import load  # noqa: E402
from tests.gpu.table import forgec, roomy, rows_named, unpack  # noqa: E402

ARCHIVE = "tuning.tar.xz"


def prepare(folder: Path, arch: str, names: Sequence[str], layers: int | None) -> None:
    """Compile every model and its candidates into the archive."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        parts = Path(work, "parts")
        for row in rows_named(names):
            model = Path(work, f"{row.name}.gguf")
            shorter = [] if layers is None else ["--layers", str(layers)]
            forgec("synth", row.shape, "--quant", row.mix, "--sparse", "-o", model, *shorter)
            package = parts / row.name / "package"
            forgec("compile", model, "--arch", arch, "--schedule", "graph", "--ctx", "512", "--no-weights",
                   "-o", package)  # fmt: skip
            forgec("tune", package, "--prepare", parts / row.name / "candidates")
            model.unlink()
        archive = folder / ARCHIVE
        with tarfile.open(archive, "w:xz", preset=6) as tar:
            for part in sorted(parts.iterdir()):
                tar.add(part, part.name)
    print(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB")


def run(folder: Path, names: Sequence[str], device: str | None, output: Path) -> None:
    """Time all candidates; the table is written after every model."""
    with tempfile.TemporaryDirectory(dir=roomy(folder)) as work:
        unpack(folder / ARCHIVE, Path(work))
        for row in rows_named(names):
            part = Path(work, row.name)
            if not part.is_dir():
                continue
            start = time.perf_counter()
            package = part / "package"
            fill(package)
            target = json.loads((package / "manifest.json").read_text(encoding="utf-8"))["target"]["name"]
            with load(package).load(device=device) as model:
                timed = time_groups(model, read_candidates(part / "candidates"), part / "candidates")
                name = model.engine.driver.describe().name
            write_table(output, timed, target, name, datetime.date.today().isoformat(), row.name)
            count = sum(len(entry.seconds) for entry in timed)
            print(f"{row.name}: {count} candidates in {time.perf_counter() - start:.1f} s")
            print(result_text(timed), flush=True)
            shutil.rmtree(part)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=("prepare", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--row", action="append", default=[], help="only models whose name contains this")
    parser.add_argument("--arch", default="sm_90", help="prepare: target")
    parser.add_argument("--layers", type=int, help="prepare: shorten the models, to try the script")
    parser.add_argument("--device", help="run: as for a package")
    parser.add_argument("-o", "--output", type=Path, default=Path("tuning.json"), help="run: table to write")
    options = parser.parse_args(arguments)
    if options.mode == "prepare":
        prepare(options.folder, options.arch, options.row, options.layers)
    else:
        run(options.folder, options.row, options.device, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
