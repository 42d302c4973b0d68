// copy.comp: y = x with any strides on both sides and a change of type (ops/copy.h).
// VEC 4: both sides in vectors of four elements; VEC 1: any strides.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common/kiln.glsl"
#include "copy.h"
KILN_ARGS(Copy, COPY_OPERANDS, COPY_FIELDS)
#define args CopyBlock(push.block).a
layout(local_size_x_id = 6) in;
layout(constant_id = 16) const uint X_TYPE = 0;
layout(constant_id = 17) const uint Y_TYPE = 0;
layout(constant_id = 32) const uint VEC = 1;
#include "common/walk.glsl"

void main() {
    TensorArg x = args.x, y = args.y;
    uint units = y.shape[5] / VEC;
    [[unroll]] for (int d = 6 - int(RANK); d < 5; d++) units *= y.shape[d];
    uint first = tile_number() * (FLAT / VEC), step = gl_WorkGroupSize.x;
    uint end = min(units - first, FLAT / VEC);
    for (uint j = gl_LocalInvocationIndex; j < end; j += step) {
        uint at[6];
        walk_at(y, VEC, first + j, at);
        uvec2 from = tensor_addr(x), to = tensor_addr(y);
        uint i = walk_index(x, VEC, at, from, X_TYPE), o = walk_index(y, VEC, at, to, Y_TYPE);
        if (VEC == 4) store4(to, o, Y_TYPE, load4(from, i, X_TYPE));
        else if (X_TYPE != Y_TYPE) store(to, o, Y_TYPE, load(from, i, X_TYPE));
        else if (dtype_shift(X_TYPE) == 2) RefU32(to).v[o] = RefU32(from).v[i];
        else RefU16(to).v[o] = RefU16(from).v[i];
    }
}
