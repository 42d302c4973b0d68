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

void copy_unit(uvec2 to, uvec2 from) {
    if (VEC == 4) store4(to, 0, Y_TYPE, load4(from, 0, X_TYPE));
    else if (X_TYPE == Y_TYPE && dtype_shift(X_TYPE) == 2) RefU32(to).v[0] = RefU32(from).v[0];
    else if (X_TYPE == Y_TYPE) RefU16(to).v[0] = RefU16(from).v[0];
    else store(to, 0, Y_TYPE, load(from, 0, X_TYPE));
}

void main() {
    TensorArg x = args.x, y = args.y;
    Walk w;
    [[unroll]] for (int d = 0; d < 6; d++) w.shape[d] = y.shape[d];
    w.shape[5] /= VEC;
    walk_tensor(w, 0, x, VEC);
    walk_tensor(w, 1, y, VEC);
    uint units = w.shape[0] * w.shape[1] * w.shape[2] * w.shape[3] * w.shape[4] * w.shape[5];
    walk_merge(w, 2);
    uint first = tile_number() * (FLAT / VEC), step = gl_WorkGroupSize.x;
    uint end = min(units - first, FLAT / VEC);
    for (uint j = gl_LocalInvocationIndex; j < end; j += step) {
        uint at[6];
        walk_at(w, first + j, at);
        copy_unit(walk_addr(w, 1, at, tensor_addr(y), Y_TYPE),
                  walk_addr(w, 0, at, tensor_addr(x), X_TYPE));
    }
}
