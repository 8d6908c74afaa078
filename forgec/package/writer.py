"""The package writer: weights, kernels, sources, tokenizer, runtime and manifest, in one atomic folder.

Everything has been decided before; this module only writes it down and digests it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from forgec.errors import VerifyError
from forgec.frontend.gguf import GGUFFile
from forgec.frontend.tokenizer import TokenizerSpec
from forgec.package.manifest import build_manifest, kernel_file
from forgec.package.output import atomic_directory, check_space
from forgec.package.weights import WeightsDigest, write_weights
from forgec.plan.program import Program
from forgec.toolchain import CodeObject

__all__ = ["runtime_dir", "write_package"]

#: Room for everything that is not weights: kernels, sources, tokenizer, runtime.
OVERHEAD_BYTES = 32 << 20
#: The CPU's thread pool travels as one more code object.
POOL = "pool"


def runtime_dir() -> Path:
    """The folder of runtime modules: inside the installed package, or beside it in a source checkout."""
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "_runtime", package.parent / "runtime"):
        if (candidate / "__main__.py").is_file():
            return candidate
    raise VerifyError(f"no runtime folder beside '{package}'", "Reinstall forgec.")


def write_package(
    destination: Path,
    program: Program,
    gguf: GGUFFile,
    tokenizer: TokenizerSpec,
    sources: Mapping[str, str],
    objects: Sequence[CodeObject],
    *,
    force: bool = False,
    with_weights: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the package to ``destination``; it appears whole or not at all.

    ``sources`` maps unit names to their text, ``objects`` are the compiled units. Without ``with_weights``
    there is no weights.bin and no digest of it; something else must fill it in. Raises PackageError.
    """
    total = program.buffer("weights").bytes
    check_space(destination, (total if with_weights else 0) + OVERHEAD_BYTES)
    with atomic_directory(destination, force=force) as folder:
        files = _write_small_files(folder, program, tokenizer, sources, objects)
        weights = WeightsDigest(total, ())
        if with_weights:
            weights = write_weights(folder / "weights.bin", gguf, program, progress)
        inspections = {info.symbol: info for code in objects for info in code.inspection}
        manifest = build_manifest(
            program,
            inspections,
            files,
            weights,
            gguf.history(),
            tokenizer.to_manifest(),
            objects[0].compiler,
        )
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        (folder / "manifest.json").write_text(text, encoding="utf-8")


def _write_small_files(
    folder: Path,
    program: Program,
    tokenizer: TokenizerSpec,
    sources: Mapping[str, str],
    objects: Sequence[CodeObject],
) -> dict[str, str]:
    """Write everything but weights and manifest; returns the SHA-256 of each file by relative path."""
    digests: dict[str, str] = {}

    def put(path: str, data: bytes) -> None:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        digests[path] = hashlib.sha256(data).hexdigest()

    for module in sorted(runtime_dir().glob("*.py")):
        put(module.name, module.read_bytes())
    for name, text in sources.items():
        put(f"src/{name}{_source_suffix(name, program)}", text.encode())
    for code in objects:
        put(kernel_file(code.name, program), code.data)
    put("tokenizer.json", tokenizer.json.encode())
    return digests


def _source_suffix(name: str, program: Program) -> str:
    """.hip for kernels of a GPU, .cpp for a CPU's, .c for its thread pool."""
    if program.target.wave > 1:
        return ".hip"
    return ".c" if name == POOL else ".cpp"
