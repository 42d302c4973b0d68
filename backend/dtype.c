// dtype.c: see dtype.h. Plain bit manipulation: identical on every machine.
#include "backend/dtype.h"

#include <math.h>

const DTypeInfo dtype_info[DT_COUNT] = {
#define DTYPE(id, name, file_name, bytes) {name, file_name, bytes},
    DTYPES(DTYPE)
#undef DTYPE
};

bool dtype_parse(const char *name, DType *out) {
    for (int i = 0; i < DT_COUNT; i++)
        if (!strcmp(name, dtype_info[i].name)) return *out = (DType)i, true;
    return false;
}

bool dtype_parse_file(const char *name, DType *out) {
    for (int i = 0; i < DT_COUNT; i++)
        if (!strcmp(name, dtype_info[i].file_name)) return *out = (DType)i, true;
    return false;
}

bool dtype_is_float(DType t) {
    return t == DT_F32 || t == DT_F16 || t == DT_BF16 || t == DT_F8_E4M3 || t == DT_F8_E5M2 ||
           t == DT_F64;
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

float f32_from_f8_e4m3(uint8_t v) { // OCP e4m3fn: no infinities, 0x7f is NaN, bias 7
    int exponent = v >> 3 & 15, mantissa = v & 7;
    float x = exponent == 15 && mantissa == 7 ? NAN
              : exponent == 0                 ? ldexpf((float)mantissa, -9)
                                              : ldexpf((float)(8 + mantissa), exponent - 10);
    return v & 0x80 ? -x : x;
}

float f32_from_f8_e5m2(uint8_t v) { return f32_from_f16((uint16_t)(v << 8)); }

float dtype_load(DType t, const void *data, size_t i) {
    switch (t) {
    case DT_F32: return ((const float *)data)[i];
    case DT_F16: return f32_from_f16(((const uint16_t *)data)[i]);
    case DT_BF16: return f32_from_bf16(((const uint16_t *)data)[i]);
    case DT_F8_E4M3: return f32_from_f8_e4m3(((const uint8_t *)data)[i]);
    case DT_F8_E5M2: return f32_from_f8_e5m2(((const uint8_t *)data)[i]);
    case DT_I32: return (float)((const int32_t *)data)[i];
    case DT_I8: return (float)((const int8_t *)data)[i];
    case DT_U8:
    case DT_BOOL: return (float)((const uint8_t *)data)[i];
    case DT_I16: return (float)((const int16_t *)data)[i];
    case DT_I64: return (float)((const int64_t *)data)[i];
    case DT_F64: return (float)((const double *)data)[i];
    default: return NAN;
    }
}

void dtype_store(DType t, void *data, size_t i, float value) {
    switch (t) {
    case DT_F32: ((float *)data)[i] = value; break;
    case DT_F16: ((uint16_t *)data)[i] = f16_from_f32(value); break;
    case DT_BF16: ((uint16_t *)data)[i] = bf16_from_f32(value); break;
    case DT_I32: ((int32_t *)data)[i] = (int32_t)value; break;
    case DT_I8: ((int8_t *)data)[i] = (int8_t)value; break;
    case DT_U8:
    case DT_BOOL: ((uint8_t *)data)[i] = (uint8_t)value; break;
    case DT_I16: ((int16_t *)data)[i] = (int16_t)value; break;
    case DT_I64: ((int64_t *)data)[i] = (int64_t)value; break;
    case DT_F64: ((double *)data)[i] = (double)value; break;
    default: break; // fp8 is read, never written, so far
    }
}

void dtype_convert(DType to, void *dst, DType from, const void *src, size_t n) {
    if (to == from) {
        memcpy(dst, src, n * (size_t)dtype_size(to));
        return;
    }
    for (size_t i = 0; i < n; i++) dtype_store(to, dst, i, dtype_load(from, src, i));
}
