/* Cross-lane data share operations, and the bookkeeping of loads in flight. Included by engine.c. */

/* ---- outstanding loads: a register may be used only after the wait that covers its load ---- */

static void mark(Wave *w, const Pending *p) {
  for (u32 i = p->lo; i < (u32)p->lo + p->n; ++i) {
    if (p->kind == PENDING_VECTOR || p->kind == PENDING_ATOMIC) w->pv[i + p->agpr] = (u8)(p->counter + 1);
    if (p->kind == PENDING_SCALAR) w->ps[i] = (u8)(p->counter + 1);
  }
}

static void retire(Wave *w, u32 index) {
  Pending p = w->queue[index];
  for (u32 i = p.lo; i < (u32)p.lo + p.n; ++i) {
    if (p.kind == PENDING_VECTOR || p.kind == PENDING_ATOMIC) w->pv[i + p.agpr] = 0;
    if (p.kind == PENDING_SCALAR) w->ps[i] = 0;
  }
  w->n_pending--;
  for (u32 i = index; i < w->n_pending; ++i) w->queue[i] = w->queue[i + 1];
  for (u32 i = 0; i < w->n_pending; ++i) mark(w, w->queue + i);
}

void emu_issue(Wave *w, int counter, int kind, int lo, int n) {
  if (w->n_pending == sizeof w->queue / sizeof *w->queue) retire(w, 0);
  Pending p = {(u8)counter, (u8)kind, (u8)(lo & 255), (u8)n, (u32)(lo & ~255)};
  w->queue[w->n_pending++] = p;
  mark(w, &p);
}

/* Completes the oldest events of `counter` until at most `limit` remain. Scalar loads return out of order, so
 * with one in flight nothing is certain before the count is zero. */
void emu_wait(Wave *w, int counter, u32 limit) {
  u32 n = 0, scalar = 0;
  for (u32 i = 0; i < w->n_pending; ++i) {
    if (w->queue[i].counter != counter) continue;
    n++;
    scalar |= w->queue[i].kind == PENDING_SCALAR;
  }
  if (scalar && limit) return;
  for (u32 i = 0; i < w->n_pending && n > limit;) {
    if (w->queue[i].counter != counter) {
      i++;
      continue;
    }
    retire(w, i);
    n--;
  }
  if (w->g->n_records && (counter == CNT_VM || counter == CNT_VS)) fence_waited(w, limit == 0);
}

/* Traps when a register of `ranges` (BUSY_V, BUSY_S) has a load in flight that it may not have. */
int emu_busy(Wave *w, u32 site, int count, const u32 *ranges) {
  for (int r = 0; r < count; ++r) {
    const u8 *p = (ranges[r] >> 31 ? w->ps : w->pv) + (ranges[r] & 0xfff);
    u32 n = ranges[r] >> 12 & 0xfff, own = ranges[r] >> 24 & 127;
    for (u32 i = 0; i < n; ++i)
      if (p[i] && p[i] != own) return emu_trap(w, TRAP_MISSING_WAIT, site, 0, 0, 0);
  }
  return 0;
}

/* ---- LDS-crossbar permutes (no memory behind them) ---- */

static void write_lanes(Wave *w, int dst, const U32 *r, u64 defined) {
  mask m = EXEC;
  WRITE32(dst, *r, lanes32(m));
  if (w->L->checks) DSET(dst, defined, m);
}

void emu_bpermute(Wave *w, int dst, int addr, int data, int offset) {
  U32 r = SPLAT(U32, 0);
  u64 defined = 0;
  for (u32 l = 0; l < W; ++l) {
    u32 from = (w->v[addr][l] + (u32)offset) >> 2 & (W - 1);
    if (EXEC >> from & 1) r[l] = w->v[data][from];
    if (w->L->checks) defined |= (DV(data) >> from & DV(addr) >> l & 1) << l;
  }
  write_lanes(w, dst, &r, defined);
}

void emu_permute(Wave *w, int dst, int addr, int data, int offset) {
  U32 r = SPLAT(U32, 0);
  u64 defined = ~0UL;
  for (u32 l = 0; l < W; ++l) {
    if (!(EXEC >> l & 1)) continue;
    u32 to = (w->v[addr][l] + (u32)offset) >> 2 & (W - 1);
    r[to] = w->v[data][l];
    if (w->L->checks && !(DV(data) >> l & DV(addr) >> l & 1)) defined &= ~(1UL << to);
  }
  write_lanes(w, dst, &r, defined);
}

void emu_swizzle(Wave *w, int dst, int src, int offset) {
  U32 r = SPLAT(U32, 0);
  u64 defined = 0;
  for (u32 l = 0; l < W; ++l) {
    u32 from, j = l & 31;
    if (offset >= 0xc000) { /* rotate within 32 lanes */
      u32 keep = (u32)offset & 31, n = (u32)offset >> 5 & 31;
      u32 step = offset >> 10 & 1 ? 32 - n : n;
      from = (j & keep) | ((j + step) & ~keep & 31);
    } else if (offset & 0x8000) {
      from = (j & ~3u) | ((u32)offset >> 2 * (j & 3) & 3);
    } else {
      from = (((j & ((u32)offset & 31)) | ((u32)offset >> 5 & 31)) ^ ((u32)offset >> 10 & 31)) & 31;
    }
    from |= l & 32;
    if (EXEC >> from & 1) r[l] = w->v[src][from];
    if (w->L->checks) defined |= (DV(src) >> from & 1) << l;
  }
  write_lanes(w, dst, &r, defined);
}
