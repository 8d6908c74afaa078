"""manifest.json: what the runtime must know, from the program and the inspected code objects.

Plain data goes in and out; the runtime validates every field again when it loads a package.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import forgec
from forgec.package.weights import CHUNK_BYTES, WeightsDigest
from forgec.plan.program import STATE_FIELDS, Argument, Launch, PackedTensor, Program, Ref
from forgec.plan.stages import MatvecParams, StageParams
from forgec.plan.traffic import cache_bytes_per_position, launch_traffic, weight_bytes_per_token
from forgec.toolchain import KernelInfo

__all__ = ["FORMAT", "build_manifest"]

#: Version of the package format; a runtime refuses a newer one.
FORMAT = 1


def build_manifest(
    program: Program,
    inspections: Mapping[str, KernelInfo],
    files: Mapping[str, str],
    weights: WeightsDigest,
    history: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    compiler: str,
) -> dict[str, Any]:
    """The manifest of a package as JSON data.

    ``inspections`` is by kernel symbol, ``files`` maps each packaged file to its SHA-256;
    ``history`` says how weights were changed on the way from the GGUF.
    """
    index = {kernel: i for i, kernel in enumerate(program.kernels)}
    return {
        "format": FORMAT,
        "forgec": forgec.__version__,
        "compiler": compiler,
        "model": _model(program),
        "math": program.math,
        "kv": program.kv_dtype,
        "target": _target(program),
        "chunk": program.chunk,
        "ring": program.ring,
        "rollback": program.rollback,
        "buffers": [{"name": b.name, "bytes": b.bytes, "init": b.init} for b in program.buffers],
        "kernels": [_kernel(k, inspections[k.symbol], program, files) for k in program.kernels],
        "sequences": {
            name: [_launch(launch, index, program) for launch in launches]
            for name, launches in program.sequences.items()
        },
        "symbols": {name: _argument(ref) for name, ref in program.symbols.items()},
        "traffic": {
            "weight_bytes_per_token": weight_bytes_per_token(program),
            "kv_bytes_per_position": cache_bytes_per_position(program),
        },
        "state": dict(STATE_FIELDS),
        "weights": {
            "file": "weights.bin",
            "bytes": weights.bytes,
            "chunk_bytes": CHUNK_BYTES,
            "chunks": list(weights.chunks),
            **({"changes": history} if history else {}),
        },
        "tensors": [_tensor(t) for t in program.tensors],
        "tokenizer": {**tokenizer, "file": "tokenizer.json", "sha256": files["tokenizer.json"]},
        "files": dict(sorted(files.items())),
    }


def kernel_file(symbol: str, program: Program) -> str:
    """Path of a kernel's code object inside the package."""
    return f"kernels/{symbol}{program.target.code_suffix}"


def _model(program: Program) -> dict[str, Any]:
    spec = program.spec
    return {
        "architecture": spec.architecture,
        "name": spec.name,
        "vocab_size": spec.vocab_size,
        "context_length": program.context,
        "trained_context_length": spec.context_length,
        "embedding_length": spec.embedding_length,
        "block_count": spec.block_count,
        "feed_forward_length": spec.feed_forward_length,
        "head_count": spec.head_count,
        "head_count_kv": spec.head_count_kv,
        "parameter_count": spec.parameter_count,
    }


def _target(program: Program) -> dict[str, Any]:
    target = program.target
    return {
        "name": target.name,
        "family": target.family,
        "title": target.title,
        "wave": target.wave,
        "requires": list(target.requires),
    }


def _kernel(
    kernel: StageParams, info: KernelInfo, program: Program, files: Mapping[str, str]
) -> dict[str, Any]:
    path = kernel_file(kernel.symbol, program)
    # What "forgec tune" makes candidates from.
    params = {"params": asdict(kernel)} if isinstance(kernel, MatvecParams) else {}
    return {
        **params,
        "symbol": kernel.symbol,
        "file": path,
        "block": kernel.threads,
        **({"cooperative": True, "launch_lds": kernel.launch_lds} if kernel.cooperative else {}),
        "args": [
            {
                "name": arg.name,
                "offset": offset,
                "size": arg.size,
                "kind": "pointer" if arg.is_pointer else "value",
            }
            for arg, offset in kernel.unpack
        ],
        "kernarg_bytes": kernel.kernarg_bytes,
        "lds_bytes": info.lds_bytes,
        "vgprs": info.vgprs,
        "sha256": files[path],
    }


def _tensor(tensor: PackedTensor) -> dict[str, Any]:
    """Where a tensor lies in weights.bin and how: what it takes to read it, or to make up another."""
    return {
        "name": tensor.name,
        "format": tensor.format,
        "layout": tensor.layout,
        "rows": tensor.rows,
        "cols": tensor.cols,
        "offset": tensor.offset,
        "bytes": tensor.bytes,
        **({"literal": base64.b64encode(tensor.literal).decode()} if tensor.literal else {}),
    }


def _launch(launch: Launch, index: Mapping[StageParams, int], program: Program) -> dict[str, Any]:
    return {
        "kernel": index[launch.kernel],
        "grid": launch.grid,
        "args": [_argument(a) for a in launch.args],
        "note": launch.note,
        "weight_bytes": launch_traffic(launch, program, 1, 0).weights,
        **({"steps": _steps(launch, program)} if launch.steps else {}),
    }


def _steps(launch: Launch, program: Program) -> list[dict[str, Any]]:
    """What the rows of a timed launch's stamps are about."""
    return [
        {"label": label, "weight_bytes": launch_traffic(step, program, 1, 0).weights}
        for label, step in zip(launch.steps, program.steps, strict=True)
    ]


def _argument(argument: Argument) -> Sequence[Any] | int | float:
    return [argument.buffer, argument.offset] if isinstance(argument, Ref) else argument
