// test_cpu.c: every row of device `cpu` against the oracle on random shapes, types, strides and
// broadcasts; the same bits with one, two and three threads and from run to run; memory between
// and around the rows of an output untouched; the thread pool itself.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "backend/backend.h"
#include "backend/cpu/pool.h"

enum { DEVICES = 4, GUARD = 64 };
static const char *const specs[DEVICES] = {"ref", "cpu", "cpu", "cpu"};
static const int thread_counts[DEVICES] = {0, 1, 2, 3};

typedef struct World {
    Device *dev[DEVICES];
    uint64_t seed;
} World;

static uint32_t draw(World *w) { // xorshift64*
    w->seed ^= w->seed >> 12, w->seed ^= w->seed << 25, w->seed ^= w->seed >> 27;
    return (uint32_t)(w->seed * UINT64_C(2685821657736338717) >> 32);
}
static int64_t pick(World *w, int64_t low, int64_t high) {
    return low + draw(w) % (high - low + 1);
}
static bool chance(World *w, int percent) { return (int)(draw(w) % 100) < percent; }
static float number(World *w) { return (float)draw(w) * 0x1p-31f - 1; }
static DType type(World *w) { return (DType[]){DT_F32, DT_F32, DT_BF16, DT_F16}[draw(w) % 4]; }

// ---- a call with its data on the host -----------------------------------------------------------
typedef struct Case {
    OpCall call;
    uint8_t *data[MAX_OPERANDS]; // with GUARD bytes behind the last element
    size_t size[MAX_OPERANDS];
} Case;

// Sets operand i; `gap` puts unused elements between rows; data is random in -1..1.
static void operand(World *w, Case *c, int i, DType dtype, int ndim, const int64_t *shape,
                    bool gap) {
    TensorRef *t = &c->call.t[i];
    *t = (TensorRef){.buffer = (Buffer *)c, .dtype = dtype, .ndim = ndim};
    int64_t stride = 1;
    for (int d = ndim - 1; d >= 0; d--) {
        t->shape[d] = shape[d];
        t->stride[d] = stride;
        stride *= shape[d];
        if (gap && d > 0 && chance(w, 60)) stride += pick(w, 1, 5);
    }
    t->offset = gap ? (uint64_t)(pick(w, 0, 3) * dtype_size(dtype)) : 0;
    c->size[i] = (size_t)(t->offset + ref_extent(t)) + GUARD;
    c->size[i] = align_up(c->size[i], 4);
    c->data[i] = malloc(c->size[i]);
    for (size_t k = 0; k < c->size[i]; k++) c->data[i][k] = 0x5a;
    for (size_t k = 0; k < (c->size[i] - GUARD) / (size_t)dtype_size(dtype); k++)
        dtype_store(dtype, c->data[i], k, number(w));
}
#define OPERAND(w, c, i, dtype, gap, ...)                                                   \
    operand(w, c, i, dtype, (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)),      \
            (const int64_t[]){__VA_ARGS__}, gap)

static void case_free(Case *c) {
    for (int i = 0; i < MAX_OPERANDS; i++) free(c->data[i]);
}

// Runs the call on a device with the given row (NULL: dispatch's choice); out[i]: operands after.
static void run(Device *dev, const Case *c, const char *row, uint8_t *out[MAX_OPERANDS]) {
    Error err = {0};
    ProgramStep step = {.call = c->call};
    step.call.row = row;
    Buffer *buffers[MAX_OPERANDS] = {NULL};
    for (int i = 0; i < op_info[c->call.op].operand_count; i++) {
        if (!c->data[i]) continue;
        step.call.t[i].buffer = buffers[i] = buf_new(dev, c->size[i], "operand", &err);
        assert_non_null(buffers[i]);
        assert_true(dev_write(buffers[i], 0, c->data[i], c->size[i], &err));
    }
    Program *prog = prog_new(dev, &step, 1, &err);
    if (!prog) fail_msg("%s %s: %s", op_info[c->call.op].name, row, err.text);
    assert_true(prog_run(prog, NULL, &err));
    for (int i = 0; i < MAX_OPERANDS; i++) {
        if (!buffers[i]) continue;
        out[i] = realloc(out[i], c->size[i]);
        assert_true(dev_read(buffers[i], 0, out[i], c->size[i], &err));
        buf_free(buffers[i]);
    }
    prog_free(prog);
}

// Everything but the elements of operand t must be as before; elements must agree within tol of
// the largest, and the output type's rounding.
static void compare(const Case *c, int i, const char *row, const uint8_t *want, const uint8_t *got,
                    double tol) {
    const TensorRef *t = &c->call.t[i];
    size_t size = (size_t)dtype_size(t->dtype);
    double unit = t->dtype == DT_BF16 ? 0x1p-8 : t->dtype == DT_F16 ? 0x1p-10 : 0x1p-23, top = 0;
    uint8_t *element = calloc(1, c->size[i]);
    for (int pass = 0; pass < 2; pass++) {
        int64_t at[MAX_DIMS] = {0};
        for (int64_t left = ref_count(t); left > 0; left--) {
            int64_t place = 0;
            for (int d = 0; d < MAX_DIMS; d++) place += at[d] * ref_stride(t, d);
            size_t byte = (size_t)t->offset + (size_t)place * size;
            double a = dtype_load(t->dtype, want + byte, 0);
            double b = dtype_load(t->dtype, got + byte, 0);
            if (pass == 0) {
                memset(element + byte, 1, size);
                if (isfinite(a)) top = fmax(top, fabs(a));
            } else if (!(fabs(a - b) <= tol * top + 2 * unit * fabs(a)) && a != b &&
                       !(a != a && b != b)) {
                fail_msg("%s %s, operand %s, at %lld: expected %.9g, found %.9g (largest %g)",
                         op_info[c->call.op].name, row, op_info[c->call.op].operand[i].name,
                         (long long)place, a, b, top);
            }
            for (int d = MAX_DIMS - 1; d >= 0 && ++at[d] >= ref_dim(t, d); d--) at[d] = 0;
        }
    }
    for (size_t k = 0; k < c->size[i]; k++)
        if (!element[k] && got[k] != c->data[i][k])
            fail_msg("%s %s: byte %zu between the elements was written", op_info[c->call.op].name,
                     row, k);
    free(element);
}

// All rows that fit, on all devices, against the oracle.
static void check(World *w, Case *c, double tol) {
    const OpInfo *info = &op_info[c->call.op];
    uint8_t *want[MAX_OPERANDS] = {0}, *first[MAX_OPERANDS] = {0}, *got[MAX_OPERANDS] = {0};
    run(w->dev[0], c, NULL, want);
    for (int r = 0; r < dev_row_count(w->dev[1], c->call.op) - 1; r++) {
        const char *row = dev_row_name(w->dev[1], c->call.op, r);
        if (!dev_row_fits(w->dev[1], r, &c->call, NULL)) continue;
        for (int d = 1; d < DEVICES; d++) {
            run(w->dev[d], c, row, d == 1 ? first : got);
            for (int i = 0; i < info->operand_count; i++) {
                if (!c->data[i] || !role_writes(info->operand[i].role)) continue;
                if (d == 1) compare(c, i, row, want[i], first[i], tol);
                else if (memcmp(first[i], got[i], c->size[i]))
                    fail_msg("%s %s: other bits with %d threads", info->name, row,
                             thread_counts[d]);
            }
        }
    }
    for (int i = 0; i < MAX_OPERANDS; i++) free(want[i]), free(first[i]), free(got[i]);
    case_free(c);
}

// ---- ops ----------------------------------------------------------------------------------------
static void test_gemm(void **state) {
    World *w = *state;
    for (int n = 0; n < 120; n++) {
        Case c = {.call = {.op = OP_GEMM}};
        GemmParams *p = &c.call.params.gemm;
        bool big = n % 10 == 0;
        int64_t B = pick(w, 1, 3), M = pick(w, 1, big ? 300 : 40), N = pick(w, 1, big ? 600 : 70);
        int64_t K = chance(w, 10) ? pick(w, 500, 2300) : pick(w, 1, 90);
        DType kind = type(w), odd = chance(w, 25) ? type(w) : kind;
        p->trans_x = chance(w, 30), p->trans_w = chance(w, 40);
        p->act = chance(w, 50) ? 0 : draw(w) % ACT_COUNT;
        int64_t wb = chance(w, 30) ? B : 1;
        bool gap = chance(w, 40);
        OPERAND(w, &c, gemm_x, kind, gap, B, p->trans_x ? K : M, p->trans_x ? M : K);
        OPERAND(w, &c, gemm_w, odd, gap, wb, p->trans_w ? K : N, p->trans_w ? N : K);
        if (chance(w, 25)) {
            int64_t K2 = pick(w, 1, 40);
            OPERAND(w, &c, gemm_x2, kind, gap, B, M, K2);
            OPERAND(w, &c, gemm_w2, odd, gap, chance(w, 30) ? B : 1, N, K2);
        }
        if (chance(w, 50)) OPERAND(w, &c, gemm_bias, type(w), false, 1, 1, N);
        if (chance(w, 40))
            OPERAND(w, &c, gemm_gate, type(w), gap, chance(w, 50) ? B : 1, chance(w, 50) ? M : 1,
                    N);
        if (chance(w, 40)) OPERAND(w, &c, gemm_residual, type(w), gap, B, M, N);
        OPERAND(w, &c, gemm_y, chance(w, 60) ? DT_F32 : type(w), gap, B, M, N);
        check(w, &c, 4e-6 + 1e-7 * sqrt((double)K));
    }
}

static void test_attn(void **state) {
    World *w = *state;
    for (int n = 0; n < 60; n++) {
        Case c = {.call = {.op = OP_ATTN}}, g = {.call = {.op = OP_ATTN_BWD}};
        int64_t B = pick(w, 1, 2), Hk = pick(w, 1, 2), H = Hk * pick(w, 1, 3);
        int64_t T = pick(w, 1, n % 8 ? 40 : 200), D = pick(w, 1, 80);
        int64_t S = chance(w, 50) ? T : pick(w, 1, n % 8 ? 60 : 300);
        bool gap = chance(w, 50);
        c.call.params.attn.scale = chance(w, 50) ? 0 : 0.3f;
        c.call.params.attn.causal = chance(w, 30);
        OPERAND(w, &c, attn_q, type(w), gap, B, T, H, D);
        OPERAND(w, &c, attn_k, type(w), gap, B, S, Hk, D);
        OPERAND(w, &c, attn_v, type(w), gap, B, S, Hk, D);
        if (chance(w, 40)) {
            OPERAND(w, &c, attn_mask, type(w), false, chance(w, 50) ? B : 1, chance(w, 50) ? H : 1,
                    T, S);
            TensorRef *m = &c.call.t[attn_mask];
            for (int64_t i = 0; i < ref_count(m); i++) // some keys hidden, sometimes whole rows
                if (chance(w, 20) || (i / S) % 7 == 3)
                    dtype_store(m->dtype, c.data[attn_mask], (size_t)i, -INFINITY);
        }
        OPERAND(w, &c, attn_y, type(w), gap, B, T, H, D);
        OPERAND(w, &c, attn_lse, DT_F32, gap, B, H, T);
        // The gradient reads what the oracle's forward pass wrote.
        uint8_t *out[MAX_OPERANDS] = {0};
        run(w->dev[0], &c, NULL, out);
        const int from[] = {attn_q, attn_k, attn_v, attn_mask, attn_y, attn_lse};
        const int to[] = {attn_bwd_q,    attn_bwd_k, attn_bwd_v,
                          attn_bwd_mask, attn_bwd_y, attn_bwd_lse};
        for (int i = 0; i < 6; i++) {
            if (!c.data[from[i]]) continue;
            g.call.t[to[i]] = c.call.t[from[i]];
            g.size[to[i]] = c.size[from[i]];
            g.data[to[i]] = out[from[i]];
        }
        g.call.params.attn_bwd.scale = c.call.params.attn.scale;
        g.call.params.attn_bwd.causal = c.call.params.attn.causal;
        OPERAND(w, &g, attn_bwd_dy, type(w), gap, B, T, H, D);
        OPERAND(w, &g, attn_bwd_dq, type(w), gap, B, T, H, D);
        OPERAND(w, &g, attn_bwd_dk, type(w), gap, B, S, Hk, D);
        OPERAND(w, &g, attn_bwd_dv, type(w), gap, B, S, Hk, D);
        bool narrow = true; // all bf16: probabilities may be rounded to it too
        const int rounded[] = {attn_q, attn_k, attn_v, attn_y};
        for (int i = 0; i < 4; i++) narrow = narrow && c.call.t[rounded[i]].dtype == DT_BF16;
        check(w, &c, narrow ? 8e-3 : 4e-6);
        check(w, &g, 2e-5);
    }
}

static void test_norm(void **state) {
    World *w = *state;
    for (int n = 0; n < 80; n++) {
        Case c = {.call = {.op = OP_NORM}}, g = {.call = {.op = OP_NORM_BWD}};
        NormParams *p = &c.call.params.norm;
        int64_t B = pick(w, 1, 3), M = pick(w, 1, 70), C = pick(w, 2, n % 9 ? 100 : 3000);
        bool gap = chance(w, 50);
        *p = (NormParams){.kind = draw(w) % 2, .eps = 1e-6f};
        if (chance(w, 40)) p->act = draw(w) % ACT_COUNT;
        OPERAND(w, &c, norm_x, type(w), gap, B, M, C);
        if (chance(w, 40)) OPERAND(w, &c, norm_weight, type(w), false, 1, 1, C);
        if (chance(w, 40)) OPERAND(w, &c, norm_bias, type(w), false, 1, 1, C);
        int64_t sb = chance(w, 50) ? B : 1, sm = chance(w, 50) ? M : 1;
        if (chance(w, 60)) OPERAND(w, &c, norm_scale, type(w), gap, sb, sm, C);
        if (chance(w, 60)) OPERAND(w, &c, norm_shift, type(w), gap, sb, sm, C);
        OPERAND(w, &c, norm_y, type(w), gap, B, M, C);
        if (chance(w, 60)) OPERAND(w, &c, norm_rstd, DT_F32, false, B, M, 1);
        check(w, &c, 4e-6);
        g.call.params.norm_bwd.kind = draw(w) % 2;
        OPERAND(w, &g, norm_bwd_y, type(w), gap, B, M, C);
        OPERAND(w, &g, norm_bwd_dy, type(w), gap, B, M, C);
        OPERAND(w, &g, norm_bwd_rstd, DT_F32, false, B, M, 1);
        OPERAND(w, &g, norm_bwd_dx, type(w), gap, B, M, C);
        check(w, &g, 4e-6);
    }
}

// Operands of `ewise`: some broadcast, some with another innermost stride.
static void test_ewise(void **state) {
    World *w = *state;
    for (int n = 0; n < 300; n++) {
        Case c = {.call = {.op = OP_EWISE}};
        EwiseParams *p = &c.call.params.ewise;
        *p = (EwiseParams){.kind = (uint32_t)n % EW_COUNT, .alpha = -0.3f, .beta = 0.4f};
        if (p->kind == EW_ACT || p->kind == EW_ACT_BWD) p->act = draw(w) % ACT_COUNT;
        static const int inputs[EW_COUNT] = {1, 1, 2, 2, 2, 2, 2, 3, 3, 1, 1, 1, 1};
        int64_t shape[4];
        int ndim = (int)pick(w, 1, 4);
        for (int d = 0; d < ndim; d++) shape[d] = pick(w, 1, d == ndim - 1 ? 300 : 7);
        if (n % 50 == 0) ndim = 1, shape[0] = 70001;
        for (int i = 0; i < inputs[p->kind]; i++) {
            operand(w, &c, i, type(w), ndim, shape, chance(w, 40));
            for (int d = 0; d < ndim; d++)
                if (chance(w, 20)) c.call.t[i].stride[d] = 0;
            if (p->kind == EW_SQRT || (p->kind == EW_DIV && i == 1)) { // away from poles
                DType t = c.call.t[i].dtype;
                for (size_t k = 0; k < (c.size[i] - GUARD) / (size_t)dtype_size(t); k++)
                    dtype_store(t, c.data[i], k, 0.1f + fabsf(number(w)));
            }
        }
        operand(w, &c, ewise_o, type(w), ndim, shape, chance(w, 40));
        check(w, &c, 1e-6);
    }
}

static void test_copy(void **state) {
    World *w = *state;
    for (int n = 0; n < 150; n++) {
        Case c = {.call = {.op = OP_COPY}};
        int ndim = (int)pick(w, 1, 6), order[6] = {0};
        int64_t shape[6], stored[6];
        for (int d = 0; d < ndim; d++) shape[d] = pick(w, 1, 9), order[d] = d;
        for (int d = ndim - 1; d > 0; d--) { // a random permutation
            int e = (int)pick(w, 0, d), o = order[d];
            order[d] = order[e], order[e] = o;
        }
        for (int d = 0; d < ndim; d++) stored[d] = shape[order[d]];
        int side = draw(w) % 2; // which side is permuted
        operand(w, &c, side, type(w), ndim, stored, chance(w, 50));
        TensorRef permuted = c.call.t[side];
        for (int d = 0; d < ndim; d++) {
            c.call.t[side].shape[order[d]] = permuted.shape[d];
            c.call.t[side].stride[order[d]] = permuted.stride[d];
        }
        operand(w, &c, !side, type(w), ndim, shape, chance(w, 50));
        check(w, &c, 0);
    }
}

static void test_reduce(void **state) {
    World *w = *state;
    for (int n = 0; n < 120; n++) {
        Case c = {.call = {.op = OP_REDUCE}};
        ReduceParams *p = &c.call.params.reduce;
        *p = (ReduceParams){.kind = draw(w) % 2, .alpha = chance(w, 50) ? 0 : 0.25f,
                            .accumulate = draw(w) % 2};
        int64_t A = pick(w, 1, 4), R = pick(w, 1, 400), C = chance(w, 40) ? 1 : pick(w, 1, 300);
        if (n % 20 == 0) A = C = 1, R = pick(w, 30000, 90000);
        OPERAND(w, &c, reduce_x, type(w), chance(w, 50), A, R, C);
        bool one = p->kind == REDUCE_NONFINITE;
        OPERAND(w, &c, reduce_y, DT_F32, false, one ? 1 : A, 1, one ? 1 : C);
        const TensorRef *x = &c.call.t[reduce_x];
        if (p->kind == REDUCE_NONFINITE && chance(w, 60))
            dtype_store(x->dtype, c.data[reduce_x] + x->offset,
                        (size_t)pick(w, 0, R - 1) * (size_t)x->stride[1],
                        chance(w, 50) ? NAN : -INFINITY);
        check(w, &c, 2e-6);
    }
}

static void test_embed(void **state) {
    World *w = *state;
    for (int n = 0; n < 40; n++) {
        Case c = {.call = {.op = OP_EMBED}}, g = {.call = {.op = OP_EMBED_BWD}};
        int64_t V = pick(w, 1, 20), D = pick(w, 1, n % 5 ? 90 : 2500), N = pick(w, 1, 50);
        bool gap = chance(w, 50);
        OPERAND(w, &c, embed_table, type(w), gap, V, D);
        OPERAND(w, &c, embed_y, type(w), gap, N, D);
        OPERAND(w, &g, embed_bwd_dy, type(w), gap, N, D);
        OPERAND(w, &g, embed_bwd_dtable, type(w), gap, V, D);
        OPERAND(w, &c, embed_ids, DT_I32, false, N);
        OPERAND(w, &g, embed_bwd_ids, DT_I32, false, N);
        for (int64_t i = 0; i < N; i++) { // some outside the table
            int32_t id = (int32_t)pick(w, -1, V);
            memcpy(c.data[embed_ids] + 4 * i, &id, 4);
            memcpy(g.data[embed_bwd_ids] + 4 * i, &id, 4);
        }
        check(w, &c, 0);
        check(w, &g, 1e-6);
    }
}

static void test_adamw(void **state) {
    World *w = *state;
    for (int n = 0; n < 30; n++) {
        Case c = {.call = {.op = OP_ADAMW}};
        int64_t N = pick(w, 1, n % 5 ? 200 : 40000);
        OPERAND(w, &c, adamw_p, DT_F32, false, N);
        OPERAND(w, &c, adamw_m, DT_F32, false, N);
        OPERAND(w, &c, adamw_v, DT_F32, false, N);
        float *v = (float *)c.data[adamw_v];
        for (int64_t i = 0; i < N; i++) v[i] = number(w) < 0 ? 0 : 1e-3f * fabsf(v[i]);
        if (chance(w, 60)) OPERAND(w, &c, adamw_ema, DT_F32, false, N);
        OPERAND(w, &c, adamw_g, type(w), false, N);
        OPERAND(w, &c, adamw_hyper, DT_F32, false, ADAMW_HYPER_COUNT);
        const float hyper[ADAMW_HYPER_COUNT] = {3e-4f, 0.9f,   0.999f, 1e-8f, 0.01f,
                                               0.19f, 0.002f, 0.5f,   0.99f};
        memcpy(c.data[adamw_hyper], hyper, sizeof hyper);
        if (chance(w, 50)) {
            OPERAND(w, &c, adamw_found_inf, DT_F32, false, 1);
            *(float *)c.data[adamw_found_inf] = chance(w, 50);
        }
        check(w, &c, 1e-6);
    }
}

// ---- the pool -----------------------------------------------------------------------------------
enum { PARTS = 1000 };
typedef struct Count { atomic_int seen[PARTS]; atomic_int in_use[8]; } Count;

static void count_part(void *arg, int64_t part, int thread) {
    Count *c = arg;
    assert_int_equal(atomic_fetch_add(&c->in_use[thread], 1), 0); // a thread number is used once
    atomic_fetch_add(&c->seen[part], 1);
    atomic_fetch_sub(&c->in_use[thread], 1);
}

static void test_pool(void **state) {
    (void)state;
    for (int threads = 1; threads <= 4; threads++) {
        Pool *pool = pool_new(NULL, threads);
        for (int n = 0; n < 300; n++) {
            Count *c = calloc(1, sizeof *c);
            int parts = n % 7 ? n % 13 : PARTS;
            if (n % 50 == 49) os_sleep(0.002); // workers fall asleep
            pool_run(pool, parts, count_part, c);
            for (int i = 0; i < PARTS; i++) assert_int_equal(c->seen[i], i < parts);
            free(c);
        }
        pool_free(pool);
    }
}

static int set_up(void **state) {
    World *w = MEM_NEW(NULL, World);
    w->seed = 0x9e3779b97f4a7c15;
    for (int i = 0; i < DEVICES; i++) {
        Error err = {0};
        w->dev[i] = dev_open(NULL, specs[i], &(DeviceOptions){.threads = thread_counts[i]}, &err);
        if (!w->dev[i]) return -1;
    }
    *state = w;
    return 0;
}

static int tear_down(void **state) {
    World *w = *state;
    for (int i = 0; i < DEVICES; i++) dev_close(w->dev[i]);
    mem_free(w);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pool),  cmocka_unit_test(test_gemm),   cmocka_unit_test(test_attn),
        cmocka_unit_test(test_norm),  cmocka_unit_test(test_ewise),  cmocka_unit_test(test_copy),
        cmocka_unit_test(test_reduce), cmocka_unit_test(test_embed), cmocka_unit_test(test_adamw),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
