// simd.h: the vector kernels, one source for every instruction set: simd_<isa>.c defines FN and
// includes this file (and is compiled with that set's flags).
#include "backend/cpu/fast/gemm.h"
#include "backend/cpu/fast/vec.h"

#include "backend/cpu/fast/simd_attn.h"
#include "backend/cpu/fast/simd_dequant.h"
#include "backend/cpu/fast/simd_ewise.h"
#include "backend/cpu/fast/simd_image.h"
#include "backend/cpu/fast/simd_rows.h"
#include "backend/cpu/fast/simd_conv.h"
#include "backend/cpu/fast/simd_train.h"
