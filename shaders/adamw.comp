// adamw.comp: one step of AdamW in place (ops/adamw.h); all numbers that change from step to step
// are read from the device, so that one recording serves every step.
#version 460
#extension GL_GOOGLE_include_directive : require
#define KILN_PARAMS params // "p" is an operand here
#include "common/kiln.glsl"
#include "adamw.h"
KILN_ARGS(Adamw, ADAMW_OPERANDS, ADAMW_FIELDS)
#define args AdamwBlock(push.block).a
layout(local_size_x_id = 6) in;
layout(constant_id = 20) const uint G_TYPE = 0;

void main() {
    TensorArg p = args.p, m = args.m, v = args.v, ema = args.ema, g = args.g;
    if (!tensor_absent(args.found_inf) && RefF32(tensor_addr(args.found_inf)).v[0] != 0.0) return;
    RefF32 h = RefF32(tensor_addr(args.hyper));
    float lr = h.v[0], b1 = h.v[1], b2 = h.v[2], eps = h.v[3], decay = h.v[4];
    float step_size = lr / h.v[5], root2 = sqrt(h.v[6]), inv_scale = h.v[7], ema_decay = h.v[8];
    uint tile = tile_number();
    RefF32 pw = RefF32(addr_add(tensor_addr(p), tile, FLAT, DTYPE_F32));
    RefF32 mw = RefF32(addr_add(tensor_addr(m), tile, FLAT, DTYPE_F32));
    RefF32 vw = RefF32(addr_add(tensor_addr(v), tile, FLAT, DTYPE_F32));
    RefF32 ew = RefF32(addr_add(tensor_addr(ema), tile, FLAT, DTYPE_F32));
    uvec2 gw = addr_add(tensor_addr(g), tile, FLAT, G_TYPE);
    bool has_ema = !tensor_absent(ema);
    uint end = min(p.shape[5] - tile * FLAT, FLAT);
    for (uint i = gl_LocalInvocationIndex; i < end; i += gl_WorkGroupSize.x) {
        float grad = load(gw, i, G_TYPE) * inv_scale, w = pw.v[i];
        float m1 = b1 * mw.v[i] + (1.0 - b1) * grad;
        float v1 = b2 * vw.v[i] + (1.0 - b2) * grad * grad;
        w -= lr * decay * w;
        w -= step_size * m1 / (sqrt(v1) / root2 + eps);
        pw.v[i] = w;
        mw.v[i] = m1;
        vw.v[i] = v1;
        if (has_ema) ew.v[i] = ema_decay * ew.v[i] + (1.0 - ema_decay) * w;
    }
}
