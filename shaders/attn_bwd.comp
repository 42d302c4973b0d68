// attn_bwd.comp: gradients of attention (ops/attn_bwd.h), the probabilities recomputed from lse.
// Two modules, so that each sum has one owner and nothing needs atomics:
//   (none)  an invocation owns queries and adds up dq while the keys pass by
//   KEYS    it owns keys and adds up dk and dv while the queries of all heads of its group pass by
// heads.glsl says how rows are owned and passed.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common/kiln.glsl"
#include "attn.h"
#include "attn_bwd.h"
KILN_ARGS(AttnBwd, ATTN_BWD_OPERANDS, ATTN_BWD_FIELDS)
#define args AttnBwdBlock(push.block).a
#include "common/heads.glsl"

layout(constant_id = 16) const uint Q_TYPE = 0;
layout(constant_id = 17) const uint K_TYPE = 0;
layout(constant_id = 18) const uint V_TYPE = 0;
layout(constant_id = 19) const uint MASK_TYPE = 0;
layout(constant_id = 20) const uint Y_TYPE = 0;
layout(constant_id = 22) const uint DY_TYPE = 0;
layout(constant_id = 23) const uint DQ_TYPE = 0;
layout(constant_id = 24) const uint DK_TYPE = 0;
layout(constant_id = 25) const uint DV_TYPE = 0;

uvec2 lse_head(uint b, uint h) {
    uvec2 a = addr_add(tensor_addr(args.lse), b, args.lse.stride[3], DTYPE_F32);
    return addr_add(a, h, args.lse.stride[4], DTYPE_F32);
}
float probability(float s, float lse) { return s == NEVER ? 0.0 : exp(s - lse); }

#ifndef KEYS
void main() {
    uint origin[MAX_DIMS];
    tile_origin(args.dq, origin);
    uint b = origin[2], t0 = origin[3], h = origin[4];
    uint T = args.q.shape[3], S = args.k.shape[3], hk = h / (args.q.shape[4] / args.k.shape[4]);
    float scale = score_scale(args.p.scale);
    bool masked = !tensor_absent(args.mask);
    uint mask_step = args.mask.shape[5] == 1 ? 0 : 1;
    uvec2 q_head = head_addr(args.q, b, h), k_head = head_addr(args.k, b, hk);
    uvec2 v_head = head_addr(args.v, b, hk), y_head = head_addr(args.y, b, h);
    uvec2 dy_head = head_addr(args.dy, b, h), dq_head = head_addr(args.dq, b, h), mask[OWN];

    uint t[OWN], seen[OWN];
    float q[OWN][MINE], dy[OWN][MINE], dq[OWN][MINE], lse[OWN], delta[OWN];
    [[unroll]] for (uint v = 0; v < OWN; v++) {
        t[v] = t0 + gl_LocalInvocationIndex / PARTS + v * (THREADS / PARTS);
        uint row = min(t[v], T - 1);
        seen[v] = keys_seen(args.p.causal, row, T, S);
        mask[v] = mask_row(args.mask, b, h, row);
        lse[v] = load(lse_head(b, h), row, DTYPE_F32);
        LOAD_OWN(q[v], args.q, q_head, row, Q_TYPE)
        LOAD_OWN(dy[v], args.dy, dy_head, row, DY_TYPE)
        float y[MINE], sum = 0.0;
        LOAD_OWN(y, args.y, y_head, row, Y_TYPE)
        [[unroll]] for (uint i = 0; i < MINE; i++) {
            sum += dy[v][i] * y[i];
            dq[v][i] = 0.0;
        }
        delta[v] = sum_of_parts(sum);
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
        [[dont_unroll]] for (uint j = 0; j < n; j++) {
            float k[MINE], value[MINE];
            OTHER(k, args.k, k_head, first, j, block_a, K_TYPE)
            OTHER(value, args.v, v_head, first, j, block_b, V_TYPE)
            [[unroll]] for (uint v = 0; v < OWN; v++) {
                float dot = 0.0, dp = 0.0;
                [[unroll]] for (uint i = 0; i < MINE; i++) dot += q[v][i] * k[i];
                [[unroll]] for (uint i = 0; i < MINE; i++) dp += dy[v][i] * value[i];
                float s = sum_of_parts(dot) * scale;
                if (masked) s += load(mask[v], (first + j) * mask_step, MASK_TYPE);
                if (first + j >= seen[v]) s = NEVER;
                float ds = probability(s, lse[v]) * (sum_of_parts(dp) - delta[v]);
                [[unroll]] for (uint i = 0; i < MINE; i++) dq[v][i] += ds * k[i];
            }
        }
    }
    [[unroll]] for (uint v = 0; v < OWN; v++)
        if (t[v] < T) STORE_OWN(args.dq, dq_head, t[v], scale, dq[v], DQ_TYPE)
}

#else
#ifndef LANES
shared float block_lse[BLOCK], block_delta[BLOCK];
#endif

// sum(dy y) of one query.
float query_delta(uvec2 dy_head, uvec2 y_head, uint t) {
    uvec2 dy = addr_add(dy_head, t, args.dy.stride[3], DY_TYPE);
    uvec2 y = addr_add(y_head, t, args.y.stride[3], Y_TYPE);
    float sum = 0.0;
#ifdef LANES
    for (uint d = gl_SubgroupInvocationID; d < D; d += 8)
        sum += load(dy, d, DY_TYPE) * load(y, d, Y_TYPE);
    return subgroupAdd(sum);
#else
    for (uint d = 0; d < D; d++) sum += load(dy, d, DY_TYPE) * load(y, d, Y_TYPE);
    return sum;
#endif
}

void main() {
    uint origin[MAX_DIMS];
    tile_origin(args.dk, origin);
    uint b = origin[2], s0 = origin[3], hk = origin[4];
    uint T = args.q.shape[3], S = args.k.shape[3], group = args.q.shape[4] / args.k.shape[4];
    float scale = score_scale(args.p.scale);
    bool masked = !tensor_absent(args.mask);
    uvec2 k_head = head_addr(args.k, b, hk), v_head = head_addr(args.v, b, hk);
    uvec2 dk_head = head_addr(args.dk, b, hk), dv_head = head_addr(args.dv, b, hk);

    uint s_own[OWN], mask_at[OWN];
    float k[OWN][MINE], value[OWN][MINE], dk[OWN][MINE], dv[OWN][MINE];
    [[unroll]] for (uint v = 0; v < OWN; v++) {
        s_own[v] = s0 + gl_LocalInvocationIndex / PARTS + v * (THREADS / PARTS);
        uint row = min(s_own[v], S - 1);
        mask_at[v] = args.mask.shape[5] == 1 ? 0 : row;
        LOAD_OWN(k[v], args.k, k_head, row, K_TYPE)
        LOAD_OWN(value[v], args.v, v_head, row, V_TYPE)
        [[unroll]] for (uint i = 0; i < MINE; i++) dk[v][i] = dv[v][i] = 0.0;
    }

    // With `causal`, key s is seen by the queries from s + T - S on.
    uint begin = args.p.causal == 0 ? 0 : uint(max(int(s0) + int(T) - int(S), 0));
    for (uint h = hk * group; h < (hk + 1) * group; h++) {
        uvec2 q_head = head_addr(args.q, b, h), y_head = head_addr(args.y, b, h);
        uvec2 dy_head = head_addr(args.dy, b, h), lse = lse_head(b, h);
        for (uint first = begin; first < T; first += BLOCK) {
            uint n = min(BLOCK, T - first);
#ifndef LANES
            barrier(); // the block before has been used
            STAGE(args.q, q_head, first, T, block_a, Q_TYPE)
            STAGE(args.dy, dy_head, first, T, block_b, DY_TYPE)
            for (uint j = gl_LocalInvocationIndex; j < n; j += THREADS) {
                block_lse[j] = load(lse, first + j, DTYPE_F32);
                block_delta[j] = query_delta(dy_head, y_head, first + j);
            }
            barrier();
#endif
            [[dont_unroll]] for (uint j = 0; j < n; j++) {
                uint t = first + j, seen = keys_seen(args.p.causal, t, T, S);
#ifdef LANES
                float l = load(lse, t, DTYPE_F32), delta = query_delta(dy_head, y_head, t);
#else
                float l = block_lse[j], delta = block_delta[j];
#endif
                float q[MINE], dy[MINE];
                OTHER(q, args.q, q_head, first, j, block_a, Q_TYPE)
                OTHER(dy, args.dy, dy_head, first, j, block_b, DY_TYPE)
                uvec2 mask = mask_row(args.mask, b, h, t);
                [[unroll]] for (uint v = 0; v < OWN; v++) {
                    float dot = 0.0, dp = 0.0;
                    [[unroll]] for (uint i = 0; i < MINE; i++) dot += q[i] * k[v][i];
                    [[unroll]] for (uint i = 0; i < MINE; i++) dp += dy[i] * value[v][i];
                    float s = sum_of_parts(dot) * scale;
                    if (masked) s += load(mask, mask_at[v], MASK_TYPE);
                    if (s_own[v] >= seen) s = NEVER;
                    float p = probability(s, l), ds = p * (sum_of_parts(dp) - delta);
                    [[unroll]] for (uint i = 0; i < MINE; i++) dv[v][i] += p * dy[i];
                    [[unroll]] for (uint i = 0; i < MINE; i++) dk[v][i] += ds * q[i];
                }
            }
        }
    }
    [[unroll]] for (uint v = 0; v < OWN; v++) {
        if (s_own[v] >= S) continue;
        STORE_OWN(args.dk, dk_head, s_own[v], scale, dk[v], DK_TYPE)
        STORE_OWN(args.dv, dv_head, s_own[v], 1.0, dv[v], DV_TYPE)
    }
}
#endif
