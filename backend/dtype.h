// dtype.h: element types of tensors in files and on devices, and their conversions.
#ifndef KILN_DTYPE_H
#define KILN_DTYPE_H

#include "backend/base.h"

// DTYPE(enum, name, name in safetensors (NULL: it has none), bytes, elements per block). Types with
// more than one element per block are GGUF's quantised ones: `bytes` is the size of a block, and
// rows (the innermost dimension) hold whole blocks. The numbers are known to shaders
// (ops/tensor.h): append only.
#define DTYPES(DTYPE)                           \
    DTYPE(F32, "f32", "F32", 4, 1)              \
    DTYPE(F16, "f16", "F16", 2, 1)              \
    DTYPE(BF16, "bf16", "BF16", 2, 1)           \
    DTYPE(I32, "i32", "I32", 4, 1)              \
    DTYPE(F8_E4M3, "fp8_e4m3", "F8_E4M3", 1, 1) \
    DTYPE(F8_E5M2, "fp8_e5m2", "F8_E5M2", 1, 1) \
    DTYPE(I8, "i8", "I8", 1, 1)                 \
    DTYPE(U8, "u8", "U8", 1, 1)                 \
    DTYPE(I16, "i16", "I16", 2, 1)              \
    DTYPE(I64, "i64", "I64", 8, 1)              \
    DTYPE(F64, "f64", "F64", 8, 1)              \
    DTYPE(BOOL, "bool", "BOOL", 1, 1)           \
    DTYPE(Q8_0, "q8_0", NULL, 34, 32)           \
    DTYPE(Q4_0, "q4_0", NULL, 18, 32)           \
    DTYPE(Q4_1, "q4_1", NULL, 20, 32)           \
    DTYPE(Q5_0, "q5_0", NULL, 22, 32)           \
    DTYPE(Q5_1, "q5_1", NULL, 24, 32)           \
    DTYPE(Q2_K, "q2_k", NULL, 84, 256)          \
    DTYPE(Q3_K, "q3_k", NULL, 110, 256)         \
    DTYPE(Q4_K, "q4_k", NULL, 144, 256)         \
    DTYPE(Q5_K, "q5_k", NULL, 176, 256)         \
    DTYPE(Q6_K, "q6_k", NULL, 210, 256)         \
    DTYPE(IQ4_NL, "iq4_nl", NULL, 18, 32)       \
    DTYPE(IQ4_XS, "iq4_xs", NULL, 136, 256)

typedef enum {
#define DTYPE(id, name, file_name, bytes, block) DT_##id,
    DTYPES(DTYPE)
#undef DTYPE
    DT_COUNT
} DType;

typedef struct DTypeInfo {
    const char *name, *file_name;
    int bytes, block;
} DTypeInfo;
extern const DTypeInfo dtype_info[DT_COUNT];

// Bytes of an element; of a whole block for block types: for sizes use dtype_bytes.
static inline int dtype_size(DType t) { return dtype_info[t].bytes; }
static inline int dtype_block(DType t) { return dtype_info[t].block; } // elements; 1: no blocks
// Bytes of `count` elements (whole blocks). Sizes from files: dtype_bytes_checked.
static inline uint64_t dtype_bytes(DType t, uint64_t count) {
    uint64_t block = (uint64_t)dtype_info[t].block;
    return (count + block - 1) / block * (uint64_t)dtype_info[t].bytes;
}
bool dtype_bytes_checked(DType t, uint64_t count, uint64_t *bytes); // false on overflow
// What an address of this type is a multiple of: blocks hold 16-bit scales.
static inline int dtype_align(DType t) {
    return dtype_info[t].block > 1 ? 2 : dtype_info[t].bytes;
}
// fp8 and the block types: `dequant` makes numbers of them (scale and all) before other ops.
static inline bool dtype_is_packed(DType t) {
    return dtype_info[t].block > 1 || t == DT_F8_E4M3 || t == DT_F8_E5M2;
}
static inline const char *dtype_name(DType t) { return dtype_info[t].name; }
bool dtype_parse(const char *name, DType *out);      // "bf16" in any case; "fp8" is fp8_e4m3
bool dtype_parse_file(const char *name, DType *out); // "BF16" as in safetensors
bool dtype_is_float(DType t);                        // holds real numbers: packed types too

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
float f32_from_f8_e4m3(uint8_t v); // OCP e4m3fn
float f32_from_f8_e5m2(uint8_t v);
uint8_t f8_e4m3_from_f32(float x); // past 464: NaN (quant_encode saturates)
uint8_t f8_e5m2_from_f32(float x); // past 61440: infinity

// One element of any type as f32, and back (block types decode a block per call: slow; they cannot
// be stored one by one).
float dtype_load(DType t, const void *data, size_t index);
void dtype_store(DType t, void *data, size_t index, float value);
// n elements from one type to another (through f32; I64 and F64 as sources too; whole blocks).
void dtype_convert(DType to, void *dst, DType from, const void *src, size_t n);

#endif
