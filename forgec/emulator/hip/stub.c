/* libamdhip64.so without a GPU: every call goes to the emulator in the Python of this process.
 *
 * The front (front.py) registers one function per call. Where none is registered when the first call arrives, the
 * library starts the front itself, with the configuration it was built with; a process without Python, or a Python
 * without forgec, gets hipErrorNotInitialized from every call. */

typedef unsigned long size;

#define EXPORT __attribute__((visibility("default")))
enum { NOT_INITIALIZED = 3 };

extern void* dlsym(void*, const char*);
extern const char forgec_hip_configuration[]; /* JSON, made by build.py */

static int attached(void);

#define CALL(name, parameters, arguments)                          \
  static int(*to_##name) parameters;                               \
  EXPORT int name parameters {                                     \
    return attached() && to_##name ? to_##name arguments : NOT_INITIALIZED; \
  }
#define TEXT(name, parameters, arguments)                          \
  static const char*(*to_##name) parameters;                       \
  EXPORT const char* name parameters {                             \
    return attached() && to_##name ? to_##name arguments : "hipErrorNotInitialized"; \
  }
#include "calls.h"
#undef CALL
#undef TEXT

#define CALL(name, parameters, arguments) {#name, (void**)&to_##name},
#define TEXT CALL
static const struct { const char* name; void** slot; } slots[] = {
#include "calls.h"
};

static int ready;

static int equal(const char* a, const char* b) {
  while (*a && *a == *b) ++a, ++b;
  return *a == *b;
}

typedef struct { const char* name; void* function; } Served;

/* Takes the front's functions by name; returns how many of them this library exports. */
EXPORT int forgec_hip_register(const Served* served, int count) {
  int taken = 0;
  for (int i = 0; i < count; ++i)
    for (unsigned s = 0; s < sizeof slots / sizeof *slots; ++s)
      if (equal(served[i].name, slots[s].name)) *slots[s].slot = served[i].function, ++taken;
  ready = 1;
  return taken;
}

/* The nth call that this library exports, and null after the last. */
EXPORT const char* forgec_hip_call(unsigned n) { return n < sizeof slots / sizeof *slots ? slots[n].name : 0; }

static char* append(char* at, const char* text) {
  while (*text) *at++ = *text++;
  *at = 0;
  return at;
}

static char* append_address(char* at, const void* pointer) {
  at = append(at, "0x");
  for (int shift = 60; shift >= 0; shift -= 4) *at++ = "0123456789abcdef"[(size)pointer >> shift & 15];
  *at = 0;
  return at;
}

static int attached(void) {
  if (ready) return 1;
  int (*initialized)(void) = (int (*)(void))dlsym(0, "Py_IsInitialized");
  int (*ensure)(void) = (int (*)(void))dlsym(0, "PyGILState_Ensure");
  void (*release)(int) = (void (*)(int))dlsym(0, "PyGILState_Release");
  int (*run)(const char*) = (int (*)(const char*))dlsym(0, "PyRun_SimpleString");
  if (!initialized || !ensure || !release || !run || !initialized()) return 0;
  int state = ensure();
  if (!ready) { /* another thread may have been first */
    char program[256], *at = program;
    at = append(at, "__import__('forgec.emulator.hip.front', fromlist=['attach_library']).attach_library(");
    at = append_address(at, (const void*)&forgec_hip_register);
    at = append(at, ", ");
    at = append_address(at, forgec_hip_configuration);
    append(at, ")");
    run(program); /* prints the traceback of what went wrong, as of a missing forgec */
  }
  release(state);
  return ready;
}
