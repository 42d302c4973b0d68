// rope.comp: rotary position embedding (ops/rope.h). A tile is TILE_3 tokens of a batch, all heads;
// a unit of work is a pair to rotate, or a number after the pairs to copy.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common/kiln.glsl"
#define half apart // a reserved word here
#include "rope.h"
KILN_ARGS(Rope, ROPE_OPERANDS, ROPE_FIELDS)
#define args RopeBlock(push.block).a
layout(local_size_x_id = 6) in;
layout(constant_id = 16) const uint X_TYPE = 0;
layout(constant_id = 18) const uint Y_TYPE = 0;
layout(constant_id = 32) const uint HALF = 0;
layout(constant_id = 33) const uint D = 64;     // numbers per head: few in a model
layout(constant_id = 34) const uint PAIRS = 32; // to rotate

uvec2 token_addr(TensorArg t, uint b, uint token, uint dtype) {
    uvec2 a = addr_add(tensor_addr(t), t.shape[2] == 1 ? 0 : b, t.stride[2], dtype);
    return addr_add(a, token, t.stride[3], dtype);
}

void main() {
    const uint units = D - PAIRS; // per head
    TensorArg x = args.x, y = args.y, table = args.table;
    uint origin[MAX_DIMS];
    tile_origin(y, origin);
    uint b = origin[2], tokens = min(TILE_3, y.shape[3] - origin[3]), heads = y.shape[4];
    for (uint e = gl_LocalInvocationIndex; e < tokens * heads * units; e += gl_WorkGroupSize.x) {
        uint unit = e % units, h = e / units % heads, token = origin[3] + e / units / heads;
        uvec2 from = token_addr(x, b, token, X_TYPE), to = token_addr(y, b, token, Y_TYPE);
        uint xh = h * x.stride[4], yh = h * y.stride[4];
        if (unit < PAIRS) {
            uvec2 turn = token_addr(table, b, token, DTYPE_F32);
            turn = addr_add(turn, unit, table.stride[4], DTYPE_F32);
            float cosine = RefF32(turn).v[0], sine = RefF32(turn).v[1];
            uint i = HALF != 0 ? unit : 2 * unit, j = HALF != 0 ? unit + PAIRS : i + 1;
            float u = load(from, xh + i, X_TYPE), v = load(from, xh + j, X_TYPE);
            store(to, yh + i, Y_TYPE, u * cosine - v * sine);
            store(to, yh + j, Y_TYPE, u * sine + v * cosine);
        } else {
            uint i = PAIRS + unit;
            store(to, yh + i, Y_TYPE, load(from, xh + i, X_TYPE));
        }
    }
}
