// conv_amx_bf16.c: convolutions of bf16 on AMX tiles: 16 outputs of a row read their tap's channels
// from the patch as the rows of a tile; sums of all taps stay in tiles until they are done.
#include "backend/cpu/fast/conv.h"

#if HAVE_AVX512_BF16 && defined(__AVX512F__)
#include "backend/cpu/fast/amx.h"

static int64_t steps_of(const ConvJob *j) { return (j->C + STEP - 1) / STEP; }

static void copy_bf16(void *to, DType type, const void *from, int64_t n, int64_t pixel) {
    (void)type;
    size_t bytes = from ? (size_t)n * 2 : 0;
    if (bytes) memcpy(to, from, bytes);
    if (bytes < (size_t)pixel * 2) memset((char *)to + bytes, 0, (size_t)pixel * 2 - bytes);
}

// One tap of 32 outputs as right tiles [steps][2]; parts: [panels][taps].
static void pack_part(void *arg, int64_t part, int thread) {
    (void)thread;
    const ConvJob *j = arg;
    const TensorRef *w = &j->c->t[conv2d_w];
    int64_t taps = j->R * j->S, tap = part % taps, n = part / taps * SIDE, steps = steps_of(j);
    uint16_t *to = (uint16_t *)j->pack + part * steps * 2 * TILE;
    int64_t stride = stride_of(w, 2);
    int64_t place = n * stride + tap / j->S * stride_of(w, 3) + tap % j->S * stride_of(w, 4);
    const uint16_t *from = (const uint16_t *)(void *)at(w, place);
    for (int64_t i = 0; i < 2 * steps; i++)
        columns_tile(to + i * TILE, from + i % 2 * 16 * stride + i / 2 * STEP, stride,
                     j->O - n - i % 2 * 16, j->C - i / 2 * STEP);
}

// c [32, 32] = the sums over all taps: rows of 16 outputs at a and b, taps at `offset` bytes from
// them, rows `rows` bytes apart.
TILES static void micro_taps(float *c, const char *a, const char *b, const int64_t *offset,
                             int64_t taps, int64_t rows, int64_t steps, const char *w) {
    MEMORY;
    sums_zero();
    for (int64_t t = 0; t < taps; t++) {
        const char *x = a + offset[t], *x2 = b + offset[t];
        for (int64_t i = 0; i < steps; i++, x += 64, x2 += 64, w += 4 * TILE)
            sums_add(x, x2, rows, w);
    }
    sums_store(c, SIDE);
    MEMORY;
}

static void conv_amx_part(void *arg, int64_t part, int thread) {
    const ConvJob *j = arg;
    ConvTile t = conv_tile(j, part);
    char *patch = cpu_scratch(j->cpu, thread);
    float *acc = (float *)(void *)(patch + CONV_ACC);
    int64_t *offset = (int64_t *)(void *)(acc + SIDE * SIDE), taps = j->R * j->S;
    int64_t size = 2 * j->pixel, across = (t.cols + 15) / 16, halves = across * t.rows;
    for (int64_t k = 0; k < taps; k++)
        offset[k] = (k / j->S * j->pw + k % j->S) * j->dilation * size;
    conv_patch(j, &t, 0, patch, 2, copy_bf16);
    tiles_on();
    for (int64_t n = 0; n < j->O; n += SIDE) {
        const char *w = (char *)j->pack + n / SIDE * taps * steps_of(j) * 4 * TILE;
        for (int64_t half = 0; half < halves; half += 2) {
            const char *from[2];
            for (int k = 0; k < 2; k++) { // the second of an odd number: the first again
                int64_t at = MIN(half + k, halves - 1);
                from[k] = patch + (at / across * j->pw + at % across * 16) * j->stride * size;
            }
            micro_taps(acc, from[0], from[1], offset, taps, j->stride * size, steps_of(j), w);
            for (int64_t k = half; k < MIN(half + 2, halves); k++)
                j->store(j->c, t.b, t.h0 + k / across, t.w0 + k % across * 16,
                         MIN(16, t.cols - k % across * 16), n, MIN(SIDE, j->O - n),
                         acc + (k - half) * 16 * SIDE, SIDE);
        }
    }
    tiles_off();
}

void conv2d_amx(Cpu *cpu, const OpCall *c) {
    ConvJob j;
    // Pixels an odd number of cache lines apart do not meet in the same sets.
    int64_t lines = (c->t[conv2d_w].shape[3] + STEP - 1) / STEP;
    conv_setup(&j, cpu, c, (lines | 1) * STEP, 2);
    j.store = conv2d_store_avx512;
    if (!cpu->pack) cpu->pack = os_block_new(CONV_PACK);
    if (!cpu->pack) {
        conv2d_avx512(cpu, c);
        return;
    }
    j.pack = cpu->pack;
    pool_run(cpu->pool, (j.O + SIDE - 1) / SIDE * j.R * j.S, pack_part, &j);
    pool_run(cpu->pool, j.B * j.tiles_h * j.tiles_w, conv_amx_part, &j);
}
#endif
