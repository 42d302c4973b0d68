// gemm_amx_bf16.c: products of bf16 matrices on AMX tiles, accumulated in f32. A micro kernel makes
// 32 x 32 outputs from 2 x 2 tiles; w is packed once per call for all threads, x per part where it
// does not lie as tiles need it. Long sums go in blocks of K that keep both operands in the
// second-level cache, and x is packed for all threads: see "long sums".
#include "backend/cpu/fast/gemm.h"

#if HAVE_AVX512_BF16 && defined(__AVX512F__)
#include "backend/cpu/fast/amx.h"

enum {
    KB = 512,         // k of a block
    TALL = 2048,      // k from which parts pack w themselves
    PACKED_X = 256 * KB,    // bf16 in a packed block of x, at most
    PACK_BYTES = 32 << 20,  // w packed for all threads
};

typedef struct AmxJob {
    GemmJob gemm;
    int64_t batch, steps;  // tiles along k
    int64_t col0, panels;  // first column and 32-column panels of the running chunk
    int64_t row0, rows;    // long sums: the rows of the running block
    uint16_t *pack;        // [panels][steps][2 tiles]; NULL: each part packs its blocks of w
} AmxJob;

// ---- packing ----------------------------------------------------------------------------------
// Columns n0.. of w and a run of k as tiles: [panels][steps][2 tiles], panels `panel` apart.
static void pack_w(const AmxJob *j, uint16_t *to, int64_t panel, int64_t n0, int64_t cols,
                   int64_t k0, int64_t k) {
    const Segment *s = &j->gemm.seg[0];
    const uint16_t *w =
        (const uint16_t *)(void *)gemm_at(s->w, j->batch * s->wb + n0 * s->wn + k0 * s->wk);
    if (s->wn == 1) {
        pairs_tiles(to, panel, w, s->wk, k, cols);
        return;
    }
    for (int64_t n = 0; n < cols; n += SIDE, to += panel)
        for (int64_t i = 0; i * STEP < k; i++)
            for (int64_t half = 0; half < 2; half++) {
                int64_t c = n + half * 16;
                columns_tile(to + (2 * i + half) * TILE, w + c * s->wn + i * STEP, s->wn, cols - c,
                             k - i * STEP);
            }
}

// One part of packing w for all threads: a group of panels, a run of steps.
enum { PACK_PANELS = 8, PACK_STEPS = 8 };
static void pack_part(void *arg, int64_t part, int thread) {
    (void)thread;
    const AmxJob *j = arg;
    int64_t runs = (j->steps + PACK_STEPS - 1) / PACK_STEPS, step = part % runs * PACK_STEPS;
    int64_t first = part / runs * PACK_PANELS, panels = MIN(PACK_PANELS, j->panels - first);
    int64_t n0 = j->col0 + first * SIDE, k0 = step * STEP, panel = j->steps * 2 * TILE;
    pack_w(j, j->pack + first * panel + step * 2 * TILE, panel, n0,
           MIN(panels * SIDE, j->gemm.N - n0), k0, MIN(PACK_STEPS * STEP, j->gemm.seg[0].K - k0));
}

// Rows of a packed type as bf16, rounded as dequant rounds.
INLINE __m512 eight_bits(const uint8_t *q) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)q)));
}
static void unpack_q8_0(uint16_t *to, const uint8_t *from, __m512 scale, int64_t n) {
    for (; n > 0; n -= 32, from += 34, to += 32) {
        __m512 d = _mm512_set1_ps(_cvtsh_ss((uint16_t)(from[0] | from[1] << 8)));
        __m512 low = _mm512_mul_ps(_mm512_mul_ps(eight_bits(from + 2), d), scale);
        __m512 high = _mm512_mul_ps(_mm512_mul_ps(eight_bits(from + 18), d), scale);
        __m512bh pair = _mm512_cvtne2ps_pbh(high, low);
        memcpy(to, &pair, sizeof pair);
    }
}
static void unpack_row(const PackedRows *p, int64_t element, uint16_t *to, int64_t n) {
    const uint8_t *from = p->data + dtype_bytes(p->type, (uint64_t)element);
    __m512 scale = _mm512_set1_ps(p->scale ? *p->scale : 1);
    if (p->type == DT_Q8_0) {
        unpack_q8_0(to, from, scale, n);
        return;
    }
    float f[KB];
    unpack_avx512(p->type, from, f, n);
    for (int64_t i = n; i < (int64_t)align_up((uint64_t)n, 32); i++) f[i] = 0;
    for (int64_t i = 0; i < n; i += 32) {
        __m512 low = _mm512_mul_ps(_mm512_loadu_ps(f + i), scale);
        __m512 high = _mm512_mul_ps(_mm512_loadu_ps(f + i + 16), scale);
        __m512bh pair = _mm512_cvtne2ps_pbh(high, low);
        memcpy(to + i, &pair, sizeof pair);
    }
}

// The same as pack_w from rows of a packed type, decoded 16 at a time in the first-level cache.
static void pack_packed(const AmxJob *j, uint16_t *to, int64_t panel, int64_t n0, int64_t cols,
                        int64_t k0, int64_t k) {
    uint16_t rows[16 * KB];
    const PackedRows *p = j->gemm.cpu->packed;
    int64_t K = j->gemm.seg[0].K, bytes = (int64_t)dtype_bytes(p->type, (uint64_t)k);
    for (int64_t c = 0; c < (int64_t)align_up((uint64_t)cols, SIDE); c += 16) {
        for (int64_t i = 0; i < 16 && c + i < cols; i++) {
            // Pieces of rows are too short and too far apart for the processor to foresee.
            const uint8_t *later = p->data + dtype_bytes(p->type, (uint64_t)((n0 + c + i + 16) * K + k0));
            for (int64_t at = 0; at < bytes && c + i + 16 < cols; at += 64)
                _mm_prefetch((const char *)later + at, _MM_HINT_T0);
            unpack_row(p, (n0 + c + i) * K + k0, rows + i * KB, k);
        }
        uint16_t *tile = to + c / SIDE * panel + c / 16 % 2 * TILE;
        for (int64_t i = 0; i * STEP < k; i++)
            columns_tile(tile + 2 * i * TILE, rows + i * STEP, KB, cols - c, k - i * STEP);
    }
}

static void turn_tile(uint16_t *tile) {
    uint16_t copy[TILE];
    memcpy(copy, tile, sizeof copy);
    transposed_tile(tile, copy, STEP);
}

// Rows m0.. of x for a block of k as tiles: [strips of 32 rows][steps][2 tiles].
static void pack_x(const AmxJob *j, uint16_t *to, int64_t m0, int64_t rows, int64_t k0, int64_t k) {
    const Segment *s = &j->gemm.seg[0];
    const uint16_t *x =
        (const uint16_t *)(void *)gemm_at(s->x, j->batch * s->xb + m0 * s->xr + k0 * s->xk);
    int64_t steps = (k + STEP - 1) / STEP;
    if (s->xk != 1) pairs_tiles(to, steps * 2 * TILE, x, s->xk, k, rows);
    for (int64_t m = 0; m < rows; m += SIDE)
        for (int64_t i = 0; i < 2 * steps; i++, to += TILE) {
            int64_t n = rows - m - i % 2 * 16, at = i / 2 * STEP;
            if (s->xk != 1) turn_tile(to);
            else rows_tile(to, x + (m + i % 2 * 16) * s->xr + at, s->xr, n, k - at);
        }
}

// Rows m0.. (at most 32) of a part for one block of k; tiles: packed x, NULL where it is read as it
// lies.
static void strip(const AmxJob *j, const GemmPart *p, int64_t m0, int64_t k0, float *acc,
                  int64_t ld, const uint16_t *tiles, const uint16_t *w, int64_t panel) {
    const Segment *s = &j->gemm.seg[0];
    int64_t steps = (MIN(KB, s->K - k0) + STEP - 1) / STEP;
    const char *x = (const char *)tiles, *x2 = x + 2 * TILE;
    int64_t xs = 64, xt = 4 * TILE;
    if (!tiles) {
        x = gemm_at(s->x, p->b * s->xb + m0 * s->xr + k0);
        xs = s->xr * 2, x2 = x + 16 * xs, xt = 64;
    }
    for (int64_t n = 0; n < p->cols; n += SIDE, w += panel)
        micro(acc + n, ld, x, x2, xs, xt, (const char *)w, steps, k0 > 0);
}

// All rows of a part for one block of k; after the last block their epilogue.
static void block(const AmxJob *j, const GemmPart *p, int64_t k0, float *scratch, uint16_t *tiles) {
    const GemmJob *g = &j->gemm;
    const Segment *s = &g->seg[0];
    int64_t k = MIN(KB, s->K - k0), steps = (k + STEP - 1) / STEP;
    int64_t wide = (int64_t)align_up((uint64_t)p->cols, SIDE);
    bool as_it_lies = s->xk == 1 && k % STEP == 0;
    if (!as_it_lies) pack_x(j, tiles, p->m0, p->rows, k0, k);
    int64_t panel = (j->pack ? j->steps : steps) * 2 * TILE;
    const uint16_t *w = tiles + PACKED_X;
    if (j->pack) w = j->pack + (p->n0 - j->col0) / SIDE * panel + k0 / STEP * 2 * TILE;
    else pack_w(j, tiles + PACKED_X, panel, p->n0, p->cols, k0, k);
    for (int64_t m = 0; m < p->rows; m += SIDE) {
        int64_t rows = MIN(SIDE, p->rows - m);
        const uint16_t *packed = as_it_lies ? NULL : tiles + m / SIDE * steps * 2 * TILE;
        if (as_it_lies && rows < SIDE) {
            pack_x(j, tiles, p->m0 + m, rows, k0, k);
            packed = tiles;
        }
        bool in_y = g->direct && rows == SIDE && wide == p->cols;
        float *acc = in_y ? p->acc + m * p->ld : scratch + m * wide;
        int64_t ld = in_y ? p->ld : wide;
        if (s->K <= KB && !in_y) acc = scratch; // short sums: the same rows again, still in cache
        strip(j, p, p->m0 + m, k0, acc, ld, packed, w, panel);
        if (k0 + KB < s->K || (in_y && g->plain)) continue;
        g->epilogue(g->c, p->b, g->folded, p->m0 + m, rows, p->n0, p->cols, acc, ld);
    }
}

static void amx_part(void *arg, int64_t part, int thread) {
    const AmxJob *j = arg;
    const GemmJob *g = &j->gemm;
    int64_t col = j->col0 / g->nb + part / g->row_blocks;
    GemmPart p = gemm_part(g, j->batch, col, part % g->row_blocks, thread);
    float *scratch = cpu_scratch(g->cpu, thread);
    uint16_t *tiles = (uint16_t *)(void *)((char *)scratch + 2 * ACC_BYTES);
    tiles_on();
    for (int64_t k0 = 0; k0 < g->seg[0].K; k0 += KB) block(j, &p, k0, scratch, tiles);
    tiles_off();
}

// ---- long sums --------------------------------------------------------------------------------
// Layers of large models: w is large and read once, so each part packs its own columns, block by
// block of k, and uses them for up to LONG_ROWS rows; those rows of x are packed for all threads.
// Sums wait in the part's scratch and meet y once. Which part has which columns changes no bit.
enum { LONG_K = 1024, LONG_ROWS = 1024, LONG_COLS = 256 };

static void pack_rows_part(void *arg, int64_t part, int thread) {
    (void)thread;
    const AmxJob *j = arg;
    int64_t m = part * SIDE, to = part * j->steps * 2 * TILE;
    pack_x(j, j->pack + to, j->row0 + m, MIN(SIDE, j->rows - m), 0, j->gemm.seg[0].K);
}

static void long_part(void *arg, int64_t part, int thread) {
    const AmxJob *j = arg;
    const GemmJob *g = &j->gemm;
    int64_t K = g->seg[0].K, n0 = part * g->nb, cols = MIN(g->nb, g->N - n0);
    int64_t wide = (int64_t)align_up((uint64_t)cols, SIDE);
    float *acc = cpu_scratch(g->cpu, thread);
    uint16_t *w = (uint16_t *)(void *)((char *)acc + 2 * ACC_BYTES);
    tiles_on();
    for (int64_t k0 = 0; k0 < K; k0 += KB) {
        int64_t k = MIN(KB, K - k0), steps = (k + STEP - 1) / STEP, panel = steps * 2 * TILE;
        if (g->cpu->packed) pack_packed(j, w, panel, n0, cols, k0, k);
        else pack_w(j, w, panel, n0, cols, k0, k);
        for (int64_t m = 0; m < j->rows; m += SIDE) {
            const uint16_t *x = j->pack + (m / SIDE * j->steps + k0 / STEP) * 2 * TILE;
            for (int64_t n = 0; n < wide; n += SIDE)
                micro(acc + m * wide + n, wide, (const char *)x, (const char *)(x + TILE), 64,
                      4 * TILE, (const char *)(w + n / SIDE * panel), steps, k0 > 0);
            if (k0 + KB >= K)
                g->epilogue(g->c, j->batch, g->folded, j->row0 + m, MIN(SIDE, j->rows - m), n0,
                            cols, acc + m * wide, wide);
        }
    }
    tiles_off();
}

static bool is_long(const Segment *s) { return s->K >= LONG_K && s->xk == 1 && s->wk == 1; }

static void run_long(AmxJob *j) {
    GemmJob *g = &j->gemm;
    int64_t most = MIN((int64_t)LONG_ROWS, PACK_BYTES / (j->steps * STEP * 2) / SIDE * SIDE);
    int64_t blocks = (g->R + most - 1) / most, threads = pool_threads(g->cpu->pool);
    int64_t tall = (int64_t)align_up((uint64_t)((g->R + blocks - 1) / blocks), SIDE);
    for (g->nb = LONG_COLS; g->nb > 2 * SIDE && g->N / g->nb < 3 * threads;) g->nb /= 2;
    for (j->batch = 0; j->batch < g->B; j->batch++)
        for (j->row0 = 0; j->row0 < g->R; j->row0 += tall) {
            j->rows = MIN(tall, g->R - j->row0);
            pool_run(g->cpu->pool, (j->rows + SIDE - 1) / SIDE, pack_rows_part, j);
            pool_run(g->cpu->pool, (g->N + g->nb - 1) / g->nb, long_part, j);
        }
}

// ---- a call -----------------------------------------------------------------------------------
bool fits_gemm_amx(const OpCall *c, char why[128]) {
    const TensorRef *t = c->t;
    GemmJob j;
    Cpu none = {0};
    gemm_setup(&j, &none, c);
    const Segment *s = &j.seg[0];
    const char *reason = NULL;
    if (j.segments > 1) reason = "a second product";
    else if (s->x->dtype != DT_BF16 || s->w->dtype != DT_BF16)
        reason = "operands that are not all bf16";
    else if ((s->xk != 1 && s->xr != 1) || (s->wk != 1 && s->wn != 1))
        reason = "strides without a 1";
    else if (ref_has(&t[gemm_gate]) && ref_dim(&t[gemm_gate], 5) != j.N)
        reason = "a gate that broadcasts over columns";
    if (reason) snprintf(why, 128, "%s", reason);
    return !reason;
}

// Wide parts: x is read once per part, w is packed once for all. Long sums: squares that pack both
// operands themselves, block by block in the second-level cache: a packed w would be too large for
// it, and few parts use it.
static void cut(GemmJob *g) {
    bool tall = g->seg[0].K > TALL;
    g->mb = MIN(g->R, tall ? 256 : 128);
    g->nb = MIN((int64_t)align_up((uint64_t)g->N, SIDE), tall ? 256 : 1024);
    g->row_blocks = (g->R + g->mb - 1) / g->mb;
    g->col_blocks = (g->N + g->nb - 1) / g->nb;
    if ((g->row_blocks * g->col_blocks & 1) && g->R >= 2 * SIDE) { // even: no thread is left over
        g->mb = (int64_t)align_up((uint64_t)((g->R + g->row_blocks) / (g->row_blocks + 1)), SIDE);
        g->row_blocks = (g->R + g->mb - 1) / g->mb;
    }
    if (g->row_blocks * g->col_blocks == 1 && g->nb >= 2 * SIDE) {
        g->nb = (int64_t)align_up((uint64_t)(g->nb / 2), SIDE);
        g->col_blocks = (g->N + g->nb - 1) / g->nb;
    }
}

bool gemm_amx_packs(Cpu *cpu, const OpCall *c) {
    GemmJob g;
    gemm_setup(&g, cpu, c);
    return is_long(&g.seg[0]) && (cpu->pack || (cpu->pack = os_block_new(PACK_BYTES)));
}

void gemm_amx(Cpu *cpu, const OpCall *c) {
    AmxJob j = {0};
    GemmJob *g = &j.gemm;
    gemm_setup(g, cpu, c);
    cut(g);
    j.steps = (g->seg[0].K + STEP - 1) / STEP;
    if (is_long(&g->seg[0]) && (cpu->pack || (cpu->pack = os_block_new(PACK_BYTES)))) {
        j.pack = cpu->pack;
        run_long(&j);
        return;
    }
    int64_t block_bytes = j.steps * 4 * TILE * (g->nb / SIDE), chunk = g->col_blocks;
    if (g->seg[0].K <= TALL) {
        if (!cpu->pack) cpu->pack = os_block_new(PACK_BYTES);
        if (!cpu->pack) {
            gemm_openblas(cpu, c);
            return;
        }
        j.pack = cpu->pack;
        chunk = PACK_BYTES / block_bytes; // column blocks packed at a time, 4 at least
    }
    for (j.batch = 0; j.batch < g->B; j.batch++)
        for (int64_t col = 0; col < g->col_blocks; col += chunk) {
            int64_t blocks = MIN(chunk, g->col_blocks - col);
            j.col0 = col * g->nb;
            j.panels = (MIN(g->N - j.col0, blocks * g->nb) + SIDE - 1) / SIDE;
            int64_t packs = (j.panels + PACK_PANELS - 1) / PACK_PANELS *
                            ((j.steps + PACK_STEPS - 1) / PACK_STEPS);
            if (j.pack) pool_run(cpu->pool, packs, pack_part, &j);
            pool_run(cpu->pool, blocks * g->row_blocks, amx_part, &j);
        }
}
#endif
