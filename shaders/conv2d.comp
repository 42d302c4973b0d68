// conv2d.comp: convolutions as matrix products (ops/conv2d.h): the rows of x are the patches of x
// under the outputs, read in place; K goes over the taps (r, q) and, in each, the channels c. A
// tile is TILE_3 x TILE_4 outputs of a picture, of TILE_5 channels.
//
//   (none)  for GPUs, LANES for drivers on the CPU: as in gemm.comp; without groups
//   DIRECT  an invocation per output number; any groups
//
// What lies outside of x is read as its element [0, 0] and replaced by 0.
#version 460
#extension GL_GOOGLE_include_directive : require
#ifdef LANES
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_ballot : require
#endif
#include "common/kiln.glsl"
#include "common/act.glsl"
#include "conv2d.h"
KILN_ARGS(Conv2d, CONV2D_OPERANDS, CONV2D_FIELDS)
#define args Conv2dBlock(push.block).a

layout(local_size_x_id = 6) in;
layout(constant_id = 16) const uint X_TYPE = 0;
layout(constant_id = 17) const uint W_TYPE = 0;
#ifdef LANES // where every side of a branch is executed
layout(constant_id = 18) const uint BIAS_TYPE = 0;
layout(constant_id = 19) const uint RESIDUAL_TYPE = 0;
layout(constant_id = 20) const uint Y_TYPE = 0;
#else
#define BIAS_TYPE args.bias.dtype
#define RESIDUAL_TYPE args.residual.dtype
#define Y_TYPE args.y.dtype
#endif
layout(constant_id = 32) const uint STEP_K = 16; // a multiple of 4
layout(constant_id = 33) const uint ROWS = 4;    // per invocation (LANES: per subgroup)
layout(constant_id = 34) const uint COLS = 4;    // per invocation
layout(constant_id = 35) const bool VECTORS = false; // channels can be read four at a time
layout(constant_id = 36) const uint ACT = 0;

#define TILE_M (TILE_3 * TILE_4)
#include "common/product.glsl"

const uint THREADS = gl_WorkGroupSize.x;

// A place in x, or none.
struct Place { uint y, x; bool inside; };

// Under tap (r, q) of output (oy, ox).
Place place_of(uint oy, uint ox, uint r, uint q) {
    uint stride = max(args.p.stride, 1), dilation = max(args.p.dilation, 1);
    uint up = max(args.p.upsample, 1) - 1; // as a shift
    uint y = oy * stride + r * dilation - args.p.pad_top; // before the first: a huge number
    uint x = ox * stride + q * dilation - args.p.pad_left;
    bool inside = y < args.x.shape[3] << up && x < args.x.shape[4] << up;
    return Place(inside ? y >> up : 0, inside ? x >> up : 0, inside);
}
uvec2 address_of(uvec2 picture, Place p) {
    uvec2 a = addr_add(picture, p.y, args.x.stride[3], X_TYPE);
    return addr_add(a, p.x, args.x.stride[4], X_TYPE);
}
uvec2 batch_of(TensorArg t, uint b, uint dtype) {
    return addr_add(tensor_addr(t), b, t.stride[2], dtype);
}
// [oy, ox, 0] of a tensor like y, in batch b.
uvec2 output_of(TensorArg t, uint b, uint oy, uint ox, uint dtype) {
    uvec2 a = addr_add(batch_of(t, b, dtype), oy, t.stride[3], dtype);
    return addr_add(a, ox, t.stride[4], dtype);
}

// act(sum + bias) + residual, stored.
void finish(uint b, uint oy, uint ox, uint n, float sum) {
    if (!tensor_absent(args.bias)) sum += load(tensor_addr(args.bias), n, BIAS_TYPE);
    sum = act_value(ACT, sum);
    if (!tensor_absent(args.residual))
        sum += load(output_of(args.residual, b, oy, ox, RESIDUAL_TYPE), n, RESIDUAL_TYPE);
    store(output_of(args.y, b, oy, ox, Y_TYPE), n, Y_TYPE, sum);
}

#ifdef DIRECT
void main() {
    TensorArg x = args.x, w = args.w, y = args.y;
    uint count = y.shape[2] * y.shape[3] * y.shape[4] * y.shape[5];
    uint first = tile_number() * FLAT, end = min(count - first, FLAT);
    uint per_group = y.shape[5] / max(args.p.groups, 1), C = w.shape[5];
    for (uint e = gl_LocalInvocationIndex; e < end; e += THREADS) {
        uint n = (first + e) % y.shape[5], i = (first + e) / y.shape[5];
        uint ox = i % y.shape[4], oy = i / y.shape[4] % y.shape[3];
        uint b = i / y.shape[4] / y.shape[3], c0 = n / per_group * C;
        uvec2 picture = batch_of(x, b, X_TYPE);
        uvec2 weights = addr_add(tensor_addr(w), n, w.stride[2], W_TYPE);
        float sum = 0.0;
        for (uint r = 0; r < w.shape[3]; r++)
            for (uint q = 0; q < w.shape[4]; q++) {
                Place p = place_of(oy, ox, r, q);
                uvec2 from = address_of(picture, p);
                uint tap = r * w.stride[3] + q * w.stride[4];
                for (uint c = 0; c < C; c++) {
                    float v = load(from, c0 + c, X_TYPE);
                    sum += (p.inside ? v : 0.0) * load(weights, tap + c, W_TYPE);
                }
            }
        finish(b, oy, ox, n, sum);
    }
}

#elif defined(LANES)
void main() {
    uint origin[MAX_DIMS];
    tile_origin(args.y, origin);
    uint b = origin[2], oy = origin[3], ox = origin[4], n0 = origin[5];
    uint lane = gl_SubgroupInvocationID, C = args.x.shape[5], cols = args.y.shape[5] - n0;
    float acc[ROWS][COLS]; // rows 8 i .. 8 i + 7 are 8 neighbours of line i of the tile
    [[unroll]] for (uint i = 0; i < ROWS; i++)
        [[unroll]] for (uint j = 0; j < COLS; j++) acc[i][j] = 0.0;
    uvec2 picture = batch_of(args.x, b, X_TYPE), weights[COLS];
    [[unroll]] for (uint j = 0; j < COLS; j++) // lanes past the edge repeat the last column
        weights[j] = addr_add(tensor_addr(args.w), n0 + min(lane + 8 * j, cols - 1),
                              args.w.stride[2], W_TYPE);

    for (uint r = 0; r < args.w.shape[3]; r++)
        for (uint q = 0; q < args.w.shape[4]; q++) {
            uvec2 x[ROWS / 8], w[COLS];
            bool inside[ROWS / 8];
            [[unroll]] for (uint i = 0; i < ROWS / 8; i++) {
                Place p = place_of(oy + i, ox + lane, r, q);
                x[i] = address_of(picture, p);
                inside[i] = p.inside;
            }
            [[unroll]] for (uint j = 0; j < COLS; j++) {
                w[j] = addr_add(weights[j], r, args.w.stride[3], W_TYPE);
                w[j] = addr_add(w[j], q, args.w.stride[4], W_TYPE);
            }
            uint lines = C / 16;
            for (uint line = 0; line < lines; line++) {
                float wv[COLS][16];
                [[unroll]] for (uint j = 0; j < COLS; j++)
                    load_row_line(w[j], line, W_TYPE, wv[j]);
                [[unroll]] for (uint i = 0; i < ROWS / 8; i++) {
                    float xv[16];
                    load_row_line(x[i], line, X_TYPE, xv);
                    [[unroll]] for (uint u = 0; u < 16; u++) {
                        float mine = inside[i] ? xv[u] : 0.0;
                        [[unroll]] for (uint l = 0; l < 8; l++) {
                            float one = subgroupBroadcast(mine, l);
                            [[unroll]] for (uint j = 0; j < COLS; j++)
                                acc[8 * i + l][j] += one * wv[j][u];
                        }
                    }
                }
            }
            for (uint c = 16 * lines; c < C; c++) {
                float wv[COLS];
                [[unroll]] for (uint j = 0; j < COLS; j++) wv[j] = load(w[j], c, W_TYPE);
                [[unroll]] for (uint i = 0; i < ROWS / 8; i++) {
                    float xv = load(x[i], c, X_TYPE), mine = inside[i] ? xv : 0.0;
                    [[unroll]] for (uint l = 0; l < 8; l++) {
                        float one = subgroupBroadcast(mine, l);
                        [[unroll]] for (uint j = 0; j < COLS; j++) acc[8 * i + l][j] += one * wv[j];
                    }
                }
            }
        }

    // A copy that may be indexed by a variable, so that the epilogue is not unrolled.
    float sums[ROWS * COLS];
    [[unroll]] for (uint i = 0; i < ROWS; i++)
        [[unroll]] for (uint j = 0; j < COLS; j++) sums[i * COLS + j] = acc[i][j];
    [[dont_unroll]] for (uint i = 0; i < ROWS; i++) {
        uint v = oy + i / 8, h = ox + i % 8;
        if (v >= args.y.shape[3] || h >= args.y.shape[4]) continue;
        [[dont_unroll]] for (uint j = 0; j < COLS; j++)
            if (lane + 8 * j < cols) finish(b, v, h, n0 + lane + 8 * j, sums[i * COLS + j]);
    }
}

#else
// Where element k of a patch lies: its tap and channel.
struct Tap { uint r, q, c; };
Tap tap_of(uint k) {
    uint C = args.w.shape[5], S = args.w.shape[4], i = k / C;
    return Tap(i / S, i % S, k - i * C);
}

float load_x(uvec2 picture, uint oy, uint ox, uint k) {
    Tap t = tap_of(k);
    Place p = place_of(oy, ox, t.r, t.q);
    float v = load(address_of(picture, p), t.c, X_TYPE);
    return p.inside ? v : 0.0;
}
float load_w(uvec2 row, uint k) {
    Tap t = tap_of(k);
    return load(row, t.r * args.w.stride[3] + t.q * args.w.stride[4] + t.c, W_TYPE);
}

// Elements k..k+3 of a patch; of K, those past the end are 0. With VECTORS they are of one tap.
vec4 load_x4(uvec2 picture, uint oy, uint ox, uint k, uint K) {
    if (!VECTORS) {
        vec4 v;
        [[unroll]] for (uint u = 0; u < 4; u++) v[u] = load_x(picture, oy, ox, min(k + u, K - 1));
        return keep(v, k < K ? K - k : 0);
    }
    Tap t = tap_of(min(k, K - 4));
    Place p = place_of(oy, ox, t.r, t.q);
    vec4 v = load4(address_of(picture, p), t.c, X_TYPE);
    return p.inside && k < K ? v : vec4(0);
}
vec4 load_w4(uvec2 row, uint k, uint K) {
    if (!VECTORS) {
        vec4 v;
        [[unroll]] for (uint u = 0; u < 4; u++) v[u] = load_w(row, min(k + u, K - 1));
        return keep(v, k < K ? K - k : 0);
    }
    Tap t = tap_of(min(k, K - 4));
    vec4 v = load4(row, t.r * args.w.stride[3] + t.q * args.w.stride[4] + t.c, W_TYPE);
    return k < K ? v : vec4(0);
}

void main() {
    uint origin[MAX_DIMS];
    tile_origin(args.y, origin);
    uint b = origin[2], oy = origin[3], ox = origin[4], n0 = origin[5];
    uint high = args.y.shape[3] - oy, wide = args.y.shape[4] - ox, cols = args.y.shape[5] - n0;
    uvec2 picture = batch_of(args.x, b, X_TYPE);
    float acc[ROWS][COLS];
    [[unroll]] for (uint i = 0; i < ROWS; i++)
        [[unroll]] for (uint j = 0; j < COLS; j++) acc[i][j] = 0.0;

    uint K = args.w.shape[3] * args.w.shape[4] * args.w.shape[5];
    for (uint k0 = 0; k0 < K; k0 += STEP_K) {
        barrier(); // the block before this one has been used
        const uint x_vectors = TILE_M * STEP_K / 4, w_vectors = TILE_5 * STEP_K / 4;
        [[unroll]] for (uint first = 0; first < x_vectors; first += THREADS) {
            uint i = first + gl_LocalInvocationIndex;
            uint k = i % (STEP_K / 4) * 4, m = i / (STEP_K / 4);
            if (x_vectors % THREADS != 0 && i >= x_vectors) break;
            vec4 v = load_x4(picture, oy + min(m / TILE_4, high - 1),
                             ox + min(m % TILE_4, wide - 1), k0 + k, K);
            [[unroll]] for (uint u = 0; u < 4; u++) xs[(k + u) * X_LINE + m] = v[u];
        }
        [[unroll]] for (uint first = 0; first < w_vectors; first += THREADS) {
            uint i = first + gl_LocalInvocationIndex;
            uint k = i % (STEP_K / 4) * 4, n = i / (STEP_K / 4);
            if (w_vectors % THREADS != 0 && i >= w_vectors) break;
            uvec2 row = addr_add(tensor_addr(args.w), n0 + min(n, cols - 1), args.w.stride[2],
                                 W_TYPE);
            vec4 v = load_w4(row, k0 + k, K);
            [[unroll]] for (uint u = 0; u < 4; u++) ws[(k + u) * W_LINE + n] = v[u];
        }
        barrier();
        MULTIPLY_BLOCK(acc)
    }
    FINISH_TILE(acc, m, n, sum,
                if (m / TILE_4 < high && m % TILE_4 < wide && n < cols)
                    finish(b, oy + m / TILE_4, ox + m % TILE_4, n0 + n, sum))
}
#endif
