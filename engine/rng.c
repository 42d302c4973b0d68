// rng.c: see rng.h. Compile without floating-point contraction (DESIGN section 3).
#include "engine/rng.h"

#include <math.h>

static const double TWO_PI = 6.283185307179586476925286766559;

// ---- PyTorch, CPU: mt19937 --------------------------------------------------------------------

enum { MT_N = 624, MT_M = 397 };

void rng_torch_seed(RngTorch *r, uint64_t seed) {
    r->mt[0] = (uint32_t)seed;
    for (uint32_t i = 1; i < MT_N; i++)
        r->mt[i] = 1812433253u * (r->mt[i - 1] ^ (r->mt[i - 1] >> 30)) + i;
    r->next = MT_N;
    r->has_spare = false;
    r->spare = 0;
}

static void mt_refill(uint32_t *mt) {
    for (int i = 0; i < MT_N; i++) {
        uint32_t y = (mt[i] & 0x80000000u) | (mt[(i + 1) % MT_N] & 0x7fffffffu);
        mt[i] = mt[(i + MT_M) % MT_N] ^ (y >> 1) ^ (y & 1 ? 0x9908b0dfu : 0);
    }
}

uint32_t rng_torch_u32(RngTorch *r) {
    if (r->next >= MT_N) {
        mt_refill(r->mt);
        r->next = 0;
    }
    uint32_t y = r->mt[r->next++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

static float torch_uniform_f32(RngTorch *r) {
    return (float)(rng_torch_u32(r) & 0xffffffu) * 0x1p-24f;
}

static double torch_uniform_f64(RngTorch *r) {
    uint64_t high = rng_torch_u32(r), low = rng_torch_u32(r);
    return (double)((high << 32 | low) & ((1ull << 53) - 1)) * 0x1p-53;
}

void rng_torch_rand(RngTorch *r, float *out, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = torch_uniform_f32(r);
}

static double torch_normal_f64(RngTorch *r) {
    if (r->has_spare) {
        r->has_spare = false;
        return r->spare;
    }
    double u1 = torch_uniform_f64(r), u2 = torch_uniform_f64(r);
    double radius = sqrt(-2.0 * log1p(-u2)), theta = TWO_PI * u1;
    r->spare = radius * sin(theta);
    r->has_spare = true;
    return radius * cos(theta);
}

// 16 uniforms become 16 normals: element j pairs with j + 8.
static void torch_normal_16(float *v) {
    for (int j = 0; j < 8; j++) {
        float radius = sqrtf(-2.0f * logf(1.0f - v[j]));
        float theta = (float)TWO_PI * v[j + 8];
        v[j] = radius * cosf(theta);
        v[j + 8] = radius * sinf(theta);
    }
}

void rng_torch_randn(RngTorch *r, float *out, size_t n) {
    if (n < 16) {
        for (size_t i = 0; i < n; i++) out[i] = (float)torch_normal_f64(r);
        return;
    }
    rng_torch_rand(r, out, n);
    for (size_t i = 0; i + 16 <= n; i += 16) torch_normal_16(out + i);
    if (n % 16 == 0) return;
    // The last 16 are drawn anew, over part of the last whole block.
    rng_torch_rand(r, out + n - 16, 16);
    torch_normal_16(out + n - 16);
}

// ---- PyTorch, CUDA: Philox 4x32-10 ------------------------------------------------------------

void rng_philox(uint32_t ctr[4], const uint32_t key[2]) {
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t a = 0xD2511F53ull * ctr[0], b = 0xCD9E8D57ull * ctr[2];
        uint32_t c0 = (uint32_t)(b >> 32) ^ ctr[1] ^ k0, c2 = (uint32_t)(a >> 32) ^ ctr[3] ^ k1;
        ctr[0] = c0;
        ctr[1] = (uint32_t)b;
        ctr[2] = c2;
        ctr[3] = (uint32_t)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

void rng_cuda_seed(RngCuda *r, uint64_t seed, uint32_t max_blocks) {
    *r = (RngCuda){.seed = seed, .max_blocks = max_blocks};
}

// cuRAND's pair: sine first. The angle's multiply-add is fused on the GPU: a product of two floats
// is exact in double.
static void cuda_box_muller(uint32_t x, uint32_t y, float out[2]) {
    const float angle_unit = 0x1p-32f * 6.2831855f;
    float u = (float)x * 0x1p-32f + 0x1p-33f;
    float v = (float)((double)(float)y * (double)angle_unit + (double)(angle_unit / 2.0f));
    float s = sqrtf(-2.0f * logf(u));
    out[0] = s * sinf(v);
    out[1] = s * cosf(v);
}

void rng_cuda_randn(RngCuda *r, float *out, size_t n) {
    if (!n) return;
    const uint32_t key[2] = {(uint32_t)r->seed, (uint32_t)(r->seed >> 32)};
    uint64_t blocks = ((uint64_t)n + 255) / 256;
    if (r->max_blocks && blocks > r->max_blocks) blocks = r->max_blocks;
    uint64_t threads = blocks * 256;
    uint64_t steps = ((uint64_t)n - 1) / (threads * 4) + 1;
    for (uint64_t step = 0; step < steps; step++)
        for (uint64_t t = 0; t < threads; t++) {
            uint64_t first = step * threads * 4 + t, at = r->offset + step;
            if (first >= n) break;
            uint32_t c[4] = {(uint32_t)at, (uint32_t)(at >> 32), (uint32_t)t, (uint32_t)(t >> 32)};
            rng_philox(c, key);
            float four[4];
            cuda_box_muller(c[0], c[1], four);
            cuda_box_muller(c[2], c[3], four + 2);
            for (uint64_t j = 0; j < 4 && first + j * threads < n; j++)
                out[first + j * threads] = four[j];
        }
    r->offset += steps;
}

// ---- Kiln's own: xoshiro256++ -----------------------------------------------------------------

static uint64_t splitmix(uint64_t *x) {
    uint64_t z = *x += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

void rng_seed(Rng *r, uint64_t seed, uint64_t stream) {
    // The stream is mixed first, so that (seed, stream) and (seed + 1, stream - 1) are unrelated.
    uint64_t x = splitmix(&stream) ^ seed;
    for (int i = 0; i < 4; i++) r->s[i] = splitmix(&x);
}

static uint64_t rotate_left(uint64_t x, int k) { return x << k | x >> (64 - k); }

uint64_t rng_u64(Rng *r) {
    uint64_t *s = r->s, result = rotate_left(s[0] + s[3], 23) + s[0], t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = rotate_left(s[3], 45);
    return result;
}

uint64_t rng_below(Rng *r, uint64_t bound) {
    if (!bound) return 0;
    uint64_t reject_under = (0 - bound) % bound; // 2^64 mod bound
    uint64_t x;
    do x = rng_u64(r);
    while (x < reject_under);
    return x % bound;
}

float rng_f32(Rng *r) { return (float)(rng_u64(r) >> 40) * 0x1p-24f; }

double rng_f64(Rng *r) { return (double)(rng_u64(r) >> 11) * 0x1p-53; }

// One 64-bit draw makes a pair: 32 bits for the radius (never log 0) and 32 for the angle.
static void normal_pair(Rng *r, float out[2]) {
    uint64_t x = rng_u64(r);
    double u = ((double)(x >> 32) + 0.5) * 0x1p-32, v = (double)(uint32_t)x * 0x1p-32;
    float radius = sqrtf(-2.0f * logf((float)u)), theta = (float)(TWO_PI * v);
    out[0] = radius * cosf(theta);
    out[1] = radius * sinf(theta);
}

float rng_normal(Rng *r) {
    float pair[2];
    normal_pair(r, pair);
    return pair[0];
}

void rng_fill_normal(Rng *r, float *out, size_t n) {
    size_t i = 0;
    for (; i + 2 <= n; i += 2) normal_pair(r, out + i);
    if (i < n) out[i] = rng_normal(r);
}

void rng_shuffle(Rng *r, uint32_t *v, size_t n) {
    for (size_t i = n; i > 1; i--) {
        size_t j = (size_t)rng_below(r, i);
        uint32_t t = v[i - 1];
        v[i - 1] = v[j];
        v[j] = t;
    }
}
