// reduce.comp: y[a, 0, c] = alpha * sum over r of x[a, r, c] (ops/reduce.h, REDUCE_SUM).
// A tile is one a and TILE_5 columns. The workgroup is TILE_5 columns wide; its invocations above
// each column take rows in turn, and their sums are added in a fixed order.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common/kiln.glsl"
#include "common/sum.glsl"
#include "reduce.h"
KILN_ARGS(Reduce, REDUCE_OPERANDS, REDUCE_FIELDS)
#define args ReduceBlock(push.block).a
layout(local_size_x_id = 6) in;
layout(constant_id = 16) const uint X_TYPE = 0;
layout(constant_id = 32) const uint WIDE = 1; // x is past 2^31 elements

shared float totals[gl_WorkGroupSize.x], carries[gl_WorkGroupSize.x];

void main() {
    TensorArg x = args.x, y = args.y;
    uint at[6];
    tile_origin(y, at);
    uint lane = gl_LocalInvocationIndex, lanes = gl_WorkGroupSize.x / TILE_5;
    uint column = at[5] + lane % TILE_5;
    bool inside = column < x.shape[5];
    uvec2 from = addr_add(tensor_addr(x), at[3], x.stride[3], X_TYPE);
    Sum sum = sum_start();
    if (inside)
        for (uint r = lane / TILE_5; r < x.shape[4]; r += lanes)
            sum_add(sum, WIDE == 0 ? load(from, r * x.stride[4] + column, X_TYPE)
                                   : load(addr_add(from, r, x.stride[4], X_TYPE), column, X_TYPE));
    totals[lane] = sum.total;
    carries[lane] = sum.carry;
    barrier();
    if (lane >= TILE_5 || !inside) return;
    sum = sum_start();
    for (uint i = lane; i < gl_WorkGroupSize.x; i += TILE_5) {
        sum_add(sum, totals[i]);
        sum_add(sum, carries[i]);
    }
    float alpha = args.p.alpha == 0.0 ? 1.0 : args.p.alpha;
    RefF32 to = RefF32(addr_add(tensor_addr(y), at[3], y.stride[3], DTYPE_F32));
    float old = args.p.accumulate != 0 ? to.v[column] : 0.0;
    to.v[column] = old + alpha * sum_total(sum);
}
