// nonfinite.comp: y[0, 0, 0] = 1 where any x is NaN or infinite (ops/reduce.h, REDUCE_NONFINITE).
// PASS 0 sets y to 0 unless it accumulates; PASS 1 looks at x. Groups that find something all
// write the same 1, in whatever order.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common/kiln.glsl"
#include "reduce.h"
KILN_ARGS(Reduce, REDUCE_OPERANDS, REDUCE_FIELDS)
#define args ReduceBlock(push.block).a
layout(local_size_x_id = 6) in;
layout(constant_id = 16) const uint X_TYPE = 0;
layout(constant_id = 32) const uint PASS = 0;
#include "common/walk.glsl"

// By bits: comparisons with infinity are not promised to work in shaders.
bool nonfinite(uvec2 addr, uint i) {
    if (X_TYPE == DTYPE_F32) return (RefU32(addr).v[i] & 0x7f800000u) == 0x7f800000u;
    uint mask = X_TYPE == DTYPE_F16 ? 0x7c00u : 0x7f80u;
    return (uint(RefU16(addr).v[i]) & mask) == mask;
}

void main() {
    TensorArg x = args.x;
    RefF32 y = RefF32(tensor_addr(args.y));
    if (PASS == 0) {
        if (gl_LocalInvocationIndex == 0 && args.p.accumulate == 0) y.v[0] = 0.0;
        return;
    }
    uint units = x.shape[5];
    [[unroll]] for (int d = 6 - int(RANK); d < 5; d++) units *= x.shape[d];
    uint first = tile_number() * FLAT;
    uint end = min(units - first, FLAT);
    bool found = false;
    for (uint j = gl_LocalInvocationIndex; j < end; j += gl_WorkGroupSize.x) {
        uint at[6];
        walk_at(x, 1, first + j, at);
        uvec2 base = tensor_addr(x);
        uint i = walk_index(x, 1, at, base, X_TYPE);
        if (nonfinite(base, i)) found = true;
    }
    if (found) y.v[0] = 1.0;
}
