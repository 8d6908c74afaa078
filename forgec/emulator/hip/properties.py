"""A ``Target`` as HIP describes devices: the attribute table, and the property structure of ROCm 6 and later.

Numbers that the target does not know (PCI address, textures, clocks of the memory) are zero, never invented.
"""

from __future__ import annotations

import ctypes
from ctypes import c_char, c_int, c_size_t, c_uint, c_void_p

from forgec.emulator.hip.constants import Attribute
from forgec.targets import Target

__all__ = ["Properties", "attributes", "properties"]

_MAX_GRID = (2**31 - 1, 65535, 65535)


class Properties(ctypes.Structure):
    """hipDeviceProp_tR0600; ranges of fields that stay zero are one array each."""

    _fields_ = (
        ("name", c_char * 256),
        ("uuid", c_char * 16),
        ("luid", c_char * 8),
        ("luidDeviceNodeMask", c_uint),
        ("totalGlobalMem", c_size_t),
        ("sharedMemPerBlock", c_size_t),
        ("regsPerBlock", c_int),
        ("warpSize", c_int),
        ("memPitch", c_size_t),
        ("maxThreadsPerBlock", c_int),
        ("maxThreadsDim", c_int * 3),
        ("maxGridSize", c_int * 3),
        ("clockRate", c_int),
        ("totalConstMem", c_size_t),
        ("major", c_int),
        ("minor", c_int),
        ("textureAlignment", c_size_t),
        ("texturePitchAlignment", c_size_t),
        ("deviceOverlap", c_int),
        ("multiProcessorCount", c_int),
        ("kernelExecTimeoutEnabled", c_int),
        ("integrated", c_int),
        ("canMapHostMemory", c_int),
        ("computeMode", c_int),
        ("textures", c_int * 40),  # maxTexture1D to maxSurfaceCubemapLayered
        ("surfaceAlignment", c_size_t),
        ("concurrentKernels", c_int),
        ("ECCEnabled", c_int),
        ("pciBusID", c_int),
        ("pciDeviceID", c_int),
        ("pciDomainID", c_int),
        ("tccDriver", c_int),
        ("asyncEngineCount", c_int),
        ("unifiedAddressing", c_int),
        ("memoryClockRate", c_int),
        ("memoryBusWidth", c_int),
        ("l2CacheSize", c_int),
        ("persistingL2CacheMaxSize", c_int),
        ("maxThreadsPerMultiProcessor", c_int),
        ("streamPrioritiesSupported", c_int),
        ("globalL1CacheSupported", c_int),
        ("localL1CacheSupported", c_int),
        ("sharedMemPerMultiprocessor", c_size_t),
        ("regsPerMultiprocessor", c_int),
        ("managedMemory", c_int),
        ("isMultiGpuBoard", c_int),
        ("multiGpuBoardGroupID", c_int),
        ("hostNativeAtomicSupported", c_int),
        ("singleToDoublePrecisionPerfRatio", c_int),
        ("pageableMemoryAccess", c_int),
        ("concurrentManagedAccess", c_int),
        ("computePreemptionSupported", c_int),
        ("canUseHostPointerForRegisteredMem", c_int),
        ("cooperativeLaunch", c_int),
        ("cooperativeMultiDeviceLaunch", c_int),
        ("sharedMemPerBlockOptin", c_size_t),
        ("pageableMemoryAccessUsesHostPageTables", c_int),
        ("directManagedMemAccessFromHost", c_int),
        ("maxBlocksPerMultiProcessor", c_int),
        ("accessPolicyMaxWindowSize", c_int),
        ("reservedSharedMemPerBlock", c_size_t),
        ("features", c_int * 13),  # hostRegisterSupported to unifiedFunctionPointers
        ("reserved", c_int * 63),
        ("hipReserved", c_int * 32),
        ("gcnArchName", c_char * 256),
        ("maxSharedMemoryPerMultiProcessor", c_size_t),
        ("clockInstructionRate", c_int),
        ("arch", c_uint),
        ("hdpMemFlushCntl", c_void_p),
        ("hdpRegFlushCntl", c_void_p),
        ("unmatched", c_int * 4),
        ("isLargeBar", c_int),
        ("asicRevision", c_int),
    )


def capability(arch: str) -> tuple[int, int]:
    """The ISA version that HIP calls compute capability, as in ``gfx942`` -> (9, 4)."""
    digits = arch.removeprefix("gfx")
    return int(digits[:-2]), int(digits[-2], 16)


def attributes(target: Target, memory: int) -> dict[int, int]:
    """Attribute number to value; ``memory`` in bytes, clocks in kHz."""
    major, minor = capability(target.name)
    threads = target.max_threads
    grid = _MAX_GRID
    return {
        Attribute.hipDeviceAttributeCanMapHostMemory: 1,
        Attribute.hipDeviceAttributeClockRate: int(target.clock_hz / 1000),
        Attribute.hipDeviceAttributeConcurrentKernels: 1,
        Attribute.hipDeviceAttributeCooperativeLaunch: 1,
        Attribute.hipDeviceAttributeIntegrated: 0,
        Attribute.hipDeviceAttributeL2CacheSize: target.l2_bytes,
        Attribute.hipDeviceAttributeComputeCapabilityMajor: major,
        Attribute.hipDeviceAttributeManagedMemory: 0,
        Attribute.hipDeviceAttributeMaxBlockDimX: threads,
        Attribute.hipDeviceAttributeMaxBlockDimY: threads,
        Attribute.hipDeviceAttributeMaxBlockDimZ: threads,
        Attribute.hipDeviceAttributeMaxGridDimX: grid[0],
        Attribute.hipDeviceAttributeMaxGridDimY: grid[1],
        Attribute.hipDeviceAttributeMaxGridDimZ: grid[2],
        Attribute.hipDeviceAttributeMaxThreadsPerBlock: threads,
        Attribute.hipDeviceAttributeMaxThreadsPerMultiProcessor: 2048,
        Attribute.hipDeviceAttributeComputeCapabilityMinor: minor,
        Attribute.hipDeviceAttributeMultiprocessorCount: target.compute_units,
        Attribute.hipDeviceAttributeMaxSharedMemoryPerBlock: target.lds_bytes,
        # The attribute is an int, as HIP's own.
        Attribute.hipDeviceAttributeTotalGlobalMem: min(memory, 2**31 - 1),
        Attribute.hipDeviceAttributeUnifiedAddressing: 1,
        Attribute.hipDeviceAttributeWarpSize: target.wave,
        Attribute.hipDeviceAttributeMaxSharedMemoryPerMultiprocessor: target.lds_bytes,
        Attribute.hipDeviceAttributePhysicalMultiProcessorCount: target.compute_units,
    }


def properties(target: Target, memory: int) -> Properties:
    """The same numbers as ``attributes``, as a structure."""
    filled = Properties()
    major, minor = capability(target.name)
    filled.name = f"forgec emulator: {target.title}".encode()
    # CDNA code objects are compiled for feature settings, which a device names after its architecture.
    suffix = ":sramecc+:xnack-" if target.family == "gfx9" else ""
    filled.gcnArchName = (target.name + suffix).encode()
    filled.totalGlobalMem = memory
    filled.sharedMemPerBlock = filled.sharedMemPerMultiprocessor = target.lds_bytes
    filled.maxSharedMemoryPerMultiProcessor = target.lds_bytes
    filled.warpSize = target.wave
    filled.maxThreadsPerBlock = target.max_threads
    filled.maxThreadsDim[:] = (target.max_threads,) * 3
    filled.maxGridSize[:] = _MAX_GRID
    filled.clockRate = int(target.clock_hz / 1000)
    filled.major, filled.minor = major, minor
    filled.multiProcessorCount = target.compute_units
    filled.l2CacheSize = target.l2_bytes
    filled.maxThreadsPerMultiProcessor = 2048
    filled.canMapHostMemory = filled.concurrentKernels = filled.unifiedAddressing = (
        filled.cooperativeLaunch
    ) = 1
    return filled
