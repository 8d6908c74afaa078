/* The HIP calls that the emulator serves: CALL(name, parameters, arguments) for those that return an error code,
 * TEXT for those that return a string. Included twice by stub.c; the Python side of each is a method of the same name
 * in calls_*.py. Handles and device pointers are void*, enumerations int. Source: hip_runtime_api.h of ROCm 6 and 7. */

CALL(hipInit, (unsigned flags), (flags))
CALL(hipRuntimeGetVersion, (int* version), (version))
CALL(hipDriverGetVersion, (int* version), (version))
CALL(hipGetLastError, (void), ())
CALL(hipPeekAtLastError, (void), ())
CALL(hipDrvGetErrorName, (int error, const char** text), (error, text))
CALL(hipDrvGetErrorString, (int error, const char** text), (error, text))
TEXT(hipGetErrorName, (int error), (error))
TEXT(hipGetErrorString, (int error), (error))

CALL(hipGetDeviceCount, (int* count), (count))
CALL(hipGetDevice, (int* device), (device))
CALL(hipSetDevice, (int device), (device))
CALL(hipDeviceGet, (int* device, int index), (device, index))
CALL(hipDeviceGetName, (char* text, int size, int device), (text, size, device))
CALL(hipDeviceGetAttribute, (int* value, int attribute, int device), (value, attribute, device))
CALL(hipDeviceComputeCapability, (int* major, int* minor, int device), (major, minor, device))
CALL(hipDeviceTotalMem, (size* bytes, int device), (bytes, device))
CALL(hipGetDevicePropertiesR0600, (void* properties, int device), (properties, device))
CALL(hipDeviceSynchronize, (void), ())
CALL(hipDeviceReset, (void), ())

CALL(hipMalloc, (void** pointer, size bytes), (pointer, bytes))
CALL(hipFree, (void* pointer), (pointer))
CALL(hipHostMalloc, (void** pointer, size bytes, unsigned flags), (pointer, bytes, flags))
CALL(hipHostFree, (void* pointer), (pointer))
CALL(hipHostGetDevicePointer, (void** device, void* host, unsigned flags), (device, host, flags))
CALL(hipMemGetInfo, (size* free, size* total), (free, total))
CALL(hipMemcpy, (void* to, const void* from, size n, int kind), (to, from, n, kind))
CALL(hipMemcpyAsync, (void* to, const void* from, size n, int kind, void* stream), (to, from, n, kind, stream))
CALL(hipMemcpyHtoD, (void* to, const void* from, size n), (to, from, n))
CALL(hipMemcpyDtoH, (void* to, const void* from, size n), (to, from, n))
CALL(hipMemcpyDtoD, (void* to, const void* from, size n), (to, from, n))
CALL(hipMemcpyHtoDAsync, (void* to, const void* from, size n, void* stream), (to, from, n, stream))
CALL(hipMemcpyDtoHAsync, (void* to, const void* from, size n, void* stream), (to, from, n, stream))
CALL(hipMemcpyDtoDAsync, (void* to, const void* from, size n, void* stream), (to, from, n, stream))
CALL(hipMemset, (void* to, int value, size n), (to, value, n))
CALL(hipMemsetAsync, (void* to, int value, size n, void* stream), (to, value, n, stream))
CALL(hipMemsetD8, (void* to, unsigned char value, size n), (to, value, n))
CALL(hipMemsetD8Async, (void* to, unsigned char value, size n, void* stream), (to, value, n, stream))
CALL(hipMemsetD32, (void* to, int value, size n), (to, value, n))
CALL(hipMemsetD32Async, (void* to, int value, size n, void* stream), (to, value, n, stream))

CALL(hipStreamCreate, (void** stream), (stream))
CALL(hipStreamCreateWithFlags, (void** stream, unsigned flags), (stream, flags))
CALL(hipStreamCreateWithPriority, (void** stream, unsigned flags, int priority), (stream, flags, priority))
CALL(hipStreamDestroy, (void* stream), (stream))
CALL(hipStreamSynchronize, (void* stream), (stream))
CALL(hipStreamQuery, (void* stream), (stream))
CALL(hipStreamWaitEvent, (void* stream, void* event, unsigned flags), (stream, event, flags))
CALL(hipEventCreate, (void** event), (event))
CALL(hipEventCreateWithFlags, (void** event, unsigned flags), (event, flags))
CALL(hipEventDestroy, (void* event), (event))
CALL(hipEventRecord, (void* event, void* stream), (event, stream))
CALL(hipEventSynchronize, (void* event), (event))
CALL(hipEventQuery, (void* event), (event))
CALL(hipEventElapsedTime, (float* milliseconds, void* start, void* stop), (milliseconds, start, stop))

CALL(hipStreamBeginCapture, (void* stream, int mode), (stream, mode))
CALL(hipStreamEndCapture, (void* stream, void** graph), (stream, graph))
CALL(hipStreamIsCapturing, (void* stream, int* status), (stream, status))
CALL(hipGraphInstantiate, (void** executable, void* graph, void** node, char* log, size n),
     (executable, graph, node, log, n))
CALL(hipGraphInstantiateWithFlags, (void** executable, void* graph, unsigned long flags), (executable, graph, flags))
CALL(hipGraphLaunch, (void* executable, void* stream), (executable, stream))
CALL(hipGraphExecDestroy, (void* executable), (executable))
CALL(hipGraphDestroy, (void* graph), (graph))

CALL(hipModuleLoad, (void** module, const char* path), (module, path))
CALL(hipModuleLoadData, (void** module, const void* image), (module, image))
CALL(hipModuleLoadDataEx, (void** module, const void* image, unsigned n, int* options, void** values),
     (module, image, n, options, values))
CALL(hipModuleUnload, (void* module), (module))
CALL(hipModuleGetFunction, (void** function, void* module, const char* name), (function, module, name))
CALL(hipModuleGetGlobal, (void** pointer, size* bytes, void* module, const char* name), (pointer, bytes, module, name))
CALL(hipFuncGetAttribute, (int* value, int attribute, void* function), (value, attribute, function))
CALL(hipModuleLaunchKernel,
     (void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned lds,
      void* stream, void** params, void** extra),
     (function, gx, gy, gz, bx, by, bz, lds, stream, params, extra))
CALL(hipModuleLaunchCooperativeKernel,
     (void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned lds,
      void* stream, void** params),
     (function, gx, gy, gz, bx, by, bz, lds, stream, params))
CALL(hipModuleOccupancyMaxActiveBlocksPerMultiprocessor, (int* blocks, void* function, int block, size lds),
     (blocks, function, block, lds))
