"""manifest.json as typed, checked values.

In comes the folder of a package, out goes a frozen ``Manifest`` whose every launch is known to stay inside
its buffers. Anything missing, unknown, mistyped or out of range is one PackageError that names the place;
nothing is loaded, allocated or run here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .checks import (
    FILE,
    HINT,
    check_keys,
    digest_at,
    flag_at,
    integer_at,
    list_at,
    object_at,
    path_at,
    string_at,
    wrong,
)
from .errors import PackageError

__all__ = [
    "FORMAT",
    "SEQUENCES",
    "STAMPS",
    "STAMP_WORDS",
    "STATE_FIELDS",
    "TIMED",
    "Argument",
    "BufferSpec",
    "Kernel",
    "KernelArgument",
    "Launch",
    "Manifest",
    "Pointer",
    "Step",
    "TargetSpec",
    "WeightsSpec",
    "load_manifest",
    "parse_manifest",
]

FORMAT = 1
SEQUENCES = ("prefill", "head", "sample", "decode")
#: A sequence that only some packages have: "decode" by a kernel that stamps clocks. Loaded when it is run.
TIMED = "decode_timed"
#: Where that kernel stamps them: words of 8 bytes, in rows of so many; [blocks][1 + steps] rows.
STAMPS = "stamps"
STAMP_WORDS = 8
STATE_FIELDS = (
    "rows",
    "position",
    "row",
    "token",
    "step",
    "seed_lo",
    "seed_hi",
    "temperature",
    "top_k",
    "top_p",
    "ring_mask",
)

_MAX_MANIFEST_BYTES = 256 << 20
_TOP = {
    "format", "forgec", "model", "math", "kv", "target", "chunk", "ring", "buffers", "kernels", "sequences",
    "symbols", "state", "weights", "tokenizer", "files",
}  # fmt: skip
_TOP_OPTIONAL = {"compiler", "rollback", "traffic", "tensors"}
_KERNEL = {"symbol", "file", "block", "args", "kernarg_bytes", "sha256"}
_KERNEL_OPTIONAL = {
    "cooperative", "launch_lds", "lds_bytes", "vgprs", "sgprs", "scratch_bytes", "spills", "params",
}  # fmt: skip
_MAX_BYTES = 1 << 48


@dataclass(frozen=True)
class Pointer:
    """An address: ``offset`` bytes into the buffer called ``buffer``."""

    buffer: str
    offset: int


Argument = Pointer | int | float


@dataclass(frozen=True)
class BufferSpec:
    """``init``: "file" (weights.bin), "zero", "none" (contents do not matter), or "demand" (nor does it exist
    until a sequence is run that only some packages have)."""

    name: str
    bytes: int
    init: str


@dataclass(frozen=True)
class KernelArgument:
    """Place of one argument in the packed buffer, in bytes; ``kind`` is "pointer" or "value"."""

    name: str
    offset: int
    size: int
    kind: str


@dataclass(frozen=True)
class Kernel:
    """One entry point of one code object; ``block`` in threads.

    ``cooperative``: its blocks wait for each other, so all must be resident; ``launch_lds``: bytes of
    LDS that a launch gives it.
    """

    symbol: str
    file: str
    block: int
    args: tuple[KernelArgument, ...]
    kernarg_bytes: int
    sha256: str
    cooperative: bool = False
    launch_lds: int = 0


@dataclass(frozen=True)
class Step:
    """A step of a kernel that does many, and the bytes of weights it reads."""

    label: str
    weight_bytes: int


@dataclass(frozen=True)
class Launch:
    """One kernel of a sequence; ``kernel`` indexes ``Manifest.kernels``, ``grid`` is in blocks.

    ``steps``: what a launch of ``TIMED`` stamps clocks of.
    """

    kernel: int
    grid: int
    args: tuple[Argument, ...]
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class TargetSpec:
    """What the package was compiled for; ``requires`` are /proc/cpuinfo flags (CPU only)."""

    name: str
    family: str
    wave: int
    title: str
    requires: tuple[str, ...]


@dataclass(frozen=True)
class WeightsSpec:
    """weights.bin: its size, and the SHA-256 of every ``chunk_bytes`` of it (the last may be shorter)."""

    file: str
    bytes: int
    chunk_bytes: int
    chunks: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """A whole manifest. ``raw`` is the parsed JSON, ``package`` the folder it was read from."""

    package: Path
    raw: Mapping[str, Any]
    model: Mapping[str, Any]
    target: TargetSpec
    chunk: int  # rows of one prefill pass
    ring: int  # tokens, a power of two
    buffers: tuple[BufferSpec, ...]
    kernels: tuple[Kernel, ...]
    sequences: Mapping[str, tuple[Launch, ...]]
    symbols: Mapping[str, Pointer]
    state: Mapping[str, int]  # byte offsets into the state buffer
    weights: WeightsSpec
    tokenizer: Mapping[str, Any]
    files: Mapping[str, str]  # relative path -> SHA-256 of every file but manifest.json and weights.bin

    @property
    def rollback(self) -> int | None:
        """Positions by which a sequence may be shortened and go on, or None for any.

        Sliding-window layers keep no more than their window and so many positions.
        """
        return self.raw.get("rollback")

    @property
    def vocab_size(self) -> int:
        return int(self.model["vocab_size"])

    @property
    def context_length(self) -> int:
        """Positions of the KV cache: the context the model was compiled for."""
        return int(self.model["context_length"])

    def buffer(self, name: str) -> BufferSpec:
        return next(buffer for buffer in self.buffers if buffer.name == name)


def load_manifest(package: Path) -> Manifest:
    """Read and check ``package/manifest.json``. Raises: PackageError."""
    path = package / FILE
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise PackageError(f"'{path}' is larger than {_MAX_MANIFEST_BYTES} bytes", HINT)
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PackageError(
            f"'{package}' is no forgec package: it has no manifest.json",
            "give the folder that forgec compile wrote",
        ) from None
    except NotADirectoryError:
        raise PackageError(
            f"'{package}' is a file, not the folder of a package", "give the folder that forgec compile wrote"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PackageError(f"'{path}' cannot be read: {error}", HINT) from error
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PackageError(f"'{path}' is not valid JSON: {error}", HINT) from error
    return parse_manifest(raw, package)


def parse_manifest(raw: Any, package: Path) -> Manifest:
    """Check a parsed manifest. Raises: PackageError that names the first wrong place."""
    top = object_at(raw, "the top level")
    _check_format(top)
    check_keys(top, "the top level", _TOP, _TOP_OPTIONAL)
    model = _model(top["model"])
    if top.get("rollback") is not None:
        integer_at(top["rollback"], "rollback", 1, 1 << 31)
    buffers = _buffers(top["buffers"])
    sizes = {buffer.name: buffer.bytes for buffer in buffers}
    kernels = _kernels(top["kernels"])
    weights = _weights(top["weights"])
    manifest = Manifest(
        package=package,
        raw=top,
        model=model,
        target=_target(top["target"]),
        chunk=integer_at(top["chunk"], "chunk", 1, 1 << 20),
        ring=integer_at(top["ring"], "ring", 1, 1 << 24),
        buffers=buffers,
        kernels=kernels,
        sequences=_sequences(top["sequences"], kernels, sizes),
        symbols=_symbols(top["symbols"], _always(sizes)),
        state=_state(top["state"], sizes),
        weights=weights,
        tokenizer=_tokenizer(top["tokenizer"]),
        files={},
    )
    files = _files(top["files"], manifest)
    manifest = Manifest(**{**vars(manifest), "files": files})
    _check_sizes(manifest, sizes)
    return manifest


def _check_format(top: Mapping[str, Any]) -> None:
    found = top.get("format")
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise wrong("format", found, f"the number {FORMAT}")
    if found > FORMAT:
        raise PackageError(
            f"the package has format {found}, and this runtime reads formats up to {FORMAT}",
            "run the package with the runtime it came with, or compile the model with this version of forgec",
        )


def _model(value: Any) -> dict[str, Any]:
    model = object_at(value, "model")
    for key in ("architecture", "name"):
        string_at(model.get(key), f"model.{key}")
    for key in ("vocab_size", "context_length"):
        integer_at(model.get(key), f"model.{key}", 1, 1 << 31)
    return model


def _target(value: Any) -> TargetSpec:
    target = object_at(value, "target")
    requires = tuple(
        string_at(flag, "target.requires") for flag in list_at(target.get("requires", []), "target.requires")
    )
    return TargetSpec(
        name=string_at(target.get("name"), "target.name"),
        family=string_at(target.get("family"), "target.family"),
        wave=integer_at(target.get("wave"), "target.wave", 1, 64),
        title=string_at(target.get("title"), "target.title"),
        requires=tuple(string_at(flag, "target.requires") for flag in requires),
    )


def _buffers(value: Any) -> tuple[BufferSpec, ...]:
    buffers = []
    for i, entry in enumerate(list_at(value, "buffers")):
        where = f"buffers[{i}]"
        entry = object_at(entry, where)
        check_keys(entry, where, {"name", "bytes", "init"}, set())
        if entry["init"] not in ("file", "zero", "none", "demand"):
            raise wrong(f"{where}.init", entry["init"], '"file", "zero", "none" or "demand"')
        size = integer_at(entry["bytes"], f"{where}.bytes", 0, _MAX_BYTES)
        buffers.append(BufferSpec(string_at(entry["name"], f"{where}.name"), size, entry["init"]))
    names = [buffer.name for buffer in buffers]
    for name in names:
        if names.count(name) > 1:
            raise PackageError(f"{FILE}: two buffers are called '{name}'", HINT)
    for name in ("weights", "state", "tokens", "ring"):
        if name not in names:
            raise PackageError(f"{FILE}: there is no buffer '{name}'", HINT)
    for buffer in buffers:
        for init, owner in (("file", "weights"), ("demand", STAMPS)):
            if (buffer.init == init) != (buffer.name == owner):
                expected = f'"{init}" for {owner} and for nothing else'
                raise wrong(f"init of buffer '{buffer.name}'", buffer.init, expected)
    return tuple(buffers)


def _kernels(value: Any) -> tuple[Kernel, ...]:
    return tuple(_kernel(entry, f"kernels[{i}]") for i, entry in enumerate(list_at(value, "kernels")))


def _kernel(value: Any, where: str) -> Kernel:
    entry = object_at(value, where)
    check_keys(entry, where, _KERNEL, _KERNEL_OPTIONAL)
    size = integer_at(entry["kernarg_bytes"], f"{where}.kernarg_bytes", 0, 4096)
    args = []
    for j, raw in enumerate(list_at(entry["args"], f"{where}.args")):
        args.append(_kernel_argument(raw, f"{where}.args[{j}]", size))
    end = 0
    for arg in sorted(args, key=lambda arg: arg.offset):
        if arg.offset < end:
            raise PackageError(f"{FILE}: {where}: argument '{arg.name}' overlaps the one before it", HINT)
        end = arg.offset + arg.size
    return Kernel(
        symbol=string_at(entry["symbol"], f"{where}.symbol"),
        file=path_at(entry["file"], f"{where}.file"),
        block=integer_at(entry["block"], f"{where}.block", 1, 1024),
        args=tuple(args),
        kernarg_bytes=size,
        sha256=digest_at(entry["sha256"], f"{where}.sha256"),
        cooperative=flag_at(entry.get("cooperative", False), f"{where}.cooperative"),
        launch_lds=integer_at(entry.get("launch_lds", 0), f"{where}.launch_lds", 0, 1 << 20),
    )


def _kernel_argument(value: Any, where: str, kernarg_bytes: int) -> KernelArgument:
    entry = object_at(value, where)
    check_keys(entry, where, {"name", "offset", "size", "kind"}, set())
    kind, size = entry["kind"], entry["size"]
    if kind not in ("pointer", "value"):
        raise wrong(f"{where}.kind", kind, '"pointer" or "value"')
    if size not in ((8,) if kind == "pointer" else (4, 8)):
        raise wrong(f"{where}.size", size, "8 for a pointer, 4 or 8 for a value")
    offset = integer_at(entry["offset"], f"{where}.offset", 0, kernarg_bytes - size)
    if offset % size:
        raise wrong(f"{where}.offset", offset, f"a multiple of its size {size}")
    return KernelArgument(string_at(entry["name"], f"{where}.name"), offset, size, kind)


def _sequences(
    value: Any, kernels: tuple[Kernel, ...], sizes: Mapping[str, int]
) -> dict[str, tuple[Launch, ...]]:
    sequences = object_at(value, "sequences")
    check_keys(sequences, "sequences", set(SEQUENCES), {TIMED})
    result = {}
    for name in sequences:
        there = sizes if name == TIMED else _always(sizes)
        result[name] = tuple(
            _launch(entry, f"sequences.{name}[{i}]", kernels, there)
            for i, entry in enumerate(list_at(sequences[name], f"sequences.{name}"))
        )
    _check_stamps(result.get(TIMED), sizes)
    return result


def _always(sizes: Mapping[str, int]) -> dict[str, int]:
    """The buffers that are there from the beginning."""
    return {name: size for name, size in sizes.items() if name != STAMPS}


def _check_stamps(launches: tuple[Launch, ...] | None, sizes: Mapping[str, int]) -> None:
    """What is stamped has room, and a meaning."""
    if launches is None:
        return
    where = f"sequences.{TIMED}"
    if len(launches) != 1 or not launches[0].steps:
        raise wrong(where, [len(launch.steps) for launch in launches], "one launch with steps")
    (launch,) = launches
    needed = 8 * STAMP_WORDS * launch.grid * (1 + len(launch.steps))
    if sizes.get(STAMPS, 0) < needed:
        found = sizes.get(STAMPS, 0)
        raise wrong(f"the size of buffer '{STAMPS}'", found, f"at least {needed} bytes for {where}")
    if Pointer(STAMPS, 0) not in launch.args:
        raise PackageError(f"{FILE}: {where} has no argument that is the buffer '{STAMPS}'", HINT)


def _launch(value: Any, where: str, kernels: tuple[Kernel, ...], sizes: Mapping[str, int]) -> Launch:
    entry = object_at(value, where)
    check_keys(entry, where, {"kernel", "grid", "args"}, {"note", "weight_bytes", "steps"})
    index = integer_at(entry["kernel"], f"{where}.kernel", 0, len(kernels) - 1)
    kernel = kernels[index]
    raw = list_at(entry["args"], f"{where}.args")
    if len(raw) != len(kernel.args):
        raise PackageError(
            f"{FILE}: {where} has {len(raw)} arguments, kernel '{kernel.symbol}' takes {len(kernel.args)}",
            HINT,
        )
    args = tuple(
        _argument(item, f"{where}.args[{j}] ('{spec.name}')", spec, sizes)
        for j, (item, spec) in enumerate(zip(raw, kernel.args, strict=True))
    )
    steps = tuple(
        _step(item, f"{where}.steps[{j}]")
        for j, item in enumerate(list_at(entry.get("steps", []), f"{where}.steps"))
    )
    return Launch(index, integer_at(entry["grid"], f"{where}.grid", 1, (1 << 31) - 1), args, steps)


def _step(value: Any, where: str) -> Step:
    entry = object_at(value, where)
    check_keys(entry, where, {"label", "weight_bytes"}, set())
    size = integer_at(entry["weight_bytes"], f"{where}.weight_bytes", 0, _MAX_BYTES)
    return Step(string_at(entry["label"], f"{where}.label"), size)


def _argument(value: Any, where: str, spec: KernelArgument, sizes: Mapping[str, int]) -> Argument:
    if spec.kind == "pointer":
        return _pointer(value, where, sizes)
    if isinstance(value, float) and math.isfinite(value) and spec.size == 4:
        return value
    bits = 8 * spec.size
    return integer_at(value, where, -(1 << (bits - 1)), (1 << bits) - 1)


def _pointer(value: Any, where: str, sizes: Mapping[str, int]) -> Pointer:
    """A [buffer, offset] pair that points into its buffer."""
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
        raise wrong(where, value, 'a pair ["buffer", offset]')
    name, offset = value
    if name not in sizes:
        raise wrong(f"the buffer of {where}", name, f"one of {', '.join(sorted(sizes))}")
    if not isinstance(offset, int) or isinstance(offset, bool) or not 0 <= offset < sizes[name]:
        raise wrong(f"the offset of {where}", offset, f"one inside the {sizes[name]} bytes of '{name}'")
    return Pointer(name, offset)


def _symbols(value: Any, sizes: Mapping[str, int]) -> dict[str, Pointer]:
    symbols = object_at(value, "symbols")
    if "logits" not in symbols:
        raise PackageError(f"{FILE}: symbols lacks 'logits'", HINT)
    return {name: _pointer(entry, f"symbols.{name}", sizes) for name, entry in symbols.items()}


def _state(value: Any, sizes: Mapping[str, int]) -> dict[str, int]:
    state = object_at(value, "state")
    check_keys(state, "state", set(STATE_FIELDS), set())
    offsets: dict[str, int] = {}
    for name in STATE_FIELDS:
        offset = integer_at(state[name], f"state.{name}", 0, sizes["state"] - 4)
        if offset % 4 or offset in offsets.values():
            raise wrong(f"state.{name}", offset, "a multiple of 4 that no other field has")
        offsets[name] = offset
    return offsets


def _weights(value: Any) -> WeightsSpec:
    weights = object_at(value, "weights")
    check_keys(weights, "weights", {"file", "bytes", "chunk_bytes", "chunks"}, {"sha256", "changes"})
    size = integer_at(weights["bytes"], "weights.bytes", 0, _MAX_BYTES)
    chunk = integer_at(weights["chunk_bytes"], "weights.chunk_bytes", 4096, 1 << 30)
    chunks = list_at(weights["chunks"], "weights.chunks")
    if size and not chunks:
        raise PackageError(
            "the package was compiled without its weights",
            "compile the model without --no-weights, or fill in random ones (tests/gpu/random_weights.py)",
        )
    expected = (size + chunk - 1) // chunk
    if len(chunks) != expected:
        raise wrong("the length of weights.chunks", len(chunks), f"{expected} digests for {size} bytes")
    digests = tuple(digest_at(entry, f"weights.chunks[{i}]") for i, entry in enumerate(chunks))
    return WeightsSpec(path_at(weights["file"], "weights.file"), size, chunk, digests)


def _tokenizer(value: Any) -> dict[str, Any]:
    tokenizer = object_at(value, "tokenizer")
    path_at(tokenizer.get("file"), "tokenizer.file")
    digest_at(tokenizer.get("sha256"), "tokenizer.sha256")
    return tokenizer


def _files(value: Any, manifest: Manifest) -> dict[str, str]:
    """Digests by path, those of the kernels and the tokenizer included. Raises where two disagree."""
    files = {}
    for path, digest in object_at(value, "files").items():
        files[path_at(path, "a path of files")] = digest_at(digest, f"files['{path}']")
    entries = [(kernel.file, kernel.sha256) for kernel in manifest.kernels]
    entries.append((manifest.tokenizer["file"], manifest.tokenizer["sha256"]))
    for path, digest in entries:
        if files.setdefault(path, digest) != digest:
            raise PackageError(f"{FILE}: two digests are given for '{path}'", HINT)
    return files


def _check_sizes(manifest: Manifest, sizes: Mapping[str, int]) -> None:
    """Sizes that follow from each other."""
    if manifest.ring & (manifest.ring - 1):
        raise wrong("ring", manifest.ring, "a power of two")
    expected = {"weights": manifest.weights.bytes, "state": 64}
    for name, size in expected.items():
        if sizes[name] != size:
            raise wrong(f"the size of buffer '{name}'", sizes[name], f"{size} bytes")
    at_least = {"tokens": 4 * manifest.chunk, "ring": 4 * manifest.ring}
    for name, size in at_least.items():
        if sizes[name] < size:
            raise wrong(f"the size of buffer '{name}'", sizes[name], f"at least {size} bytes")
    logits = manifest.symbols["logits"]
    if logits.offset + 4 * manifest.vocab_size > sizes[logits.buffer]:
        raise wrong(
            "symbols.logits",
            [logits.buffer, logits.offset],
            f"{4 * manifest.vocab_size} bytes inside its buffer",
        )
