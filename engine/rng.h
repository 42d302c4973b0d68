// rng.h: random numbers: PyTorch's two generators, number for number, and Kiln's own.
//
// RngTorch  PyTorch's CPU generator: mt19937, M. Matsumoto and T. Nishimura, "Mersenne Twister",
//           ACM TOMACS 8 (1998).
// RngCuda   PyTorch's CUDA generator: Philox 4x32-10, J. Salmon et al., "Parallel Random Numbers:
//           As Easy as 1, 2, 3", SC 2011, with cuRAND's Box-Muller.
// Rng       xoshiro256++ (D. Blackman, S. Vigna, 2019), for training noise, shuffles and tests.
//
// All state is in the caller's struct; a struct is used by one thread at a time. Nothing allocates
// or fails.
#ifndef KILN_ENGINE_RNG_H
#define KILN_ENGINE_RNG_H

#include "backend/base.h"

// ---- PyTorch, CPU -----------------------------------------------------------------------------
// `rng_torch_seed(r, seed)` is torch.Generator("cpu").manual_seed(seed); draws that follow give
// what the same draws give there, in order. As in PyTorch only the low 32 bits of the seed count,
// and a draw of n < 16 normals takes another path (Box-Muller in double, the second value of a pair
// kept for the next short draw) than one of n >= 16 (blocks of 16 in float).
typedef struct RngTorch {
    uint32_t mt[624];
    uint32_t next;  // index of the next word in mt; 624: make new ones
    bool has_spare; // the second normal of a pair from a short draw
    double spare;
} RngTorch;

void rng_torch_seed(RngTorch *r, uint64_t seed);
uint32_t rng_torch_u32(RngTorch *r);
// torch.randn(n), float32: within 2e-6 of PyTorch's values (whose log, sin and cos depend on the
// processor).
void rng_torch_randn(RngTorch *r, float *out, size_t n);
void rng_torch_rand(RngTorch *r, float *out, size_t n); // torch.rand(n), float32, [0, 1): exact

// ---- PyTorch, CUDA ----------------------------------------------------------------------------
// torch.Generator("cuda").manual_seed(seed), all 64 bits. PyTorch launches blocks of 256 threads,
// ceil(n / 256) of them but at most `max_blocks` = multiprocessors x (threads per multiprocessor /
// 256) of the card; each thread owns one Philox subsequence and each of its steps makes 4 numbers,
// one grid apart. So draws of at most 256 x max_blocks elements are the same on all cards (and each
// element is the first number of its own subsequence), larger ones are not: RTX 4090: 768, A100:
// 864, H100: 1056. `max_blocks` 0: no limit, the numbers that tools agree on.
typedef struct RngCuda {
    uint64_t seed;
    uint64_t offset; // Philox steps done by earlier draws
    uint32_t max_blocks;
} RngCuda;

void rng_cuda_seed(RngCuda *r, uint64_t seed, uint32_t max_blocks);
void rng_cuda_randn(RngCuda *r, float *out, size_t n); // torch.randn(n, device="cuda"), float32

// One Philox 4x32-10 block: `ctr` becomes the four random words.
void rng_philox(uint32_t ctr[4], const uint32_t key[2]);

// ---- Kiln's own -------------------------------------------------------------------------------
// The whole state is these four words: save and restore them to go on bit for bit.
typedef struct Rng {
    uint64_t s[4];
} Rng;

// Streams of one seed are independent of each other: one per use (noise, shuffle, flips ...).
void rng_seed(Rng *r, uint64_t seed, uint64_t stream);
uint64_t rng_u64(Rng *r);
uint64_t rng_below(Rng *r, uint64_t bound); // 0 .. bound - 1, without bias; bound 0 gives 0
float rng_f32(Rng *r);                      // [0, 1), 24 bits
double rng_f64(Rng *r);                     // [0, 1), 53 bits
float rng_normal(Rng *r);                   // mean 0, deviation 1
// n normals; uses both values of a pair, so it differs from n calls of rng_normal.
void rng_fill_normal(Rng *r, float *out, size_t n);
void rng_shuffle(Rng *r, uint32_t *v, size_t n); // Fisher-Yates, in place

#endif
