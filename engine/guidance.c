// guidance.c: see guidance.h. Compile without floating-point contraction.
#include "engine/guidance.h"

#include <math.h>
#include <stdlib.h>

void guidance_cfg(float *out, const float *cond, const float *uncond, float scale, size_t n) {
    for (size_t i = 0; i < n; i++) {
        float difference = cond[i] - uncond[i];
        out[i] = uncond[i] + scale * difference;
    }
}

// ---- the scale over the run ---------------------------------------------------------------------

static double weight_constant(double u) {
    (void)u;
    return 1;
}

static double weight_triangle(double u) { return 1 - fabs(2 * u - 1); }

static const double TWO_PI = 6.283185307179586476925286766559;
static double weight_cosine(double u) { return (1 - cos(TWO_PI * u)) / 2; }

static const GuidanceKind kinds[] = {
    {"constant", weight_constant}, // the same scale in every step
    {"triangle", weight_triangle}, // rises to the middle of the run and falls again, in straight lines
    {"cosine", weight_cosine},     // the same along a cosine
};

const GuidanceKind *guidance_at(int i) {
    return i >= 0 && i < (int)COUNT_OF(kinds) ? &kinds[i] : NULL;
}

const GuidanceKind *guidance_find(const char *name) {
    for (size_t i = 0; i < COUNT_OF(kinds); i++)
        if (!strcmp(kinds[i].name, name)) return &kinds[i];
    return NULL;
}

static double middle(int step, int steps) { return (step + 0.5) / steps; }

double guidance_scale(const Guidance *g, int step, int steps) {
    double u = middle(step, steps), sum = 0;
    bool whole = g->lo == 0 && g->hi == 0;
    if (g->scale == 1 || (!whole && (u < g->lo || u > g->hi))) return 1;
    if (!g->kind || g->kind->weight == weight_constant) return g->scale; // exactly
    for (int i = 0; i < steps; i++) sum += g->kind->weight(middle(i, steps));
    return 1 + (g->scale - 1) * g->kind->weight(u) * steps / sum;
}

bool guidance_any(const Guidance *g, int steps) {
    for (int i = 0; i < steps; i++)
        if (guidance_scale(g, i, steps) != 1) return true;
    return false;
}

bool guidance_interval(const char *text, double *lo, double *hi, Error *err) {
    char *end;
    const char *start = text;
    double from = strtod(start, &end);
    bool ok = end != start && *end == ':';
    start = ok ? end + 1 : start;
    double to = strtod(start, &end);
    ok = ok && end != start && *end == 0 && from >= 0 && from < to && to <= 1;
    if (!ok)
        return err_set(err, STATUS_USAGE, "--cfg-interval: expected LO:HI with 0 <= LO < HI <= 1, "
                       "found \"%.60s\"; for example 0.1:0.8", text);
    *lo = from, *hi = to;
    return true;
}

// ---- dynamic thresholding -----------------------------------------------------------------------

// The value that would stand at `rank` if v were sorted; none before it is larger, none after it
// smaller. Quickselect with Hoare's partition, which stays in bounds and ends even among NaNs.
static float select_rank(float *v, size_t n, size_t rank) {
    ptrdiff_t lo = 0, hi = (ptrdiff_t)n - 1, wanted = (ptrdiff_t)rank;
    while (lo < hi) {
        float pivot = v[lo + (hi - lo) / 2];
        ptrdiff_t i = lo - 1, j = hi + 1;
        while (true) {
            do i++; while (v[i] < pivot);
            do j--; while (v[j] > pivot);
            if (i >= j) break;
            float other = v[i];
            v[i] = v[j], v[j] = other;
        }
        if (wanted <= j) hi = j;
        else lo = j + 1;
    }
    return v[lo];
}

float guidance_quantile(float *v, size_t n, double q) {
    double position = q * (double)(n - 1);
    size_t rank = MIN((size_t)position, n - 1);
    float below = select_rank(v, n, rank), above = below;
    for (size_t i = rank + 1; i < n; i++) above = i == rank + 1 ? v[i] : MIN(above, v[i]);
    return (float)(below + (position - (double)rank) * ((double)above - below));
}

static float clean_quantile(float *scratch, const float *x, const float *v, float left, double q,
                            size_t n) {
    for (size_t i = 0; i < n; i++) scratch[i] = fabsf(x[i] + left * v[i]);
    return guidance_quantile(scratch, n, q);
}

// One picture: v is the guided velocity, q_cond the conditional latent's quantile.
static void threshold(float *v, const float *x, float left, double q, float q_cond, float *scratch,
                      size_t n) {
    float q_guided = clean_quantile(scratch, x, v, left, q, n);
    if (!(q_guided > 0)) return; // all zeros, or not numbers: the sampler will say so
    double scale = (double)q_cond / q_guided;
    for (size_t i = 0; i < n; i++) {
        float clean = x[i] + left * v[i];
        if (fabsf(clean) <= q_guided && scale == 1) continue; // bit for bit as it was
        double clamped = MAX(MIN(clean, q_guided), -q_guided);
        v[i] = (float)((clamped * scale - x[i]) / left);
    }
}

void guidance_apply(const Guidance *g, int step, int steps, float *v, const float *cond,
                    const float *uncond, const float *x, double to_end, int pictures, size_t n) {
    double scale = guidance_scale(g, step, steps);
    float left = (float)to_end;
    bool thresholded = g->threshold > 0 && left != 0;
    float *scratch = thresholded ? MEM_ARRAY(NULL, float, n) : NULL;
    for (int p = 0; p < pictures; p++) {
        size_t at = (size_t)p * n;
        float q_cond = 0; // before v, which may be cond, is written
        if (thresholded) q_cond = clean_quantile(scratch, x + at, cond + at, left, g->threshold, n);
        if (scale != 1) guidance_cfg(v + at, cond + at, uncond + at, (float)scale, n);
        else if (v != cond) memcpy(v + at, cond + at, n * sizeof *v);
        if (thresholded) threshold(v + at, x + at, left, g->threshold, q_cond, scratch, n);
    }
    mem_free(scratch);
}
