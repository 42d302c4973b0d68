// simd_image.h: group norm and rotary embedding.

// ---- group norm -------------------------------------------------------------------------------
// Statistics in one pass over memory: each part finds mean and squares of its own rows, exactly as
// two passes over a block that stays in the cache; parts are then joined in f64 (Chan et al. 1979).
enum { GROUP_PART = 1 << 15 }; // elements of a part

typedef struct Moments { double count, mean, squares; } Moments;

typedef struct GroupJob {
    Cpu *cpu;
    const OpCall *c;
    int64_t M, C, groups, width, per_part, parts; // parts: per batch
    Moments *moments;                             // [B, parts, groups]
    const float *bias;                            // [C]
    float *mean, *factor;                         // [B, C]: of each channel's group; rstd weight
} GroupJob;

static void add_row(float *to, const float *x, const float *mean, int64_t n) {
    int64_t i = 0;
    for (; i + W <= n; i += W) {
        vf v = vload(x + i);
        if (mean) v -= vload(mean + i), v *= v;
        vstore(to + i, vload(to + i) + v);
    }
    for (; i < n; i++) {
        float v = x[i] - (mean ? mean[i] : 0);
        to[i] += mean ? v * v : v;
    }
}

static void moments_part(void *arg, int64_t part, int thread) {
    const GroupJob *j = arg;
    const Rows x = rows_of(&j->c->t[norm_x]);
    int64_t b = part / j->parts, m0 = part % j->parts * j->per_part, end = MIN(j->M, m0 + j->per_part);
    float *row = cpu_scratch(j->cpu, thread), *sum = row + j->C, *mean = sum + j->C;
    Moments *out = j->moments + part * j->groups;
    double count = (double)((end - m0) * j->width);
    for (int pass = 0; pass < 2; pass++) {
        memset(sum, 0, (size_t)j->C * sizeof *sum);
        for (int64_t m = m0; m < end; m++)
            add_row(sum, row_view(row, x.type, row_of(&x, b, m), j->C), pass ? mean : NULL, j->C);
        for (int64_t g = 0; g < j->groups; g++) {
            double total = 0;
            for (int64_t i = g * j->width; i < (g + 1) * j->width; i++) total += sum[i];
            if (pass) {
                out[g].squares = total;
                continue;
            }
            float middle = (float)(total / count); // the squares are about this very number
            out[g] = (Moments){count, middle, 0};
            for (int64_t i = g * j->width; i < (g + 1) * j->width; i++) mean[i] = middle;
            out[g].mean = total / count;
        }
        for (int64_t g = 0; pass && g < j->groups; g++) { // from about `middle` to about the mean
            double off = out[g].mean - (double)mean[g * j->width];
            out[g].squares -= count * off * off;
        }
    }
}

static void join_moments(GroupJob *j, int64_t b, const float *weight) {
    const NormParams *p = &j->c->params.norm;
    for (int64_t g = 0; g < j->groups; g++) {
        Moments all = {0};
        for (int64_t k = 0; k < j->parts; k++) {
            const Moments *m = &j->moments[(b * j->parts + k) * j->groups + g];
            double count = all.count + m->count, apart = m->mean - all.mean;
            all.squares += m->squares + apart * apart * all.count * m->count / count;
            all.mean += apart * m->count / count;
            all.count = count;
        }
        double r = 1 / sqrt(MAX(all.squares, 0) / all.count + p->eps);
        for (int64_t i = g * j->width; i < (g + 1) * j->width; i++) {
            j->mean[b * j->C + i] = (float)all.mean;
            j->factor[b * j->C + i] = (float)(weight ? r * weight[i] : r);
        }
    }
}

// o = act(((x - mean) factor + bias) (1 + scale) + shift)
static void group_row(const float *x, const float *const in[5], uint32_t act, float *o, int64_t n) {
    for (int64_t i = 0; i < n; i += W) {
        vf f[6] = {{0}};
        bool whole = i + W <= n;
        for (int k = 0; k < 6; k++) {
            const float *from = k ? in[k - 1] : x;
            if (from) f[k] = whole ? vload(from + i) : vload_n(from + i, n - i);
        }
        vf v = ((f[0] - f[1]) * f[2] + f[3]) * (1.0f + f[4]) + f[5];
        v = act == ACT_NONE || act == ACT_GELU_ERF ? v : act == ACT_SILU ? v * vsigmoid(v) : vact(act, v);
        if (whole) vstore(o + i, v);
        else vstore_n(o + i, v, n - i);
    }
    for (int64_t i = 0; act == ACT_GELU_ERF && i < n; i++) o[i] = (float)act_value(act, o[i]);
}

static void group_part(void *arg, int64_t part, int thread) {
    const GroupJob *j = arg;
    const TensorRef *t = j->c->t;
    const Rows x = rows_of(&t[norm_x]), y = rows_of(&t[norm_y]);
    const Rows scale = rows_of(&t[norm_scale]), shift = rows_of(&t[norm_shift]);
    int64_t b = part / j->parts, m0 = part % j->parts * j->per_part, C = j->C;
    float *row = cpu_scratch(j->cpu, thread), *out = row + C, *tscale = out + C, *tshift = tscale + C;
    const float *in[5] = {j->mean + b * C, j->factor + b * C, j->bias};
    for (int64_t m = m0; m < MIN(j->M, m0 + j->per_part); m++) {
        if (scale.base) in[3] = row_view(tscale, scale.type, row_of(&scale, b, m), C);
        if (shift.base) in[4] = row_view(tshift, shift.type, row_of(&shift, b, m), C);
        char *to = row_of(&y, b, m);
        float *o = y.type == DT_F32 ? (float *)(void *)to : out;
        group_row(row_view(row, x.type, row_of(&x, b, m), C), in, j->c->params.norm.act, o, C);
        row_store(y.type, to, o, C);
    }
}

static void group_norm(Cpu *cpu, const OpCall *c) {
    const TensorRef *x = &c->t[norm_x], *w = &c->t[norm_weight], *bias = &c->t[norm_bias];
    GroupJob j = {.cpu = cpu, .c = c, .M = ref_dim(x, 4), .C = ref_dim(x, 5)};
    int64_t B = ref_dim(x, 3);
    j.groups = MAX(c->params.norm.groups, 1u);
    j.width = j.C / j.groups;
    j.per_part = MAX(1, GROUP_PART / j.C);
    j.parts = (j.M + j.per_part - 1) / j.per_part;
    j.moments = MEM_ARRAY(NULL, Moments, B * j.parts * j.groups);
    float *space = MEM_ARRAY(j.moments, float, 2 * (B + 1) * j.C);
    j.mean = space + 2 * j.C, j.factor = j.mean + B * j.C;
    const float *weight = has(w) ? row_view(space, w->dtype, at(w, 0), j.C) : NULL;
    if (has(bias)) j.bias = row_view(space + j.C, bias->dtype, at(bias, 0), j.C);
    pool_run(cpu->pool, B * j.parts, moments_part, &j);
    for (int64_t b = 0; b < B; b++) join_moments(&j, b, weight);
    pool_run(cpu->pool, B * j.parts, group_part, &j);
    mem_free(j.moments);
}

// ---- rope -------------------------------------------------------------------------------------
typedef struct RopeJob { Cpu *cpu; const OpCall *c; int64_t T, H, D, P; bool half; } RopeJob;

// y = x cosine + partner sine: the partner is the neighbour, or P away; sines carry the sign. The
// rest of a head has cosine 1.
static void rope_head(const RopeJob *j, const float *x, const float *cosine, const float *sine,
                      float *y) {
    if (j->half) {
        for (int64_t i = 0; i < j->P; i += W) { // passes P by less than W: written again below
            vf a = vload(x + i), b = vload(x + j->P + i), c = vload(cosine + i), s = vload(sine + i);
            vstore(y + i, a * c - b * s);
            vstore(y + j->D + W + i, a * s + b * c);
        }
        memcpy(y + j->P, y + j->D + W, (size_t)j->P * sizeof *y);
        if (2 * j->P < j->D)
            memcpy(y + 2 * j->P, x + 2 * j->P, (size_t)(j->D - 2 * j->P) * sizeof *y);
        return;
    }
    for (int64_t i = 0; i < j->D; i += W) {
        vf v = vload(x + i);
#if defined(__AVX512F__)
        vf partner = (vf)_mm512_permute_ps((__m512)v, 0xb1);
#elif defined(__AVX2__)
        vf partner = (vf)_mm256_permute_ps((__m256)v, 0xb1);
#else
        vf partner = __builtin_shufflevector(v, v, 1, 0, 3, 2);
#endif
        vstore(y + i, v * vload(cosine + i) + partner * vload(sine + i));
    }
}

static void rope_part(void *arg, int64_t part, int thread) {
    const RopeJob *j = arg;
    const TensorRef *x = &j->c->t[rope_x], *table = &j->c->t[rope_table], *y = &j->c->t[rope_y];
    int64_t b = part / j->T, t = part % j->T, wide = 2 * j->D + 4 * W;
    float *cosine = cpu_scratch(j->cpu, thread), *sine = cosine + wide;
    float *in = sine + wide, *out = in + wide;
    const char *from = at(table, b * stride_of(table, 2) + t * stride_of(table, 3));
    int64_t step = stride_of(table, 4) * (int64_t)sizeof(float);
    for (int64_t i = 0; i < j->D + W; i++) cosine[i] = 1, sine[i] = 0, in[i] = 0;
    for (int64_t i = 0; i < j->P; i++) {
        float cs[2];
        memcpy(cs, from + i * step, sizeof cs);
        if (j->half) cosine[i] = cs[0], sine[i] = cs[1];
        else cosine[2 * i] = cosine[2 * i + 1] = cs[0], sine[2 * i] = -cs[1], sine[2 * i + 1] = cs[1];
    }
    for (int64_t h = 0; h < j->H; h++) {
        row_load(in, x->dtype, at(x, b * stride_of(x, 2) + t * stride_of(x, 3) + h * stride_of(x, 4)),
                 j->D);
        rope_head(j, in, cosine, sine, out);
        row_store(y->dtype,
                  at(y, b * stride_of(y, 2) + t * stride_of(y, 3) + h * stride_of(y, 4)), out, j->D);
    }
}

void FN(rope)(Cpu *cpu, const OpCall *c) {
    const TensorRef *x = &c->t[rope_x];
    RopeJob j = {.cpu = cpu, .c = c, .T = ref_dim(x, 3), .H = ref_dim(x, 4), .D = ref_dim(x, 5),
                 .P = ref_dim(&c->t[rope_table], 4), .half = c->params.rope.half};
    pool_run(cpu->pool, ref_dim(x, 2) * j.T, rope_part, &j);
}
