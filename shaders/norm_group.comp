// norm_group.comp: group norms with their epilogue (ops/norm.h, NORM_GROUP). PASS:
//   0  whole: a workgroup per batch and group reads it three times (statistics, then y).
//   1  parts: a workgroup per batch and part of the rows (there are PARTS parts) takes the mean and
//      the sum of squared deviations of every group in its rows, and leaves them in y;
//   2  combine: a workgroup per batch makes each group's mean and 1 / deviation of them, and leaves
//      these behind the operands in the call's argument block (SPARE);
//   3  apply: a workgroup per batch and part writes y.
// The parts' results need no memory of their own: whatever y has been given is written over in the
// last pass. Each is a 32-bit word in one element of the part's first rows, or in two elements of
// 16 bits.
//
// Deviations are summed too: their mean corrects the rounding of a large mean. Sums are kept per
// run of 32 elements first, so that long ones stay exact enough.
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
layout(constant_id = 32) const uint PASS = 0;
layout(constant_id = 33) const uint PARTS = 1;
layout(constant_id = 34) const uint ACT = 0;
layout(constant_id = 35) const uint SPARE = 0; // bytes from the block's start

const uint THREADS = gl_WorkGroupSize.x;
shared float team_sums[THREADS];

uint groups() { return max(args.p.groups, 1); }

uvec2 row_addr(TensorArg t, uint b, uint m, uint dtype) {
    uvec2 a = addr_add(tensor_addr(t), t.shape[3] == 1 ? 0 : b, t.stride[3], dtype);
    return addr_add(a, t.shape[4] == 1 ? 0 : m, t.stride[4], dtype);
}

// act((x - mean) rstd ...) of one element.
void apply(uint b, uint m, uint c, float mean, float rstd) {
    float v = (load(row_addr(args.x, b, m, X_TYPE), c, X_TYPE) - mean) * rstd;
    if (!tensor_absent(args.weight)) v *= load(tensor_addr(args.weight), c, WEIGHT_TYPE);
    if (!tensor_absent(args.bias)) v += load(tensor_addr(args.bias), c, BIAS_TYPE);
    if (!tensor_absent(args.scale))
        v *= 1.0 + load(row_addr(args.scale, b, m, SCALE_TYPE),
                        args.scale.shape[5] == 1 ? 0 : c, SCALE_TYPE);
    if (!tensor_absent(args.shift))
        v += load(row_addr(args.shift, b, m, SHIFT_TYPE),
                  args.shift.shape[5] == 1 ? 0 : c, SHIFT_TYPE);
    store(row_addr(args.y, b, m, Y_TYPE), c, Y_TYPE, act_value(ACT, v));
}

// Going through rows of `width` elements by steps, without a division per element.
struct Walk { uint row, col, rows, cols, width; }; // where it is; how far a step leads
Walk walk_start(uint first, uint step, uint width) {
    return Walk(first / width, first % width, step / width, step % width, width);
}
void walk_on(inout Walk w) {
    w.row += w.rows;
    w.col += w.cols;
    if (w.col >= w.width) {
        w.col -= w.width;
        w.row++;
    }
}

// Sums over elements first, first + step, ... of `count`: rows m0.., channels c0..c0+width-1 of x.
// x: of the deviations from `mean`; y: of their squares.
vec2 sums_of(uint b, uint m0, uint c0, uint width, uint first, uint step, uint count, float mean) {
    vec2 total = vec2(0);
    Walk at = walk_start(first, step, width);
    for (uint e = first; e < count;) {
        vec2 run = vec2(0);
        for (uint i = 0; i < 32 && e < count; i++, e += step) {
            float d = load(row_addr(args.x, b, m0 + at.row, X_TYPE), c0 + at.col, X_TYPE) - mean;
            run += vec2(d, d * d);
            walk_on(at);
        }
        total += run;
    }
    return total;
}

void whole() {
    uint C = args.x.shape[5], width = C / groups(), count = args.x.shape[4] * width;
    uint b = tile_number() / groups(), c0 = tile_number() % groups() * width;
    uint me = gl_LocalInvocationIndex;
    float n = float(count);
    float mean = group_sum(sums_of(b, 0, c0, width, me, THREADS, count, 0.0).x) / n;
    vec2 sums = sums_of(b, 0, c0, width, me, THREADS, count, mean);
    float off = group_sum(sums.x) / n;
    float var = max(group_sum(sums.y) / n - off * off, 0.0);
    mean += off;
    float rstd = 1.0 / sqrt(var + args.p.eps);
    Walk at = walk_start(me, THREADS, width);
    for (uint e = me; e < count; e += THREADS) {
        apply(b, at.row, c0 + at.col, mean, rstd);
        walk_on(at);
    }
}

// ---- in parts -----------------------------------------------------------------------------------
// Rows of a part, 8 at least (kernels.def); the last ones have fewer, or none.
uint part_rows() { return (args.x.shape[4] + PARTS - 1) / PARTS; }
// Where a part's numbers are kept: in its first four rows, or in the last four of all.
uint kept_row(uint m0) { return min(m0, args.x.shape[4] - 4); }

// A number of a part and group, kept in y. `which`: 0 mean, 1 sum of squared deviations.
void keep(uint b, uint m0, uint which, uint g, float value) {
    uint bits = floatBitsToUint(value);
    m0 = kept_row(m0);
    if (Y_TYPE == DTYPE_F32) {
        RefU32(row_addr(args.y, b, m0 + which, Y_TYPE)).v[g] = bits;
    } else {
        RefU16(row_addr(args.y, b, m0 + 2 * which, Y_TYPE)).v[g] = uint16_t(bits & 0xffff);
        RefU16(row_addr(args.y, b, m0 + 2 * which + 1, Y_TYPE)).v[g] = uint16_t(bits >> 16);
    }
}
float kept(uint b, uint m0, uint which, uint g) {
    m0 = kept_row(m0);
    if (Y_TYPE == DTYPE_F32)
        return uintBitsToFloat(RefU32(row_addr(args.y, b, m0 + which, Y_TYPE)).v[g]);
    uint low = uint(RefU16(row_addr(args.y, b, m0 + 2 * which, Y_TYPE)).v[g]);
    uint high = uint(RefU16(row_addr(args.y, b, m0 + 2 * which + 1, Y_TYPE)).v[g]);
    return uintBitsToFloat(high << 16 | low);
}
RefF32 stats_of(uint b, uint g) {
    return RefF32(addr_add64(push.block, uvec2(SPARE + 8 * (b * groups() + g), 0)));
}

// The sum over a team: the `size` invocations from `first` on. All invocations must call it.
float team_sum(float x, uint first, uint size) {
    barrier();
    team_sums[gl_LocalInvocationIndex] = x;
    barrier();
    float sum = 0.0;
    for (uint i = 0; i < size; i++) sum += team_sums[first + i];
    return sum;
}

// Workgroups take a team of invocations per group, as many groups at once as there are teams.
void parts() {
    uint b = tile_number() / PARTS, m0 = tile_number() % PARTS * part_rows();
    uint M = args.x.shape[4], G = groups(), width = args.x.shape[5] / G;
    if (m0 >= M) return; // the same for the whole workgroup
    uint rows = min(part_rows(), M - m0), count = rows * width;
    uint size = max(THREADS / G, 1), teams = THREADS / size;
    uint team = gl_LocalInvocationIndex / size, first = team * size;
    uint me = gl_LocalInvocationIndex - first;
    for (uint g0 = 0; g0 < G; g0 += teams) {
        bool busy = team < teams && g0 + team < G;
        uint g = min(g0 + team, G - 1), elements = busy ? count : 0, from = busy ? first : 0;
        float n = float(count);
        float mean = team_sum(sums_of(b, m0, g * width, width, me, size, elements, 0.0).x,
                              from, size) / n;
        vec2 sums = sums_of(b, m0, g * width, width, me, size, elements, mean);
        float off = team_sum(sums.x, from, size) / n;
        float square = team_sum(sums.y, from, size);
        if (busy && me == 0) {
            keep(b, m0, 0, g, mean + off);
            keep(b, m0, 1, g, max(square - n * off * off, 0.0));
        }
    }
}

// Chan, Golub and LeVeque 1979: squares around the parts' means, moved to the mean of all.
void combine() {
    uint b = tile_number(), M = args.x.shape[4], G = groups(), width = args.x.shape[5] / G;
    for (uint g = gl_LocalInvocationIndex; g < G; g += THREADS) {
        float mean = 0.0, square = 0.0, n = float(M * width), origin = kept(b, 0, 0, g);
        for (uint m0 = 0; m0 < M; m0 += part_rows())
            mean += (kept(b, m0, 0, g) - origin) * float(min(part_rows(), M - m0) * width);
        mean = origin + mean / n;
        for (uint m0 = 0; m0 < M; m0 += part_rows()) {
            float d = kept(b, m0, 0, g) - mean;
            square += kept(b, m0, 1, g) + d * d * float(min(part_rows(), M - m0) * width);
        }
        RefF32 stats = stats_of(b, g);
        stats.v[0] = mean;
        stats.v[1] = 1.0 / sqrt(square / n + args.p.eps);
    }
}

void apply_part() {
    uint b = tile_number() / PARTS, m0 = tile_number() % PARTS * part_rows();
    uint M = args.x.shape[4], C = args.x.shape[5], width = C / groups();
    if (m0 >= M) return;
    uint count = min(part_rows(), M - m0) * C;
    Walk at = walk_start(gl_LocalInvocationIndex, THREADS, C);
    for (uint e = gl_LocalInvocationIndex; e < count; e += THREADS) {
        RefF32 stats = stats_of(b, at.col / width);
        apply(b, m0 + at.row, at.col, stats.v[0], stats.v[1]);
        walk_on(at);
    }
}

void main() {
    switch (PASS) {
    case 0: whole(); break;
    case 1: parts(); break;
    case 2: combine(); break;
    case 3: apply_part(); break;
    }
}
