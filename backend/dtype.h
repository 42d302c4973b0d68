// dtype.h: element types of tensors in files and on devices, and their conversions.
#ifndef KILN_DTYPE_H
#define KILN_DTYPE_H

#include "backend/base.h"

// DTYPE(enum, name, name in safetensors, bytes). The numbers are known to shaders
// (ops/tensor.h): append only.
#define DTYPES(DTYPE)                      \
    DTYPE(F32, "f32", "F32", 4)            \
    DTYPE(F16, "f16", "F16", 2)            \
    DTYPE(BF16, "bf16", "BF16", 2)         \
    DTYPE(I32, "i32", "I32", 4)            \
    DTYPE(F8_E4M3, "fp8_e4m3", "F8_E4M3", 1) \
    DTYPE(F8_E5M2, "fp8_e5m2", "F8_E5M2", 1) \
    DTYPE(I8, "i8", "I8", 1)               \
    DTYPE(U8, "u8", "U8", 1)               \
    DTYPE(I16, "i16", "I16", 2)            \
    DTYPE(I64, "i64", "I64", 8)            \
    DTYPE(F64, "f64", "F64", 8)            \
    DTYPE(BOOL, "bool", "BOOL", 1)

typedef enum {
#define DTYPE(id, name, file_name, bytes) DT_##id,
    DTYPES(DTYPE)
#undef DTYPE
    DT_COUNT
} DType;

typedef struct DTypeInfo {
    const char *name, *file_name;
    int bytes;
} DTypeInfo;
extern const DTypeInfo dtype_info[DT_COUNT];

static inline int dtype_size(DType t) { return dtype_info[t].bytes; }
static inline const char *dtype_name(DType t) { return dtype_info[t].name; }
bool dtype_parse(const char *name, DType *out);      // "bf16"; false when unknown
bool dtype_parse_file(const char *name, DType *out); // "BF16" as in safetensors
bool dtype_is_float(DType t);

// Scalar conversions; rounding to nearest even; overflow gives infinity (e4m3: NaN).
uint16_t f16_from_f32(float x);
float f32_from_f16(uint16_t h);
static inline float f32_from_bf16(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
static inline uint16_t bf16_from_f32(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40); // quiet NaN
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
float f32_from_f8_e4m3(uint8_t v);
float f32_from_f8_e5m2(uint8_t v);

// One element of any type as f32, and back (float types and I32, U8, I8).
float dtype_load(DType t, const void *data, size_t index);
void dtype_store(DType t, void *data, size_t index, float value);
// n elements from one type to another (through f32; I64 and F64 as sources too).
void dtype_convert(DType to, void *dst, DType from, const void *src, size_t n);

#endif
