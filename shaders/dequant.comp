// dequant.comp: y = scale * decode(w) (ops/dequant.h): fp8 and the block types of GGUF, as
// backend/quant.c decodes them, bit for bit (`precise`: no fused multiply-adds).
// Both tensors are without gaps. An invocation decodes VEC elements that lie side by side; what
// they share of a block is read once. Bytes and 16-bit scales are read as such: blocks have odd
// sizes, so that nothing wider is aligned.
#version 460
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_shader_8bit_storage : require
#include "common/kiln.glsl"
#include "dequant.h"
KILN_ARGS(Dequant, DEQUANT_OPERANDS, DEQUANT_FIELDS)
#define args DequantBlock(push.block).a
layout(local_size_x_id = 6) in;
layout(constant_id = 16) const uint W_TYPE = 0;
layout(constant_id = 18) const uint Y_TYPE = 0;
layout(constant_id = 32) const uint VEC = 1; // 8: y can be written in vectors of four

layout(buffer_reference, std430, buffer_reference_align = 1) readonly buffer RefU8 {
    uint8_t v[];
};

bool is(uint type) { return W_TYPE == type; }
bool is_fp8() { return is(DTYPE_F8_E4M3) || is(DTYPE_F8_E5M2); }
bool is_small() { // blocks of 32
    return is(DTYPE_Q8_0) || is(DTYPE_Q4_0) || is(DTYPE_Q4_1) || is(DTYPE_Q5_0) ||
           is(DTYPE_Q5_1) || is(DTYPE_IQ4_NL);
}
uint block_elements() { return is_fp8() ? 1 : is_small() ? 32 : 256; }
uint block_bytes() {
    switch (W_TYPE) {
    case DTYPE_Q8_0: return 34;
    case DTYPE_Q4_0: return 18;
    case DTYPE_Q4_1: return 20;
    case DTYPE_Q5_0: return 22;
    case DTYPE_Q5_1: return 24;
    case DTYPE_Q2_K: return 84;
    case DTYPE_Q3_K: return 110;
    case DTYPE_Q4_K: return 144;
    case DTYPE_Q5_K: return 176;
    case DTYPE_Q6_K: return 210;
    case DTYPE_IQ4_NL: return 18;
    case DTYPE_IQ4_XS: return 136;
    }
    return 1;
}

uint u8(uvec2 block, uint i) { return uint(RefU8(block).v[i]); }
// By integers, because shaders may flush the small scales of some formats (subnormals) to 0.
float half_value(uint h) {
    uint e = h >> 10 & 31, m = h & 1023;
    float a = e == 0 ? float(m) * 5.9604644775390625e-8
                     : uintBitsToFloat((e == 31 ? 255 : e + 112) << 23 | m << 13);
    return (h & 0x8000u) != 0 ? -a : a;
}
float half_at(uvec2 block, uint i) { return half_value(uint(RefU16(block).v[i / 2])); }

float e4m3(uint b) { // no infinities
    uint e = b >> 3 & 15, m = b & 7;
    float a = e == 0 ? float(m) * 0.001953125 : uintBitsToFloat((e + 120) << 23 | m << 20);
    if ((b & 0x7f) == 0x7f) a = uintBitsToFloat(0x7fc00000u);
    return (b & 0x80) != 0 ? -a : a;
}

// ---- parts of blocks, at byte `at` --------------------------------------------------------------
// Nibble of element i of 32: elements i and i + 16 share a byte.
uint nibble(uvec2 block, uint at, uint i) {
    return u8(block, at + (i & 15)) >> (i < 16 ? 0 : 4) & 15;
}
uint fifth_bit(uvec2 block, uint at, uint i) {
    return (u8(block, at + i / 8) >> (i & 7) & 1) << 4;
}
// Of 256: each run of 128 lies in 32 bytes, 32 elements per pair of bits.
uint two_bits(uvec2 block, uint at, uint i) {
    return u8(block, at + i / 128 * 32 + i % 32) >> (i % 128 / 32 * 2) & 3;
}
// Of 256: runs of 64 lie in 32 bytes.
uint k_nibble(uvec2 block, uint at, uint i) {
    return u8(block, at + i / 64 * 32 + i % 32) >> (i / 32 % 2 * 4) & 15;
}
uint q6_low(uvec2 block, uint i) {
    return u8(block, i / 128 * 64 + i % 64) >> (i % 128 < 64 ? 0 : 4) & 15;
}
// The 6-bit scale and minimum of sub-block j of 8, in 12 bytes.
uvec2 k_scale(uvec2 block, uint at, uint j) {
    uint a = u8(block, at + (j & 3)), b = u8(block, at + 4 + (j & 3));
    if (j < 4) return uvec2(a & 63, b & 63);
    uint c = u8(block, at + 8 + (j & 3));
    return uvec2((c & 15) | a >> 6 << 4, c >> 4 | b >> 6 << 4);
}
int q3_scale(uvec2 block, uint at, uint j) { // of 16: 4 low bits, 2 high bits
    uint low = u8(block, at + (j & 7)) >> (j < 8 ? 0 : 4) & 15;
    return int(low | (u8(block, at + 8 + j % 4) >> (j / 4 * 2) & 3) << 4) - 32;
}
int signed_byte(uint b) { return bitfieldExtract(int(b), 0, 8); }
float iq4_value(uint code) {
    const uvec4 book = uvec4(0xbfad9881u, 0xf6eaddcfu, 0x26190d01u, 0x71594535u);
    return float(signed_byte(book[code >> 2] >> (code & 3) * 8 & 255));
}

// Scale and minimum of the sub-block that element i is in, times its number.
float k_value(uvec2 block, uint i, uint q) { // Q4_K, Q5_K
    uvec2 s = k_scale(block, 4, i / 32);
    precise float scale = half_at(block, 0) * float(s.x), low = half_at(block, 2) * float(s.y);
    precise float v = scale * float(q);
    precise float y = v - low;
    return y;
}
float q2_value(uvec2 block, uint i) {
    uint s = u8(block, i / 16);
    precise float scale = half_at(block, 80) * float(s & 15);
    precise float low = half_at(block, 82) * float(s >> 4);
    precise float v = scale * float(two_bits(block, 16, i));
    precise float y = v - low;
    return y;
}
float plus_min(float d, uint q, float low) {
    precise float v = float(q) * d;
    precise float y = v + low;
    return y;
}

// Element i of the block.
float decode(uvec2 b, uint i) {
    precise float scale;
    switch (W_TYPE) {
    case DTYPE_F8_E4M3: return e4m3(u8(b, i));
    case DTYPE_F8_E5M2: return half_value(u8(b, i) << 8);
    case DTYPE_Q8_0: return float(signed_byte(u8(b, 2 + i))) * half_at(b, 0);
    case DTYPE_Q4_0: return float(int(nibble(b, 2, i)) - 8) * half_at(b, 0);
    case DTYPE_Q4_1: return plus_min(half_at(b, 0), nibble(b, 4, i), half_at(b, 2));
    case DTYPE_Q5_0:
        return float(int(nibble(b, 6, i) | fifth_bit(b, 2, i)) - 16) * half_at(b, 0);
    case DTYPE_Q5_1:
        return plus_min(half_at(b, 0), nibble(b, 8, i) | fifth_bit(b, 4, i), half_at(b, 2));
    case DTYPE_Q2_K: return q2_value(b, i);
    case DTYPE_Q3_K: // a set high bit: nothing to subtract
        scale = half_at(b, 108) * float(q3_scale(b, 96, i / 16));
        return scale *
               float(int(two_bits(b, 32, i)) - ((u8(b, i % 32) >> (i / 32) & 1) != 0 ? 0 : 4));
    case DTYPE_Q4_K: return k_value(b, i, k_nibble(b, 16, i));
    case DTYPE_Q5_K:
        return k_value(b, i, k_nibble(b, 48, i) | (u8(b, 16 + i % 32) >> (i / 32) & 1) << 4);
    case DTYPE_Q6_K:
        scale = half_at(b, 208) * float(signed_byte(u8(b, 192 + i / 16)));
        return scale * float(int(q6_low(b, i) | two_bits(b, 128, i) << 4) - 32);
    case DTYPE_IQ4_NL: return iq4_value(nibble(b, 2, i)) * half_at(b, 0);
    case DTYPE_IQ4_XS:
        uint j = i / 32, low = u8(b, 4 + j / 2) >> (j % 2 * 4) & 15;
        uint high = u8(b, 2 + j / 4) >> (j % 4 * 2) & 3;
        scale = half_at(b, 0) * float(int(low | high << 4) - 32);
        return scale * iq4_value(nibble(b, 8 + 16 * j, i % 32));
    }
    return 0.0;
}

// a + index * stride bytes.
uvec2 addr_add_bytes(uvec2 a, uint index, uint stride) {
    uint hi, lo;
    umulExtended(index, stride, hi, lo);
    return addr_add64(a, uvec2(lo, hi));
}

void main() {
    TensorArg w = args.w, y = args.y;
    uint count = 1;
    [[unroll]] for (int d = 0; d < 6; d++) count *= y.shape[d];
    float factor = tensor_absent(args.scale) ? 1.0 : RefF32(tensor_addr(args.scale)).v[0];
    uint first = tile_number() * FLAT, end = min(count - first, FLAT); // count is below 2^32
    for (uint e = gl_LocalInvocationIndex * VEC; e < end; e += gl_WorkGroupSize.x * VEC) {
        uint at = first + e;
        uvec2 block = addr_add_bytes(tensor_addr(w), at / block_elements(), block_bytes());
        uvec2 to = addr_add(tensor_addr(y), at, 1, Y_TYPE);
        float v[8];
        [[unroll]] for (uint i = 0; i < VEC; i++)
            v[i] = factor * decode(block, is_fp8() ? i : at % block_elements() + i);
        if (VEC == 8) {
            store4(to, 0, Y_TYPE, vec4(v[0], v[1], v[2], v[3]));
            store4(to, 4, Y_TYPE, vec4(v[4], v[5], v[6], v[7]));
        } else {
            store(to, 0, Y_TYPE, v[0]);
        }
    }
}
