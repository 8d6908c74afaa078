"""Runs the kernel tests on an NVIDIA GPU of a machine that has no compiler.

``prepare FOLDER`` compiles every kernel of the tests to PTX into FOLDER, on a machine with the compiler and
no GPU; ``run FOLDER`` runs the same tests, with the same random shapes, on the machine with the GPU. That one
needs Python, NumPy, gguf, jinja2, networkx, pytest and the NVIDIA driver. The exit status is 0 only when
every test ran and passed.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEED_FILE = "seed.txt"


class Counter:
    """Counts what pytest ran, so that a run in which everything was skipped is no success."""

    def __init__(self) -> None:
        self.passed = 0
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            self.skipped.append(report.nodeid)
        elif report.when == "call" and report.passed:
            self.passed += 1


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=("prepare", "run"))
    parser.add_argument("folder", type=Path, help="where the PTX is kept")
    parser.add_argument("tests", nargs="*", help="pytest arguments; default: all kernel tests")
    options = parser.parse_args(arguments)
    folder: Path = options.folder.resolve()
    seed_file = folder / SEED_FILE
    if options.mode == "prepare":
        folder.mkdir(parents=True, exist_ok=True)
        if not seed_file.exists():
            seed_file.write_text(f"{secrets.randbits(32)}\n", encoding="ascii")
    elif not seed_file.exists():
        print(f"'{folder}' was not prepared: no {SEED_FILE}", file=sys.stderr)
        return 2
    os.environ["FORGEC_TEST_SEED"] = seed_file.read_text(encoding="ascii").strip()
    os.environ["FORGEC_TEST_PTX"] = str(folder)
    os.environ["FORGEC_TEST_PTX_PREPARE"] = "1" if options.mode == "prepare" else "0"
    os.environ["FORGEC_TEST_REQUIRE_GPU"] = "1"
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    counter = Counter()
    config = str(Path(__file__).with_name("pytest.ini"))
    tests = options.tests or [str(ROOT / "tests" / "kernels")]
    status = int(pytest.main(["-c", config, "--rootdir", str(ROOT), "-m", "gpu", "-q", *tests], [counter]))
    if options.mode == "prepare":
        print(f"{len(list(folder.glob('*.ptx')))} PTX files in '{folder}'")
        return status
    print(f"{counter.passed} kernel tests passed on the GPU, {len(counter.skipped)} skipped")
    return status or (1 if counter.skipped or not counter.passed else 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
