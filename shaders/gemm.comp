// gemm.comp: matrix products (ops/gemm.h). One workgroup computes one tile of y [TILE_4, TILE_5].
//
// Three forms, chosen when the module is built:
//   (none)  for GPUs: x and w tiles in shared memory, each invocation keeps ROWS x COLS sums in
//           registers (in groups of 4 x 4: shared memory is read in vectors, without conflicts).
//   LANES   for devices whose subgroups are the vector registers of a CPU; one subgroup of 8 per
//           tile. A lane keeps COLS columns of w; x comes from the other lanes by broadcasts. Both
//           are gathered straight from memory (the dear operation there), a whole cache line per
//           lane at a time, so that rows a power of two apart do not evict each other, and 16
//           gathers of w serve all ROWS. The sums lie on the stack; each is fetched once per 16
//           products, because a row's broadcasts come first and then its sums, one by one.
//   THIN    for M <= 8: memory-bound; the invocations share out K, and add up at the end.
//
// Out-of-range elements are never read: indices are clamped to the last valid element, and what
// lies past K is replaced by 0 in both operands (an infinity of one must not meet the other's 0).
#version 460
#extension GL_GOOGLE_include_directive : require
#ifdef LANES
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_ballot : require
#endif
#include "common/kiln.glsl"
#include "common/act.glsl"
#include "gemm.h"
KILN_ARGS(Gemm, GEMM_OPERANDS, GEMM_FIELDS)
#define args GemmBlock(push.block).a

layout(local_size_x_id = 6) in;
layout(constant_id = 16) const uint X_TYPE = 0;
layout(constant_id = 17) const uint W_TYPE = 0;
layout(constant_id = 18) const uint X2_TYPE = 0;
layout(constant_id = 19) const uint W2_TYPE = 0;
#ifdef LANES // where every side of a branch is executed
layout(constant_id = 20) const uint BIAS_TYPE = 0;
layout(constant_id = 21) const uint GATE_TYPE = 0;
layout(constant_id = 22) const uint RESIDUAL_TYPE = 0;
layout(constant_id = 23) const uint Y_TYPE = 0;
#else
#define BIAS_TYPE args.bias.dtype
#define GATE_TYPE args.gate.dtype
#define RESIDUAL_TYPE args.residual.dtype
#define Y_TYPE args.y.dtype
#endif
layout(constant_id = 32) const uint STEP_K = 16; // a multiple of 4
layout(constant_id = 33) const uint ROWS = 4;    // per invocation (LANES: per subgroup)
layout(constant_id = 34) const uint COLS = 4;    // per invocation
layout(constant_id = 35) const bool TRANS_X = false;
layout(constant_id = 36) const bool TRANS_W = false;
layout(constant_id = 37) const bool VECTORS = false; // x and w can be read four elements at a time
layout(constant_id = 38) const uint ACT = 0;
layout(constant_id = 39) const bool SECOND = false; // the call may have x2 and w2

const uint THREADS = gl_WorkGroupSize.x;

bool has_second() { return SECOND && !tensor_absent(args.x2); }

// Address of element [b, row, 0] of an operand.
uvec2 at_row(TensorArg t, uint b, uint row, uint dtype) {
    uvec2 a = addr_add(tensor_addr(t), t.shape[3] == 1 ? 0 : b, t.stride[3], dtype);
    return addr_add(a, t.shape[4] == 1 ? 0 : row, t.stride[4], dtype);
}

// What follows the sums of a tile, read once (software drivers would read it for every element).
struct Epilogue {
    uvec2 bias, gate, residual, y; // addresses of the tile's first element
    bool has_bias, has_gate, has_residual;
    uint gate_m, gate_n, residual_m, y_m; // elements from one row (m) or column (n) to the next
};
Epilogue epilogue(uint b, uint m0, uint n0) {
    Epilogue e;
    e.has_bias = !tensor_absent(args.bias);
    e.has_gate = !tensor_absent(args.gate);
    e.has_residual = !tensor_absent(args.residual);
    e.gate_m = args.gate.shape[4] == 1 ? 0 : args.gate.stride[4]; // 0: the same for all
    e.gate_n = args.gate.shape[5] == 1 ? 0 : args.gate.stride[5];
    e.residual_m = args.residual.stride[4];
    e.y_m = args.y.stride[4];
    e.bias = addr_add(tensor_addr(args.bias), n0, 1, BIAS_TYPE);
    e.gate = addr_add(at_row(args.gate, b, m0, GATE_TYPE), n0, e.gate_n, GATE_TYPE);
    e.residual = addr_add(at_row(args.residual, b, m0, RESIDUAL_TYPE), n0, 1, RESIDUAL_TYPE);
    e.y = addr_add(at_row(args.y, b, m0, Y_TYPE), n0, 1, Y_TYPE);
    return e;
}
// act(sum + bias) * gate + residual, stored as element [m, n] of the tile.
void finish(Epilogue e, uint m, uint n, float sum) {
    if (e.has_bias) sum += load(e.bias, n, BIAS_TYPE);
    sum = act_value(ACT, sum);
    if (e.has_gate) sum *= load(e.gate, m * e.gate_m + n * e.gate_n, GATE_TYPE);
    if (e.has_residual) sum += load(e.residual, m * e.residual_m + n, RESIDUAL_TYPE);
    store(e.y, m * e.y_m + n, Y_TYPE, sum);
}

#define TILE_M TILE_4
#include "common/product.glsl"

#ifdef THIN
shared float parts[64 * 33];

void main() {
    const uint N_PER = 4, M_PER = 8;
    uint origin[MAX_DIMS];
    tile_origin(args.y, origin);
    uint b = origin[3], m0 = origin[4], n0 = origin[5], me = gl_LocalInvocationIndex;
    uint rows = args.y.shape[4] - m0, cols = args.y.shape[5] - n0;
    float acc[M_PER][N_PER];
    [[unroll]] for (uint i = 0; i < M_PER; i++)
        [[unroll]] for (uint j = 0; j < N_PER; j++) acc[i][j] = 0.0;
    for (uint segment = 0; segment < (has_second() ? 2 : 1); segment++) {
        bool second = SECOND && segment == 1;
        uint K = second ? args.x2.shape[5] : args.x.shape[5];
        uint x_stride = second ? args.x2.stride[4] : args.x.stride[4];
        uint w_stride = second ? args.w2.stride[4] : args.w.stride[4];
        uint xt = second ? X2_TYPE : X_TYPE, wt = second ? W2_TYPE : W_TYPE;
        uvec2 x = second ? at_row(args.x2, b, m0, xt) : at_row(args.x, b, m0, xt);
        uvec2 w = second ? at_row(args.w2, b, n0, wt) : at_row(args.w, b, n0, wt);
        for (uint k = me * 4; k < K; k += THREADS * 4) {
            vec4 wv[N_PER];
            [[unroll]] for (uint j = 0; j < N_PER; j++)
                wv[j] = keep(load_some(w, min(j, cols - 1) * w_stride + k, K - k, wt), K - k);
            [[unroll]] for (uint i = 0; i < M_PER; i++) {
                if (i >= rows) break;
                vec4 xv = keep(load_some(x, i * x_stride + k, K - k, xt), K - k);
                [[unroll]] for (uint j = 0; j < N_PER; j++) acc[i][j] += dot(xv, wv[j]);
            }
        }
    }
    [[unroll]] for (uint i = 0; i < M_PER; i++)
        [[unroll]] for (uint j = 0; j < N_PER; j++) parts[me * 33 + i * N_PER + j] = acc[i][j];
    barrier();
    uint i = me / N_PER, j = me % N_PER;
    if (me >= M_PER * N_PER || i >= rows || j >= cols) return;
    float sum = 0.0;
    for (uint t = 0; t < THREADS; t++) sum += parts[t * 33 + me];
    finish(epilogue(b, m0, n0), i, j, sum);
}

#elif defined(LANES)
// Elements 16 line .. 16 line + 15 of this lane's row (trans: column) of an operand; all exist.
void load_line(uvec2 a, bool trans, uint stride, uint line, uint dtype, out float v[16]) {
    if (trans) {
        a = addr_add(a, 16 * line, stride, dtype);
        [[unroll]] for (uint u = 0; u < 16; u++) v[u] = load(a, u * stride, dtype);
    } else {
        load_row_line(a, line, dtype, v);
    }
}
float load_one(uvec2 a, bool trans, uint stride, uint k, uint dtype) {
    return trans ? load(addr_add(a, k, stride, dtype), 0, dtype) : load(a, k, dtype);
}

void main() {
    uint origin[MAX_DIMS];
    tile_origin(args.y, origin);
    uint b = origin[3], m0 = origin[4], n0 = origin[5], lane = gl_SubgroupInvocationID;
    uint rows = args.y.shape[4] - m0, cols = args.y.shape[5] - n0;
    float acc[ROWS][COLS];
    [[unroll]] for (uint i = 0; i < ROWS; i++)
        [[unroll]] for (uint j = 0; j < COLS; j++) acc[i][j] = 0.0;

    for (uint segment = 0; segment < (has_second() ? 2 : 1); segment++) {
        bool second = SECOND && segment == 1;
        bool tx = TRANS_X && !second, tw = TRANS_W && !second;
        uint K = second ? args.x2.shape[5] : args.x.shape[TRANS_X ? 4 : 5];
        uint x_stride = second ? args.x2.stride[4] : args.x.stride[4];
        uint w_stride = second ? args.w2.stride[4] : args.w.stride[4];
        uint xt = second ? X2_TYPE : X_TYPE, wt = second ? W2_TYPE : W_TYPE;
        // Where this lane's rows begin; lanes past the edge repeat the last row.
        uvec2 x0 = second ? at_row(args.x2, b, 0, xt) : at_row(args.x, b, 0, xt);
        uvec2 w0 = second ? at_row(args.w2, b, 0, wt) : at_row(args.w, b, 0, wt);
        uvec2 x[ROWS / 8], w[COLS];
        [[unroll]] for (uint i = 0; i < ROWS / 8; i++)
            x[i] = addr_add(x0, m0 + min(lane + 8 * i, rows - 1), tx ? 1 : x_stride, xt);
        [[unroll]] for (uint j = 0; j < COLS; j++)
            w[j] = addr_add(w0, n0 + min(lane + 8 * j, cols - 1), tw ? 1 : w_stride, wt);

        uint lines = K / 16;
        for (uint line = 0; line < lines; line++) {
            float wv[COLS][16];
            [[unroll]] for (uint j = 0; j < COLS; j++)
                load_line(w[j], tw, w_stride, line, wt, wv[j]);
            [[unroll]] for (uint i = 0; i < ROWS / 8; i++) {
                float xv[16];
                load_line(x[i], tx, x_stride, line, xt, xv);
                [[unroll]] for (uint r = 0; r < 8; r++) {
                    float one[16];
                    [[unroll]] for (uint u = 0; u < 16; u++) one[u] = subgroupBroadcast(xv[u], r);
                    [[unroll]] for (uint j = 0; j < COLS; j++)
                        [[unroll]] for (uint u = 0; u < 16; u++)
                            acc[8 * i + r][j] += one[u] * wv[j][u];
                }
            }
        }
        for (uint k = 16 * lines; k < K; k++) {
            float wv[COLS];
            [[unroll]] for (uint j = 0; j < COLS; j++)
                wv[j] = load_one(w[j], tw, w_stride, k, wt);
            [[unroll]] for (uint i = 0; i < ROWS / 8; i++) {
                float xv = load_one(x[i], tx, x_stride, k, xt);
                [[unroll]] for (uint r = 0; r < 8; r++) {
                    float one = subgroupBroadcast(xv, r);
                    [[unroll]] for (uint j = 0; j < COLS; j++) acc[8 * i + r][j] += one * wv[j];
                }
            }
        }
    }

    Epilogue e = epilogue(b, m0, n0);
    // A copy that may be indexed by a variable, so that the epilogue is not unrolled.
    float sums[ROWS * COLS];
    [[unroll]] for (uint i = 0; i < ROWS; i++)
        [[unroll]] for (uint j = 0; j < COLS; j++) sums[i * COLS + j] = acc[i][j];
    [[dont_unroll]] for (uint i = 0; i < min(ROWS, rows); i++)
        [[dont_unroll]] for (uint j = 0; j < COLS; j++)
            if (lane + 8 * j < cols)
                finish(e, i, lane + 8 * j, sums[i * COLS + j]);
}

#else
// Copies a block [SIZE, STEP_K] of an operand into shared memory as [k, row]. `a` is the address of
// its first row (trans: of its first column, stored [K, rows]); `rows` and K - k0 elements exist.
// Rows past the end repeat the last one: what they give is not stored.
#define STAGE(NAME, OUT, SIZE, LINE)                                                              \
    void NAME(uvec2 a, bool trans, uint stride, uint rows, uint k0, uint K, uint dtype) {         \
        const uint vectors = SIZE * STEP_K / 4;                                                   \
        if (trans) a = addr_add(a, k0, stride, dtype);                                            \
        [[unroll]] for (uint first = 0; first < vectors; first += THREADS) {                      \
            uint i = first + gl_LocalInvocationIndex;                                             \
            if (vectors % THREADS != 0 && i >= vectors) break;                                    \
            if (trans) {                                                                          \
                uint r = i % (SIZE / 4) * 4, k = i / (SIZE / 4);                                  \
                uint from = min(r, VECTORS ? rows - 4 : rows - 1);                                \
                vec4 v = load_some(a, min(k, K - k0 - 1) * stride + from, rows - from, dtype);    \
                v = keep(v, k0 + k < K ? 4 : 0);                                                  \
                [[unroll]] for (uint u = 0; u < 4; u++) OUT[k * LINE + r + u] = v[u];             \
            } else {                                                                              \
                uint k = i % (STEP_K / 4) * 4, r = i / (STEP_K / 4);                              \
                uint from = min(k0 + k, VECTORS ? K - 4 : K - 1);                                 \
                vec4 v = load_some(a, min(r, rows - 1) * stride + from, K - from, dtype);         \
                v = keep(v, k0 + k < K ? K - k0 - k : 0);                                         \
                [[unroll]] for (uint u = 0; u < 4; u++) OUT[(k + u) * LINE + r] = v[u];           \
            }                                                                                     \
        }                                                                                         \
    }
STAGE(stage_x, xs, TILE_4, X_LINE)
STAGE(stage_w, ws, TILE_5, W_LINE)

void main() {
    uint origin[MAX_DIMS];
    tile_origin(args.y, origin);
    uint b = origin[3], m0 = origin[4], n0 = origin[5];
    uint rows = args.y.shape[4] - m0, cols = args.y.shape[5] - n0;
    float acc[ROWS][COLS];
    [[unroll]] for (uint i = 0; i < ROWS; i++)
        [[unroll]] for (uint j = 0; j < COLS; j++) acc[i][j] = 0.0;

    for (uint segment = 0; segment < (has_second() ? 2 : 1); segment++) {
        bool second = SECOND && segment == 1;
        bool tx = TRANS_X && !second, tw = TRANS_W && !second;
        uint K = second ? args.x2.shape[5] : args.x.shape[TRANS_X ? 4 : 5];
        uint x_stride = second ? args.x2.stride[4] : args.x.stride[4];
        uint w_stride = second ? args.w2.stride[4] : args.w.stride[4];
        uint xt = second ? X2_TYPE : X_TYPE, wt = second ? W2_TYPE : W_TYPE;
        uvec2 x, w;
        if (second) {
            x = at_row(args.x2, b, m0, xt);
            w = at_row(args.w2, b, n0, wt);
        } else {
            x = tx ? addr_add(at_row(args.x, b, 0, xt), m0, 1, xt) : at_row(args.x, b, m0, xt);
            w = tw ? addr_add(at_row(args.w, b, 0, wt), n0, 1, wt) : at_row(args.w, b, n0, wt);
        }
        for (uint k0 = 0; k0 < K; k0 += STEP_K) {
            barrier(); // the block before this one has been used
            stage_x(x, tx, x_stride, rows, k0, K, xt);
            stage_w(w, tw, w_stride, cols, k0, K, wt);
            barrier();
            MULTIPLY_BLOCK(acc)
        }
    }

    Epilogue e = epilogue(b, m0, n0);
    FINISH_TILE(acc, m, n, sum,
                if (m < rows && n < cols) finish(e, m, n, sum))
}
#endif
