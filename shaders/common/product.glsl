// product.glsl: what gemm and conv2d share. Include after the declarations of VECTORS, ROWS, COLS
// and STEP_K; TILE_M names the number of rows of a tile, TILE_5 is that of its columns.
//   (none)  shared memory for a block [STEP_K, TILE_M] of x and [STEP_K, TILE_5] of w; the sums
//           of an invocation (in groups of 4 x 4: shared memory is read in vectors, no conflicts)
//   LANES   loads of a cache line by each lane of a subgroup of 8

// Four elements i.. of which `valid` (at least 1, or 0 for none) exist; the rest is 0.
vec4 load_some(uvec2 a, uint i, uint valid, uint dtype) {
    if (VECTORS) return load4(a, i, dtype);
    uint last = max(valid, 1) - 1;
    return vec4(load(a, i, dtype), load(a, i + min(1, last), dtype),
                load(a, i + min(2, last), dtype), load(a, i + min(3, last), dtype));
}
vec4 keep(vec4 v, uint valid) {
    return vec4(valid > 0 ? v.x : 0.0, valid > 1 ? v.y : 0.0, valid > 2 ? v.z : 0.0,
                valid > 3 ? v.w : 0.0);
}

#ifdef LANES
struct Line { float v[16]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer RefLine { Line v[]; };
struct HalfLine { uint v[8]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer RefHalfLine { HalfLine v[]; };

// Elements 16 line .. 16 line + 15 of this lane's row; all exist.
void load_row_line(uvec2 a, uint line, uint dtype, out float v[16]) {
    if (dtype == DTYPE_F32) {
        [[unroll]] for (uint u = 0; u < 16; u++) v[u] = RefLine(a).v[line].v[u];
    } else if (VECTORS) {
        [[unroll]] for (uint u = 0; u < 16; u += 2) {
            vec2 two = unpack2(RefHalfLine(a).v[line].v[u / 2], dtype);
            v[u] = two.x;
            v[u + 1] = two.y;
        }
    } else {
        [[unroll]] for (uint u = 0; u < 16; u++) v[u] = load(a, 16 * line + u, dtype);
    }
}
#elif !defined(THIN) && !defined(DIRECT)
const uint PAD = 4; // keeps rows in whole vectors and off each other's banks
const uint X_LINE = TILE_M + PAD, W_LINE = TILE_5 + PAD;
// [k, m], and at the end TILE_M / ROWS rows of y
const uint X_BLOCK = STEP_K * X_LINE, Y_BLOCK = TILE_M / ROWS * TILE_5;
shared float xs[X_BLOCK > Y_BLOCK ? X_BLOCK : Y_BLOCK];
shared float ws[STEP_K * W_LINE]; // [k, n]

// Which row and column of the tile this invocation's sum [i][j] is.
uint row_of(uint i) {
    uint row0 = gl_LocalInvocationIndex / (TILE_5 / COLS) * 4;
    return row0 + i / 4 * (4 * TILE_M / ROWS) + i % 4;
}
uint col_of(uint j) {
    uint col0 = gl_LocalInvocationIndex % (TILE_5 / COLS) * 4;
    return col0 + j / 4 * (4 * TILE_5 / COLS) + j % 4;
}

// Adds the products of the block in shared memory to the sums ACC[ROWS][COLS].
#define MULTIPLY_BLOCK(ACC)                                                                       \
    for (uint k_ = 0; k_ < STEP_K; k_++) {                                                        \
        float xv_[ROWS], wv_[COLS];                                                               \
        [[unroll]] for (uint i_ = 0; i_ < ROWS; i_++) xv_[i_] = xs[k_ * X_LINE + row_of(i_)];     \
        [[unroll]] for (uint j_ = 0; j_ < COLS; j_++) wv_[j_] = ws[k_ * W_LINE + col_of(j_)];     \
        [[unroll]] for (uint i_ = 0; i_ < ROWS; i_++)                                             \
            [[unroll]] for (uint j_ = 0; j_ < COLS; j_++)                                         \
                ACC[i_][j_] = fma(xv_[i_], wv_[j_], ACC[i_][j_]);                                 \
    }

// Runs DONE for each sum, with its row M_ and column N_ in the tile and its value SUM_: a few rows
// at a time through shared memory, so that whole lines are stored, and the code of an epilogue
// stands here ROWS times only.
#define FINISH_TILE(ACC, M_, N_, SUM_, DONE)                                                      \
    [[unroll]] for (uint i_ = 0; i_ < ROWS; i_++) {                                               \
        barrier();                                                                                \
        uint line_ = row_of(0) / 4 * TILE_5;                                                      \
        [[unroll]] for (uint j_ = 0; j_ < COLS; j_++) xs[line_ + col_of(j_)] = ACC[i_][j_];       \
        barrier();                                                                                \
        [[dont_unroll]] for (uint e_ = gl_LocalInvocationIndex; e_ < Y_BLOCK;                     \
                             e_ += gl_WorkGroupSize.x) {                                          \
            uint M_ = e_ / TILE_5 * 4 + i_ / 4 * (4 * TILE_M / ROWS) + i_ % 4;                    \
            uint N_ = e_ % TILE_5;                                                                \
            float SUM_ = xs[e_];                                                                  \
            DONE;                                                                                 \
        }                                                                                         \
    }
#endif
