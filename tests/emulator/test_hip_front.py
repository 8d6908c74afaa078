"""HIP on the emulator, through the real hip-python: what HipDriver does not use of it, and how it refuses."""

from __future__ import annotations

import ctypes
import os
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forgec.emulator.hip import Front, attach, build, calls_device, calls_memory, calls_modules, calls_streams
from forgec.emulator.hip import constants as numbers
from forgec.emulator.hip.properties import Properties, attributes
from forgec.errors import DeviceError, TargetError
from forgec.targets import get_target
from tests.emulator.devices import MEMORY, arguments, code, front, stub

hip: Any = pytest.importorskip("hip", reason="the extra [hip] is not installed").hip
ROOT = Path(__file__).parents[2]
CALLS = Path(build.__file__).with_name("calls.h")


@pytest.fixture(autouse=True)
def gpu() -> Iterator[Front]:
    attached = front()
    yield attached
    attached.close()


def ok(result: Any) -> Any:
    error, *rest = result
    assert error == hip.hipError_t.hipSuccess, error
    return rest[0] if len(rest) == 1 else rest


def refused(result: Any, name: str) -> None:
    assert result[0].name == "hipError" + name


def text(value: Any) -> str:
    """Strings are str or bytes, depending on hip-python's version."""
    return value.decode() if isinstance(value, bytes) else str(value)


def pinned(size: int) -> tuple[Any, np.ndarray]:
    """Host memory that copies on a stream reach only when the stream runs."""
    pointer = ok(hip.hipHostMalloc(size, 0))
    return pointer, np.ctypeslib.as_array((ctypes.c_ubyte * size).from_address(int(pointer)))


def on_device(values: np.ndarray) -> Any:
    pointer = ok(hip.hipMalloc(values.nbytes))
    ok(hip.hipMemcpy(pointer, values, values.nbytes, hip.hipMemcpyKind.hipMemcpyHostToDevice))
    return pointer


def read(pointer: Any, count: int) -> list[int]:
    into = np.zeros(count, np.uint32)
    ok(hip.hipMemcpy(into, pointer, into.nbytes, hip.hipMemcpyKind.hipMemcpyDeviceToHost))
    return [int(value) for value in into]


def function(symbol: str) -> Any:
    return ok(hip.hipModuleGetFunction(ok(hip.hipModuleLoadData(code())), symbol.encode()))


def extra(packed: bytes) -> tuple[int, tuple[Any, ...]]:
    """(address of an ``extra`` list, what it points to)."""
    buffer, size = ctypes.create_string_buffer(packed, len(packed)), ctypes.c_size_t(len(packed))
    pointers = (ctypes.c_void_p * 5)(1, ctypes.addressof(buffer), 2, ctypes.addressof(size), 3)
    return ctypes.addressof(pointers), (buffer, size, pointers)


def launch(kernel: Any, packed: bytes, stream: Any = None, blocks: int = 1) -> Any:
    pointer, _kept = extra(packed)
    return hip.hipModuleLaunchKernel(kernel, blocks, 1, 1, 64, 1, 1, 0, stream, None, pointer)


# ---- the interface itself ----


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (numbers.Error, "hipError_t"),
        (numbers.Attribute, "hipDeviceAttribute_t"),
        (numbers.CopyKind, "hipMemcpyKind"),
        (numbers.CaptureMode, "hipStreamCaptureMode"),
        (numbers.CaptureStatus, "hipStreamCaptureStatus"),
        (numbers.FunctionAttribute, "hipFunction_attribute"),
    ],
)
def test_numbers_are_hips(ours: Any, theirs: str) -> None:
    their = getattr(hip, theirs)
    for member in ours:
        assert int(getattr(their, member.name)) == member.value, member.name


def test_the_stub_exports_what_the_front_serves(gpu: Front) -> None:
    library = ctypes.CDLL(str(stub() / "lib" / build.LIBRARY))
    library.forgec_hip_call.restype = ctypes.c_char_p
    exported = []
    while (name := library.forgec_hip_call(len(exported))) is not None:
        exported.append(name.decode())
    assert sorted(exported) == sorted(gpu.calls)
    assert all(hasattr(library, name) for name in exported)
    assert not hip.has_symbol("hipMemcpy2D")


def test_both_sides_agree_on_the_parameters() -> None:
    """Each parameter in calls.h is as wide as the ctypes type beside its name."""
    served: dict[str, tuple[Any, ...]] = {}
    for module in (calls_device.DeviceCalls, calls_memory.MemoryCalls, calls_streams.StreamCalls):
        served |= module.SIGNATURES
    served |= calls_modules.ModuleCalls.SIGNATURES
    widths = {"size": 8, "unsigned long": 8, "unsigned char": 1, "unsigned": 4, "int": 4}
    declared = {}
    for name, parameters in re.findall(r"^CALL\((\w+),\s*\(([^)]*)\)", CALLS.read_text(), re.MULTILINE):
        declared[name] = [
            8 if "*" in one else widths[one.strip().rpartition(" ")[0]]
            for one in parameters.split(",")
            if one != "void"
        ]
    assert declared == {name: [ctypes.sizeof(t) for t in types] for name, types in served.items()}
    assert all(hasattr(hip, name.removesuffix("R0600")) for name in declared)


def test_properties_as_hip_python_reads_them() -> None:
    properties = ok(hip.hipGetDeviceProperties(0))
    target = get_target("gfx1100")
    assert "7900 XTX" in text(properties.name)
    assert text(properties.gcnArchName) == "gfx1100"
    assert (properties.major, properties.minor, properties.warpSize) == (11, 0, 32)
    assert (properties.totalGlobalMem, properties.multiProcessorCount) == (MEMORY, target.compute_units)
    assert (properties.sharedMemPerBlock, properties.maxThreadsPerBlock) == (65536, 1024)
    assert (properties.l2CacheSize, properties.clockRate) == (target.l2_bytes, 2_500_000)
    assert properties.maxSharedMemoryPerMultiProcessor == 65536
    assert (properties.cooperativeLaunch, properties.isLargeBar) == (1, 0)
    assert ctypes.sizeof(Properties) == 1472


def test_attributes() -> None:
    for number, value in attributes(get_target("gfx1100"), MEMORY).items():
        assert ok(hip.hipDeviceGetAttribute(hip.hipDeviceAttribute_t(number), 0)) == value
    unknown = hip.hipDeviceAttribute_t.hipDeviceAttributeTccDriver
    refused(hip.hipDeviceGetAttribute(unknown, 0), "InvalidValue")
    refused(hip.hipSetDevice(1), "InvalidDevice")


def test_a_chip_with_features_in_its_name() -> None:
    front(arch="gfx90a")
    assert text(ok(hip.hipGetDeviceProperties(0)).gcnArchName) == "gfx90a:sramecc+:xnack-"


def test_errors_have_names_and_stay_until_read() -> None:
    errors = hip.hipError_t
    assert text(ok(hip.hipGetErrorName(errors.hipErrorNoBinaryForGpu))) == "hipErrorNoBinaryForGpu"
    assert text(ok(hip.hipGetErrorString(errors.hipErrorOutOfMemory))) == "out of memory"
    assert text(ok(hip.hipDrvGetErrorName(errors.hipErrorNotReady))) == "hipErrorNotReady"
    refused(hip.hipMalloc(1 << 40), "OutOfMemory")
    refused(hip.hipPeekAtLastError(), "OutOfMemory")
    refused(hip.hipGetLastError(), "OutOfMemory")
    assert hip.hipGetLastError()[0] == hip.hipError_t.hipSuccess


# ---- queued work ----


def test_nothing_happens_before_somebody_waits() -> None:
    stream = ok(hip.hipStreamCreateWithFlags(1))
    source, source_bytes = pinned(4)
    target, target_bytes = pinned(4)
    source_bytes[:], target_bytes[:] = 1, 9
    device = ok(hip.hipMalloc(4))
    ok(hip.hipMemcpyHtoDAsync(device, source, 4, stream))
    ok(hip.hipMemcpyDtoHAsync(target, device, 4, stream))
    source_bytes[:] = 2  # too early: the copy has not happened
    assert target_bytes.tolist() == [9] * 4
    ok(hip.hipStreamSynchronize(stream))
    assert target_bytes.tolist() == [2] * 4


def test_pageable_memory_is_read_at_once_and_written_before_the_return() -> None:
    stream = ok(hip.hipStreamCreate())
    values = np.arange(4, dtype=np.uint32)
    device = ok(hip.hipMalloc(16))
    ok(hip.hipMemcpyHtoDAsync(device, values, 16, stream))
    values[:] = 0
    into = np.zeros(4, np.uint32)
    ok(hip.hipMemcpyDtoHAsync(into, device, 16, stream))
    assert into.tolist() == [0, 1, 2, 3]


def test_events_order_streams_and_queries_make_progress() -> None:
    first, second = ok(hip.hipStreamCreateWithFlags(1)), ok(hip.hipStreamCreateWithFlags(1))
    event = ok(hip.hipEventCreate())
    memory = ok(hip.hipMalloc(4))
    ok(hip.hipMemsetAsync(memory, 1, 4, first))
    ok(hip.hipEventRecord(event, first))
    refused(hip.hipEventElapsedTime(event, event), "NotReady")
    ok(hip.hipStreamWaitEvent(second, event, 0))
    ok(hip.hipMemsetAsync(memory, 2, 1, second))
    ok(hip.hipStreamSynchronize(second))
    assert read(memory, 1) == [0x01010102]
    assert ok(hip.hipEventElapsedTime(event, event)) == 0
    for _ in range(3):
        ok(hip.hipMemsetAsync(memory, 3, 4, first))
    answers = [hip.hipStreamQuery(first)[0].name for _ in range(3)]
    assert answers == ["hipErrorNotReady", "hipErrorNotReady", "hipSuccess"]


def test_the_null_stream_waits_for_blocking_streams_only() -> None:
    memory = on_device(np.zeros(2, np.uint32))
    blocking, other = ok(hip.hipStreamCreate()), ok(hip.hipStreamCreateWithFlags(1))
    ok(hip.hipMemsetAsync(memory, 1, 4, blocking))
    ok(hip.hipMemsetAsync(int(memory) + 4, 1, 4, other))
    assert read(memory, 2) == [0x01010101, 0]
    ok(hip.hipDeviceSynchronize())
    assert read(memory, 2) == [0x01010101, 0x01010101]


def test_handles_are_checked() -> None:
    stream = ok(hip.hipStreamCreate())
    ok(hip.hipStreamDestroy(stream))
    refused(hip.hipStreamSynchronize(stream), "InvalidHandle")
    event = ok(hip.hipEventCreateWithFlags(2))
    refused(hip.hipEventElapsedTime(event, event), "InvalidHandle")
    refused(hip.hipGraphLaunch(None, None), "InvalidHandle")


# ---- capture ----


def begin(mode: str = "ThreadLocal") -> Any:
    stream = ok(hip.hipStreamCreateWithFlags(1))
    ok(hip.hipStreamBeginCapture(stream, getattr(hip.hipStreamCaptureMode, "hipStreamCaptureMode" + mode)))
    return stream


@pytest.mark.parametrize("call", ["synchronise", "malloc", "query", "copy"])
def test_calls_that_break_a_capture(call: str) -> None:
    memory = on_device(np.zeros(1, np.uint32))
    stream = begin()
    if call == "synchronise":
        refused(hip.hipStreamSynchronize(stream), "StreamCaptureUnsupported")
    elif call == "malloc":
        refused(hip.hipMalloc(4), "StreamCaptureUnsupported")
    elif call == "query":
        refused(hip.hipStreamQuery(stream), "StreamCaptureUnsupported")
    else:
        kind = hip.hipMemcpyKind.hipMemcpyHostToDevice
        refused(hip.hipMemcpy(memory, np.zeros(1, np.uint32), 4, kind), "StreamCaptureUnsupported")
    assert ok(hip.hipStreamIsCapturing(stream)).name == "hipStreamCaptureStatusInvalidated"
    refused(hip.hipMemsetAsync(memory, 0, 4, stream), "StreamCaptureInvalidated")
    refused(hip.hipStreamEndCapture(stream), "StreamCaptureInvalidated")
    ok(hip.hipMemsetAsync(memory, 5, 4, stream))
    ok(hip.hipStreamSynchronize(stream))
    assert read(memory, 1) == [0x05050505]


def test_relaxed_captures_allow_allocations() -> None:
    stream = begin("Relaxed")
    ok(hip.hipMalloc(4))
    assert ok(hip.hipStreamIsCapturing(stream)).name == "hipStreamCaptureStatusActive"
    ok(hip.hipStreamEndCapture(stream))
    refused(hip.hipStreamEndCapture(stream), "StreamCaptureUnmatched")


def test_another_thread_may_allocate_and_not_end_the_capture() -> None:
    stream = begin()
    answers: list[str] = []

    def work() -> None:
        answers.append(hip.hipMalloc(4)[0].name)
        answers.append(hip.hipStreamEndCapture(stream)[0].name)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == ["hipSuccess", "hipErrorStreamCaptureWrongThread"]
    ok(hip.hipStreamEndCapture(stream))


def test_the_null_stream_and_a_capturing_blocking_stream() -> None:
    memory = on_device(np.zeros(1, np.uint32))
    stream = ok(hip.hipStreamCreate())
    ok(hip.hipStreamBeginCapture(stream, hip.hipStreamCaptureMode.hipStreamCaptureModeGlobal))
    refused(hip.hipMemsetAsync(memory, 0, 4, None), "StreamCaptureImplicit")


def test_a_graph_reads_pinned_memory_when_it_runs() -> None:
    source, source_bytes = pinned(4)
    memory = ok(hip.hipMalloc(4))
    stream = begin()
    ok(hip.hipMemcpyHtoDAsync(memory, source, 4, stream))
    executable = ok(hip.hipGraphInstantiateWithFlags(ok(hip.hipStreamEndCapture(stream)), 0))
    for value in (3, 4):
        source_bytes[:] = value
        ok(hip.hipGraphLaunch(executable, stream))
        ok(hip.hipStreamSynchronize(stream))
        assert read(memory, 1) == [value * 0x01010101]


def test_a_graph_with_a_stale_pointer_is_a_fault(gpu: Front) -> None:
    memory = ok(hip.hipMalloc(4))
    stream = begin()
    ok(hip.hipMemsetAsync(memory, 0, 4, stream))
    executable = ok(hip.hipGraphInstantiateWithFlags(ok(hip.hipStreamEndCapture(stream)), 0))
    ok(hip.hipFree(memory))
    ok(hip.hipGraphLaunch(executable, stream))
    refused(hip.hipStreamSynchronize(stream), "LaunchFailure")
    assert "freed" in gpu.last_failure


# ---- modules and launches ----


def test_arguments_by_pointer() -> None:
    memory = on_device(np.array([2.0, 4.0], np.float32))
    pointer, count, factor = ctypes.c_void_p(int(memory)), ctypes.c_int(2), ctypes.c_float(0.5)
    params = (ctypes.c_void_p * 3)(*(ctypes.addressof(a) for a in (pointer, count, factor)))
    address = ctypes.addressof(params)
    scale = function("scale")
    ok(hip.hipModuleLaunchKernel(scale, 1, 1, 1, 64, 1, 1, 0, None, address, None))
    assert read(memory, 2) == [0x3F800000, 0x40000000]
    both, _kept = extra(arguments(int(memory), 2, 0.5))
    refused(hip.hipModuleLaunchKernel(scale, 1, 1, 1, 64, 1, 1, 0, None, address, both), "InvalidValue")
    refused(hip.hipModuleLaunchKernel(scale, 1, 1, 1, 64, 1, 1, 0, None, None, None), "InvalidValue")
    refused(launch(scale, b"1234"), "InvalidValue")


def test_cooperative_launches_must_fit_the_chip() -> None:
    memory = on_device(np.ones(4, np.float32))
    pointer, count, factor = ctypes.c_void_p(int(memory)), ctypes.c_int(4), ctypes.c_float(2)
    params = (ctypes.c_void_p * 3)(*(ctypes.addressof(a) for a in (pointer, count, factor)))
    scale = function("scale")
    per_unit = ok(hip.hipModuleOccupancyMaxActiveBlocksPerMultiprocessor(scale, 256, 0))
    # 16 waves on each of the 2 SIMDs of a compute unit, 8 waves a block.
    assert per_unit == 4
    assert ok(hip.hipModuleOccupancyMaxActiveBlocksPerMultiprocessor(scale, 256, 65536)) == 1

    def start(blocks: int, lds: int) -> Any:
        address = ctypes.addressof(params)
        return hip.hipModuleLaunchCooperativeKernel(scale, blocks, 1, 1, 256, 1, 1, lds, None, address)

    ok(start(96 * per_unit, 0))
    refused(start(96 * per_unit + 1, 0), "CooperativeLaunchTooLarge")
    refused(start(97, 65536), "CooperativeLaunchTooLarge")
    assert read(memory, 4) == [0x40000000] * 4  # 2.0: each element was scaled by one thread


def test_variables_and_attributes_of_a_module() -> None:
    module = ok(hip.hipModuleLoadData(code()))
    pointer, size = ok(hip.hipModuleGetGlobal(module, b"table"))
    assert size == 16
    assert read(pointer, 4) == [3, 1, 4, 1]
    refused(hip.hipModuleGetGlobal(module, b"absent"), "NotFound")
    refused(hip.hipModuleGetFunction(module, b"absent"), "NotFound")
    kernel = ok(hip.hipModuleGetFunction(module, b"scale"))
    threads = hip.hipFunction_attribute.HIP_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK
    assert ok(hip.hipFuncGetAttribute(threads, kernel)) == 256
    ok(hip.hipModuleUnload(module))
    refused(launch(kernel, arguments(0)), "InvalidHandle")


def bundle(*entries: tuple[str, bytes]) -> bytes:
    """Clang's offload bundle."""
    offset, table, payload = 4096, b"", b""
    for name, image in entries:
        table += struct.pack("<QQQ", offset + len(payload), len(image), len(name)) + name.encode()
        payload += image + bytes(-len(image) % 4096)
    head = b"__CLANG_OFFLOAD_BUNDLE__" + struct.pack("<Q", len(entries)) + table
    return head + bytes(offset - len(head)) + payload


def test_offload_bundles(tmp_path: Path) -> None:
    """What hipcc --genco writes, from memory and from a file."""
    host = ("host-x86_64-unknown-linux-gnu-", b"")
    wave64, ours = (("hipv4-amdgcn-amd-amdhsa--" + arch, code(arch)) for arch in ("gfx942", "gfx1100"))
    whole = bundle(host, wave64, ours)
    path = tmp_path / "k.hipfb"
    path.write_bytes(whole)
    for module in (ok(hip.hipModuleLoadData(whole)), ok(hip.hipModuleLoad(str(path).encode()))):
        ok(hip.hipModuleGetFunction(module, b"scale"))
    refused(hip.hipModuleLoadData(bundle(host, wave64)), "NoBinaryForGpu")
    refused(hip.hipModuleLoadData(b"CCOB" + bytes(99)), "InvalidImage")
    refused(hip.hipModuleLoad(b"/absent/k.hsaco"), "FileNotFound")


def test_a_truncated_code_object(tmp_path: Path, gpu: Front) -> None:
    for size in (0, 10, 70, 2000):
        path = tmp_path / "k.hsaco"
        path.write_bytes(code()[:size])
        refused(hip.hipModuleLoad(str(path).encode()), "InvalidImage")
        assert f"cut off: it has {size} bytes" in gpu.last_failure
    refused(hip.hipModuleLoadData(Path(sys.executable).read_bytes()), "InvalidImage")
    assert "for machine 62, not an AMD GPU" in gpu.last_failure


# ---- faults ----


def test_a_lost_device_keeps_saying_so_until_it_is_reset(gpu: Front) -> None:
    memory = on_device(np.zeros(4, np.uint32))
    ok(launch(function("beyond"), arguments(int(memory))))
    refused(hip.hipDeviceSynchronize(), "IllegalAddress")
    assert "kernel 'beyond'" in gpu.last_failure and "outside every allocation" in gpu.last_failure
    for result in (hip.hipMalloc(4), hip.hipStreamCreate(), hip.hipFree(memory), hip.hipDeviceSynchronize()):
        refused(result, "IllegalAddress")
    assert ok(hip.hipGetDeviceCount()) == 1
    ok(hip.hipDeviceReset())
    assert read(on_device(np.arange(3, dtype=np.uint32)), 3) == [0, 1, 2]
    refused(hip.hipFree(memory), "InvalidValue")


def test_copies_are_checked_at_the_call() -> None:
    memory = on_device(np.zeros(4, np.uint32))
    kinds = hip.hipMemcpyKind
    values = np.zeros(5, np.uint32)
    refused(hip.hipMemcpy(memory, values, 20, kinds.hipMemcpyHostToDevice), "InvalidValue")
    refused(hip.hipMemcpy(memory, values, 16, kinds.hipMemcpyDeviceToHost), "InvalidMemcpyDirection")
    refused(hip.hipMemcpy(memory, None, 16, kinds.hipMemcpyHostToDevice), "InvalidValue")
    ok(hip.hipMemcpy(memory, values, 0, kinds.hipMemcpyHostToDevice))
    refused(hip.hipHostFree(memory), "InvalidValue")
    ok(hip.hipFree(None))


# ---- building and attaching ----


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "ROCM_PATH": str(stub()), **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


SELF_ATTACHED = """
from hip import hip
properties = hip.hipGetDeviceProperties(0)[1]
print(properties.gcnArchName, properties.totalGlobalMem >> 30, "front" in globals())
"""

WITHOUT_FORGEC = """
import sys
sys.modules["forgec"] = None
from hip import hip
print(hip.hipInit(0)[0].name, hip.hipGetErrorName(hip.hipError_t.hipSuccess)[1])
"""


def test_a_process_that_knows_nothing_of_the_emulator() -> None:
    done = run(SELF_ATTACHED)
    assert done.stdout.replace("b'", "").replace("'", "") == "gfx1100 24 False\n"
    assert done.stderr == ""


def test_a_python_without_forgec() -> None:
    done = run(WITHOUT_FORGEC)
    assert done.stdout == "hipErrorNotInitialized hipErrorNotInitialized\n"
    assert "ModuleNotFoundError" in done.stderr


def test_what_cannot_be_built_or_attached(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="unknown target 'gfx1'"):
        build.build_stub(tmp_path, "gfx1")
    with pytest.raises(DeviceError, match="'sm_90' is not an AMD GPU"):
        build.build_stub(tmp_path, "sm_90")
    with pytest.raises(DeviceError, match="cannot have 0 bytes"):
        build.build_stub(tmp_path, memory=0)
    (tmp_path / "file").touch()
    with pytest.raises(DeviceError, match="cannot be written"):
        build.build_stub(tmp_path / "file" / "rocm")
    with pytest.raises(DeviceError, match="is not the HIP stub"):
        attach(tmp_path)
    assert attach(stub()).calls
