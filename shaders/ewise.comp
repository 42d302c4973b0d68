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
    uint units = o.shape[5] / VEC;
    [[unroll]] for (int d = 6 - int(RANK); d < 5; d++) units *= o.shape[d];
    uint first = tile_number() * (FLAT / VEC), step = gl_WorkGroupSize.x;
    uint end = min(units - first, FLAT / VEC);
    for (uint j = gl_LocalInvocationIndex; j < end; j += step) {
        uint at[6], ix, iy = 0, iz = 0, io;
        walk_at(o, VEC, first + j, at);
        uvec2 to = tensor_addr(o), ax = tensor_addr(x), ay = tensor_addr(y), az = tensor_addr(z);
        io = walk_index(o, VEC, at, to, O_TYPE);
        ix = walk_index(x, VEC, at, ax, X_TYPE);
        if (HAS_Y) iy = walk_index(y, VEC, at, ay, Y_TYPE);
        if (HAS_Z) iz = walk_index(z, VEC, at, az, Z_TYPE);
        if (VEC == 4) {
            vec4 a = load4(ax, ix, X_TYPE), b = vec4(0), c = vec4(0), r;
            if (HAS_Y) b = load4(ay, iy, Y_TYPE);
            if (HAS_Z) c = load4(az, iz, Z_TYPE);
            [[unroll]] for (int i = 0; i < 4; i++) r[i] = value(a[i], b[i], c[i], alpha, beta);
            store4(to, io, O_TYPE, r);
        } else {
            float a = load(ax, ix, X_TYPE), b = 0, c = 0;
            if (HAS_Y) b = load(ay, iy, Y_TYPE);
            if (HAS_Z) c = load(az, iz, Z_TYPE);
            store(to, io, O_TYPE, value(a, b, c, alpha, beta));
        }
    }
}
