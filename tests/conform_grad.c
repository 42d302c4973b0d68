// conform_grad.c: gradient mode: what a device's *_bwd kernels return, against differences of the
// oracle's forward op, and three AdamW steps against the formula written out in f64.
//
// L = sum dy * y. Along a direction d of one input, dL/dh at 0 must equal sum grad * d. The
// derivative is taken from four values of L (fourth order), with h = 1/64: the oracle rounds y to
// f32, which leaves an error of about 2^-24 |y| / h.
#include "tests/conform.h"

#include <math.h>

enum { DIRECTIONS = 6, MOST_ELEMENTS = 40000 };

typedef struct Grad {
    Case c;                     // the backward call, f32
    HostTensor in[MAX_OPERANDS]; // its inputs
    OpId forward;
    OpParams params;
    HostTensor f[MAX_OPERANDS]; // the forward call's inputs and outputs
    int y;                      // forward output
    int dy;                     // backward input
    int inputs;
    struct { int f, grad; } wrt[3];
} Grad;

static bool run_forward(Conform *cf, Grad *g, Error *err) {
    return oracle_run(&cf->oracle, g->forward, &g->params, g->f, err);
}

static bool setup_attn(Conform *cf, void *mem, Grad *g, Error *err) {
    HostTensor *in = g->in, *f = g->f;
    g->forward = OP_ATTN;
    g->params.attn = (AttnParams){.scale = g->c.params.attn_bwd.scale,
                                  .causal = g->c.params.attn_bwd.causal};
    f[attn_q] = in[attn_bwd_q], f[attn_k] = in[attn_bwd_k], f[attn_v] = in[attn_bwd_v];
    f[attn_mask] = in[attn_bwd_mask];
    f[attn_y] = host_like(mem, &in[attn_bwd_y]), f[attn_lse] = host_like(mem, &in[attn_bwd_lse]);
    g->y = attn_y, g->dy = attn_bwd_dy, g->inputs = 3;
    g->wrt[0].f = attn_q, g->wrt[0].grad = attn_bwd_dq;
    g->wrt[1].f = attn_k, g->wrt[1].grad = attn_bwd_dk;
    g->wrt[2].f = attn_v, g->wrt[2].grad = attn_bwd_dv;
    if (!run_forward(cf, g, err)) return false;
    memcpy(in[attn_bwd_y].v, f[attn_y].v, (size_t)f[attn_y].count * sizeof(double));
    memcpy(in[attn_bwd_lse].v, f[attn_lse].v, (size_t)f[attn_lse].count * sizeof(double));
    return true;
}

static bool setup_norm(Conform *cf, void *mem, Grad *g, Error *err) {
    HostTensor *in = g->in, *f = g->f;
    g->forward = OP_NORM;
    g->params.norm = (NormParams){.kind = g->c.params.norm_bwd.kind, .eps = 1e-6f};
    f[norm_x] = host_like(mem, &in[norm_bwd_y]);
    memcpy(f[norm_x].v, in[norm_bwd_y].v, (size_t)f[norm_x].count * sizeof(double));
    f[norm_y] = in[norm_bwd_y], f[norm_rstd] = in[norm_bwd_rstd]; // replaced by the forward run
    g->y = norm_y, g->dy = norm_bwd_dy, g->inputs = 1;
    g->wrt[0].f = norm_x, g->wrt[0].grad = norm_bwd_dx;
    if (!run_forward(cf, g, err)) return false;
    f[norm_y] = host_like(mem, &in[norm_bwd_y]); // later runs must not change the inputs
    f[norm_rstd] = host_like(mem, &in[norm_bwd_rstd]);
    return true;
}

static bool setup_embed(Conform *cf, void *mem, Grad *g, Error *err) {
    (void)cf, (void)err;
    HostTensor *in = g->in, *f = g->f;
    g->forward = OP_EMBED;
    f[embed_table] = host_like(mem, &in[embed_bwd_dtable]);
    for (int64_t i = 0; i < f[embed_table].count; i++)
        f[embed_table].v[i] = case_uniform(conform_mix((uint64_t)i));
    f[embed_ids] = in[embed_bwd_ids];
    f[embed_y] = host_like(mem, &in[embed_bwd_dy]);
    g->y = embed_y, g->dy = embed_bwd_dy, g->inputs = 1;
    g->wrt[0].f = embed_table, g->wrt[0].grad = embed_bwd_dtable;
    return true;
}

static bool setup_ewise(Conform *cf, void *mem, Grad *g, Error *err) {
    (void)cf, (void)err;
    g->forward = OP_EWISE;
    g->params.ewise = (EwiseParams){.kind = EW_ACT, .act = g->c.params.ewise.act};
    g->f[ewise_x] = g->in[ewise_x];
    g->f[ewise_o] = host_like(mem, &g->in[ewise_o]);
    g->y = ewise_o, g->dy = ewise_y, g->inputs = 1;
    g->wrt[0].f = ewise_x, g->wrt[0].grad = ewise_o;
    return true;
}

static const struct {
    OpId op;
    bool (*setup)(Conform *cf, void *mem, Grad *g, Error *err);
} rules[] = {
    {OP_ATTN_BWD, setup_attn}, {OP_NORM_BWD, setup_norm}, {OP_EMBED_BWD, setup_embed},
    {OP_EWISE, setup_ewise},
};

// L at x + h d. The oracle takes f32, so the point is rounded first and the true step used.
static bool loss(Conform *cf, Grad *g, const HostTensor *x, const double *d, double h, double *out,
                 Error *err) {
    HostTensor *at = &g->f[0];
    for (int i = 0; i < g->inputs; i++)
        if (g->f[g->wrt[i].f].v == x->v) at = &g->f[g->wrt[i].f];
    HostTensor saved = *at, moved = host_like(NULL, x);
    for (int64_t i = 0; i < x->count; i++) moved.v[i] = x->v[i] + h * d[i];
    *at = moved;
    bool ok = run_forward(cf, g, err);
    *at = saved;
    *out = 0;
    for (int64_t i = 0; i < g->f[g->y].count && ok; i++)
        *out += g->in[g->dy].v[i] * g->f[g->y].v[i];
    mem_free(moved.v);
    return ok;
}

static bool slope(Conform *cf, Grad *g, const HostTensor *x, const double *d, double *out,
                  Error *err) {
    const double h = 1.0 / 64;
    double a, b, c, e;
    bool ok = loss(cf, g, x, d, h, &a, err) && loss(cf, g, x, d, -h, &b, err) &&
              loss(cf, g, x, d, 2 * h, &c, err) && loss(cf, g, x, d, -2 * h, &e, err);
    *out = ok ? (8 * (a - b) - (c - e)) / (12 * h) : 0;
    return ok;
}

// Random signs on all elements, or (odd directions) on one element in 37.
static void direction(const Grad *g, const HostTensor *x, int k, uint64_t seed, double *d) {
    bool relu = g->forward == OP_EWISE && g->params.ewise.act == ACT_RELU;
    for (int64_t i = 0; i < x->count; i++) {
        uint64_t r = conform_mix(seed + (uint64_t)k * 1000003 + (uint64_t)i);
        d[i] = r & 1 ? 1 : -1;
        if (k % 2 && r >> 1 & 0xffff && (r >> 17) % 37) d[i] = 0;
        if (relu && fabs(x->v[i]) < 0.1) d[i] = 0; // no derivative at the corner
    }
}

// The true derivative along each direction, once for all rows.
static bool slopes(Conform *cf, Grad *g, void *mem, double **d, double *want, Error *err) {
    for (int i = 0; i < g->inputs; i++) {
        const HostTensor x = g->f[g->wrt[i].f];
        for (int k = 0; k < DIRECTIONS; k++) {
            int at = i * DIRECTIONS + k;
            d[at] = MEM_ARRAY(mem, double, x.count);
            direction(g, &x, k, cf->seed + (uint64_t)i, d[at]);
            if (!slope(cf, g, &x, d[at], &want[at], err)) return false;
        }
    }
    return true;
}

static void judge_row(const Grad *g, double **d, const double *want, const Image *after,
                      ConformResult *r) {
    for (int i = 0; i < g->inputs; i++) {
        int operand = g->wrt[i].grad;
        int64_t n = g->in[operand].count;
        double *grad = MEM_ARRAY(NULL, double, n), norm = 0, weight = 0;
        image_get(after, &g->c, operand, grad);
        for (int64_t k = 0; k < g->f[g->y].count; k++)
            weight += fabs(g->in[g->dy].v[k]) * (1 + fabs(g->f[g->y].v[k]));
        for (int k = 0; k < DIRECTIONS; k++) {
            double got = 0;
            norm = 0;
            for (int64_t e = 0; e < n; e++) {
                got += grad[e] * d[i * DIRECTIONS + k][e];
                norm += grad[e] * grad[e] * fabs(d[i * DIRECTIONS + k][e]);
            }
            // The last term: rounding of y in the differences (2^-24 / h = 2^-18, in a random
            // walk).
            double error = fabs(got - want[i * DIRECTIONS + k]);
            double limit = 2e-3 * sqrt(norm) + 1e-6 + 0x1p-18 * sqrt(weight) * 4;
            if (error / limit >= r->max_error / (r->limit > 0 ? r->limit : 1)) {
                r->max_error = error;
                r->limit = limit;
            }
            if (error <= limit || r->status == CONFORM_FAIL) continue;
            r->status = CONFORM_FAIL;
            snprintf(r->reason, sizeof r->reason,
                     "%s along direction %d: expected %.9g, found %.9g",
                     op_info[g->c.op].operand[operand].name, k, want[i * DIRECTIONS + k], got);
        }
        mem_free(grad);
    }
}

static void run_rows(Conform *cf, void *mem, Grad *g, double **d, const double *want, Rig *rig) {
    char why[128];
    for (int row = 0; row < dev_row_count(cf->dev, g->c.op); row++) {
        const char *name = dev_row_name(cf->dev, g->c.op, row);
        if (cf->o->row && strcmp(cf->o->row, name)) continue;
        rig->call.row = name;
        if (!dev_row_fits(cf->dev, row, &rig->call, why)) continue;
        ConformResult result = {.status = CONFORM_OK};
        Image after;
        if (rig_run(cf, mem, &g->c, rig, false, &after, &result))
            judge_row(g, d, want, &after, &result);
        conform_report(cf, &g->c, "f32", name, &result);
    }
}

static bool small_random(const Case *c) {
    int64_t most = 0;
    for (int i = 0; i < op_info[c->op].operand_count; i++) {
        int64_t n = c->t[i].present;
        for (int k = 0; k < c->t[i].ndim && n; k++) n *= c->t[i].shape[k];
        most = MAX(most, n);
        if (c->t[i].fill == FILL_OUTLIERS) return false;
    }
    return most <= MOST_ELEMENTS && (!c->exact || c->op == OP_EMBED_BWD) &&
           (c->op != OP_EWISE || c->params.ewise.kind == EW_ACT_BWD);
}

static bool run_gradient(Conform *cf, size_t rule, const Case *c, Error *err) {
    void *mem = mem_new(cf->mem, 1);
    Grad *g = MEM_NEW(mem, Grad);
    g->c = *c;
    conform_fill(mem, c, cf->seed, g->in);
    double *d[3 * DIRECTIONS], want[3 * DIRECTIONS];
    Rig rig;
    bool ok = rules[rule].setup(cf, mem, g, err) && slopes(cf, g, mem, d, want, err) &&
              rig_new(cf, mem, &g->c, g->in, &rig, err);
    if (ok) run_rows(cf, mem, g, d, want, &rig);
    mem_free(mem);
    return ok;
}

// ---- AdamW --------------------------------------------------------------------------------------
enum { STEPS = 3 };

static void adamw_steps(const HostTensor *in, HostTensor *out, double *mag) {
    const double *h = in[adamw_hyper].v;
    for (int64_t i = 0; i < in[adamw_p].count; i++) {
        double p = in[adamw_p].v[i], m = in[adamw_m].v[i], v = in[adamw_v].v[i];
        double ema = in[adamw_ema].v[i], g = in[adamw_g].v[i] * h[7];
        for (int step = 0; step < STEPS; step++) {
            p *= 1 - h[0] * h[4];
            m += (1 - h[1]) * (g - m);
            v = v * h[2] + (1 - h[2]) * g * g;
            p -= h[0] * (m / h[5]) / (sqrt(v / h[6]) + h[3]);
            ema = h[8] * ema + (1 - h[8]) * p;
        }
        out[adamw_p].v[i] = p, out[adamw_m].v[i] = m, out[adamw_v].v[i] = v,
        out[adamw_ema].v[i] = ema;
        mag[i] = 1 + fabs(m) + fabs(g);
    }
}

static bool run_adamw(Conform *cf, const Case *given, Error *err) {
    void *mem = mem_new(cf->mem, 1);
    Case c = *given;
    HostTensor in[MAX_OPERANDS], out[MAX_OPERANDS];
    conform_fill(mem, &c, cf->seed, in);
    for (int i = 0; i < adamw_operand_count; i++) out[i] = host_like(mem, &in[i]);
    double *mag = MEM_ARRAY(mem, double, in[adamw_p].count);
    adamw_steps(in, out, mag);
    bool ok = true;
    for (int row = 0; row < dev_row_count(cf->dev, OP_ADAMW) && ok; row++) {
        Rig rig;
        ok = rig_new(cf, mem, &c, in, &rig, err);
        rig.call.row = dev_row_name(cf->dev, OP_ADAMW, row);
        if (cf->o->row && strcmp(cf->o->row, rig.call.row)) continue;
        ConformResult result = {.status = CONFORM_OK};
        Image after = rig.image;
        for (int step = 0; step < STEPS && ok && result.status == CONFORM_OK; step++)
            if (rig_run(cf, mem, &c, &rig, false, &after, &result)) rig.image = after;
        for (int i = 0; i < adamw_operand_count && result.status == CONFORM_OK; i++) {
            if (!role_writes(op_info[OP_ADAMW].operand[i].role)) continue;
            double *got = MEM_ARRAY(mem, double, in[i].count);
            image_get(&after, &c, i, got);
            host_compare(&c, i, &out[i], mag, got, &result);
        }
        if (ok) conform_report(cf, &c, "f32", rig.call.row, &result);
    }
    mem_free(mem);
    return ok;
}

bool conform_gradients(Conform *cf, Error *err) {
    for (size_t rule = 0; rule < COUNT_OF(rules); rule++) {
        OpId op = rules[rule].op;
        for (int i = 0; i < op_cases[op]->count && conform_wants(cf, op); i++) {
            Case c = {.op = op};
            if (!op_cases[op]->build(i, 0, &c) || !small_random(&c)) continue;
            if (cf->o->name && strcmp(cf->o->name, c.name)) continue;
            if (conform_cancelled(cf->o, err) || !run_gradient(cf, rule, &c, err)) return false;
        }
    }
    for (int i = 0; i < adamw_cases.count && conform_wants(cf, OP_ADAMW); i++) {
        Case c = {.op = OP_ADAMW};
        if (!adamw_cases.build(i, 0, &c) || !c.t[adamw_ema].present || c.exact || c.base) continue;
        if (conform_cancelled(cf->o, err) || !run_adamw(cf, &c, err)) return false;
    }
    return true;
}
