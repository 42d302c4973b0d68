// norm.comp: layer and RMS norms with their epilogue (ops/norm.h).
//
// A subgroup takes a row at a time, TILE_4 rows per workgroup; with WIDE the whole workgroup takes
// one row (few, long rows). Statistics in two passes; the second also sums the deviations, whose
// mean corrects the first pass's rounding of a large mean.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common/kiln.glsl"
#include "common/act.glsl"
#include "norm.h"
KILN_ARGS(Norm, NORM_OPERANDS, NORM_FIELDS)
#define args NormBlock(push.block).a

layout(local_size_x_id = 6) in;
#include "common/group.glsl"
layout(constant_id = 16) const uint X_TYPE = 0;
layout(constant_id = 17) const uint WEIGHT_TYPE = 0;
layout(constant_id = 18) const uint BIAS_TYPE = 0;
layout(constant_id = 19) const uint SCALE_TYPE = 0;
layout(constant_id = 20) const uint SHIFT_TYPE = 0;
layout(constant_id = 21) const uint Y_TYPE = 0;
layout(constant_id = 32) const bool WIDE = false;
layout(constant_id = 33) const uint KIND = NORM_LAYER;
layout(constant_id = 34) const uint ACT = 0;

float sum_over_row(float x) {
    if (WIDE) return group_sum(x);
    return subgroupAdd(x);
}

uvec2 row_addr(TensorArg t, uint b, uint m, uint dtype) {
    uvec2 a = addr_add(tensor_addr(t), t.shape[3] == 1 ? 0 : b, t.stride[3], dtype);
    return addr_add(a, t.shape[4] == 1 ? 0 : m, t.stride[4], dtype);
}

void main() {
    uint origin[MAX_DIMS];
    tile_origin(args.y, origin);
    uint b = origin[3], C = args.y.shape[5];
    uint end = min(origin[4] + TILE_4, args.y.shape[4]);
    uvec2 place = WIDE ? uvec2(gl_LocalInvocationIndex, gl_WorkGroupSize.x) : subgroup_place();
    uint lane = place.x, lanes = place.y;
    uint step = WIDE ? 1 : gl_NumSubgroups;
    for (uint m = origin[4] + (WIDE ? 0 : gl_SubgroupID); m < end; m += step) {
        uvec2 x = row_addr(args.x, b, m, X_TYPE), y = row_addr(args.y, b, m, Y_TYPE);
        uvec2 scale = row_addr(args.scale, b, m, SCALE_TYPE);
        uvec2 shift = row_addr(args.shift, b, m, SHIFT_TYPE);
        float mean = 0.0;
        if (KIND == NORM_LAYER) {
            float sum = 0.0;
            for (uint i = lane; i < C; i += lanes) sum += load(x, i, X_TYPE);
            mean = sum_over_row(sum) / float(C);
        }
        float first = 0.0, square = 0.0;
        for (uint i = lane; i < C; i += lanes) {
            float d = load(x, i, X_TYPE) - mean;
            first += d;
            square += d * d;
        }
        float var = sum_over_row(square) / float(C);
        if (KIND == NORM_LAYER) {
            float off = sum_over_row(first) / float(C);
            mean += off;
            var = max(var - off * off, 0.0);
        }
        float rstd = 1.0 / sqrt(var + args.p.eps);
        if (lane == 0 && !tensor_absent(args.rstd))
            store(row_addr(args.rstd, b, m, DTYPE_F32), 0, DTYPE_F32, rstd);
        for (uint i = lane; i < C; i += lanes) {
            float v = (load(x, i, X_TYPE) - mean) * rstd;
            if (!tensor_absent(args.weight)) v *= load(tensor_addr(args.weight), i, WEIGHT_TYPE);
            if (!tensor_absent(args.bias)) v += load(tensor_addr(args.bias), i, BIAS_TYPE);
            if (!tensor_absent(args.scale))
                v *= 1.0 + load(scale, args.scale.shape[5] == 1 ? 0 : i, SCALE_TYPE);
            if (!tensor_absent(args.shift))
                v += load(shift, args.shift.shape[5] == 1 ? 0 : i, SHIFT_TYPE);
            store(y, i, Y_TYPE, act_value(ACT, v));
        }
    }
}
