"""Runs one stage on one device: parameters and NumPy arrays in, the arrays as the kernel left them out.

A stage is rendered and compiled as a package would have it and run with several numbers of blocks, which must
agree bit for bit; guard bytes around every array catch writes outside of it. Nothing here knows what a stage
computes: references live in the tests.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import os
import struct
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from forgec.codegen import render
from forgec.frontend.quant import dequantize
from forgec.plan.layouts import FORMATS, pack
from forgec.plan.stages import StageParams
from forgec.targets import get_target

#: The target that each test device compiles for.
DEVICES = {
    "cpu": "x86-64-v3",
    "cpu-own": "x86-64-v3",
    "cpu-native": "native",
    "emulated-gfx1100": "gfx1100",
    "emulated-gfx942": "gfx942",
    "cuda": "sm_90",
}
#: The CPU with its own templates: portable, and with whatever instructions this machine has.
OWN_CPU = ["cpu-own", "cpu-native"]
#: For ``@pytest.mark.parametrize("device", EVERY_DEVICE)``: the common templates.
EVERY_DEVICE = [
    pytest.param(name, marks=[pytest.mark.gpu] if name == "cuda" else [])
    for name in DEVICES
    if name not in OWN_CPU
]
GUARD_BYTES = 256
GUARD = 0xA5
EPS32 = 2.0**-23


@dataclass(frozen=True)
class State:
    """The words of ``struct State`` that tests set or read."""

    rows: int = 1
    position: int = 0
    row: int = 0
    token: int = 0
    step: int = 0
    seed_lo: int = 0
    seed_hi: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    ring_mask: int = 0

    LAYOUT = "<iiiiIIIfifI20x"

    def to_array(self) -> np.ndarray:
        """uint8 [64]."""
        return np.frombuffer(struct.pack(self.LAYOUT, *astuple(self)), np.uint8).copy()

    @classmethod
    def from_array(cls, data: np.ndarray) -> State:
        return cls(*struct.unpack(cls.LAYOUT, data.tobytes()))


class Device(Protocol):
    """What the harness needs of a device; addresses are integers.

    ``guard_bytes`` lie before and after every array where the device does not check bounds itself.
    """

    guard_bytes: int

    def put(self, data: bytes) -> int: ...
    def get(self, address: int, size: int) -> bytes: ...
    def free(self) -> None: ...
    def launch(self, params: StageParams, kernarg: bytes, blocks: int) -> None: ...


def common(device: str, block: int | None = None) -> tuple[str, int, int]:
    """(family, wave, block) with which the parameters of every stage begin; ``block`` overrides a GPU's."""
    target = get_target(DEVICES[device])
    return target.family, target.wave, (block or target.block_size) if target.wave > 1 else 1


def source_of(params: StageParams, generic: bool = True) -> str:
    """Kernel text; ``generic`` takes the common template even where the family has its own."""
    if not generic:
        return render.render_stage(params)
    text = getattr(params, "template_text", None)  # kernels that a test writes itself
    environment = render.environment()
    template = (
        environment.from_string(text) if text else environment.get_template(f"stages/{params.stage}.hip.j2")
    )
    return render._tidy(template.render(k=params))


def run_stage(
    params: StageParams,
    arrays: Mapping[str, np.ndarray],
    *,
    state: State | None = None,
    device: str = "cpu",
    blocks: Sequence[int] = (1, 2, 3),
    generic: bool = True,
) -> dict[str, np.ndarray]:
    """Run a stage and return every array as it is afterwards, by argument name.

    ``arrays`` holds one array per pointer argument (``state`` may be given as a ``State``); outputs start
    with the values given. Two arguments may be given the same array object: they then share memory. Fails
    when results depend on the number of blocks, or when anything outside the outputs changed.
    """
    given = dict(arrays)
    given.setdefault("state", (state or State()).to_array())
    missing = {a.name for a in params.args} ^ set(given)
    assert not missing, f"arguments that do not match the stage: {sorted(missing)}"
    runner = open_device(device, generic and device not in OWN_CPU)
    results = [_run_once(params, given, runner, count) for count in blocks]
    for count, result in zip(blocks[1:], results[1:], strict=True):
        for name, value in result.items():
            same = np.array_equal(results[0][name].view(np.uint8), value.view(np.uint8))
            assert same, f"'{name}' differs between {blocks[0]} and {count} blocks"
    return results[0]


def _run_once(
    params: StageParams, given: Mapping[str, np.ndarray], runner: Device, blocks: int
) -> dict[str, np.ndarray]:
    guard = bytes([GUARD]) * runner.guard_bytes
    addresses: dict[int, int] = {}
    kernarg = bytearray(params.kernarg_bytes)
    for arg, offset in params.unpack:
        array = given[arg.name]
        assert arg.is_pointer and array.flags.c_contiguous
        if id(array) not in addresses:
            addresses[id(array)] = runner.put(guard + array.tobytes() + guard) + len(guard)
        struct.pack_into("<Q", kernarg, offset, addresses[id(array)])
    try:
        runner.launch(params, bytes(kernarg), blocks)
        return {a.name: _read_back(a.name, a.ctype, given, addresses, runner) for a in params.args}
    finally:
        runner.free()


def _read_back(
    name: str, ctype: str, given: Mapping[str, np.ndarray], addresses: Mapping[int, int], runner: Device
) -> np.ndarray:
    before = given[name]
    edge = runner.guard_bytes
    raw = runner.get(addresses[id(before)] - edge, before.nbytes + 2 * edge)
    guards = np.frombuffer(raw[:edge] + raw[len(raw) - edge :], np.uint8)
    assert (guards == GUARD).all(), f"the kernel wrote outside of '{name}'"
    body = np.frombuffer(raw[edge : len(raw) - edge], np.uint8)
    shared = sum(array is before for array in given.values()) > 1
    if ctype.startswith("const ") and not shared:
        assert body.tobytes() == before.tobytes(), f"the kernel changed its input '{name}'"
    return body.view(before.dtype).reshape(before.shape).copy()


# ---- compiling ----


def compile_stage(params: StageParams, target_name: str, generic: bool = True) -> Any:
    """The stage's code object (``forgec.toolchain.CodeObject``) for a target."""
    from forgec.toolchain import Unit, compile_units

    unit = Unit(params.symbol, source_of(params, generic), (params.symbol,))
    return compile_units([unit], get_target(target_name), toolchain=_toolchain(target_name))[0]


@cache
def _toolchain(target_name: str) -> Any:
    from forgec.toolchain import select_toolchain

    return select_toolchain("zig", get_target(target_name))


def preparing() -> bool:
    """Whether this run only compiles, for a GPU machine without a compiler (tests/gpu/run_kernels.py)."""
    return os.environ.get("FORGEC_TEST_PTX_PREPARE") == "1"


def carried_ptx(params: StageParams, generic: bool) -> bytes:
    """PTX of a stage: out of the folder FORGEC_TEST_PTX where it is set, else compiled here.

    A file is named by the digest of its source, so that the same seed finds it on another machine.
    """
    folder = os.environ.get("FORGEC_TEST_PTX")
    if not folder:
        return bytes(compile_stage(params, DEVICES["cuda"], generic).data)
    source = source_of(params, generic)
    path = Path(folder) / f"{hashlib.sha256(source.encode()).hexdigest()}.ptx"
    if preparing() and not path.is_file():
        temporary = path.with_suffix(".partial")
        temporary.write_bytes(compile_stage(params, DEVICES["cuda"], generic).data)
        temporary.replace(path)
    assert path.is_file(), f"no PTX for {params.symbol} in '{folder}': was it prepared with the same seed?"
    return path.read_bytes()


# ---- devices ----


def open_device(device: str, generic: bool) -> Device:
    """A device by its name in DEVICES."""
    if device.startswith("cpu"):
        return CpuDevice(DEVICES[device], generic)
    if device == "cuda":
        return PreparingDevice(DEVICES[device], generic) if preparing() else CudaDevice(generic)
    return EmulatedDevice(DEVICES[device], generic)


class CpuDevice:
    """Kernels as functions of shared objects; the blocks run one after another."""

    guard_bytes = GUARD_BYTES

    def __init__(self, target_name: str, generic: bool) -> None:
        self._target, self._generic = target_name, generic
        self._memory: list[Any] = []

    def put(self, data: bytes) -> int:
        raw = (ctypes.c_ubyte * (len(data) + 256))()
        self._memory.append(raw)
        address = -(-ctypes.addressof(raw) // 256) * 256
        ctypes.memmove(address, data, len(data))
        return address

    def get(self, address: int, size: int) -> bytes:
        return ctypes.string_at(address, size)

    def free(self) -> None:
        self._memory.clear()

    def launch(self, params: StageParams, kernarg: bytes, blocks: int) -> None:
        function = getattr(_cpu_library(params, self._target, self._generic), params.symbol)
        function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_int, ctypes.c_int), None
        arguments = (ctypes.c_uint64 * (-(-len(kernarg) // 8)))()
        ctypes.memmove(arguments, kernarg, len(kernarg))
        for block in range(blocks):
            function(ctypes.addressof(arguments), block, blocks)


@cache
def _cpu_library(params: StageParams, target_name: str, generic: bool) -> ctypes.CDLL:
    code = compile_stage(params, target_name, generic)
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(code.data)
        file.flush()
        return ctypes.CDLL(file.name)


class EmulatedDevice:
    """AMD code objects on the emulator, which itself traps accesses outside of an array."""

    guard_bytes = 0

    def __init__(self, arch: str, generic: bool) -> None:
        self._arch, self._generic = arch, generic
        self._device = _emulator(arch)
        self._memory: list[int] = []

    def put(self, data: bytes) -> int:
        address = self._device.malloc(len(data))
        self._memory.append(address)
        self._device.write(address, data)
        return int(address)

    def get(self, address: int, size: int) -> bytes:
        return bytes(self._device.read(address, np.uint8, size).tobytes())

    def free(self) -> None:
        while self._memory:
            self._device.free(self._memory.pop())

    def launch(self, params: StageParams, kernarg: bytes, blocks: int) -> None:
        module = _amd_module(params, self._arch, self._generic)
        try:
            self._device.launch(module, params.symbol, (blocks,), (params.threads,), kernarg)
        except Exception:
            _amd_module.cache_clear()  # nothing of a device that trapped is used again
            _emulator.cache_clear()
            raise


@cache
def _emulator(arch: str) -> Any:
    """One device for all tests, because it keeps its kernels translated."""
    from forgec.emulator import Device as Emulator

    return Emulator(arch, memory=1 << 30)


@cache
def _amd_module(params: StageParams, arch: str, generic: bool) -> Any:
    return _emulator(arch).load(*_amd_code(params, arch, generic))


@cache
def _amd_code(params: StageParams, arch: str, generic: bool) -> tuple[bytes, str]:
    code = compile_stage(params, arch, generic)
    return code.data, code.assembly


class CudaDevice:
    """PTX on an NVIDIA GPU, through the runtime's own driver."""

    guard_bytes = GUARD_BYTES

    def __init__(self, generic: bool) -> None:
        self._generic = generic
        self._driver = _cuda_driver()
        self._memory: list[int] = []

    def put(self, data: bytes) -> int:
        address = int(self._driver.malloc(len(data)))
        self._memory.append(address)
        self._driver.upload(address, data)
        return address

    def get(self, address: int, size: int) -> bytes:
        into = bytearray(size)
        self._driver.download(address, into)
        return bytes(into)

    def free(self) -> None:
        while self._memory:
            self._driver.free(self._memory.pop())

    def launch(self, params: StageParams, kernarg: bytes, blocks: int) -> None:
        go = self._driver.launch_cooperative if params.cooperative else self._driver.launch
        go(_cuda_function(params, self._generic), blocks, params.threads, kernarg, params.launch_lds)
        self._driver.synchronize()


class PreparingDevice(CpuDevice):
    """Compiles PTX and runs nothing: outputs stay as they were given."""

    def launch(self, params: StageParams, kernarg: bytes, blocks: int) -> None:
        carried_ptx(params, self._generic)


@cache
def _cuda_function(params: StageParams, generic: bool) -> Any:
    module = _cuda_driver().load_module(carried_ptx(params, generic), params.symbol)
    return _cuda_driver().get_function(module, params.symbol)


@cache
def _cuda_driver() -> Any:
    """The runtime's CUDA driver, without the rest of the runtime (which would import the tokenizer)."""
    package = types.ModuleType("runtime_drivers")
    package.__path__ = [str(Path(__file__).resolve().parents[2] / "runtime")]
    sys.modules[package.__name__] = package
    options = importlib.import_module("runtime_drivers.driver").DriverOptions(Path(), DEVICES["cuda"], 32)
    driver = importlib.import_module("runtime_drivers.driver_cuda").CudaDriver
    errors = importlib.import_module("runtime_drivers.errors")
    try:
        return driver(options)
    except errors.DeviceError as error:
        if os.environ.get("FORGEC_TEST_REQUIRE_GPU") == "1":
            raise
        pytest.skip(f"no CUDA device: {error}")


# ---- random data and tolerances ----


def print_seed(seed: Sequence[int]) -> None:
    """Shown by pytest with a failing test."""
    sys.stdout.write(f"seed: {list(seed)}\n")


def random_weights(
    rng: np.random.Generator, format: str, rows: int, cols: int
) -> tuple[np.ndarray, np.ndarray]:
    """GGUF bytes of a random [rows, cols] matrix, and its values in float64."""
    if format in ("f32", "f16", "bf16"):
        values = rng.standard_normal((rows, cols)).astype(np.float32) / np.float32(np.sqrt(cols))
        if format == "f32":
            return values.view(np.uint8), values.astype(np.float64)
        if format == "f16":
            half = values.astype(np.float16)
            return half.view(np.uint8), half.astype(np.float64)
        upper = (values.view(np.uint32) >> 16).astype(np.uint16)
        return upper.view(np.uint8), (upper.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if format in SCALES:
        return _random_bytes(rng, format, rows, cols)
    return _random_blocks(rng, format, rows, cols)


#: Formats whose blocks are random bytes: where their half-precision scales lie, and the largest
#: |code * scale| behind one.
SCALES = {
    "q5_0": ((0,), 16),
    "q5_1": ((0, 2), 31),
    "q2_k": ((80, 82), 3 * 15),
    "q3_k": ((108,), 4 * 32),
    "q4_k": ((0, 2), 15 * 63),
    "q5_k": ((0, 2), 31 * 63),
    "q6_k": ((208,), 32 * 128),
    "iq1_s": ((0,), 18),
    "iq1_m": ((), 18),
    "iq2_xxs": ((0,), 43 * 4),
    "iq2_xs": ((0,), 43 * 4),
    "iq2_s": ((0,), 43 * 4),
    "iq3_xxs": ((0,), 62 * 8),
    "iq3_s": ((0,), 15 * 31),
    "iq4_nl": ((0,), 127),
    "iq4_xs": ((0,), 127 * 32),
    "tq1_0": ((52,), 1),
    "tq2_0": ((64,), 1),
    "mxfp4": ((), 12),
    "nvfp4": ((), 12),
}


def _random_bytes(
    rng: np.random.Generator, format: str, rows: int, cols: int
) -> tuple[np.ndarray, np.ndarray]:
    spec = FORMATS[format]
    shape = (rows, cols // spec.block)
    raw = rng.integers(0, 256, (*shape, spec.block_bytes)).astype(np.uint8)
    places, largest = SCALES[format]
    d = (rng.uniform(0.5, 1.5, shape) / (largest * np.sqrt(cols))).astype(np.float16)
    d *= rng.choice(np.array([1, 1, 1, -1, 0], np.float16), shape)
    for at in places:
        raw[..., at : at + 2] = rng.permutation(d, axis=1)[..., None].view(np.uint8)
    if format == "mxfp4":  # powers of two
        raw[..., 0] = rng.integers(113, 123, shape)
    if format == "nvfp4":  # unsigned E4M3, up to 0.06; one up to 0.5
        raw[..., :4] = rng.integers(0, 24, (*shape, 4))
        raw[0, 0, 0] = rng.integers(24, 48)
    if format == "iq1_m":  # a nibble of d on top of each half
        nibbles = d.view(np.uint16)[..., None] >> np.array([0, 4, 8, 12], np.uint16) & 15
        raw[..., 49::2] = raw[..., 49::2] & 15 | nibbles.astype(np.uint8) << 4
    return raw, dequantize(raw, format.upper(), rows, cols).astype(np.float64)


def _random_blocks(
    rng: np.random.Generator, format: str, rows: int, cols: int
) -> tuple[np.ndarray, np.ndarray]:
    shape = (rows, cols // 32)
    d = (rng.uniform(0.5, 1.5, shape) / (8 * np.sqrt(cols))).astype(np.float16)
    d *= rng.choice(np.array([1, 1, 1, -1, 0], np.float16), shape)
    m = (rng.standard_normal(shape) / np.sqrt(cols)).astype(np.float16)
    scales = d[..., None].astype(np.float64)
    if format == "q8_0":
        q = rng.integers(-128, 128, (*shape, 32)).astype(np.int8)
        raw = np.concatenate([d[..., None].view(np.uint8), q.view(np.uint8)], -1)
        return raw, (scales * q).reshape(rows, cols)
    nibbles = rng.integers(0, 16, (*shape, 32)).astype(np.uint8)
    packed = nibbles[..., :16] | (nibbles[..., 16:] << 4)
    if format == "q4_0":
        raw = np.concatenate([d[..., None].view(np.uint8), packed], -1)
        return raw, (scales * (nibbles.astype(np.float64) - 8)).reshape(rows, cols)
    assert format == "q4_1"
    raw = np.concatenate([d[..., None].view(np.uint8), m[..., None].view(np.uint8), packed], -1)
    return raw, (scales * nibbles + m[..., None].astype(np.float64)).reshape(rows, cols)


def packed_weights(
    rng: np.random.Generator, prefix: str, format: str, rows: int, cols: int, layout: str = "rows"
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The packed bytes of a random matrix by argument name, and its values in float64."""
    raw, values = random_weights(rng, format, rows, cols)
    return {prefix: pack(np.ascontiguousarray(raw).reshape(-1), format, layout, rows, cols)}, values


def quantise_q8(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int8 activations of f32 [rows, cols]: q int8 like x, d and s = d * sum(q) f32 [rows, cols / 32]."""
    q, d, s = quantise_to(x, 127)
    return q.astype(np.int8), d, s


def quantise_to(x: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same with integers up to ``most``, as int32."""
    groups = x.astype(np.float32).reshape(x.shape[0], -1, 32)
    largest = np.abs(groups).max(-1)
    with np.errstate(divide="ignore"):
        inverse = np.where(largest > 0, np.float32(most) / largest, np.float32(0)).astype(np.float32)
    q = np.rint(groups * inverse[..., None]).astype(np.int32)
    d = (largest / np.float32(most)).astype(np.float32)
    s = (d * q.sum(-1).astype(np.float32)).astype(np.float32)
    return q.reshape(x.shape), d, s


def assert_close(
    actual: np.ndarray, expected: np.ndarray, magnitude: np.ndarray | float, length: int
) -> None:
    """|actual - expected| within the rounding of an f32 sum of ``length`` terms.

    ``magnitude`` bounds the sum of the terms' absolute values. Roundings of a sum in any order add up like a
    random walk; the factor keeps the chance of a false alarm negligible.
    """
    bound = EPS32 * (8.0 + 2.0 * np.sqrt(length)) * (np.abs(magnitude) + 1e-30)
    error = np.abs(actual.astype(np.float64) - expected)
    assert np.isfinite(actual).all(), "the result holds NaN or infinity"
    worst = np.unravel_index(np.argmax(error / bound), error.shape)
    assert (error <= bound).all(), (
        f"at {worst}: {actual[worst]} instead of {expected[worst]}, "
        f"error {error[worst]:.3g}, allowed {np.broadcast_to(bound, error.shape)[worst]:.3g}"
    )
