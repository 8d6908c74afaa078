/* What memory instructions do to cache lines and LDS banks, counted while profiling. Included by memory.c.
 *
 * By instruction: lines of 128 bytes touched against lines needed, LDS cycles lost to bank conflicts. By allocation:
 * lines fetched, different lines, different bytes. A wave remembers its last WAVE_LINES lines, about its share of a
 * compute unit's first cache with 8 waves resident; a line that it finds there is not fetched again. Vector and
 * scalar loads count, stores and atomics do not. Memory and time are not touched.
 */

static void count_conflicts(Wave *w, u64 *cycles_of_site, const Lanes *x, u32 bytes) {
  /* 32 banks of 4 bytes, 128 bytes a pass */
  u32 per_pass = bytes >= 16 ? 8 : bytes == 8 ? 16 : 32, cycles = 0;
  for (u32 l0 = 0; l0 < W; l0 += per_pass) {
    u64 seen[32][8];
    u32 n[32] = {0}, worst = 0;
    for (u32 l = l0; l < l0 + per_pass && l < W; ++l) {
      if (!(x->m >> l & 1)) continue;
      for (u32 b = 0; b < (bytes + 3) / 4; ++b) {
        u64 word = ((u64)x->p[l] >> 2) + b;
        u32 bank = word & 31, k = 0;
        while (k < n[bank] && k < 8 && seen[bank][k] != word) k++;
        if (k == n[bank] && k < 8) seen[bank][n[bank]++] = word;
      }
    }
    for (int b = 0; b < 32; ++b) worst = n[b] > worst ? n[b] : worst;
    cycles += worst > 1 ? worst - 1 : 0;
  }
  *cycles_of_site += cycles;
}

/* Whether the wave still has a line (counted from 1), which then is its most recent one. */
static int remember_line(Wave *w, u32 line) {
  u32 moved = line;
  for (u32 i = 0; i < WAVE_LINES; ++i) {
    u32 here = w->lines[i];
    w->lines[i] = moved;
    if (here == line) return 1;
    moved = here;
  }
  return 0;
}

typedef struct { u64 number, touched[2]; } Line; /* number: address / 128; touched: one bit a byte */

/* Adds the part of [a, a + bytes) that lies in each line to `lines`; neighbouring lanes mostly share a line. */
static u32 add_bytes(Line *lines, u32 n, u64 a, u32 bytes) {
  while (bytes) {
    u64 number = a >> 7;
    u32 at = a & 127, here = bytes < 128 - at ? bytes : 128 - at, k = n;
    while (k && lines[k - 1].number != number) k--;
    if (!k) {
      lines[n++] = (Line){number, {0, 0}};
      k = n;
    }
    for (u32 i = at; i < at + here; ++i) lines[k - 1].touched[i >> 6] |= 1UL << (i & 63);
    a += here;
    bytes -= here;
  }
  return n;
}

static void count_fetches(Wave *w, const Line *lines, u32 n) {
  Launch *L = w->L;
  const Alloc *al = 0;
  for (u32 i = 0; i < n; ++i) {
    u64 a = lines[i].number << 7, offset = a - L->arena_lo;
    if (a < L->arena_lo || a >= L->arena_hi) continue; /* LDS or scratch by a flat address */
    if (!al || a < al->lo || a >= al->hi) al = find_alloc(L, a + 127);
    if (!al) continue;
    u64 *s = L->lines + ((u64)w->thread * L->n_allocs + (u64)(al - L->allocs)) * 3;
    u64 *map = L->line_map + offset / 64, old[2], fresh = 0;
    for (int h = 0; h < 2; ++h) {
      u64 bits = lines[i].touched[h];
      old[h] = (map[h] & bits) == bits ? map[h] : __atomic_fetch_or(map + h, bits, __ATOMIC_RELAXED);
      fresh += popc64(bits & ~old[h]);
    }
    s[0] += !remember_line(w, (u32)(offset >> 7) + 1);
    s[1] += !(old[0] | old[1]);
    s[2] += fresh;
  }
}

static void count_access(Wave *w, u32 site, const Lanes *x, u32 bytes, int lds, int load) {
  Launch *L = w->L;
  u64 *s = L->sites + ((u64)w->thread * L->n_sites + site) * 4;
  s[0]++;
  if (lds) {
    count_conflicts(w, s + 3, x, bytes);
    return;
  }
  Line lines[2 * W];
  u32 n = 0;
  for (mask left = x->m; left; left &= left - 1) n = add_bytes(lines, n, (u64)x->p[__builtin_ctzl(left)], bytes);
  s[1] += n;
  s[2] += (bytes * popc64(x->m) + 127) / 128;
  if (load) count_fetches(w, lines, n);
}

static void count_scalar(Wave *w, u64 address, u32 bytes) {
  Line lines[2];
  count_fetches(w, lines, add_bytes(lines, 0, address, bytes));
}
