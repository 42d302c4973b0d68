// simd_conv.h: convolutions of any float types in f32, tap by tap on the small matrix product of
// simd_attn.h: [pixels of a row, C] of the patch by [C, CONV_COLS] of the packed weights.
#include "backend/cpu/fast/conv.h"

enum { CONV_COLS = NV_MAX * W };

static void copy_f32(void *to, DType type, const void *from, int64_t n, int64_t pixel) {
    (void)pixel;
    if (from) row_load(to, type, from, n);
    else memset(to, 0, (size_t)n * sizeof(float));
}

// One tap of CONV_COLS outputs of a group, as [C, CONV_COLS]; parts: [groups][panels][taps].
static void conv_pack_part(void *arg, int64_t part, int thread) {
    const ConvJob *j = arg;
    const TensorRef *w = &j->c->t[conv2d_w];
    int64_t taps = j->R * j->S, O = j->O / j->groups, panels = (O + CONV_COLS - 1) / CONV_COLS;
    int64_t tap = part % taps, n0 = part / taps % panels * CONV_COLS, group = part / taps / panels;
    float *to = (float *)j->pack + part * j->C * CONV_COLS, *row = cpu_scratch(j->cpu, thread);
    memset(to, 0, (size_t)(j->C * CONV_COLS) * sizeof *to);
    for (int64_t o = 0; o < MIN(CONV_COLS, O - n0); o++) {
        int64_t place = (group * O + n0 + o) * ref_stride(w, 2) + tap / j->S * ref_stride(w, 3) +
                        tap % j->S * ref_stride(w, 4);
        const float *from = row_view(row, w->dtype, at(w, place), j->C);
        for (int64_t c = 0; c < j->C; c++) to[c * CONV_COLS + o] = from[c];
    }
}

static void conv_part(void *arg, int64_t part, int thread) {
    const ConvJob *j = arg;
    ConvTile t = conv_tile(j, part);
    float *patch = cpu_scratch(j->cpu, thread), *acc = patch + CONV_ACC / sizeof(float);
    int64_t taps = j->R * j->S, O = j->O / j->groups, panels = (O + CONV_COLS - 1) / CONV_COLS;
    for (int64_t group = 0; group < j->groups; group++) {
        conv_patch(j, &t, group * j->C, patch, sizeof(float), copy_f32);
        for (int64_t n = 0; n < panels; n++) {
            const float *w = (float *)j->pack + (group * panels + n) * taps * j->C * CONV_COLS;
            for (int64_t r = 0; r < t.rows; r++) {
                for (int64_t tap = 0; tap < taps; tap++) {
                    int64_t row = r * j->stride + tap / j->S * j->dilation;
                    const float *a = patch + (row * j->pw + tap % j->S * j->dilation) * j->pixel;
                    mm_wide(acc, CONV_COLS, a, j->stride * j->pixel, 1, w + tap * j->C * CONV_COLS,
                            CONV_COLS, t.cols, j->C, tap > 0);
                }
                j->store(j->c, t.b, t.h0 + r, t.w0, t.cols, group * O + n * CONV_COLS,
                         MIN(CONV_COLS, O - n * CONV_COLS), acc, CONV_COLS);
            }
        }
    }
}

// y[b, h, w + i, o0 + k] for `pixels` outputs of a row and n <= 512 channels, from acc [pixels, ld].
void FN(conv2d_store)(const OpCall *c, int64_t b, int64_t h, int64_t w, int64_t pixels, int64_t o0,
                      int64_t n, const float *acc, int64_t ld) {
    enum { COLS = 512 };
    const TensorRef *y = &c->t[conv2d_y], *bias = &c->t[conv2d_bias], *res = &c->t[conv2d_residual];
    float tmp[2][COLS], out[COLS];
    const float *in[3] = {NULL};
    int have = !!has(bias) + 4 * !!has(res);
    uint32_t act = c->params.conv2d.act;
    if (has(bias)) in[0] = row_view(tmp[0], bias->dtype, at(bias, o0), n);
    for (int64_t i = 0; i < pixels; i++) {
        const TensorRef *rows[] = {y, res};
        char *place[2] = {NULL};
        for (int k = 0; k < 1 + has(res); k++)
            place[k] = at(rows[k], b * stride_of(rows[k], 2) + h * stride_of(rows[k], 3) +
                                       (w + i) * stride_of(rows[k], 4) + o0);
        if (has(res)) in[2] = row_view(tmp[1], res->dtype, place[1], n);
        const float *from = acc + i * ld;
        if (have || act) {
            float *to = y->dtype == DT_F32 ? (float *)(void *)place[0] : out;
            epilogue_row(act, have, from, in, to, n);
            from = to;
        }
        row_store(y->dtype, place[0], from, n);
    }
}

void FN(conv2d)(Cpu *cpu, const OpCall *c) {
    ConvJob j;
    conv_setup(&j, cpu, c, c->t[conv2d_w].shape[3], sizeof(float));
    j.store = FN(conv2d_store);
    if (!cpu->pack) cpu->pack = os_block_new(CONV_PACK);
    if (!cpu->pack) {
        ref_conv2d(c);
        return;
    }
    j.pack = cpu->pack;
    int64_t panels = (j.O / j.groups + CONV_COLS - 1) / CONV_COLS;
    pool_run(cpu->pool, j.groups * panels * j.R * j.S, conv_pack_part, &j);
    pool_run(cpu->pool, j.B * j.tiles_h * j.tiles_w, conv_part, &j);
}
