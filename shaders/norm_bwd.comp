// norm_bwd.comp: gradient of a plain norm from its output (ops/norm_bwd.h). Rows are shared out as
// in norm.comp.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common/kiln.glsl"
#include "norm.h"
#include "norm_bwd.h"
KILN_ARGS(NormBwd, NORM_BWD_OPERANDS, NORM_BWD_FIELDS)
#define args NormBwdBlock(push.block).a

layout(local_size_x_id = 6) in;
#include "common/group.glsl"
layout(constant_id = 16) const uint Y_TYPE = 0;
layout(constant_id = 17) const uint DY_TYPE = 0;
layout(constant_id = 19) const uint DX_TYPE = 0;
layout(constant_id = 32) const bool WIDE = false;
layout(constant_id = 33) const uint KIND = NORM_LAYER;

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
    tile_origin(args.dx, origin);
    uint b = origin[3], C = args.dx.shape[5];
    uint end = min(origin[4] + TILE_4, args.dx.shape[4]);
    uvec2 place = WIDE ? uvec2(gl_LocalInvocationIndex, gl_WorkGroupSize.x) : subgroup_place();
    uint lane = place.x, lanes = place.y;
    uint step = WIDE ? 1 : gl_NumSubgroups;
    for (uint m = origin[4] + (WIDE ? 0 : gl_SubgroupID); m < end; m += step) {
        uvec2 y = row_addr(args.y, b, m, Y_TYPE), dy = row_addr(args.dy, b, m, DY_TYPE);
        uvec2 dx = row_addr(args.dx, b, m, DX_TYPE);
        float rstd = load(row_addr(args.rstd, b, m, DTYPE_F32), 0, DTYPE_F32);
        float sum = 0.0, product = 0.0;
        for (uint i = lane; i < C; i += lanes) {
            float g = load(dy, i, DY_TYPE);
            sum += g;
            product += g * load(y, i, Y_TYPE);
        }
        product = sum_over_row(product) / float(C);
        float mean = KIND == NORM_LAYER ? sum_over_row(sum) / float(C) : 0.0;
        for (uint i = lane; i < C; i += lanes) {
            float g = load(dy, i, DY_TYPE) - mean - load(y, i, Y_TYPE) * product;
            store(dx, i, DX_TYPE, rstd * g);
        }
    }
}
