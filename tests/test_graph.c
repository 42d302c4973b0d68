// test_graph.c: recording, gradients and plans, on the oracle: views and concat, gradients of ops
// and views against finite differences, the same graph under every way of planning.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>

#include "engine/graph_impl.h"
#include "engine/plan.h"

// ---- a small harness --------------------------------------------------------------------------

typedef struct Rig {
    Device *dev;
    Store *store;
    Graph *g;
    Run *run;
    Plan *plan;
    Error err;
} Rig;

static Rig rig_new(const char *device) {
    Rig r = {0};
    r.dev = dev_open(NULL, device, NULL, &r.err);
    assert_non_null(r.dev);
    r.store = store_new(r.dev, r.dev);
    r.g = g_new(r.dev);
    return r;
}

static void rig_ready(Rig *r, const RunOptions *options) {
    r->run = run_new(r->dev, r->dev, options);
    run_add_store(r->run, r->store);
    r->plan = run_add_plan(r->run, r->g, "test", &r->err);
    if (!r->plan || !run_prepare(r->run, &r->err)) fail_msg("%s", r->err.text);
}

static void rig_done(Rig *r) {
    run_free(r->run);
    store_free(r->store);
    dev_close(r->dev);
}

static void run(Rig *r) {
    if (!plan_run(r->plan, NULL, &r->err)) fail_msg("%s", r->err.text);
}

static void write_f32(Rig *r, Tensor *t, const float *v) {
    assert_true(plan_write(r->plan, t, DT_F32, v, &r->err));
}

static void read_f32(Rig *r, Tensor *t, float *v) {
    assert_true(plan_read(r->plan, t, DT_F32, v, &r->err));
}

// Deterministic values in -1..1.
static float noise(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return (float)(*state >> 8) / 8388608.0f - 1.0f;
}

static int64_t count_of(const Tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->ndim; i++) n *= t->shape[i];
    return n;
}

// ---- views ------------------------------------------------------------------------------------

// y[b, h, t, d] picked out of x [B, T, 3, H, D] by reshape, slice and permute, then copied.
static void test_views(void **state) {
    (void)state;
    enum { B = 2, T = 3, H = 2, D = 4 };
    Rig r = rig_new("ref");
    Tensor *x = g_input(r.g, "x", DT_F32, DIMS(B, T, 3 * H * D));
    Tensor *split = g_reshape(x, DIMS(B, T, 3, H, D));
    Tensor *second = g_reshape(g_slice(split, 2, 1, 1), DIMS(B, T, H, D));
    int before = g_node_count(r.g);
    Tensor *heads = g_permute(second, ORDER(0, 2, 1, 3));
    assert_int_equal(g_node_count(r.g), before); // views record nothing
    Tensor *y = g_output(r.g, "y", g_copy(r.g, COPY(.x = heads)));
    rig_ready(&r, NULL);
    float in[B * T * 3 * H * D], out[B * H * T * D];
    for (int i = 0; i < (int)COUNT_OF(in); i++) in[i] = (float)i;
    write_f32(&r, x, in);
    run(&r);
    read_f32(&r, y, out);
    for (int b = 0; b < B; b++)
        for (int h = 0; h < H; h++)
            for (int t = 0; t < T; t++)
                for (int d = 0; d < D; d++)
                    assert_true(out[((b * H + h) * T + t) * D + d] ==
                                in[((b * T + t) * 3 + 1) * H * D + h * D + d]);
    rig_done(&r);
}

// Fresh results write straight into the concatenation; inputs and viewed tensors are copied.
static void test_concat(void **state) {
    (void)state;
    Rig r = rig_new("ref");
    Tensor *x = g_input(r.g, "x", DT_F32, DIMS(2, 3));
    Tensor *parts[3] = {g_scale(x, 2, 0), x, g_scale(x, 3, 0)};
    g_reshape(parts[2], DIMS(6)); // now somebody has looked at it
    int before = g_node_count(r.g);
    Tensor *all = g_concat(r.g, 1, 3, parts);
    assert_int_equal(g_node_count(r.g) - before, 2); // two copies, not three
    Tensor *y = g_output(r.g, "y", g_add(all, all));
    rig_ready(&r, NULL);
    const float in[6] = {1, 2, 3, 4, 5, 6};
    float out[18];
    write_f32(&r, x, in);
    run(&r);
    read_f32(&r, y, out);
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < 3; j++) {
            assert_true(out[i * 9 + j] == 4 * in[i * 3 + j]);
            assert_true(out[i * 9 + 3 + j] == 2 * in[i * 3 + j]);
            assert_true(out[i * 9 + 6 + j] == 6 * in[i * 3 + j]);
        }
    rig_done(&r);
}

static void test_errors_stick(void **state) {
    (void)state;
    Rig r = rig_new("ref");
    Tensor *x = g_input(r.g, "x", DT_F32, DIMS(2, 3));
    g_scope(r.g, "blocks.7");
    g_reshape(x, DIMS(7)); // wrong
    g_add(x, x);           // goes on harmlessly
    r.run = run_new(r.dev, r.dev, NULL);
    assert_null(run_add_plan(r.run, r.g, "step", &r.err));
    assert_non_null(strstr(r.err.text, "blocks.7"));
    assert_non_null(strstr(r.err.text, "reshape"));
    rig_done(&r);
}

// ---- gradients against finite differences -----------------------------------------------------

// A case builds a value from up to three params; the loss is its mean squared distance to a
// fixed target, whose own derivative is exact in f64 outside.
typedef struct GradCase {
    const char *name;
    Tensor *(*build)(Graph *g, Tensor **p);
    struct { int ndim; int64_t shape[4]; } param[4];
} GradCase;

static Tensor *build_gemm(Graph *g, Tensor **p) {
    return g_gemm(g, GEMM(.x = p[0], .w = p[1], .bias = p[2], .act = ACT_GELU));
}
static Tensor *build_gemm_gate(Graph *g, Tensor **p) {
    return g_gemm(g, GEMM(.x = p[0], .w = p[1], .gate = p[2], .residual = p[3]));
}
static Tensor *build_gemm_lora(Graph *g, Tensor **p) {
    return g_gemm(g, GEMM(.x = p[0], .w = p[1], .x2 = p[0], .w2 = p[2]));
}
// q, k, v are slices of one tensor, as a transformer makes them.
static Tensor *build_attn(Graph *g, Tensor **p) {
    Tensor *qkv = g_gemm(g, GEMM(.x = p[0], .w = p[1])), *s[3];
    Tensor *split = g_reshape(qkv, DIMS(2, 3, 3, 2, 2));
    for (int i = 0; i < 3; i++) s[i] = g_reshape(g_slice(split, 2, i, 1), DIMS(2, 3, 2, 2));
    return g_reshape(g_attn(g, ATTN(.q = s[0], .k = s[1], .v = s[2])), DIMS(2, 3, 4));
}
static Tensor *build_attn_shared(Graph *g, Tensor **p) { // one slice used as k and v, GQA, causal
    return g_attn(g, ATTN(.q = p[0], .k = p[1], .v = p[1], .causal = 1));
}
static Tensor *build_norm(Graph *g, Tensor **p) {
    return g_norm(g, NORM(.x = p[0], .eps = 1e-5f, .scale = p[1], .shift = p[2], .weight = p[3]));
}
static Tensor *build_rms(Graph *g, Tensor **p) {
    return g_norm(g, NORM(.x = p[0], .kind = NORM_RMS, .eps = 1e-5f, .weight = p[1], .act = ACT_SILU));
}
static Tensor *build_ewise(Graph *g, Tensor **p) {
    Tensor *exp = g_ewise(g, EWISE(.kind = EW_EXP, .x = p[0]));
    Tensor *root = g_ewise(g, EWISE(.kind = EW_SQRT, .x = exp));
    Tensor *quotient = g_ewise(g, EWISE(.kind = EW_DIV, .x = p[1], .y = root));
    Tensor *act = g_act(quotient, ACT_SILU, DT_F32);
    return g_sub(g_mul(act, p[2]), g_scale(p[0], 0.5f, 1));
}
// Slices that leave a gap, one of them used twice and through a reshape.
static Tensor *build_slices(Graph *g, Tensor **p) {
    (void)g;
    Tensor *y = g_scale(p[0], 2, 0);
    Tensor *a = g_slice(y, 1, 0, 2), *b = g_slice(y, 1, 3, 2), *again = g_slice(y, 1, 0, 2);
    Tensor *flat = g_reshape(a, DIMS(2, 2));
    return g_add(g_mul(flat, b), g_add(g_mul(a, a), again));
}
// A slice whose gradient is written in place through a reshape (by the last op, which is the first
// to be visited), where both get more of it: directly, through other reshapes, another slice.
static Tensor *build_placed(Graph *g, Tensor **p) {
    Tensor *y = g_scale(p[0], 2, 0);                  // [1, 3, 2 * 4]
    Tensor *s = g_slice(y, 2, 0, 4), *k = g_slice(y, 2, 4, 4);
    Tensor *early = g_reshape(s, DIMS(3, 4)), *q = g_reshape(s, DIMS(1, 3, 2, 2));
    Tensor *late = g_reshape(s, DIMS(3, 2, 2)), *again = g_slice(y, 2, 0, 4);
    Tensor *keys = g_reshape(k, DIMS(1, 3, 2, 2));
    Tensor *sum = g_add(g_act(s, ACT_TANH, DT_F32), g_mul(again, again));
    sum = g_add(sum, g_reshape(g_mul(early, early), DIMS(1, 3, 4)));
    sum = g_add(sum, g_reshape(g_act(q, ACT_SIGMOID, DT_F32), DIMS(1, 3, 4)));
    sum = g_add(sum, g_reshape(g_act(late, ACT_SILU, DT_F32), DIMS(1, 3, 4)));
    sum = g_mul(g_add(sum, g_mul(s, k)), p[1]);
    return g_add(sum, g_reshape(g_attn(g, ATTN(.q = q, .k = keys, .v = keys)), DIMS(1, 3, 4)));
}
// The same, the slice itself written in place first.
static Tensor *build_placed_slice(Graph *g, Tensor **p) {
    Tensor *y = g_scale(p[0], 2, 0); // [1, 3, 2, 2 * 2]
    Tensor *s = g_slice(y, 3, 0, 2), *k = g_slice(y, 3, 2, 2);
    Tensor *flat = g_reshape(s, DIMS(3, 2, 2)), *again = g_slice(y, 3, 0, 2);
    Tensor *sum = g_reshape(g_mul(flat, flat), DIMS(1, 3, 2, 2));
    sum = g_add(sum, g_mul(again, p[1]));
    return g_add(sum, g_attn(g, ATTN(.q = s, .k = k, .v = k)));
}
// Two reshapes of one slice: the first written in place, the second not.
static Tensor *build_placed_twice(Graph *g, Tensor **p) {
    Tensor *y = g_scale(p[0], 2, 0);
    Tensor *s = g_slice(y, 2, 0, 4), *k = g_reshape(g_slice(y, 2, 4, 4), DIMS(1, 3, 2, 2));
    Tensor *q = g_reshape(s, DIMS(1, 3, 2, 2)), *other = g_reshape(s, DIMS(1, 3, 2, 2));
    Tensor *twice = g_attn(g, ATTN(.q = other, .k = k, .v = k));
    return g_add(g_mul(twice, p[1]), g_attn(g, ATTN(.q = q, .k = k, .v = k)));
}
static Tensor *build_concat(Graph *g, Tensor **p) {
    Tensor *parts[2] = {g_act(p[0], ACT_TANH, DT_F32), g_act(p[1], ACT_SIGMOID, DT_F32)};
    Tensor *all = g_concat(g, 1, 2, parts);
    return g_mul(all, all);
}
static Tensor *build_permute(Graph *g, Tensor **p) {
    Tensor *t = g_permute(p[0], ORDER(2, 0, 1));
    return g_gemm(g, GEMM(.x = t, .w = p[1]));
}
static Tensor *build_embed(Graph *g, Tensor **p) {
    Tensor *ids = g_cast(g_slice(p[1], 0, 0, 1), DT_F32); // keeps p[1] in the graph
    Tensor *id = g_input(g, "ids", DT_I32, DIMS(3));
    Tensor *rows = g_embed(g, EMBED(.table = p[0], .ids = id));
    return g_mul(rows, ids);
}

static const GradCase grad_cases[] = {
    {"gemm", build_gemm, {{2, {3, 5}}, {2, {4, 5}}, {1, {4}}}},
    {"gemm gate residual", build_gemm_gate, {{3, {2, 3, 5}}, {2, {4, 5}}, {3, {2, 1, 4}}, {3, {2, 3, 4}}}},
    {"gemm second segment", build_gemm_lora, {{2, {3, 5}}, {2, {4, 5}}, {2, {4, 5}}}},
    {"attn of slices", build_attn, {{3, {2, 3, 4}}, {2, {12, 4}}}},
    {"attn shared kv", build_attn_shared, {{4, {1, 3, 4, 2}}, {4, {1, 3, 2, 2}}}},
    {"norm modulated", build_norm, {{3, {2, 3, 5}}, {3, {2, 1, 5}}, {3, {2, 1, 5}}, {1, {5}}}},
    {"rms norm", build_rms, {{2, {3, 5}}, {1, {5}}}},
    {"ewise", build_ewise, {{2, {3, 4}}, {2, {3, 1}}, {1, {4}}}},
    {"slices with a gap", build_slices, {{2, {2, 6}}}},
    {"slice placed through a reshape", build_placed, {{3, {1, 3, 8}}, {1, {4}}}},
    {"slice placed", build_placed_slice, {{4, {1, 3, 2, 4}}, {1, {2}}}},
    {"two reshapes of a slice", build_placed_twice, {{3, {1, 3, 8}}, {1, {2}}}},
    {"concat", build_concat, {{2, {2, 3}}, {2, {2, 2}}}},
    {"permute", build_permute, {{3, {2, 3, 2}}, {2, {4, 3}}}},
    {"embed", build_embed, {{2, {4, 3}}, {2, {2, 3}}}},
};

// Sum over elements of (y - target)^2 / n in f64.
static double loss_of(const float *y, const float *target, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += ((double)y[i] - target[i]) * ((double)y[i] - target[i]);
    return sum / (double)n;
}

static void check_gradients(const GradCase *c) {
    Rig r = rig_new("ref");
    Param *param[4] = {0};
    Tensor *p[4] = {0};
    float *value[4] = {0};
    uint32_t seed = 7;
    int params = 0;
    for (; params < 4 && c->param[params].ndim; params++) {
        char name[16];
        snprintf(name, sizeof name, "p%d", params);
        param[params] = store_add(r.store, name, DT_F32, c->param[params].ndim, c->param[params].shape);
        param[params]->train = true;
        p[params] = g_param(r.g, param[params]);
        value[params] = MEM_ARRAY(r.dev, float, param_count(param[params]));
        for (int64_t i = 0; i < param_count(param[params]); i++) value[params][i] = noise(&seed);
    }
    Tensor *y = c->build(r.g, p);
    Tensor *target = g_input(r.g, "target", DT_F32, y->ndim, y->shape);
    Tensor *loss = g_mse(y, target);
    g_backward(r.g, loss, NULL);
    Error err = {0};
    if (g_error(r.g, &err)) fail_msg("%s: %s", c->name, err.text);
    Tensor *grad[4], *out = g_output(r.g, "y", y);
    for (int i = 0; i < params; i++) {
        if (!p[i]->grad) fail_msg("%s: param %d has no gradient", c->name, i);
        grad[i] = g_output(r.g, "grad", p[i]->grad);
    }
    rig_ready(&r, NULL);
    int64_t n = count_of(y);
    float *t = MEM_ARRAY(r.dev, float, n), *now = MEM_ARRAY(r.dev, float, n);
    for (int64_t i = 0; i < n; i++) t[i] = noise(&seed);
    write_f32(&r, target, t);
    for (int i = 0; i < r.g->tensors.n; i++) { // the ids of the embedding case
        Tensor *id = r.g->tensors.v[i];
        const int32_t ids[3] = {2, 0, 2};
        if (id->name && !strcmp(id->name, "ids"))
            assert_true(plan_write(r.plan, id, DT_I32, ids, &r.err));
    }
    for (int i = 0; i < params; i++) assert_true(param_write(param[i], DT_F32, value[i], &r.err));
    for (int i = 0; i < params; i++) {
        int64_t m = param_count(param[i]);
        run(&r); // the last one was with a changed value
        float *g = MEM_ARRAY(r.dev, float, m);
        read_f32(&r, grad[i], g);
        for (int64_t k = 0; k < m; k++) {
            const float h = 1.0f / 128, keep = value[i][k];
            double side[2];
            for (int s = 0; s < 2; s++) {
                value[i][k] = s ? keep + h : keep - h;
                assert_true(param_write(param[i], DT_F32, value[i], &r.err));
                run(&r);
                read_f32(&r, out, now);
                side[s] = loss_of(now, t, n);
            }
            value[i][k] = keep;
            assert_true(param_write(param[i], DT_F32, value[i], &r.err));
            double slope = (side[1] - side[0]) / (2 * (double)h);
            if (!(fabs(slope - g[k]) <= 2e-3 * (1 + fabs(slope))))
                fail_msg("%s: d loss / d p%d[%lld]: finite differences %g, gradient %g", c->name, i,
                         (long long)k, slope, (double)g[k]);
        }
    }
    rig_done(&r);
}

static void test_gradients(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT_OF(grad_cases); i++) check_gradients(&grad_cases[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_views),
        cmocka_unit_test(test_concat),
        cmocka_unit_test(test_errors_stick),
        cmocka_unit_test(test_gradients),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
