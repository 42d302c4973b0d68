// conform_case.c: from a case to numbers and bytes, and the judgement of outputs.
#include "tests/conform.h"

#include "backend/quant.h"

#include <math.h>

// ---- random numbers: each element's own, so that order never matters --------------------------
uint64_t conform_mix(uint64_t x) { // the finaliser of SplitMix64 (Steele et al. 2014)
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

uint64_t conform_hash(uint64_t seed, const char *text) {
    return conform_mix(seed ^ hash_bytes(0, text, strlen(text)));
}

double case_uniform(uint64_t random) { return (double)(random >> 11) * 0x1p-52 - 1; }

double case_exact(uint64_t random) {
    static const double values[] = {-1, -0.5, -0.25, 0, 0.25, 0.5, 1, 1};
    return values[random >> 61];
}

// ---- building cases -----------------------------------------------------------------------------
CaseTensor *case_tensor(Case *c, int i, DType dtype, Fill fill, int ndim, const int64_t *shape) {
    CaseTensor *t = &c->t[i];
    *t = (CaseTensor){.present = true, .dtype = dtype, .fill = fill, .ndim = ndim, .amp = 1};
    memcpy(t->shape, shape, (size_t)ndim * sizeof *shape);
    case_gap(t, 0);
    return t;
}

void case_gap(CaseTensor *t, int64_t gap) {
    int64_t stride = 1;
    for (int d = t->ndim - 1; d >= 0; d--) {
        t->stride[d] = stride;
        stride = stride * t->shape[d] + gap;
    }
}

void case_transpose(CaseTensor *t, int a, int b) {
    int64_t n = t->shape[a], s = t->stride[a];
    t->shape[a] = t->shape[b], t->stride[a] = t->stride[b];
    t->shape[b] = n, t->stride[b] = s;
}

// ---- host tensors -------------------------------------------------------------------------------
HostTensor host_new(void *parent, DType dtype, int ndim, const int64_t *shape) {
    HostTensor t = {.present = true, .dtype = dtype, .ndim = ndim, .count = 1};
    for (int d = 0; d < ndim; d++) {
        t.shape[d] = shape[d];
        t.count *= shape[d];
    }
    t.v = MEM_ARRAY(parent, double, t.count);
    return t;
}

HostTensor host_like(void *parent, const HostTensor *t) {
    return t->present ? host_new(parent, t->dtype, t->ndim, t->shape) : (HostTensor){0};
}

HostTensor host_abs(void *parent, const HostTensor *t) {
    HostTensor a = host_like(parent, t);
    for (int64_t i = 0; i < a.count; i++) a.v[i] = fabs(t->v[i]);
    return a;
}

// ---- elements -----------------------------------------------------------------------------------
// Elements from the first one to element `index` (row-major) of the view.
static int64_t element_at(const CaseTensor *t, int64_t index) {
    int64_t at = 0;
    for (int d = t->ndim - 1; d >= 0; d--) {
        at += index % t->shape[d] * t->stride[d];
        index /= t->shape[d];
    }
    return at;
}

static int64_t extent(const CaseTensor *t) { // elements from the first to the last, both included
    int64_t n = 1;
    for (int d = 0; d < t->ndim; d++) n += (t->shape[d] - 1) * t->stride[d];
    return n;
}

static double quantise(DType dtype, double v) {
    union { uint8_t bytes[8]; uint64_t align; } cell = {{0}};
    dtype_store(dtype, cell.bytes, 0, (float)v);
    return dtype_load(dtype, cell.bytes, 0);
}

static double fill_value(const Case *c, int operand, int64_t index, uint64_t r) {
    const CaseTensor *t = &c->t[operand];
    if (t->value) return t->value(c, operand, index, r);
    switch (t->fill) {
    case FILL_EXACT: return t->amp * case_exact(r) + t->shift;
    case FILL_RANDOM: return t->shift + t->amp * case_uniform(r);
    case FILL_OUTLIERS:
        return t->shift + t->amp * case_uniform(r) * (conform_mix(r) % 61 == 0 ? 200 : 1);
    case FILL_IDS: return (double)(int64_t)(r % (uint64_t)t->range);
    case FILL_ZERO:
    case FILL_DERIVED: return 0;
    case FILL_POISON: return NAN;
    }
    return NAN;
}

// Blocks of random bits whose 16-bit scales (where they stand is the format's) are small numbers;
// fp8: any byte but NaN and infinity.
static void fill_packed(void *parent, HostTensor *t, uint64_t seed) {
    static const struct { DType type; int scale[2]; } scales[] = {
        {DT_Q8_0, {0, 0}},   {DT_Q4_0, {0, 0}},     {DT_Q4_1, {0, 2}},     {DT_Q5_0, {0, 0}},
        {DT_Q5_1, {0, 2}},   {DT_Q2_K, {80, 82}},   {DT_Q3_K, {108, 108}}, {DT_Q4_K, {0, 2}},
        {DT_Q5_K, {0, 2}},   {DT_Q6_K, {208, 208}}, {DT_IQ4_NL, {0, 0}},   {DT_IQ4_XS, {0, 0}},
    };
    size_t size = (size_t)dtype_bytes(t->dtype, (uint64_t)t->count);
    size_t block = (size_t)dtype_size(t->dtype);
    t->packed = mem_new(parent, size);
    for (size_t i = 0; i < size; i++) {
        uint8_t byte = (uint8_t)(conform_mix(seed + i) >> 40);
        if (t->dtype == DT_F8_E4M3 && (byte & 0x7f) == 0x7f) byte ^= 1;
        if (t->dtype == DT_F8_E5M2 && (byte & 0x7c) == 0x7c) byte ^= 4;
        t->packed[i] = byte;
    }
    for (size_t k = 0; k < COUNT_OF(scales); k++)
        for (size_t i = 0; i < size && t->dtype == scales[k].type; i += block)
            for (int s = 0; s < 2; s++) {
                double scale = 0.01 + 0.02 * case_uniform(conform_mix(~seed + i + (size_t)s));
                uint16_t half = f16_from_f32((float)scale);
                memcpy(t->packed + i + scales[k].scale[s], &half, 2);
            }
    float *v = MEM_ARRAY(NULL, float, t->count);
    quant_decode(t->dtype, t->packed, v, t->count);
    for (int64_t i = 0; i < t->count; i++) t->v[i] = v[i];
    mem_free(v);
}

void conform_fill(void *parent, const Case *c, uint64_t seed, HostTensor t[MAX_OPERANDS]) {
    uint64_t base = conform_hash(seed, c->name);
    for (int i = 0; i < op_info[c->op].operand_count; i++) {
        const CaseTensor *ct = &c->t[i];
        t[i] = (HostTensor){0};
        if (!ct->present) continue;
        t[i] = host_new(parent, ct->dtype, ct->ndim, ct->shape);
        if (!role_reads(op_info[c->op].operand[i].role)) continue;
        uint64_t mine = conform_mix(base + (uint64_t)i);
        if (dtype_is_packed(ct->dtype)) {
            fill_packed(parent, &t[i], mine);
            continue;
        }
        for (int64_t k = 0; k < t[i].count; k++) {
            // By place, not by index: elements that share memory share their value.
            uint64_t r = conform_mix(mine + (uint64_t)element_at(ct, k));
            t[i].v[k] = quantise(ct->dtype, fill_value(c, i, k, r));
        }
    }
}

// ---- bytes --------------------------------------------------------------------------------------
// Elements of the block that starts at operand i's first element, with all that live inside it.
static int64_t block_extent(const Case *c, int i) {
    int64_t n = extent(&c->t[i]);
    for (int k = 0; k < op_info[c->op].operand_count; k++)
        if (c->t[k].present && c->t[k].alias == i + 1)
            n = MAX(n, c->t[k].lead + extent(&c->t[k]));
    return n;
}

Image case_image_new(void *parent, const Case *c, const HostTensor *t, uint32_t align) {
    Image image = {0};
    const OpInfo *info = &op_info[c->op];
    size_t size = CONFORM_GUARD;
    for (int i = 0; i < info->operand_count; i++) {
        const CaseTensor *ct = &c->t[i];
        if (!ct->present || ct->alias) continue;
        size = (size_t)align_up(size, MAX(align, 64u)) +
               (size_t)dtype_bytes(ct->dtype, (uint64_t)ct->lead);
        image.first[i] = size;
        size += (size_t)dtype_bytes(ct->dtype, (uint64_t)block_extent(c, i)) + CONFORM_GUARD;
    }
    for (int i = 0; i < info->operand_count; i++) {
        const CaseTensor *ct = &c->t[i];
        if (ct->present && ct->alias)
            image.first[i] = image.first[ct->alias - 1] +
                             (size_t)ct->lead * (size_t)dtype_size(ct->dtype);
    }
    image.size = (size_t)align_up(size, 4);
    image.bytes = mem_new(parent, image.size);
    memset(image.bytes, 0xff, image.size); // NaN in every float type, -1 as an integer
    for (int i = 0; i < info->operand_count; i++) {
        const CaseTensor *ct = &c->t[i];
        if (!ct->present || !role_reads(info->operand[i].role)) continue;
        if (t[i].packed) {
            memcpy(image.bytes + image.first[i], t[i].packed,
                   (size_t)dtype_bytes(ct->dtype, (uint64_t)t[i].count));
            continue;
        }
        for (int64_t k = 0; k < t[i].count; k++)
            dtype_store(ct->dtype, image.bytes + image.first[i], (size_t)element_at(ct, k),
                        (float)t[i].v[k]);
    }
    return image;
}

void image_get(const Image *image, const Case *c, int operand, double *v) {
    const CaseTensor *t = &c->t[operand];
    int64_t n = 1;
    for (int d = 0; d < t->ndim; d++) n *= t->shape[d];
    for (int64_t k = 0; k < n; k++)
        v[k] = dtype_load(t->dtype, image->bytes + image->first[operand], (size_t)element_at(t, k));
}

bool image_intact(const Image *after, const Image *before, const Case *c, char *why, size_t n) {
    const OpInfo *info = &op_info[c->op];
    uint8_t *want = mem_new(NULL, before->size);
    memcpy(want, before->bytes, before->size);
    for (int i = 0; i < info->operand_count; i++) {
        const CaseTensor *t = &c->t[i];
        if (!t->present || !role_writes(info->operand[i].role)) continue;
        size_t bytes = (size_t)dtype_size(t->dtype);
        int64_t count = 1;
        for (int d = 0; d < t->ndim; d++) count *= t->shape[d];
        for (int64_t k = 0; k < count; k++) {
            size_t at = before->first[i] + (size_t)element_at(t, k) * bytes;
            memcpy(want + at, after->bytes + at, bytes);
        }
    }
    size_t at = 0;
    while (at < before->size && want[at] == after->bytes[at]) at++;
    mem_free(want);
    if (at == before->size) return true;
    int near = 0; // the operand that starts closest before the damage
    for (int i = 1; i < info->operand_count; i++)
        if (c->t[i].present && before->first[i] <= at + CONFORM_GUARD / 2 &&
            (before->first[i] > before->first[near] || !c->t[near].present))
            near = i;
    snprintf(why, n, "wrote outside its outputs: at %lld bytes from the start of %s",
             (long long)at - (long long)before->first[near], info->operand[near].name);
    return false;
}

// ---- judgement ----------------------------------------------------------------------------------
double dtype_rounding(DType dtype) {
    return dtype == DT_F16 ? 0x1p-11 : dtype == DT_BF16 ? 0x1p-8 : 0x1p-24;
}

// Below this an f16 is subnormal and its error absolute; f32 and bf16 may flush to zero.
static double tiny(DType dtype) { return dtype == DT_F16 ? 0x1p-24 : 0x1p-126; }

static double nmse_limit(const Case *c, DType dtype) {
    if (c->nmse > 0) return c->nmse;
    return dtype == DT_F16 ? 1e-6 : dtype == DT_BF16 ? 3e-5 : 1e-9;
}

// The limit of one element: c u_acc mag + u_out |ref|; the oracle's own result was rounded to f32.
static double element_limit(const Case *c, DType dtype, double ref, double mag) {
    double u = dtype_rounding(dtype), factor = c->c > 0 ? c->c : 4;
    return factor * 0x1p-24 * mag + 1.001 * (u + 0x1p-24) * fabs(ref) + tiny(dtype);
}

static double excess(double error, double limit) { // how many times over its limit
    return isnan(error) ? INFINITY : limit > 0 ? error / limit : error > 0 ? INFINITY : 0;
}

void host_compare(const Case *c, int output, const HostTensor *ref, const double *mag,
                  const double *got, ConformResult *result) {
    const char *name = op_info[c->op].operand[output].name;
    double worst = 0, error2 = 0, ref2 = 0, mag2 = 0;
    bool exact = c->exact >> output & 1;
    int64_t bad = 0, at = 0;
    for (int64_t i = 0; i < ref->count; i++) {
        double want = ref->v[i], limit = 0, error;
        if (exact) {
            want = quantise(ref->dtype, want);
        } else {
            limit = element_limit(c, ref->dtype, want, mag ? mag[i] : fabs(want));
        }
        error = want == got[i] || (isnan(want) && isnan(got[i])) ? 0 : fabs(want - got[i]);
        if (isinf(want) && error != 0) error = INFINITY;
        double x = excess(error, limit);
        if (x > 1) bad++;
        if (x > worst || i == 0) {
            worst = x;
            at = i;
            if (x >= excess(result->max_error, result->limit)) {
                result->max_error = error;
                result->limit = limit;
            }
        }
        if (error != 0 || isfinite(want)) {
            error2 += error * error;
            ref2 += isfinite(want) ? want * want : 0;
            mag2 += mag ? mag[i] * mag[i] : 0;
        }
    }
    double nmse = error2 == 0 ? 0 : ref2 > 0 ? error2 / ref2 : error2;
    // Outputs that are small differences of large terms may differ by the rounding of the terms.
    double most = exact ? 0 : nmse_limit(c, ref->dtype);
    if (ref2 > 0 && !exact) most += 0x1p-44 * mag2 / ref2;
    if (!(nmse <= result->nmse)) result->nmse = nmse;
    if (result->status == CONFORM_FAIL || (bad == 0 && nmse <= most)) return;
    result->status = CONFORM_FAIL;
    if (bad == 0) {
        snprintf(result->reason, sizeof result->reason, "%s: NMSE %.3g over the limit %.3g", name,
                 nmse, most);
        return;
    }
    char where[96] = "";
    int64_t rest = at, index[MAX_DIMS] = {0};
    for (int d = ref->ndim - 1; d >= 0; d--) {
        index[d] = rest % ref->shape[d];
        rest /= ref->shape[d];
    }
    for (int d = 0, n = 0; d < ref->ndim; d++)
        n += snprintf(where + n, sizeof where - (size_t)n, d ? ", %lld" : "%lld",
                      (long long)index[d]);
    snprintf(result->reason, sizeof result->reason,
             "%s: %lld of %lld elements wrong, worst at [%s]: expected %.9g, found %.9g", name,
             (long long)bad, (long long)ref->count, where, ref->v[at], got[at]);
}

// ---- parameters by name -------------------------------------------------------------------------
#define TEXT_OF(...) #__VA_ARGS__
#define TEXT(...) TEXT_OF(__VA_ARGS__)
bool params_field(OpId op, int i, char name[32]) {
    static const char *const fields[OP_COUNT] = {
#define OP(name, NAME, Name) TEXT(NAME##_FIELDS),
#include "backend/ops.def"
#undef OP
    };
    const char *p = fields[op];
    for (; i > 0 && p; i--) {
        p = strchr(p, ';');
        if (p) p++;
    }
    if (!p) return false;
    const char *end = strchr(p, ';'), *start = end;
    if (!end) return false;
    while (start > p && start[-1] != ' ') start--;
    snprintf(name, 32, "%.*s", (int)(end - start), start);
    return true;
}
