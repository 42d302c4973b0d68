// dtype.c: see dtype.h. Plain bit manipulation: identical on every machine.
#include "backend/dtype.h"
#include "backend/exact.h"
#include "backend/quant.h"

#include <math.h>

const DTypeInfo dtype_info[DT_COUNT] = {
#define DTYPE(id, name, file_name, bytes, block) {name, file_name, bytes, block},
    DTYPES(DTYPE)
#undef DTYPE
};

static bool same_word(const char *a, const char *b) { // in any ASCII case
    for (; *a && *b; a++, b++)
        if ((*a >= 'A' && *a <= 'Z' ? *a | 32 : *a) != *b) return false;
    return *a == *b;
}

bool dtype_parse(const char *name, DType *out) {
    if (same_word(name, "fp8")) return *out = DT_F8_E4M3, true;
    for (int i = 0; i < DT_COUNT; i++)
        if (same_word(name, dtype_info[i].name)) return *out = (DType)i, true;
    return false;
}

bool dtype_parse_file(const char *name, DType *out) {
    for (int i = 0; i < DT_COUNT; i++)
        if (dtype_info[i].file_name && !strcmp(name, dtype_info[i].file_name))
            return *out = (DType)i, true;
    return false;
}

bool dtype_bytes_checked(DType t, uint64_t count, uint64_t *bytes) {
    uint64_t block = (uint64_t)dtype_block(t);
    return mul_size(count / block + (count % block != 0), (uint64_t)dtype_size(t), bytes);
}

bool dtype_is_float(DType t) {
    return t == DT_F32 || t == DT_F16 || t == DT_BF16 || t == DT_F64 || dtype_is_packed(t);
}

uint16_t f16_from_f32(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t sign = bits >> 16 & 0x8000, mag = bits & 0x7fffffff;
    if (mag > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (mag >= 0x47800000) return (uint16_t)(sign | 0x7c00); // 65536 and more
    if (mag < 0x38800000) {                                  // below 2^-14: subnormal
        // Adding 0.5 puts the wanted bits at the end of the mantissa, rounded to nearest even.
        float a;
        memcpy(&a, &mag, 4);
        a += 0.5f;
        memcpy(&mag, &a, 4);
        return (uint16_t)(sign | (mag - 0x3f000000));
    }
    uint32_t rounded = mag + 0xfff + (mag >> 13 & 1);
    return (uint16_t)(sign | (rounded - 0x38000000) >> 13);
}

float f32_from_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff;
    float x;
    if (exponent == 0) {
        x = (float)mantissa * 0x1p-24f;
        return sign ? -x : x;
    }
    uint32_t bits = exponent == 31 ? sign | 0x7f800000 | mantissa << 13
                                   : sign | (exponent + 112) << 23 | mantissa << 13;
    memcpy(&x, &bits, 4);
    return x;
}

float f32_from_f8_e4m3(uint8_t v) { // no infinities, 0x7f is NaN, bias 7
    uint32_t exponent = v >> 3 & 15, mantissa = v & 7;
    float x;
    if (exponent == 15 && mantissa == 7) {
        x = NAN;
    } else if (exponent == 0) {
        x = (float)mantissa * 0x1p-9f;
    } else {
        uint32_t bits = (exponent + 120) << 23 | mantissa << 20;
        memcpy(&x, &bits, 4);
    }
    return v & 0x80 ? -x : x;
}

float f32_from_f8_e5m2(uint8_t v) { return f32_from_f16((uint16_t)(v << 8)); }

// `mantissa` bits are kept; below the smallest normal number (exponent 1 - bias) numbers are evenly
// spaced, and adding the power of two whose last bit has that spacing rounds to it.
static uint8_t f8_from_f32(float x, int mantissa, int bias, uint32_t largest, uint32_t beyond) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint8_t sign = (uint8_t)(bits >> 24 & 0x80);
    uint32_t mag = bits & 0x7fffffff, drop = 23 - (uint32_t)mantissa, code;
    if (mag > 0x7f800000) return sign | 0x7f;
    if (mag < (uint32_t)(128 - bias) << 23) {
        uint32_t magic = (uint32_t)(128 - bias - mantissa + 23) << 23;
        float a, m;
        memcpy(&a, &mag, 4);
        memcpy(&m, &magic, 4);
        a += m;
        memcpy(&code, &a, 4);
        code -= magic;
    } else {
        code = (mag + (1u << (drop - 1)) - 1 + (mag >> drop & 1)) >> drop;
        code -= (uint32_t)(127 - bias) << mantissa;
    }
    return sign | (uint8_t)(code > largest ? beyond : code);
}

uint8_t f8_e4m3_from_f32(float x) { return f8_from_f32(x, 3, 7, 0x7e, 0x7f); }
uint8_t f8_e5m2_from_f32(float x) { return f8_from_f32(x, 2, 15, 0x7b, 0x7c); }

// Data in files stands at any address: through memcpy.
#define ACCESS(type, name)                                                    \
    static inline type load_##name(const void *data, size_t i) {              \
        type v;                                                               \
        memcpy(&v, (const char *)data + i * sizeof v, sizeof v);              \
        return v;                                                             \
    }                                                                         \
    static inline void store_##name(void *data, size_t i, type v) {           \
        memcpy((char *)data + i * sizeof v, &v, sizeof v);                    \
    }
ACCESS(float, f32)
ACCESS(double, f64)
ACCESS(uint16_t, u16)
ACCESS(int16_t, i16)
ACCESS(int32_t, i32)
ACCESS(int64_t, i64)

float dtype_load(DType t, const void *data, size_t i) {
    switch (t) {
    case DT_F32: return load_f32(data, i);
    case DT_F16: return f32_from_f16(load_u16(data, i));
    case DT_BF16: return f32_from_bf16(load_u16(data, i));
    case DT_F8_E4M3: return f32_from_f8_e4m3(((const uint8_t *)data)[i]);
    case DT_F8_E5M2: return f32_from_f8_e5m2(((const uint8_t *)data)[i]);
    case DT_I32: return (float)load_i32(data, i);
    case DT_I8: return (float)((const int8_t *)data)[i];
    case DT_U8:
    case DT_BOOL: return (float)((const uint8_t *)data)[i];
    case DT_I16: return (float)load_i16(data, i);
    case DT_I64: return (float)load_i64(data, i);
    case DT_F64: return (float)load_f64(data, i);
    default: return quant_load(t, data, (int64_t)i);
    }
}

void dtype_store(DType t, void *data, size_t i, float value) {
    switch (t) {
    case DT_F32: store_f32(data, i, value); break;
    case DT_F16: store_u16(data, i, f16_from_f32(value)); break;
    case DT_BF16: store_u16(data, i, bf16_from_f32(value)); break;
    case DT_I32: store_i32(data, i, (int32_t)value); break;
    case DT_I8: ((int8_t *)data)[i] = (int8_t)value; break;
    case DT_U8:
    case DT_BOOL: ((uint8_t *)data)[i] = (uint8_t)value; break;
    case DT_I16: store_i16(data, i, (int16_t)value); break;
    case DT_I64: store_i64(data, i, (int64_t)value); break;
    case DT_F64: store_f64(data, i, (double)value); break;
    case DT_F8_E4M3: ((uint8_t *)data)[i] = f8_e4m3_from_f32(value); break;
    case DT_F8_E5M2: ((uint8_t *)data)[i] = f8_e5m2_from_f32(value); break;
    default: break; // blocks are written whole: quant_encode
    }
}

// One of both is f32. The types that large tensors have have loops of their own.
static void convert_f32(DType to, void *dst, DType from, const void *src, size_t n) {
    const ExactRow *row = exact_row();
    if (to == DT_F32 && row->load(from, src, dst, n)) return;
    if (from == DT_F32 && row->store(to, src, dst, n)) return;
    for (size_t i = 0; i < n; i++) dtype_store(to, dst, i, dtype_load(from, src, i));
}

void dtype_convert(DType to, void *dst, DType from, const void *src, size_t n) {
    if (to == from) {
        memcpy(dst, src, (size_t)dtype_bytes(to, n));
        return;
    }
    if (dtype_block(to) == 1 && dtype_block(from) == 1 && (to == DT_F32 || from == DT_F32)) {
        convert_f32(to, dst, from, src, n);
        return;
    }
    enum { CHUNK = 1024 }; // whole blocks of every type
    float chunk[CHUNK];
    for (size_t at = 0; at < n; at += CHUNK) {
        size_t count = MIN(n - at, (size_t)CHUNK);
        const char *in = (const char *)src + dtype_bytes(from, at);
        char *out = (char *)dst + dtype_bytes(to, at);
        if (dtype_block(from) > 1) quant_decode(from, in, chunk, (int64_t)count);
        else convert_f32(DT_F32, chunk, from, in, count);
        if (dtype_block(to) > 1) quant_encode(to, chunk, out, (int64_t)count);
        else convert_f32(to, out, DT_F32, chunk, count);
    }
}
