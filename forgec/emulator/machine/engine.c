/* The scheduler: workgroups become resident, their waves take turns, barriers release them, workers share the grid.
 *
 * Comes in: one Launch, and a thread number per worker. Goes out: memory effects, counters, and at most one trap.
 * It never knows an instruction: L->run executes a wave until it ends, waits, yields or traps.
 */
#include "wave.h"

void *malloc(u64);
void free(void *);
void *memset(void *, int, u64);
void *memcpy(void *, const void *, u64);
int sched_yield(void);
int usleep(u32);

#define SHARED_HI 0x00010000u  /* high halves of the LDS and scratch apertures: no host pointer reaches them */
#define PRIVATE_HI 0x00020000u
#define POISON 0x7fbadbadu     /* a signalling NaN as f32: what unwritten registers and LDS hold */

int emu_trap(Wave *w, u32 code, u32 site, u32 lane, u64 address, u64 extra) {
  Launch *L = w->L;
  if (__atomic_exchange_n(&L->stop, 1, __ATOMIC_ACQ_REL) == 0) {
    L->trap = (Trap){code, site, lane, w->id, address, extra, {w->g->id[0], w->g->id[1], w->g->id[2]}, 0};
  }
  return RUN_TRAP;
}

static void lock(Launch *L) {
  for (u32 tries = 1; __atomic_exchange_n(&L->lock, 1, __ATOMIC_ACQUIRE); ++tries) {
    if (tries % 64) __builtin_ia32_pause();
    else sched_yield(); /* the holder may wait for this very core */
  }
}

static void unlock(Launch *L) { __atomic_store_n(&L->lock, 0, __ATOMIC_RELEASE); }

static u64 random64(u64 *s) { /* xorshift64* */
  u64 x = *s;
  x ^= x >> 12;
  x ^= x << 25;
  x ^= x >> 27;
  *s = x;
  return x * 0x2545f4914f6cdd1dUL;
}

/* ---- barriers ---- */

static void release_if_complete(Group *g) {
  if (g->alive && g->arrived >= g->alive) {
    g->arrived = 0;
    g->phase++;
  }
}

int emu_barrier_signal(Wave *w) {
  w->signal_phase = w->g->phase;
  w->g->arrived++;
  release_if_complete(w->g);
  return 0;
}

int emu_barrier_wait(Wave *w) { return w->g->phase == w->signal_phase; }

/* ---- workgroups ---- */

static u64 align_up(u64 x, u64 a) { return (x + a - 1) & ~(a - 1); }

typedef struct { u64 waves, vgprs, dv, pv, lds, defined, races, scratch, total; } Layout;

static Layout layout_of(const Launch *L) {
  Layout y;
  u64 at = align_up(sizeof(Group), 256), n = L->waves;
  y.waves = at; at = align_up(at + n * sizeof(Wave), 256);
  y.vgprs = at; at = align_up(at + n * L->n_vgprs * sizeof(U32), 256);
  y.dv = at; at = align_up(at + (L->checks ? n * L->n_vgprs * 16 : 0), 64);
  y.pv = at; at = align_up(at + (L->checks ? n * L->n_vgprs : 0), 64);
  y.lds = at; at = align_up(at + L->lds_size, 256);
  y.defined = at; at = align_up(at + (L->checks ? L->lds_size : 0), 256);
  y.races = at; at = align_up(at + (L->checks ? 8 * (u64)L->lds_size : 0), 256);
  y.scratch = at; at = align_up(at + n * W * (u64)L->scratch_size, 256);
  y.total = at + 256;
  return y;
}

static void init_wave(Launch *L, Group *g, Wave *w, u32 index, u32 thread) {
  u32 threads = L->block[0] * L->block[1] * L->block[2];
  u32 first = index * W, n = threads - first < W ? threads - first : W;
  w->g = g;
  w->L = L;
  w->id = index;
  w->alive = 1;
  w->status = RUN_YIELD;
  w->pc = 0;
  w->scc = 0;
  w->mode = L->mode;
  w->signal_phase = 0xffffffffu;
  w->n_pending = 0;
  w->record = w->acquired = 0;
  w->poll_address = 0;
  w->last_alloc = 0;
  memset(w->lines, 0, sizeof w->lines);
  w->spins = 0;
  w->rng = (L->seed + 1) * 0x9e3779b97f4a7c15UL + ((u64)g->id[0] << 20 ^ (u64)g->id[1] << 40 ^ index) + 1;
  w->thread = thread;
  w->cnt = L->counts + (u64)thread * 2 * L->n_counts;
  for (int i = 0; i < 128; ++i) w->s[i] = POISON;
  for (u32 i = 0; i < L->n_init_sgprs; ++i) w->s[i] = L->sgprs[i];
  for (int i = 0; i < 3; ++i)
    if (L->sgpr_group[i] >= 0) w->s[L->sgpr_group[i]] = g->id[i];
  if (L->sgpr_scratch_offset >= 0) w->s[L->sgpr_scratch_offset] = 0;
  if (L->ttmp_ids) {
    w->s[R_TTMP0 + 9] = g->id[0];
    w->s[R_TTMP0 + 7] = (g->id[1] & 0xffffu) | g->id[2] << 16;
  }
  w->s[R_M0] = 0;
  mask full = n == W ? (mask)~(mask)0 : (mask)(((u64)1 << n) - 1);
  w->s[R_EXEC] = (u32)full;
  w->s[R_EXEC + 1] = (u32)((u64)full >> 32);
  exec_changed(w);
  for (u32 i = 0; i < L->n_vgprs; ++i) w->v[i] = SPLAT(U32, POISON);
  for (u32 l = 0; l < n; ++l) {
    u32 t = first + l, x = t % L->block[0], y = t / L->block[0] % L->block[1], z = t / L->block[0] / L->block[1];
    if (L->packed_ids) {
      w->v[0][l] = x | (L->id_dims > 0 ? y << 10 : 0) | (L->id_dims > 1 ? z << 20 : 0);
    } else {
      w->v[0][l] = x;
      if (L->id_dims > 0) w->v[1][l] = y;
      if (L->id_dims > 1) w->v[2][l] = z;
    }
  }
  if (L->checks) {
    memset(w->dv, 0, L->n_vgprs * 16);
    memset(w->pv, 0, L->n_vgprs);
    memset(w->ds, 0, sizeof w->ds);
    memset(w->ps, 0, sizeof w->ps);
    for (u32 i = 0; i <= (L->packed_ids ? 0 : L->id_dims); ++i) w->dv[2 * i] = w->dv[2 * i + 1] = full;
    for (u32 i = 0; i < L->n_init_sgprs; ++i) w->ds[i] = 0xffffffffu;
    for (int i = 0; i < 3; ++i)
      if (L->sgpr_group[i] >= 0) w->ds[L->sgpr_group[i]] = 0xffffffffu;
    if (L->sgpr_scratch_offset >= 0) w->ds[L->sgpr_scratch_offset] = 0xffffffffu;
    for (int i = R_TTMP0; i < 128; ++i) w->ds[i] = 0xffffffffu;
    w->ds[R_FLAT_LO] = w->ds[R_FLAT_HI] = 0xffffffffu;
    w->dscc = 0;
  }
}

static Group *make_group(Launch *L, u64 number, u32 thread) {
  Layout y = layout_of(L);
  lock(L);
  Group *g = L->pool;
  if (g) L->pool = g->next;
  unlock(L);
  if (!g) {
    u8 *raw = malloc(y.total + 256);
    if (!raw) return 0;
    g = (Group *)align_up((u64)raw, 256);
    if ((u8 *)g == raw) g = (Group *)(raw + 256);
    ((void **)g)[-1] = raw;
  }
  u8 *base = (u8 *)g;
  g->next = 0;
  g->id[0] = (u32)(number % L->grid[0]);
  g->id[1] = (u32)(number / L->grid[0] % L->grid[1]);
  g->id[2] = (u32)(number / L->grid[0] / L->grid[1]);
  g->number = (u32)number;
  g->n_records = g->observed = g->outer = g->acquired = 0;
  g->n_waves = g->alive = L->waves;
  g->arrived = 0;
  g->phase = 1;
  g->lds = base + y.lds;
  g->lds_defined = L->checks ? base + y.defined : 0;
  g->lds_write = L->checks ? (u32 *)(base + y.races) : 0;
  g->lds_read = L->checks ? g->lds_write + L->lds_size : 0;
  g->waves = (Wave *)(base + y.waves);
  for (u32 i = 0; i + 4 <= L->lds_size; i += 4) *(u32 *)(g->lds + i) = POISON;
  if (L->checks) {
    memset(g->lds_defined, 0, L->lds_size);
    memset(g->lds_write, 0, 8 * (u64)L->lds_size);
  }
  for (u32 i = 0; i < L->waves; ++i) {
    Wave *w = g->waves + i;
    w->v = (U32 *)(base + y.vgprs) + (u64)i * L->n_vgprs;
    w->dv = (u64 *)(base + y.dv) + (u64)i * L->n_vgprs * 2;
    w->pv = base + y.pv + (u64)i * L->n_vgprs;
    w->scratch = base + y.scratch + (u64)i * W * L->scratch_size;
    init_wave(L, g, w, i, thread);
  }
  return g;
}

enum { GROUP_DONE, GROUP_SPINS, GROUP_STUCK, GROUP_TRAPPED }; /* stuck: spinning as it was when it was taken */

static int run_wave(Launch *L, Group *g, Wave *w) {
  w->budget = L->quantum;
  if (L->seed) w->budget = 1 + (i64)(random64(&w->rng) % L->quantum);
  set_mxcsr(mxcsr_of_mode(w->mode));
  w->spins = 0;
  int r = L->run(w);
  set_mxcsr(0x1f80);
  if (r == RUN_YIELD && w->spins) r = RUN_SLEEP;
  w->status = (u32)r;
  if (r == RUN_END) {
    w->alive = 0;
    g->alive--;
    release_if_complete(g);
  }
  return r;
}

/* Gives every wave of the group turns until all ended, or nothing moves but spinning waves. */
static int run_group(Launch *L, Group *g, u32 thread) {
  u32 phase_before = g->phase, alive_before = g->alive;
  for (u32 i = 0; i < g->n_waves; ++i) {
    g->waves[i].thread = thread;
    g->waves[i].cnt = L->counts + (u64)thread * 2 * L->n_counts;
  }
  for (u32 idle = 0;;) {
    u32 phase = g->phase, alive = g->alive, ran = 0, slept = 0;
    u32 start = L->seed ? (u32)(random64(&g->waves[0].rng) % g->n_waves) : 0;
    for (u32 i = 0; i < g->n_waves; ++i) {
      Wave *w = g->waves + (start + i) % g->n_waves;
      if (!w->alive || (w->status == RUN_BARRIER && emu_barrier_wait(w))) continue;
      if (__atomic_load_n(&L->stop, __ATOMIC_RELAXED)) return GROUP_TRAPPED;
      ran++;
      int r = run_wave(L, g, w);
      if (r == RUN_TRAP) return GROUP_TRAPPED;
      slept += r == RUN_SLEEP;
    }
    if (!g->alive) return GROUP_DONE;
    if (!ran) {
      emu_trap(g->waves, TRAP_BARRIER, 0, 0, 0, 0);
      return GROUP_TRAPPED;
    }
    idle = g->phase == phase && g->alive == alive ? idle + 1 : 0;
    if ((idle && slept) || idle > 2) {
      return g->phase == phase_before && g->alive == alive_before ? GROUP_STUCK : GROUP_SPINS;
    }
    if (L->seed && random64(&g->waves[0].rng) % 4 == 0) return GROUP_SPINS;
  }
}

/* With a seed, workgroups start in a pseudo-random order: multiples of a step that shares no factor with the total. */
static u64 nth_group(const Launch *L, u64 n) {
  if (!L->seed || L->total < 3) return n;
  u64 step = (L->seed * 0x9e3779b97f4a7c15UL >> 20) % L->total;
  for (;; ++step) {
    u64 a = step, b = L->total;
    while (b) {
      u64 rest = a % b;
      a = b;
      b = rest;
    }
    if (a == 1) break;
  }
  return (n * (step % L->total) + L->seed) % L->total;
}

static Group *take(Launch *L, int prefer_new, u32 thread, int *failed) {
  u64 number = 0;
  int fresh = 0;
  Group *g = 0;
  lock(L);
  if (L->next < L->total && (prefer_new || !L->parked_head)) {
    number = L->next++;
    fresh = 1;
  } else if (L->parked_head) {
    g = L->parked_head;
    L->parked_head = g->next;
    if (!L->parked_head) L->parked_tail = 0;
  }
  unlock(L);
  if (!fresh) return g;
  g = make_group(L, nth_group(L, number), thread);
  *failed = !g;
  __atomic_add_fetch(&L->residents, 1, __ATOMIC_RELAXED);
  return g;
}

static void put(Launch *L, Group *g, int parked) {
  lock(L);
  if (parked) {
    g->next = 0;
    if (L->parked_tail) L->parked_tail->next = g;
    else L->parked_head = g;
    L->parked_tail = g;
  } else {
    g->next = L->pool;
    L->pool = g;
  }
  unlock(L);
}

int emu_worker(Launch *L, u32 thread) {
  int prefer_new = 0, failed = 0;
  u32 stuck = 0;
  while (!__atomic_load_n(&L->stop, __ATOMIC_RELAXED)) {
    Group *g = take(L, prefer_new, thread, &failed);
    if (failed) {
      if (!__atomic_exchange_n(&L->stop, 1, __ATOMIC_ACQ_REL)) L->trap.code = TRAP_NO_MEMORY;
      break;
    }
    if (!g) break;
    int r = run_group(L, g, thread);
    if (r == GROUP_DONE) __atomic_sub_fetch(&L->residents, 1, __ATOMIC_RELAXED);
    prefer_new = r == GROUP_SPINS || r == GROUP_STUCK;
    put(L, g, prefer_new);
    if (r == GROUP_TRAPPED) break;
    stuck = r == GROUP_STUCK ? stuck + 1 : 0;
    if (stuck > __atomic_load_n(&L->residents, __ATOMIC_RELAXED)) {
      usleep(50); /* all wait for a workgroup that another worker holds */
      stuck = 0;
    }
  }
  return 0;
}

static void free_list(Group *g) {
  while (g) {
    Group *next = g->next;
    free(((void **)g)[-1]);
    g = next;
  }
}

/* After the workers returned: give the memory of all workgroups back. */
int emu_finish(Launch *L) {
  free_list(L->pool);
  free_list(L->parked_head);
  L->pool = L->parked_head = L->parked_tail = 0;
  return 0;
}

#include "memory.c"
#include "lanes.c"
#include "vmath.c"
