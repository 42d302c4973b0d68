// attn.comp: attention without the matrix of scores (ops/attn.h; Dao et al. 2022). Each invocation
// owns OWN queries (heads.glsl); keys pass by in blocks: the scores of a block, its maximum, the
// old sums rescaled once, then the values. Row sums and the maximum belong to one invocation, so
// there is nothing to reduce, and the order of summation never changes.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common/kiln.glsl"
#include "attn.h"
KILN_ARGS(Attn, ATTN_OPERANDS, ATTN_FIELDS)
#define args AttnBlock(push.block).a
#include "common/heads.glsl"

layout(constant_id = 16) const uint Q_TYPE = 0;
layout(constant_id = 17) const uint K_TYPE = 0;
layout(constant_id = 18) const uint V_TYPE = 0;
layout(constant_id = 19) const uint MASK_TYPE = 0;
layout(constant_id = 20) const uint Y_TYPE = 0;

#ifdef LANES
float scores[BLOCK * OWN];
uint slot(uint j, uint v) { return j * OWN + v; }
#else
shared float scores[BLOCK * OWN * THREADS]; // every invocation uses its own column only
uint slot(uint j, uint v) { return (j * OWN + v) * THREADS + gl_LocalInvocationIndex; }
#endif

void main() {
    uint origin[MAX_DIMS];
    tile_origin(args.y, origin);
    uint b = origin[2], t0 = origin[3], h = origin[4];
    uint T = args.q.shape[3], S = args.k.shape[3], hk = h / (args.q.shape[4] / args.k.shape[4]);
    float scale = score_scale(args.p.scale);
    bool masked = !tensor_absent(args.mask);
    uvec2 q_head = head_addr(args.q, b, h), k_head = head_addr(args.k, b, hk);
    uvec2 v_head = head_addr(args.v, b, hk), y_head = head_addr(args.y, b, h), mask[OWN];
    uint mask_step = args.mask.shape[5] == 1 ? 0 : 1;

    uint t[OWN], seen[OWN];
    float q[OWN][MINE], o[OWN][MINE], most[OWN], total[OWN];
    [[unroll]] for (uint v = 0; v < OWN; v++) {
        t[v] = t0 + gl_LocalInvocationIndex / PARTS + v * (THREADS / PARTS);
        uint row = min(t[v], T - 1);
        seen[v] = keys_seen(args.p.causal, row, T, S);
        mask[v] = mask_row(args.mask, b, h, row);
        LOAD_OWN(q[v], args.q, q_head, row, Q_TYPE)
        [[unroll]] for (uint i = 0; i < MINE; i++) o[v][i] = 0.0;
        most[v] = NEVER;
        total[v] = 0.0;
    }

    uint end = keys_seen(args.p.causal, min(t0 + THREADS / PARTS * OWN, T) - 1, T, S);
    for (uint first = 0; first < end; first += BLOCK) {
        uint n = min(BLOCK, end - first);
#ifndef LANES
        barrier(); // the block before has been used
        STAGE(args.k, k_head, first, S, block_a, K_TYPE)
        STAGE(args.v, v_head, first, S, block_b, V_TYPE)
        barrier();
#endif
        float best[OWN];
        [[unroll]] for (uint v = 0; v < OWN; v++) best[v] = most[v];
        [[dont_unroll]] for (uint j = 0; j < n; j++) {
            float k[MINE];
            OTHER(k, args.k, k_head, first, j, block_a, K_TYPE)
            [[unroll]] for (uint v = 0; v < OWN; v++) {
                float dot = 0.0;
                [[unroll]] for (uint i = 0; i < MINE; i++) dot += q[v][i] * k[i];
                float s = sum_of_parts(dot) * scale;
                if (masked) s += load(mask[v], (first + j) * mask_step, MASK_TYPE);
                if (first + j >= seen[v]) s = NEVER;
                scores[slot(j, v)] = s;
                best[v] = max(best[v], s);
            }
        }
        [[unroll]] for (uint v = 0; v < OWN; v++) {
            float shrink = best[v] == most[v] ? 1.0 : exp(most[v] - best[v]);
            most[v] = best[v];
            total[v] *= shrink;
            [[unroll]] for (uint i = 0; i < MINE; i++) o[v][i] *= shrink;
        }
        [[dont_unroll]] for (uint j = 0; j < n; j++) {
            float value[MINE];
            OTHER(value, args.v, v_head, first, j, block_b, V_TYPE)
            [[unroll]] for (uint v = 0; v < OWN; v++) {
                float s = scores[slot(j, v)], p = s == NEVER ? 0.0 : exp(s - most[v]);
                total[v] += p;
                [[unroll]] for (uint i = 0; i < MINE; i++) o[v][i] += p * value[i];
            }
        }
    }

    uvec2 lse = addr_add(tensor_addr(args.lse), b, args.lse.stride[3], DTYPE_F32);
    lse = addr_add(lse, h, args.lse.stride[4], DTYPE_F32);
    [[unroll]] for (uint v = 0; v < OWN; v++) {
        if (t[v] >= T) continue;
        bool none = total[v] == 0.0;
        [[unroll]] for (uint i = 0; i < MINE; i++) o[v][i] = none ? 0.0 : o[v][i] / total[v];
        STORE_OWN(args.y, y_head, t[v], 1.0, o[v], Y_TYPE)
        if (part() == 0)
            store(lse, t[v], DTYPE_F32, none ? NEVER : most[v] + log(total[v]));
    }
}
