// gemm_amx_bf16.c: products of bf16 matrices on AMX tiles, accumulated in f32. A micro kernel makes
// 32 x 32 outputs from 2 x 2 tiles; w is packed once per call for all threads, x per part where it
// does not lie as tiles need it. Long sums go in blocks of K that keep both operands in the
// second-level cache.
//
// A tile holds 16 rows of 64 bytes: of x, 16 rows of 32 k; of w, 16 pairs of k of 16 columns (the
// two k of a pair side by side).
#include "backend/cpu/fast/gemm.h"

#if HAVE_AVX512_BF16 && defined(__AVX512F__)
#include "backend/cpu/fast/vec.h"

#define TILES __attribute__((target("amx-tile,amx-bf16")))

enum {
    SIDE = 32,        // outputs of the micro kernel in each direction
    STEP = 32,        // k of a tile
    KB = 512,         // k of a block
    TILE = 512,       // bf16 in a tile
    TALL = 2048,      // k from which parts pack w themselves
    PACKED_X = 256 * KB,    // bf16 in a packed block of x, at most
    PACK_BYTES = 32 << 20,  // w packed for all threads
};

typedef struct AmxJob {
    GemmJob gemm;
    int64_t batch, steps;  // tiles along k
    int64_t col0, panels;  // first column and 32-column panels of the running chunk
    uint16_t *pack;        // [panels][steps][2 tiles]; NULL: each part packs its blocks of w
} AmxJob;

// ---- packing ----------------------------------------------------------------------------------
static __mmask16 first16(int64_t n) {
    return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1 << n) - 1);
}
static __mmask32 first32(int64_t n) {
    return n >= 32 ? 0xffffffff : n <= 0 ? 0 : ((__mmask32)1 << n) - 1;
}

// 16 columns of rows p and p + stride as 16 pairs; those past `cols` or without a row are 0.
INLINE __m512i pairs(const uint16_t *p, int64_t stride, int64_t cols, int64_t rows) {
    __m512i a = _mm512_setzero_si512(), b = a;
    if (rows > 0) a = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first16(cols), p));
    if (rows > 1) b = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first16(cols), p + stride));
    return _mm512_or_si512(a, _mm512_slli_epi32(b, 16));
}

// A tile from `rows` rows of `n` numbers along k, as they lie; what is missing to 16 and 32 is 0.
static void rows_tile(uint16_t *to, const uint16_t *from, int64_t stride, int64_t rows, int64_t n) {
    for (int64_t i = 0; i < 16; i++)
        _mm512_storeu_si512(to + i * STEP,
                            i < rows ? _mm512_maskz_loadu_epi16(first32(n), from + i * stride)
                                     : _mm512_setzero_si512());
}

// Tiles whose row i is pair i of k, from k rows of `cols` contiguous columns: [panels][steps][2
// tiles], panels `panel` elements apart. Whole rows are read in turn: columns are far apart in
// memory, a column at a time would miss the cache at every step.
static void pairs_tiles(uint16_t *to, int64_t panel, const uint16_t *from, int64_t stride,
                        int64_t k, int64_t cols) {
    for (int64_t i = 0; i < (int64_t)align_up((uint64_t)k, STEP); i += 2, from += 2 * stride) {
        uint16_t *row = to + i / STEP * 2 * TILE + i % STEP / 2 * STEP;
        for (int64_t n = 0; n < cols; n += SIDE, row += panel) {
            _mm512_storeu_si512(row, pairs(from + n, stride, cols - n, k - i));
            _mm512_storeu_si512(row + TILE, pairs(from + n + 16, stride, cols - n - 16, k - i));
        }
    }
}

static void transpose_tile(uint16_t *tile) { // pairs as single 32-bit elements
    float *p = (float *)(void *)tile;
    transpose(p, 16, p, 16);
}

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
                uint16_t *tile = to + (2 * i + half) * TILE;
                int64_t c = n + half * 16;
                rows_tile(tile, w + c * s->wn + i * STEP, s->wn, cols - c, k - i * STEP);
                transpose_tile(tile);
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
            if (s->xk != 1) transpose_tile(to);
            else rows_tile(to, x + (m + i % 2 * 16) * s->xr + at, s->xr, n, k - at);
        }
}

// ---- tiles ------------------------------------------------------------------------------------
// Compilers do not see what the tile instructions read and write: MEMORY says "anything".
#define MEMORY __asm__ volatile("" ::: "memory")

TILES static void tiles_on(void) {
    static const struct {
        uint8_t palette, start, zero[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1,
                .bytes = {64, 64, 64, 64, 64, 64, 64, 64},
                .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
    MEMORY;
    _tile_loadconfig(&config);
}
TILES static void tiles_off(void) { _tile_release(); }

// c [32, 32] (+)= x w over `steps` tiles of k. x: rows `xs` bytes apart, its second 16 rows at x2,
// tiles `xt` bytes apart.
TILES static void micro(float *c, int64_t ld, const char *x, const char *x2, int64_t xs, int64_t xt,
                        const char *w, int64_t steps, bool add) {
    MEMORY;
    if (add) {
        _tile_loadd(0, c, ld * 4);
        _tile_loadd(1, c + 16, ld * 4);
        _tile_loadd(2, c + 16 * ld, ld * 4);
        _tile_loadd(3, c + 16 * ld + 16, ld * 4);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t i = 0; i < steps; i++, x += xt, x2 += xt, w += 4 * TILE) {
        _tile_loadd(4, x, xs);
        _tile_loadd(6, w, 64);
        _tile_loadd(5, x2, xs);
        _tile_loadd(7, w + 2 * TILE, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, ld * 4);
    _tile_stored(1, c + 16, ld * 4);
    _tile_stored(2, c + 16 * ld, ld * 4);
    _tile_stored(3, c + 16 * ld + 16, ld * 4);
    MEMORY;
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

void gemm_amx(Cpu *cpu, const OpCall *c) {
    AmxJob j = {0};
    GemmJob *g = &j.gemm;
    gemm_setup(g, cpu, c);
    cut(g);
    j.steps = (g->seg[0].K + STEP - 1) / STEP;
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
