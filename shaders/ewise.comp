// ewise.comp: o = f(x, y, z) per element (ops/ewise.h). The kind of function is a specialisation
// constant: software drivers run both sides of every branch.
// VEC 4: all operands in vectors of four elements; VEC 1: any strides, broadcasts of the last
// dimension too.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common/kiln.glsl"
#include "common/act.glsl"
#include "ewise.h"
KILN_ARGS(Ewise, EWISE_OPERANDS, EWISE_FIELDS)
#define args EwiseBlock(push.block).a
layout(local_size_x_id = 6) in;
layout(constant_id = 16) const uint X_TYPE = 0;
layout(constant_id = 17) const uint Y_TYPE = 0;
layout(constant_id = 18) const uint Z_TYPE = 0;
layout(constant_id = 19) const uint O_TYPE = 0;
layout(constant_id = 32) const uint VEC = 1;
layout(constant_id = 33) const uint KIND = EW_SCALE;
layout(constant_id = 34) const uint ACT = ACT_NONE;
#include "common/walk.glsl"

// Does the kind read y and z? What is not read costs nothing.
const bool HAS_Z = KIND == EW_MULADD || KIND == EW_MODULATE;
const bool HAS_Y = HAS_Z || KIND == EW_ACT_BWD || (KIND >= EW_ADD && KIND <= EW_DIV);

float value(float x, float y, float z, float alpha, float beta) {
    switch (KIND) {
    case EW_SCALE: return alpha * x + beta;
    case EW_ACT: return act_value(ACT, x);
    case EW_ACT_BWD: return y * act_slope(ACT, x);
    case EW_ADD: return x + y;
    case EW_SUB: return x - y;
    case EW_MUL: return x * y;
    case EW_DIV: return x / y;
    case EW_MULADD: return x * y + z;
    case EW_MODULATE: return x * (1.0 + y) + z;
    case EW_SQUARE: return x * x;
    case EW_CLAMP: return x < alpha ? min(alpha, beta) : x > beta ? beta : x; // NaN stays
    case EW_EXP: return exp(x);
    case EW_SQRT: return sqrt(x);
    }
    return x;
}

void main() {
    TensorArg x = args.x, y = args.y, z = args.z, o = args.o;
    float alpha = args.p.alpha, beta = args.p.beta;
    Walk w;
    [[unroll]] for (int d = 0; d < 6; d++) w.shape[d] = o.shape[d];
    w.shape[5] /= VEC;
    walk_tensor(w, 0, o, VEC);
    walk_tensor(w, 1, x, VEC);
    if (HAS_Y) walk_tensor(w, 2, y, VEC);
    else walk_tensor(w, 2, x, VEC);
    if (HAS_Z) walk_tensor(w, 3, z, VEC);
    else walk_tensor(w, 3, x, VEC);
    uint units = w.shape[0] * w.shape[1] * w.shape[2] * w.shape[3] * w.shape[4] * w.shape[5];
    walk_merge(w, 4);
    uint first = tile_number() * (FLAT / VEC), step = gl_WorkGroupSize.x;
    uint end = min(units - first, FLAT / VEC);
    for (uint j = gl_LocalInvocationIndex; j < end; j += step) {
        uint at[6];
        walk_at(w, first + j, at);
        uvec2 to = walk_addr(w, 0, at, tensor_addr(o), O_TYPE);
        uvec2 from = walk_addr(w, 1, at, tensor_addr(x), X_TYPE);
        if (VEC == 4) {
            vec4 a = load4(from, 0, X_TYPE), b = vec4(0), c = vec4(0), r;
            if (HAS_Y) b = load4(walk_addr(w, 2, at, tensor_addr(y), Y_TYPE), 0, Y_TYPE);
            if (HAS_Z) c = load4(walk_addr(w, 3, at, tensor_addr(z), Z_TYPE), 0, Z_TYPE);
            [[unroll]] for (int i = 0; i < 4; i++) r[i] = value(a[i], b[i], c[i], alpha, beta);
            store4(to, 0, O_TYPE, r);
        } else {
            float a = load(from, 0, X_TYPE), b = 0, c = 0;
            if (HAS_Y) b = load(walk_addr(w, 2, at, tensor_addr(y), Y_TYPE), 0, Y_TYPE);
            if (HAS_Z) c = load(walk_addr(w, 3, at, tensor_addr(z), Z_TYPE), 0, Z_TYPE);
            store(to, 0, O_TYPE, value(a, b, c, alpha, beta));
        }
    }
}
