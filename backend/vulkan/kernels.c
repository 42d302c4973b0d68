// kernels.c: the table of kernel rows, and whether a row takes a call.
#include "backend/vulkan/kernels.h"

// What shaders know of types (ops/tensor.h) and of an argument block.
#define SAME(name) _Static_assert((int)DTYPE_##name == (int)DT_##name, "as in dtype.h");
SAME(F32) SAME(F16) SAME(BF16) SAME(I32) SAME(F8_E4M3) SAME(F8_E5M2) SAME(Q8_0) SAME(Q4_0)
SAME(Q4_1) SAME(Q5_0) SAME(Q5_1) SAME(Q2_K) SAME(Q3_K) SAME(Q4_K) SAME(Q5_K) SAME(Q6_K)
SAME(IQ4_NL) SAME(IQ4_XS)
#undef SAME
_Static_assert(sizeof(TensorArg) == 64, "as shaders read it");
_Static_assert(MAX_OPERANDS * sizeof(TensorArg) + sizeof(OpParams) <= BLOCK_BYTES, "a block");

const KernelRow kernel_rows[] = {
#include "backend/vulkan/kernels.def"
    {.name = NULL},
};
const int kernel_row_count = (int)COUNT_OF(kernel_rows) - 1;
_Static_assert(norm_operand_count * sizeof(TensorArg) + sizeof(NormParams) <= GROUP_SPARE &&
                   GROUP_SPARE + 64 * 8 <= BLOCK_BYTES, "statistics of group norms in a block");

int rows_count(OpId op) {
    int n = 0;
    for (int i = 0; i < kernel_row_count; i++) n += kernel_rows[i].op == op;
    return n;
}

const KernelRow *rows_get(OpId op, int row) {
    for (int i = 0; i < kernel_row_count; i++)
        if (kernel_rows[i].op == op && row-- == 0) return &kernel_rows[i];
    return NULL;
}

// ---- merging ----------------------------------------------------------------------------------

typedef struct Merged {
    int rank;
    uint32_t shape[MAX_DIMS], stride[MAX_OPERANDS][MAX_DIMS]; // the first `rank`
} Merged;

// Can the next dimension, of this size and these strides, join the last one taken?
static bool joins(const Merged *m, uint32_t operands, const OpCall *call, int d, uint32_t size) {
    if (!m->rank || (uint64_t)m->shape[m->rank - 1] * size > UINT32_MAX) return false;
    for (int i = 0; i < MAX_OPERANDS; i++)
        if (operands & OPERAND(i) && call->t[i].buffer &&
            m->stride[i][m->rank - 1] != (uint64_t)ref_stride(&call->t[i], d) * size)
            return false;
    return true;
}

static Merged merge(uint32_t operands, const OpCall *call) {
    Merged m = {0};
    const TensorRef *any = NULL;
    for (int i = 0; i < MAX_OPERANDS; i++)
        if (operands & OPERAND(i) && call->t[i].buffer) any = &call->t[i];
    for (int d = 0; any && d < MAX_DIMS; d++) {
        uint32_t size = (uint32_t)ref_dim(any, d);
        if (size == 1) continue;
        bool join = joins(&m, operands, call, d, size);
        int to = join ? m.rank - 1 : m.rank++;
        m.shape[to] = join ? m.shape[to] * size : size;
        for (int i = 0; i < MAX_OPERANDS; i++)
            if (call->t[i].buffer) m.stride[i][to] = (uint32_t)ref_stride(&call->t[i], d);
    }
    return m;
}

void row_arguments(const KernelRow *row, const OpCall *call, TensorArg *args) {
    Merged m = merge(row->merge, call);
    for (int i = 0; i < op_info[call->op].operand_count; i++) {
        const TensorRef *t = &call->t[i];
        args[i] = tensor_arg(t, t->buffer ? t->buffer->address + t->offset : 0);
        if (!t->buffer || !(row->merge & OPERAND(i))) continue;
        for (int d = 0; d < MAX_DIMS; d++) {
            int from = d - (MAX_DIMS - m.rank);
            args[i].shape[d] = from < 0 ? 1 : m.shape[from];
            args[i].stride[d] = from < 0 ? 0 : m.stride[i][from];
        }
    }
}

static bool is_wide(uint32_t operands, const OpCall *call) {
    for (int i = 0; i < MAX_OPERANDS; i++) {
        const TensorRef *t = &call->t[i];
        if (operands & OPERAND(i) && t->buffer &&
            ref_extent(t) / (uint64_t)dtype_size(t->dtype) >
                (uint64_t)(INT32_MAX / dtype_block(t->dtype)))
            return true;
    }
    return false;
}

uint32_t row_number(Source from, int operand, uint32_t index, const OpCall *call) {
    switch (from) {
    case FROM_DIM: return (uint32_t)ref_dim(&call->t[operand], (int)index);
    case FROM_PARAM: {
        uint32_t word;
        memcpy(&word, (const char *)&call->params + 4 * index, 4);
        return word;
    }
    case FROM_RANK: return (uint32_t)MAX(merge(index, call).rank, 1);
    case FROM_WIDE: return is_wide(index, call);
    default: return index;
    }
}

static bool refuse(char *why, const char *format, ...) PRINTF_LIKE(2, 3);
static bool refuse(char *why, const char *format, ...) {
    if (!why) return false;
    va_list args;
    va_start(args, format);
    vsnprintf(why, 128, format, args);
    va_end(args);
    return false;
}

static bool aligned(const TensorRef *t, uint32_t n) {
    if (n <= 1) return true;
    if (t->offset % ((uint64_t)dtype_size(t->dtype) * n)) return false;
    if (ref_dim(t, 5) % n || (ref_dim(t, 5) > 1 && ref_stride(t, 5) != 1)) return false;
    for (int i = 0; i < 5; i++)
        if (ref_stride(t, i) % n) return false;
    return true;
}

static bool takes_operands(const KernelRow *row, const OpCall *call, char *why) {
    const OpInfo *op = &op_info[call->op];
    int first = -1;
    for (int i = 0; i < op->operand_count; i++) {
        const TensorRef *t = &call->t[i];
        if (!t->buffer) continue;
        const char *name = op->operand[i].name;
        if (row->absent & OPERAND(i)) return refuse(why, "%s takes no %s", row->name, name);
        uint32_t types = row->types[i] ? row->types[i] : T_FLOAT;
        if (!(types >> t->dtype & 1))
            return refuse(why, "%s does not take %s in %s", row->name, name, dtype_name(t->dtype));
        if (row->same_type & OPERAND(i)) {
            if (first >= 0 && call->t[first].dtype != t->dtype)
                return refuse(why, "%s wants %s of the type of %s", row->name, name,
                              op->operand[first].name);
            if (first < 0) first = i;
        }
        if (!aligned(t, row->align[i]))
            return refuse(why, "%s wants %s in vectors of %u", row->name, name, row->align[i]);
    }
    return true;
}

static bool takes_needs(const KernelRow *row, const OpCall *call, char *why) {
    for (int i = 0; i < MAX_NEEDS && row->needs[i].from != FROM_VALUE; i++) {
        const RowNeed *need = &row->needs[i];
        if (need->from == FROM_DIM && !call->t[need->operand].buffer) continue;
        uint32_t n = row_number(need->from, need->operand, need->index, call);
        bool fits = n >= need->min && (!need->max || n <= need->max) &&
                    (!need->multiple || n % need->multiple == 0) && (!need->zero || n == 0);
        if (fits) continue;
        if (need->from == FROM_DIM)
            return refuse(why, "%s does not take %s with %u in dimension %u of 6", row->name,
                          op_info[call->op].operand[need->operand].name, n, need->index);
        return refuse(why, "%s does not take parameter %u = %u", row->name, need->index, n);
    }
    return true;
}

bool row_takes(const KernelRow *row, const OpCall *call, const RowLimits *limits, char *why) {
    if (row->caps & ~limits->caps)
        return refuse(why, "%s needs a feature of the device", row->name);
    if (row->shared > limits->shared)
        return refuse(why, "%s needs %u bytes of shared memory", row->name, row->shared);
    for (int i = 0; i < MAX_PASSES && row->pass[i].module; i++) {
        const KernelPass *pass = &row->pass[i];
        if (pass->threads > limits->threads)
            return refuse(why, "%s needs workgroups of %u", row->name, pass->threads);
        if (pass->subgroup && (!limits->choose_subgroup || pass->subgroup < limits->subgroup_min ||
                               pass->subgroup > limits->subgroup_max))
            return refuse(why, "%s needs subgroups of %u", row->name, pass->subgroup);
    }
    if (!takes_operands(row, call, why) || !takes_needs(row, call, why)) return false;
    for (int i = 0; i < MAX_PASSES && row->pass[i].module; i++)
        if (pass_tiles(&row->pass[i], call) > UINT32_MAX ||
            (row->pass[i].flat && ref_count(&call->t[row->pass[i].grid]) > UINT32_MAX))
            return refuse(why, "%s takes at most 2^32 tiles or elements", row->name);
    return true;
}

uint64_t pass_tiles(const KernelPass *pass, const OpCall *call) {
    if (pass->if_present && !call->t[pass->if_present - 1].buffer) return 0;
    const TensorRef *grid = &call->t[pass->grid];
    uint64_t tiles = 1, parts = pass->parts;
    if (pass->parts_param)
        parts = MAX(row_number(FROM_PARAM, 0, pass->parts_param - 1, call), 1);
    if (pass->flat) return ((uint64_t)ref_count(grid) + pass->flat - 1) / pass->flat;
    for (int i = 0; i < MAX_DIMS; i++) {
        uint64_t size = (uint64_t)ref_dim(grid, i), tile = pass->tile[i];
        uint64_t n = tile ? (size + tile - 1) / tile : 1;
        if (parts) n = i < 4 ? size : i == 4 ? parts : 1;
        if (!mul_size(tiles, n, &tiles)) return UINT64_MAX;
    }
    return tiles;
}
