// kiln.glsl: what every kernel includes first: argument blocks, addresses, typed loads and stores,
// the tile this workgroup computes. Activations are in act.glsl, sums over a group in group.glsl.
//
// A kernel begins like this:
//     #version 460
//     #extension GL_GOOGLE_include_directive : require
//     #include "common/kiln.glsl"
//     #include "gemm.h"                                   // operands and parameters, shared with C
//     KILN_ARGS(Gemm, GEMM_OPERANDS, GEMM_FIELDS)
//     #define args GemmBlock(push.block).a                // args.x, args.w, ..., args.p.act
//     layout(local_size_x_id = 6) in;
//
// Specialisation constants, set by the host from the row in backend/vulkan/kernels.def:
//     0..5  TILE_0 .. TILE_5: elements of the grid operand per tile and dimension (0: all of it)
//     6     invocations per workgroup (.threads)
//     7     FLAT: elements of the grid operand per tile where the row is .flat, else 0
//     16+i  the dtype of operand i, for the operands named in the row's .typed
//     32+   the row's own (.constants)
// Sizes and flags that change from call to call are read from the argument block instead, so that
// no pipeline depends on a shape. But software drivers run both sides of every branch: what selects
// code in an inner loop is better a constant (.constants with FROM_PARAM, .typed).
//
// Addresses are uvec2 (low, high). A kernel adds what may be large to the 64-bit address once per
// tile (addr_add) and indexes with 32 bits (under 2^31 elements) from there.
#extension GL_EXT_buffer_reference : require
#extension GL_EXT_buffer_reference_uvec2 : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_control_flow_attributes : require

#define KILN_GLSL
#include "tensor.h"

layout(push_constant) uniform Push {
    uvec2 block;    // device address of the argument block
    uint tile_base; // number of the first tile of this dispatch
    uint unused;
} push;

#ifndef KILN_PARAMS
#define KILN_PARAMS p // what the parameters are called beside the operands
#endif
#define KILN_FIELD(op, name) TensorArg name;
#define KILN_ARGS(Name, OPERANDS, FIELDS)                                                         \
    struct Name##Params { FIELDS };                                                               \
    struct Name##Args {                                                                           \
        OPERANDS(KILN_FIELD, KILN_FIELD, KILN_FIELD, KILN_FIELD, KILN_FIELD, KILN_FIELD)          \
        Name##Params KILN_PARAMS;                                                                 \
    };                                                                                            \
    layout(buffer_reference, std430, buffer_reference_align = 16) readonly buffer Name##Block {   \
        Name##Args a;                                                                             \
    };

layout(constant_id = 0) const uint TILE_0 = 0;
layout(constant_id = 1) const uint TILE_1 = 0;
layout(constant_id = 2) const uint TILE_2 = 0;
layout(constant_id = 3) const uint TILE_3 = 0;
layout(constant_id = 4) const uint TILE_4 = 0;
layout(constant_id = 5) const uint TILE_5 = 0;
layout(constant_id = 7) const uint FLAT = 0;

// ---- addresses --------------------------------------------------------------------------------
uvec2 tensor_addr(TensorArg t) { return uvec2(t.addr_lo, t.addr_hi); }
bool tensor_absent(TensorArg t) { return (t.addr_lo | t.addr_hi) == 0; }
uint dtype_shift(uint dtype) { return dtype == DTYPE_F32 || dtype == DTYPE_I32 ? 2 : 1; }

uvec2 addr_add64(uvec2 a, uvec2 b) {
    uint carry;
    uint lo = uaddCarry(a.x, b.x, carry);
    return uvec2(lo, a.y + b.y + carry);
}
// a + index * stride elements of the type; exact in 64 bits.
uvec2 addr_add(uvec2 a, uint index, uint stride, uint dtype) {
    uint hi, lo;
    umulExtended(index, stride, hi, lo);
    uint s = dtype_shift(dtype);
    return addr_add64(a, uvec2(lo << s, hi << s | lo >> (32 - s)));
}

// ---- loads and stores: element i (under 2^31) behind an address --------------------------------
// `dtype` is F32, F16 or BF16 (loads: nothing else); where it is a constant, a macro or a
// specialisation constant the branches disappear.
layout(buffer_reference, std430, buffer_reference_align = 4) buffer RefF32 { float v[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer RefI32 { int v[]; };
layout(buffer_reference, std430, buffer_reference_align = 4) buffer RefU32 { uint v[]; };
layout(buffer_reference, std430, buffer_reference_align = 2) buffer RefU16 { uint16_t v[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) buffer RefF32x4 { vec4 v[]; };
layout(buffer_reference, std430, buffer_reference_align = 16) buffer RefU32x4 { uvec4 v[]; };
layout(buffer_reference, std430, buffer_reference_align = 8) buffer RefU32x2 { uvec2 v[]; };

// Rounding to nearest even by integers: the rounding of a shader's own conversion to f16 is not
// promised. Overflow gives infinity, NaN stays NaN.
uint f16_bits(float x) {
    uint u = floatBitsToUint(x), sign = u >> 16 & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return sign | 0x7e00u;
    if (a >= 0x47800000u) return sign | 0x7c00u;
    if (a < 0x38800000u) return sign | uint(roundEven(uintBitsToFloat(a) * 16777216.0));
    return sign | ((a + 0xfffu + (a >> 13 & 1u)) >> 13) - (112u << 10);
}
uint bf16_bits(float x) {
    uint u = floatBitsToUint(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return u >> 16 | 0x40u;
    return (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
}
float f32_of_f16(uint h) { return unpackHalf2x16(h).x; }
float f32_of_bf16(uint h) { return uintBitsToFloat(h << 16); }
// Two elements in one word, the first in the low half.
vec2 unpack2(uint w, uint dtype) {
    return dtype == DTYPE_F16 ? unpackHalf2x16(w)
                              : vec2(uintBitsToFloat(w << 16), uintBitsToFloat(w & 0xffff0000u));
}
uint pack2(vec2 v, uint dtype) {
    return dtype == DTYPE_F16 ? f16_bits(v.x) | f16_bits(v.y) << 16
                              : bf16_bits(v.x) | bf16_bits(v.y) << 16;
}

float load(uvec2 addr, uint i, uint dtype) {
    if (dtype == DTYPE_F32) return RefF32(addr).v[i];
#ifdef LANES
    // A driver on the CPU loads 16 bits invocation by invocation, with branches (slow, and in long
    // unrolled loops two seconds to compile), but 32 in one gather: the word that they lie in.
    uint at = i + (addr.x >> 1 & 1u);
    vec2 two = unpack2(RefU32(uvec2(addr.x & ~3u, addr.y)).v[at >> 1], dtype);
    return (at & 1u) == 0 ? two.x : two.y;
#else
    uint h = uint(RefU16(addr).v[i]);
    return dtype == DTYPE_F16 ? f32_of_f16(h) : f32_of_bf16(h);
#endif
}
void store(uvec2 addr, uint i, uint dtype, float x) {
    if (dtype == DTYPE_F32) RefF32(addr).v[i] = x;
    else RefU16(addr).v[i] = uint16_t(dtype == DTYPE_F16 ? f16_bits(x) : bf16_bits(x));
}
// Four elements i..i+3: i and the address are multiples of four elements (rows: .align).
vec4 load4(uvec2 addr, uint i, uint dtype) {
    if (dtype == DTYPE_F32) return RefF32x4(addr).v[i >> 2];
    uvec2 w = RefU32x2(addr).v[i >> 2];
    return vec4(unpack2(w.x, dtype), unpack2(w.y, dtype));
}
void store4(uvec2 addr, uint i, uint dtype, vec4 x) {
    if (dtype == DTYPE_F32) RefF32x4(addr).v[i >> 2] = x;
    else RefU32x2(addr).v[i >> 2] = uvec2(pack2(x.xy, dtype), pack2(x.zw, dtype));
}
// What a value is after a store and a load.
float round_to(float x, uint dtype) {
    return dtype == DTYPE_F32   ? x
           : dtype == DTYPE_F16 ? f32_of_f16(f16_bits(x))
                                : f32_of_bf16(bf16_bits(x));
}

// ---- the tile of this workgroup ---------------------------------------------------------------
uint tile_number() { return gl_WorkGroupID.x + push.tile_base; }
uint tiles_along(uint size, uint tile) { return tile == 0 ? 1 : (size + tile - 1) / tile; }

// First element of this tile in each dimension of the grid operand's padded shape; the last
// dimension runs fastest over the tiles. Tiles at the edges stick out: compare with the shape.
void tile_origin(TensorArg grid, out uint at[MAX_DIMS]) {
    uint t = tile_number();
    uint n5 = tiles_along(grid.shape[5], TILE_5), n4 = tiles_along(grid.shape[4], TILE_4);
    uint n3 = tiles_along(grid.shape[3], TILE_3), n2 = tiles_along(grid.shape[2], TILE_2);
    uint n1 = tiles_along(grid.shape[1], TILE_1);
    at[5] = t % n5 * TILE_5; t /= n5;
    at[4] = t % n4 * TILE_4; t /= n4;
    at[3] = t % n3 * TILE_3; t /= n3;
    at[2] = t % n2 * TILE_2; t /= n2;
    at[1] = t % n1 * TILE_1; t /= n1;
    at[0] = t * TILE_0;
}
