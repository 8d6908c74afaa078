"""Connects the stub library to the emulator: registers a Python function for every HIP call it exports.

In come a loaded stub and a ``Configuration``, out goes an attached ``Front``. The stub calls
``attach_library`` by itself when a HIP call arrives and nothing is attached yet.
"""

from __future__ import annotations

import _thread
import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forgec.emulator.hip.build import LIBRARY
from forgec.emulator.hip.calls_device import DeviceCalls
from forgec.emulator.hip.calls_memory import MemoryCalls
from forgec.emulator.hip.calls_modules import ModuleCalls
from forgec.emulator.hip.calls_streams import StreamCalls
from forgec.emulator.hip.configuration import Configuration
from forgec.emulator.hip.constants import Error
from forgec.emulator.hip.state import HipError, State, log
from forgec.errors import DeviceError, ForgeError

__all__ = ["Front", "attach", "attach_library"]

# What a lost device still answers.
_ALWAYS = frozenset(
    [
        "hipInit",
        "hipRuntimeGetVersion",
        "hipDriverGetVersion",
        "hipGetLastError",
        "hipPeekAtLastError",
        "hipDrvGetErrorName",
        "hipDrvGetErrorString",
        "hipGetDeviceCount",
        "hipGetDevice",
        "hipDeviceReset",
    ]
)


class _Served(ctypes.Structure):
    """Mirror of ``Served`` in stub.c."""

    _fields_ = (("name", ctypes.c_char_p), ("function", ctypes.c_void_p))


class Front:
    """One emulated GPU behind HIP calls, for as long as it is attached.

    ``last_failure`` is the emulator's sentence about the last thing that went wrong on the device, of which
    HIP's caller only gets a code.
    """

    def __init__(self, configuration: Configuration) -> None:
        self._state = State(configuration)
        self._callbacks: dict[str, Any] = {}
        device = DeviceCalls(self._state)
        for calls in (device, MemoryCalls(self._state), StreamCalls(self._state), ModuleCalls(self._state)):
            for name, argument_types in calls.SIGNATURES.items():
                prototype = ctypes.CFUNCTYPE(ctypes.c_int, *argument_types)
                self._callbacks[name] = prototype(self._guarded(name, getattr(calls, name)))
        text = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int)
        self._callbacks["hipGetErrorName"] = text(lambda code: device.text_address(code, True))
        self._callbacks["hipGetErrorString"] = text(lambda code: device.text_address(code, False))

    @property
    def last_failure(self) -> str:
        return self._state.last_failure

    @property
    def calls(self) -> tuple[str, ...]:
        """The HIP calls that are served."""
        return tuple(self._callbacks)

    def register(self, register: Any) -> None:
        """Give the functions to a stub's ``forgec_hip_register``. Raises: DeviceError for a stub of
        another version.
        """
        table = (_Served * len(self._callbacks))()
        for row, (name, callback) in zip(table, self._callbacks.items(), strict=True):
            row.name, row.function = name.encode(), ctypes.cast(callback, ctypes.c_void_p)
        taken = register(ctypes.byref(table), len(table))
        if taken != len(table):
            raise DeviceError(
                f"the HIP stub exports {taken} of {len(table)} calls",
                "build it again with this version of forgec",
            )

    def close(self) -> None:
        """Stop the emulator's threads; further calls fail."""
        self._state.close()

    def _guarded(self, name: str, method: Callable[..., Error | None]) -> Callable[..., int]:
        state, always = self._state, name in _ALWAYS

        def call(*arguments: Any) -> int:
            with state.lock:
                code = Error.hipSuccess
                try:
                    if state.lost is not None and not always:
                        raise HipError(state.lost)
                    code = method(*arguments) or Error.hipSuccess
                except HipError as error:
                    code = error.code
                except DeviceError as error:
                    code = state.lose(error)
                except KeyboardInterrupt:
                    # It cannot pass through C: let it come again once the call has returned.
                    _thread.interrupt_main()
                    code = Error.hipErrorUnknown
                except Exception:
                    log.exception("%s failed inside the emulator", name)
                    code = Error.hipErrorUnknown
                if code not in (Error.hipSuccess, Error.hipErrorNotReady) and name not in (
                    "hipGetLastError",
                    "hipPeekAtLastError",
                ):
                    state.last_error = code
                return int(code)

        return call


def attach(stub: Path, configuration: Configuration | None = None) -> Front:
    """Attach a new emulated GPU to the stub in the folder ``stub`` (as ``build_stub`` returns it).

    Everything that an earlier front gave out is void. Without ``configuration`` it is the one the stub was
    built with.

    Raises: DeviceError when there is no stub, or one of another version.
    """
    path = stub / "lib" / LIBRARY
    try:
        library = ctypes.CDLL(str(path))
        register = library.forgec_hip_register
    except (OSError, AttributeError) as error:
        raise DeviceError(f"'{path}' is not the HIP stub: {error}", "build one with build_stub()") from error
    if configuration is None:
        text = ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(library, "forgec_hip_configuration")))
        configuration = Configuration.from_json(text.decode())
    return _register(register, configuration)


def attach_library(register: int, configuration: int) -> None:
    """What the stub calls: the addresses of its register function and of its configuration."""
    function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)(register)
    try:
        _register(function, Configuration.from_json(ctypes.string_at(configuration).decode()))
    except ForgeError as error:
        log.error("%s; %s", error.message, error.hint)


def _register(register: Any, configuration: Configuration) -> Front:
    front = Front(configuration)
    front.register(register)
    # The library keeps bare addresses of the callbacks: they must live as long as the process.
    _keep_forever(front)
    return front


def _keep_forever(front: Front) -> None:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(front))
