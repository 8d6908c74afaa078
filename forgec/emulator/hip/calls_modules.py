"""Served HIP calls that load code objects and launch their kernels.

Arguments arrive packed (``extra``) or as one pointer each (``kernelParams``), and are copied at the call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from concurrent.futures import Future
from ctypes import c_int, c_size_t, c_uint, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from forgec.emulator.codeobject import Kernel, parse_code_object
from forgec.emulator.device import Module
from forgec.emulator.hip.constants import Error, FunctionAttribute
from forgec.emulator.hip.image import ImageError, image_at, select_image
from forgec.emulator.hip.state import HipError, State, read_pointer, store
from forgec.emulator.instructions import read_instructions
from forgec.emulator.launch import CompiledKernel
from forgec.emulator.residency import resident_blocks
from forgec.errors import DeviceError, ForgeError

__all__ = ["ModuleCalls"]

_EXTRA_POINTER, _EXTRA_SIZE, _EXTRA_END = 1, 2, 3
_LAUNCH = (c_void_p, *(c_uint,) * 7, c_void_p, c_void_p)


@dataclass(frozen=True, eq=False)
class _Function:
    """A kernel of a module; ``ready`` is its translation, begun when the function was looked up."""

    module: Module
    kernel: Kernel
    ready: Future[CompiledKernel]


class ModuleCalls:
    """``SIGNATURES``: argument types by call, in the order of calls.h."""

    SIGNATURES: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "hipModuleLoad": (c_void_p, c_void_p),
        "hipModuleLoadData": (c_void_p, c_void_p),
        "hipModuleLoadDataEx": (c_void_p, c_void_p, c_uint, c_void_p, c_void_p),
        "hipModuleUnload": (c_void_p,),
        "hipModuleGetFunction": (c_void_p, c_void_p, c_void_p),
        "hipModuleGetGlobal": (c_void_p, c_void_p, c_void_p, c_void_p),
        "hipFuncGetAttribute": (c_void_p, c_int, c_void_p),
        "hipModuleLaunchKernel": (*_LAUNCH, c_void_p),
        "hipModuleLaunchCooperativeKernel": _LAUNCH,
        "hipModuleOccupancyMaxActiveBlocksPerMultiprocessor": (c_void_p, c_void_p, c_int, c_size_t),
    }

    def __init__(self, state: State) -> None:
        self._state = state

    # ---- modules ----

    def hipModuleLoad(self, module: int | None, path: int | None) -> None:
        if not path:
            raise HipError(Error.hipErrorInvalidValue)
        try:
            data = Path(ctypes.string_at(path).decode()).read_bytes()
        except OSError as error:
            raise HipError(Error.hipErrorFileNotFound) from error
        self._load(module, lambda arch: select_image(data, arch))

    def hipModuleLoadData(self, module: int | None, image: int | None) -> None:
        if not image:
            raise HipError(Error.hipErrorInvalidValue)
        self._load(module, lambda arch: image_at(image, arch))

    def hipModuleLoadDataEx(
        self, module: int | None, image: int | None, count: int, options: int | None, values: int | None
    ) -> None:
        """The options are for just-in-time compilation, which code objects do not need."""
        self.hipModuleLoadData(module, image)

    def _load(self, module: int | None, read: Any) -> None:
        try:
            loaded = self._load_image(read(self._state.target.name))
        except ImageError as error:
            self._state.note(error)
            raise HipError(error.code) from error
        store(module, c_void_p, self._state.give(loaded))

    def _load_image(self, image: bytes) -> Module:
        device = self._state.device
        try:
            code = parse_code_object(image)
        except DeviceError as error:
            raise ImageError(Error.hipErrorInvalidImage, error.message, error.hint) from error
        if code.arch != device.arch:
            raise ImageError(
                Error.hipErrorNoBinaryForGpu,
                f"the code object is for {code.arch}, the device is {device.arch}",
            )
        try:
            instructions = read_instructions(code)
            loaded = device.load(image)
        except ForgeError as error:
            raise ImageError(Error.hipErrorNotSupported, error.message, error.hint) from error
        loaded.raw = instructions
        return loaded

    def hipModuleUnload(self, module: int | None) -> None:
        found = self._state.find(module, Module)
        self._state.wait_all()
        functions = [t for t in self._state.things(_Function) if t.module is found]
        for function in functions:
            function.ready.cancel()
        self._state.forget([found, *functions])
        self._state.device.unload(found)

    def hipModuleGetFunction(self, function: int | None, module: int | None, name: int | None) -> None:
        found = self._state.find(module, Module)
        if not name:
            raise HipError(Error.hipErrorInvalidValue)
        kernel = found.kernels.get(ctypes.string_at(name).decode("utf-8", "replace"))
        if kernel is None:
            raise HipError(Error.hipErrorNotFound)
        ready = self._state.translators.submit(self._state.device.compiled, found, kernel.name)
        store(function, c_void_p, self._state.give(_Function(found, kernel, ready)))

    def hipModuleGetGlobal(
        self, pointer: int | None, size: int | None, module: int | None, name: int | None
    ) -> None:
        found = self._state.find(module, Module)
        if not name:
            raise HipError(Error.hipErrorInvalidValue)
        try:
            address, count = found.symbol_address(ctypes.string_at(name).decode("utf-8", "replace"))
        except DeviceError as error:
            raise HipError(Error.hipErrorNotFound) from error
        if pointer:
            store(pointer, c_void_p, address)
        if size:
            store(size, c_size_t, count)

    def hipFuncGetAttribute(self, value: int | None, attribute: int, function: int | None) -> None:
        kernel = self._state.find(function, _Function).kernel
        table = {
            FunctionAttribute.HIP_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: kernel.max_threads,
            FunctionAttribute.HIP_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: kernel.lds_size,
            FunctionAttribute.HIP_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES: kernel.private_size,
            FunctionAttribute.HIP_FUNC_ATTRIBUTE_NUM_REGS: kernel.vgprs,
        }
        if attribute not in {known.value for known in table}:
            raise HipError(Error.hipErrorInvalidValue)
        store(value, c_int, table[FunctionAttribute(attribute)])

    # ---- launches ----

    def hipModuleLaunchKernel(
        self, function: int | None, gx: int, gy: int, gz: int, bx: int, by: int, bz: int, lds: int,
        stream: int | None, params: int | None, extra: int | None,
    ) -> None:  # fmt: skip
        found = self._state.find(function, _Function)
        self._launch(found, (gx, gy, gz), (bx, by, bz), lds, stream, _arguments(found.kernel, params, extra))

    def hipModuleLaunchCooperativeKernel(
        self, function: int | None, gx: int, gy: int, gz: int, bx: int, by: int, bz: int, lds: int,
        stream: int | None, params: int | None,
    ) -> None:  # fmt: skip
        """All blocks must fit the chip at once: a barrier across them would wait for ever otherwise."""
        found = self._state.find(function, _Function)
        if gx * gy * gz > resident_blocks(self._state.target, found.kernel, bx * by * bz, lds):
            raise HipError(Error.hipErrorCooperativeLaunchTooLarge)
        self._launch(found, (gx, gy, gz), (bx, by, bz), lds, stream, _arguments(found.kernel, params, None))

    def hipModuleOccupancyMaxActiveBlocksPerMultiprocessor(
        self, blocks: int | None, function: int | None, block: int, lds: int
    ) -> None:
        kernel = self._state.find(function, _Function).kernel
        target = self._state.target
        store(blocks, c_int, resident_blocks(target, kernel, block, lds) // target.compute_units)

    def _launch(
        self, function: _Function, grid: tuple[int, int, int], block: tuple[int, int, int], lds: int,
        stream: int | None, kernarg: bytes,
    ) -> None:  # fmt: skip
        state, device, kernel = self._state, self._state.device, function.kernel
        on = state.stream(stream)
        threads = block[0] * block[1] * block[2]
        if min(grid) < 1 or threads < 1 or threads > min(kernel.max_threads, state.target.max_threads):
            raise HipError(Error.hipErrorInvalidConfiguration)
        if kernel.lds_size + lds > state.target.lds_bytes:
            raise HipError(Error.hipErrorInvalidValue)
        try:
            function.ready.result()
        except ForgeError as error:  # an instruction that the emulator does not cover
            state.note(DeviceError(error.message, error.hint))
            raise HipError(Error.hipErrorNotSupported) from error
        module = function.module

        def run() -> None:
            device.launch(module, kernel.name, grid, block, kernarg, lds)

        state.enqueue(on, run)


def _arguments(kernel: Kernel, params: int | None, extra: int | None) -> bytes:
    """The packed arguments. Raises: HipError for both forms at once, a broken list, or too few bytes."""
    if params and extra:
        raise HipError(Error.hipErrorInvalidValue)
    packed = _packed(extra) if extra else _gathered(kernel, params)
    if len(packed) < kernel.explicit_size:
        raise HipError(Error.hipErrorInvalidValue)
    return packed


def _packed(extra: int) -> bytes:
    """The buffer that an ``extra`` list names: {1, buffer, 2, address of its size, 3}."""
    start, size, at = 0, 0, extra
    for _ in range(3):
        key = read_pointer(at)
        if key == _EXTRA_END:
            return ctypes.string_at(start, size) if start else b""
        if key == _EXTRA_POINTER:
            start = read_pointer(at + 8)
        elif key == _EXTRA_SIZE:
            size = c_size_t.from_address(read_pointer(at + 8)).value
        else:
            break
        at += 16
    raise HipError(Error.hipErrorInvalidValue)


def _gathered(kernel: Kernel, params: int | None) -> bytes:
    """One pointer per explicit argument, in their order."""
    packed = bytearray(kernel.explicit_size)
    explicit = [a for a in kernel.arguments if not a.kind.startswith("hidden_")]
    if explicit and not params:
        raise HipError(Error.hipErrorInvalidValue)
    for index, argument in enumerate(explicit):
        value = read_pointer((params or 0) + 8 * index)
        if not value:
            raise HipError(Error.hipErrorInvalidValue)
        packed[argument.offset : argument.offset + argument.size] = ctypes.string_at(value, argument.size)
    return bytes(packed)
