"""A GPU made of C: stand-ins for ``libcuda.so.1`` and ``libamdhip64.so`` that run the toy kernels on the CPU.

Nothing on a stream happens before somebody waits for it, so a read without a wait, a stream that does not
wait for the other, or a staging buffer that is filled again too early, gives wrong data. A "code object" is
the path of a shared object with the CPU entry points. ``FAKE_*`` environment variables choose what the device
claims to be and which call fails.
"""

from __future__ import annotations

import functools

from tests.toy_package import compile_c

__all__ = ["library"]

_SOURCE = r"""
typedef unsigned long long u64; typedef unsigned long size;
extern char* getenv(const char*); extern int atoi(const char*); extern void* dlopen(const char*, int);
extern void* dlsym(void*, const char*); extern void* malloc(size); extern void free(void*);
extern void* memcpy(void*, const void*, size); extern void* memset(void*, int, size);
extern int strcmp(const char*, const char*); extern char* strncpy(char*, const char*, size);
extern long long atoll(const char*); extern int posix_memalign(void**, size, size);
extern int open(const char*, int, ...); extern int dprintf(int, const char*, ...); extern int close(int);

enum { OK = 0, INVALID = 1, NO_MEMORY = 2, NO_DEVICE = 100, NOT_FOUND = 500, NOT_READY = 600 };
typedef void (*Kernel)(const unsigned char*, int, int);
typedef struct { int kind; void* to; const void* from; size bytes; int value; Kernel kernel;
  int grid, after; } Op;
typedef struct Graph { Op ops[64]; int count; } Graph;
typedef struct Event { int at, stream; } Event;
/* Two streams: what each has queued and done, and how much of the other what comes next waits for. */
static Op queue[2][1 << 16]; static int queued[2], done[2], waits[2], made, capturing; static Graph* captured;
static u64 used; static u64 sizes[256]; static void* blocks[256];

static int number(const char* name, int otherwise) { char* t = getenv(name); return t ? atoi(t) : otherwise; }
static u64 total(void) { char* t = getenv("FAKE_MEMORY"); return t ? (u64)atoll(t) : 1ull << 30; }
static void note(const char* name) {
  char* path = getenv("FAKE_LOG"); if (!path) return;
  int file = open(path, 02001 | 0100, 0600); dprintf(file, "%s\n", name); close(file);
}
/* Every exported function begins so: it is written down, and may be told to fail. */
static int begin(const char* name) {
  note(name);
  char* failing = getenv("FAKE_FAIL");
  return failing && !strcmp(failing, name) ? number("FAKE_CODE", 999) : OK;
}
#define BEGIN { int code = begin(__func__); if (code) return code; }

static void run(const Op* op) {
  if (op->kind == 0) memcpy(op->to, op->from, op->bytes);
  if (op->kind == 1) memset(op->to, op->value, op->bytes);
  if (op->kind == 2) for (int b = 0; b < op->grid; ++b) op->kernel(op->from, b, op->grid);
}
static void* stream(void) { return (void*)(size)(2 + made++ % 2); }
static int index_of(void* s) { return s == (void*)3; }
static void flush(int s, int upto) {
  for (; done[s] < upto; ++done[s]) flush(!s, queue[s][done[s]].after), run(&queue[s][done[s]]);
}
static void flush_all(void) { flush(0, queued[0]); flush(1, queued[1]); }
static int push(void* on, Op op) {
  int s = index_of(on);
  if (capturing && s == 0) { captured->ops[captured->count++] = op; return OK; }
  if (queued[s] == 1 << 16) {
    flush_all();
    for (int i = 0; i < 2; ++i) queued[i] = done[i] = waits[i] = 0;
  }
  op.after = waits[s]; queue[s][queued[s]++] = op; return OK;
}
static int copy(void* s, void* to, const void* from, size n) {
  return push(s, (Op){0, to, from, n, 0, 0, 0});
}
static int record(Event* e, void* s) { e->stream = index_of(s); e->at = queued[e->stream]; return OK; }
static int wait_for(void* s, Event* e) {
  int i = index_of(s); if (e->stream != i && e->at > waits[i]) waits[i] = e->at;
  return OK;
}
static int allocate(void** out, u64 n) {
  if (used + n > total()) return NO_MEMORY;
  for (int i = 0; i < 256; ++i) if (!blocks[i]) {
    if (posix_memalign(out, 4096, n)) return NO_MEMORY;
    memset(*out, 0xAA, n); blocks[i] = *out; sizes[i] = n; used += n; return OK;
  }
  return NO_MEMORY;
}
/* Freeing waits for the device, as the real ones do. */
static int release(void* p) {
  flush_all();
  for (int i = 0; i < 256; ++i) if (blocks[i] == p) { used -= sizes[i]; blocks[i] = 0; free(p); return OK; }
  return INVALID;
}
static int launch(void* s, void* kernel, unsigned grid, void** extra, size end) {
  if ((size)extra[0] != 1 || (size)extra[2] != 2 || (size)extra[4] != end) return INVALID;
  size n = *(size*)extra[3]; void* kernarg = malloc(n); memcpy(kernarg, extra[1], n);
  return push(s, (Op){2, 0, kernarg, n, 0, (Kernel)kernel, (int)grid});
}
static int load(void** module, const char* path) { *module = dlopen(path, 2); return *module ? OK : 209; }
static int find(void** function, void* module, const char* name) {
  *function = dlsym(module, name); return *function ? OK : NOT_FOUND;
}
static int begin_capture(int mode) {
  if (capturing || mode != 1) return INVALID;
  captured = malloc(sizeof *captured); captured->count = 0; capturing = 1; return OK;
}
static int end_capture(void** graph) {
  if (!capturing) return INVALID;
  capturing = 0; *graph = captured; return OK;
}
static int instantiate(void** out, void* graph) {
  *out = malloc(sizeof(Graph)); memcpy(*out, graph, sizeof(Graph)); return OK;
}
static int replay(Graph* graph, void* s) {
  for (int i = 0; i < graph->count; ++i) push(s, graph->ops[i]);
  return OK;
}
static int event_new(void** e) { *e = malloc(sizeof(Event)); memset(*e, 0, sizeof(Event)); return OK; }
static int device(int index) { return index < number("FAKE_COUNT", 1) ? OK : NO_DEVICE; }

#ifdef FAKE_CUDA
#define API(name, ...) int name(__VA_ARGS__)
API(cuInit, unsigned f) { BEGIN return number("FAKE_COUNT", 1) ? OK : NO_DEVICE; }
API(cuGetErrorName, int code, const char** out) {
  *out = code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : code == 100 ? "CUDA_ERROR_NO_DEVICE" : code == 500 ?
         "CUDA_ERROR_NOT_FOUND" : code == 209 ? "CUDA_ERROR_NO_BINARY_FOR_GPU" : 0;
  return *out ? OK : INVALID; }
API(cuGetErrorString, int code, const char** out) { *out = code == 2 ? "out of memory" : 0; return OK; }
API(cuDeviceGetCount, int* n) { BEGIN *n = number("FAKE_COUNT", 1); return OK; }
API(cuDeviceGet, int* d, int i) { BEGIN *d = i; return device(i); }
API(cuDeviceGetName, char* to, int n, int d) { BEGIN strncpy(to, "Fake 100", n); return OK; }
API(cuDeviceGetAttribute, int* v, int a, int d) { BEGIN
  int arch = number("FAKE_ARCH", 90);
  *v = a == 75 ? arch / 10 : a == 76 ? arch % 10 : a == 10 ? 32 : a == 16 ? 7 : -1; return OK; }
API(cuDevicePrimaryCtxRetain, void** c, int d) { BEGIN *c = (void*)1; return OK; }
API(cuDevicePrimaryCtxRelease_v2, int d) { BEGIN return OK; }
API(cuCtxSetCurrent, void* c) { BEGIN return c == (void*)1 ? OK : INVALID; }
API(cuMemGetInfo_v2, size* f, size* t) { BEGIN *t = total(); *f = *t - used; return OK; }
API(cuMemAlloc_v2, u64* p, size n) { BEGIN return allocate((void**)p, n); }
API(cuMemFree_v2, u64 p) { BEGIN return release((void*)p); }
API(cuMemHostAlloc, void** p, size n, unsigned f) { BEGIN *p = malloc(n); return OK; }
API(cuMemFreeHost, void* p) { BEGIN free(p); return OK; }
API(cuMemsetD8Async, u64 p, unsigned char v, size n, void* s) { BEGIN
  return push(s, (Op){1, (void*)p, 0, n, v, 0, 0}); }
API(cuMemcpyHtoDAsync_v2, u64 d, const void* h, size n, void* s) { BEGIN return copy(s, (void*)d, h, n); }
API(cuMemcpyDtoHAsync_v2, void* h, u64 d, size n, void* s) { BEGIN return copy(s, h, (void*)d, n); }
API(cuMemcpyDtoDAsync_v2, u64 d, u64 s, size n, void* t) { BEGIN return copy(t, (void*)d, (void*)s, n); }
API(cuModuleLoadDataEx, void** m, const char* data, unsigned n, int* options, void** values) { BEGIN
  int code = load(m, data);
  if (code && n == 2 && options[0] == 5 && options[1] == 6)
    strncpy(values[0], "line 1\n  bad", (size)values[1]);
  return code; }
API(cuModuleUnload, void* m) { BEGIN return OK; }
API(cuModuleGetFunction, void** f, void* m, const char* name) { BEGIN return find(f, m, name); }
API(cuFuncSetAttribute, void* f, int a, int v) { BEGIN return OK; }
API(cuLaunchKernel, void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
    unsigned lds, void* s, void** params, void** extra) { BEGIN
  return params || gy * gz * by * bz != 1 || bx != 32 ? INVALID : launch(s, f, gx, extra, 0); }
API(cuLaunchCooperativeKernel, void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
    unsigned bz, unsigned lds, void* s, void** params) { BEGIN
  return params && gy * gz * by * bz == 1 && gx <= 8 ? OK : INVALID; }
API(cuOccupancyMaxActiveBlocksPerMultiprocessor, int* n, void* f, int block, u64 lds) { BEGIN
  *n = 2; return OK; }
API(cuStreamCreate, void** s, unsigned f) { BEGIN *s = stream(); return OK; }
API(cuStreamDestroy_v2, void* s) { BEGIN return OK; }
API(cuStreamSynchronize, void* s) { BEGIN flush(index_of(s), queued[index_of(s)]); return OK; }
API(cuStreamWaitEvent, void* s, Event* e, unsigned f) { BEGIN return wait_for(s, e); }
API(cuStreamBeginCapture_v2, void* s, int mode) { BEGIN return begin_capture(mode); }
API(cuStreamEndCapture, void* s, void** g) { BEGIN return end_capture(g); }
API(cuGraphInstantiateWithFlags, void** x, void* g, u64 f) { BEGIN return instantiate(x, g); }
API(cuGraphLaunch, void* x, void* s) { BEGIN return replay(x, s); }
API(cuGraphExecDestroy, void* x) { BEGIN free(x); return OK; }
API(cuGraphDestroy, void* g) { BEGIN free(g); return OK; }
API(cuEventCreate, void** e, unsigned f) { BEGIN return event_new(e); }
API(cuEventRecord, Event* e, void* s) { BEGIN return record(e, s); }
API(cuEventSynchronize, Event* e) { BEGIN flush(e->stream, e->at); return OK; }
API(cuEventElapsedTime, float* ms, Event* a, Event* b) { BEGIN
  *ms = 2.5f; return done[b->stream] >= b->at ? OK : NOT_READY; }
API(cuEventDestroy_v2, void* e) { BEGIN free(e); return OK; }
#else
int hipInit(unsigned f) { BEGIN return OK; }
int hipRuntimeGetVersion(int* v) { BEGIN *v = number("FAKE_VERSION", 60342134); return OK; }
int hipGetDeviceCount(int* n) { BEGIN *n = number("FAKE_COUNT", 1); return *n ? OK : NO_DEVICE; }
int hipSetDevice(int i) { BEGIN return device(i); }
int hipGetDevicePropertiesR0600(char* to, int d) { BEGIN
  memset(to, 0, 1472); strncpy(to, "Fake RX", 256);
  char* arch = getenv("FAKE_ARCH"); strncpy(to + 1160, arch ? arch : "gfx1100", 256); return OK; }
int hipDeviceGetAttribute(int* v, int a, int d) { BEGIN
  *v = a == number("FAKE_WARP_ATTRIBUTE", -1) ? number("FAKE_WAVE", 32) : 9; return OK; }
int hipStreamCreateWithFlags(void** s, unsigned f) { BEGIN *s = stream(); return OK; }
int hipStreamDestroy(void* s) { BEGIN return OK; }
int hipStreamSynchronize(void* s) { BEGIN flush(index_of(s), queued[index_of(s)]); return OK; }
int hipHostMalloc(void** p, size n, unsigned f) { BEGIN *p = malloc(n); return OK; }
int hipHostFree(void* p) { BEGIN free(p); return OK; }
int hipMalloc(void** p, size n) { BEGIN return allocate(p, n); }
int hipFree(void* p) { BEGIN return release(p); }
int hipMemGetInfo(size* f, size* t) { BEGIN *t = total(); *f = *t - used; return OK; }
int hipMemsetAsync(void* p, int v, size n, void* s) { BEGIN return push(s, (Op){1, p, 0, n, v, 0, 0}); }
int hipMemcpyHtoDAsync(void* d, const void* h, size n, void* s) { BEGIN return copy(s, d, h, n); }
int hipMemcpyDtoHAsync(void* h, void* d, size n, void* s) { BEGIN return copy(s, h, d, n); }
int hipMemcpyDtoDAsync(void* d, void* s, size n, void* t) { BEGIN return copy(t, d, s, n); }
int hipModuleLoadData(void** m, const char* data) { BEGIN return load(m, data); }
int hipModuleUnload(void* m) { BEGIN return OK; }
int hipModuleGetFunction(void** f, void* m, const char* name) { BEGIN return find(f, m, name); }
int hipModuleLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
    unsigned bz, unsigned lds, void* s, void** params, void** extra) { BEGIN
  return params || gy * gz * by * bz != 1 || bx != 32 ? INVALID : launch(s, f, gx, extra, 3); }
int hipStreamWaitEvent(void* s, Event* e, unsigned f) { BEGIN return wait_for(s, e); }
int hipStreamBeginCapture(void* s, int mode) { BEGIN return begin_capture(mode); }
int hipStreamEndCapture(void* s, void** g) { BEGIN return end_capture(g); }
int hipGraphInstantiateWithFlags(void** x, void* g, u64 f) { BEGIN return instantiate(x, g); }
int hipGraphLaunch(void* x, void* s) { BEGIN return replay(x, s); }
int hipGraphExecDestroy(void* x) { BEGIN free(x); return OK; }
int hipGraphDestroy(void* g) { BEGIN free(g); return OK; }
int hipEventCreateWithFlags(void** e, unsigned f) { BEGIN return event_new(e); }
int hipEventRecord(Event* e, void* s) { BEGIN return record(e, s); }
int hipEventSynchronize(Event* e) { BEGIN flush(e->stream, e->at); return OK; }
int hipEventElapsedTime(float* ms, Event* a, Event* b) { BEGIN
  *ms = 2.5f; return done[b->stream] >= b->at ? OK : NOT_READY; }
int hipEventDestroy(void* e) { BEGIN free(e); return OK; }
#endif
"""


@functools.cache
def library(api: str) -> bytes:
    """The shared object: ``api`` is "cuda" or "hip"."""
    return compile_c(_SOURCE, "-fno-builtin", "-w", *(["-DFAKE_CUDA"] if api == "cuda" else []))
