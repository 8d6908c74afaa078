"""Numbers of the HIP API that the front answers with, from hip_runtime_api.h of ROCm 6 and 7.

A test compares every one of them with hip-python's enumerations.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Attribute", "CaptureMode", "CaptureStatus", "CopyKind", "Error", "FunctionAttribute"]


class Error(IntEnum):
    """hipError_t; ``text`` is what hipGetErrorString says."""

    hipSuccess = 0
    hipErrorInvalidValue = 1
    hipErrorOutOfMemory = 2
    hipErrorNotInitialized = 3
    hipErrorInvalidConfiguration = 9
    hipErrorInvalidMemcpyDirection = 21
    hipErrorNoDevice = 100
    hipErrorInvalidDevice = 101
    hipErrorInvalidImage = 200
    hipErrorNoBinaryForGpu = 209
    hipErrorFileNotFound = 301
    hipErrorInvalidHandle = 400
    hipErrorNotFound = 500
    hipErrorNotReady = 600
    hipErrorIllegalAddress = 700
    hipErrorLaunchTimeOut = 702
    hipErrorLaunchFailure = 719
    hipErrorCooperativeLaunchTooLarge = 720
    hipErrorNotSupported = 801
    hipErrorStreamCaptureUnsupported = 900
    hipErrorStreamCaptureInvalidated = 901
    hipErrorStreamCaptureUnmatched = 903
    hipErrorStreamCaptureIsolation = 905
    hipErrorStreamCaptureImplicit = 906
    hipErrorCapturedEvent = 907
    hipErrorStreamCaptureWrongThread = 908
    hipErrorUnknown = 999

    @property
    def text(self) -> str:
        return _TEXTS[self]


_TEXTS = {
    Error.hipSuccess: "no error",
    Error.hipErrorInvalidValue: "invalid argument",
    Error.hipErrorOutOfMemory: "out of memory",
    Error.hipErrorNotInitialized: "initialization error",
    Error.hipErrorInvalidConfiguration: "invalid configuration argument",
    Error.hipErrorInvalidMemcpyDirection: "invalid copy direction for memcpy",
    Error.hipErrorNoDevice: "no ROCm-capable device is detected",
    Error.hipErrorInvalidDevice: "invalid device ordinal",
    Error.hipErrorInvalidImage: "device kernel image is invalid",
    Error.hipErrorNoBinaryForGpu: "no kernel image is available for execution on the device",
    Error.hipErrorFileNotFound: "file not found",
    Error.hipErrorInvalidHandle: "invalid resource handle",
    Error.hipErrorNotFound: "named symbol not found",
    Error.hipErrorNotReady: "device not ready",
    Error.hipErrorIllegalAddress: "an illegal memory access was encountered",
    Error.hipErrorLaunchTimeOut: "the launch timed out and was terminated",
    Error.hipErrorLaunchFailure: "unspecified launch failure",
    Error.hipErrorCooperativeLaunchTooLarge: "too many blocks in cooperative launch",
    Error.hipErrorNotSupported: "operation not supported",
    Error.hipErrorStreamCaptureUnsupported: "operation not permitted when stream is capturing",
    Error.hipErrorStreamCaptureInvalidated: "operation failed due to a previous error during capture",
    Error.hipErrorStreamCaptureUnmatched: "capture was not initiated in this stream",
    Error.hipErrorStreamCaptureIsolation: "dependency created on uncaptured work in another stream",
    Error.hipErrorStreamCaptureImplicit: "operation would make the null stream wait for a capturing stream",
    Error.hipErrorCapturedEvent: "operation not permitted on an event last recorded in a capturing stream",
    Error.hipErrorStreamCaptureWrongThread: "a capture can only be ended by the thread that began it",
    Error.hipErrorUnknown: "unknown error",
}


class CopyKind(IntEnum):
    hipMemcpyHostToHost = 0
    hipMemcpyHostToDevice = 1
    hipMemcpyDeviceToHost = 2
    hipMemcpyDeviceToDevice = 3
    hipMemcpyDefault = 4


class CaptureMode(IntEnum):
    hipStreamCaptureModeGlobal = 0
    hipStreamCaptureModeThreadLocal = 1
    hipStreamCaptureModeRelaxed = 2


class CaptureStatus(IntEnum):
    hipStreamCaptureStatusNone = 0
    hipStreamCaptureStatusActive = 1
    hipStreamCaptureStatusInvalidated = 2


class FunctionAttribute(IntEnum):
    HIP_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK = 0
    HIP_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES = 1
    HIP_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES = 3
    HIP_FUNC_ATTRIBUTE_NUM_REGS = 4


class Attribute(IntEnum):
    """hipDeviceAttribute_t as numbered since ROCm 6."""

    hipDeviceAttributeCanMapHostMemory = 3
    hipDeviceAttributeClockRate = 5
    hipDeviceAttributeConcurrentKernels = 8
    hipDeviceAttributeCooperativeLaunch = 10
    hipDeviceAttributeIntegrated = 16
    hipDeviceAttributeL2CacheSize = 19
    hipDeviceAttributeComputeCapabilityMajor = 23
    hipDeviceAttributeManagedMemory = 24
    hipDeviceAttributeMaxBlockDimX = 26
    hipDeviceAttributeMaxBlockDimY = 27
    hipDeviceAttributeMaxBlockDimZ = 28
    hipDeviceAttributeMaxGridDimX = 29
    hipDeviceAttributeMaxGridDimY = 30
    hipDeviceAttributeMaxGridDimZ = 31
    hipDeviceAttributeMaxThreadsPerBlock = 56
    hipDeviceAttributeMaxThreadsPerMultiProcessor = 57
    hipDeviceAttributeComputeCapabilityMinor = 61
    hipDeviceAttributeMultiprocessorCount = 63
    hipDeviceAttributeMaxSharedMemoryPerBlock = 74
    hipDeviceAttributeTotalGlobalMem = 84
    hipDeviceAttributeUnifiedAddressing = 85
    hipDeviceAttributeWarpSize = 87
    hipDeviceAttributeMaxSharedMemoryPerMultiprocessor = 10002
    hipDeviceAttributePhysicalMultiProcessorCount = 10015
