/* Visibility between workgroups: who wrote a byte of global memory, and whether a reader may rely on seeing it.
 *
 * Comes in: stores, loads, waits and cache maintenance of waves, in checked mode. Goes out: a trap where a workgroup
 * reads what another one wrote in this launch without a release there and an acquire here. It never delays or
 * hides a value: memory itself stays coherent.
 *
 * A record stands for the stores of a wave between two waits. It is done when its wave has waited for them (and, on
 * gfx942 and gfx950, the L2 was written back), and released by the next store or atomic of the workgroup, which is
 * what another workgroup can observe. An observation (an atomic that returns, a load past the caches) becomes an
 * acquire when the caches are invalidated after it: first the ones shared by compute units, then the wave's own.
 * Times are ticks of one counter per launch, taken before a release is visible and after an observation was made.
 * Where a workgroup runs on one compute unit (gfx9, CU mode) its waves share a cache and a queue to memory, so that
 * wait, write-back and invalidation of one wave count for all (LLVM AMDGPU guide, "Memory Model").
 */

enum { RECORD_OPEN, RECORD_WRITING_BACK, RECORD_DONE };

static u32 tick(Launch *L) { return __atomic_add_fetch(&L->clock, 1, __ATOMIC_ACQ_REL); }

static void drop_record(Group *g, u32 at) { g->records[at] = g->records[--g->n_records]; }

static u32 open_record(Wave *w) {
  Launch *L = w->L;
  Group *g = w->g;
  u32 r = __atomic_fetch_add(&L->record_next, 1, __ATOMIC_RELAXED);
  if (r >= L->record_limit) return w->record = 0; /* more than 60 million: the rest is not followed */
  if (g->n_records == MAX_RECORDS) {
    __atomic_store_n(L->record_released + g->records[0].number, tick(L), __ATOMIC_RELEASE);
    drop_record(g, 0);
  }
  L->record_group[r] = g->number + 1;
  g->records[g->n_records++] = (Record){r, RECORD_OPEN, (u8)w->id, 0, 0};
  return w->record = r;
}

/* Before a store or atomic takes effect: what was done by then is released by it. */
static void fence_release(Wave *w) {
  Group *g = w->g;
  u32 now = 0;
  for (u32 i = 0; i < g->n_records;) {
    if (g->records[i].state != RECORD_DONE) {
      i++;
      continue;
    }
    if (!now) now = tick(w->L);
    __atomic_store_n(w->L->record_released + g->records[i].number, now, __ATOMIC_RELEASE);
    drop_record(g, i);
  }
}

static void fence_observe(Wave *w) { w->g->observed = tick(w->L); }

/* Notes that the bytes of the active lanes, those in global memory, were written by this wave. */
static void fence_wrote(Wave *w, const Lanes *x, u32 bytes) {
  Launch *L = w->L;
  u32 r = w->record ? w->record : open_record(w);
  for (mask left = x->m; left; left &= left - 1) {
    u64 a = (u64)x->p[__builtin_ctzl(left)];
    if (a < L->arena_lo || a >= L->arena_hi) continue;
    a -= L->arena_lo;
    L->record_pages[a >> 12] = r;
    L->record_pages[(a + bytes - 1) >> 12] = r;
    for (u32 i = 0; i < bytes; ++i) L->records[a + i] = r;
  }
}

static int check_fence(Wave *w, u32 site, u32 lane, u64 a, u32 bytes) {
  Launch *L = w->L;
  u64 at = a - L->arena_lo;
  u32 base = L->record_base, before = 0, horizon = L->shared_cache ? w->g->acquired : w->acquired;
  if (L->record_pages[at >> 12] < base && L->record_pages[(at + bytes - 1) >> 12] < base) return 0;
  for (u32 i = 0; i < bytes; ++i) {
    u32 r = L->records[at + i];
    if (r < base || r == before) continue;
    before = r;
    u32 writer = L->record_group[r], released = __atomic_load_n(L->record_released + r, __ATOMIC_ACQUIRE);
    if (writer == w->g->number + 1) continue;
    if (!released) return emu_trap(w, TRAP_NOT_RELEASED, site, lane, a + i, writer - 1);
    if (released > horizon) return emu_trap(w, TRAP_NOT_ACQUIRED, site, lane, a + i, writer - 1);
  }
  return 0;
}

static int fence_reads(Wave *w, u32 site, const Lanes *x, u32 bytes) {
  Launch *L = w->L;
  if (__atomic_load_n(&L->record_next, __ATOMIC_RELAXED) == L->record_base) return 0; /* nobody wrote yet */
  for (mask left = x->m; left; left &= left - 1) {
    u32 l = (u32)__builtin_ctzl(left);
    u64 a = (u64)x->p[l];
    if (a >= L->arena_lo && a < L->arena_hi && check_fence(w, site, l, a, bytes)) return RUN_TRAP;
  }
  return 0;
}

/* After a wait: with none of its writes in flight the wave's records are done; with `all` those of its neighbours. */
static void fence_waited(Wave *w, int all) {
  Group *g = w->g;
  for (u32 i = 0; i < w->n_pending; ++i)
    if (w->queue[i].kind == PENDING_WRITE || w->queue[i].kind == PENDING_ATOMIC) return;
  for (u32 i = 0; i < g->n_records; ++i) {
    Record *r = g->records + i;
    int mine = r->wave == w->id || (all && w->L->shared_cache);
    if (w->L->writes_back ? r->state == RECORD_WRITING_BACK && r->by == w->id : r->state == RECORD_OPEN && mine) {
      r->state = RECORD_DONE;
      if (g->waves[r->wave].record == r->number) g->waves[r->wave].record = 0;
    }
  }
}

/* Cache maintenance at device scope; `what` joins the FENCE_ bits of one instruction. */
void emu_fence(Wave *w, int what) {
  Group *g = w->g;
  if (!w->L->records) return;
  if (what & FENCE_WRITE_BACK) {
    for (u32 i = 0; i < g->n_records; ++i) {
      Record *r = g->records + i;
      if (r->state != RECORD_OPEN) continue;
      r->state = RECORD_WRITING_BACK;
      r->by = (u8)w->id;
      if (g->waves[r->wave].record == r->number) g->waves[r->wave].record = 0;
    }
  }
  if (what & FENCE_INVALIDATE_OUTER) g->outer = g->observed;
  if (what & FENCE_INVALIDATE_INNER) g->acquired = w->acquired = g->outer;
}
