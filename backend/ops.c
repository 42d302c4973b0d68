// ops.c: the op table, the checks common to all ops, and small helpers. See ops.h.
#include "backend/ops.h"
#include "backend/impl.h"

#include <math.h>

// ---- the tables, generated --------------------------------------------------------------------

#define ENTRY_IN(op, name) {#name, ROLE_IN},
#define ENTRY_OPT(op, name) {#name, ROLE_IN | ROLE_OPTIONAL},
#define ENTRY_OUT(op, name) {#name, ROLE_OUT},
#define ENTRY_OPT_OUT(op, name) {#name, ROLE_OUT | ROLE_OPTIONAL},
#define ENTRY_RW(op, name) {#name, ROLE_RW},
#define ENTRY_OPT_RW(op, name) {#name, ROLE_RW | ROLE_OPTIONAL},
#define OP(name, NAME, Name)                                                               \
    static const OperandInfo name##_operands[] = {NAME##_OPERANDS(                         \
        ENTRY_IN, ENTRY_OPT, ENTRY_OUT, ENTRY_OPT_OUT, ENTRY_RW, ENTRY_OPT_RW)};           \
    _Static_assert((int)name##_operand_count <= (int)MAX_OPERANDS, "too many operands");             \
    bool op_check_##name(const OpCall *call, Error *err);                                  \
    Work op_work_##name(const OpCall *call);
#include "backend/ops.def"
#undef OP

const OpInfo op_info[OP_COUNT] = {
#define OP(name, NAME, Name)                                                               \
    {#name, name##_operand_count, name##_operands, sizeof(Name##Params), op_check_##name,  \
     op_work_##name},
#include "backend/ops.def"
#undef OP
};

// ---- tensors ----------------------------------------------------------------------------------

int64_t ref_count(const TensorRef *t) {
    int64_t n = 1;
    for (int i = 0; i < t->ndim; i++) n *= t->shape[i];
    return n;
}

uint64_t ref_extent(const TensorRef *t) {
    int64_t last = 0;
    for (int i = 0; i < t->ndim; i++) last += (t->shape[i] - 1) * t->stride[i];
    return dtype_bytes(t->dtype, (uint64_t)last + 1);
}

bool ref_contiguous(const TensorRef *t) {
    int64_t expect = 1;
    for (int i = t->ndim - 1; i >= 0; i--) {
        if (t->shape[i] != 1 && t->stride[i] != expect) return false;
        expect *= t->shape[i];
    }
    return true;
}

int64_t ref_dim(const TensorRef *t, int i) {
    int j = i - (MAX_DIMS - t->ndim);
    return j < 0 ? 1 : t->shape[j];
}

int64_t ref_stride(const TensorRef *t, int i) {
    int j = i - (MAX_DIMS - t->ndim);
    return j < 0 || t->shape[j] == 1 ? 0 : t->stride[j];
}

TensorArg tensor_arg(const TensorRef *t, uint64_t address) {
    TensorArg arg = {0};
    if (!t->buffer) return arg;
    arg.addr_lo = (uint32_t)address;
    arg.addr_hi = (uint32_t)(address >> 32);
    arg.dtype = (uint32_t)t->dtype;
    for (int i = 0; i < MAX_DIMS; i++) {
        arg.shape[i] = (uint32_t)ref_dim(t, i);
        arg.stride[i] = (uint32_t)ref_stride(t, i);
    }
    return arg;
}

// ---- messages ---------------------------------------------------------------------------------

static const char *shape_text(char out[96], int ndim, const int64_t *dims) {
    size_t used = (size_t)snprintf(out, 96, "[");
    for (int i = 0; i < ndim && used < 80; i++)
        used += (size_t)snprintf(out + used, 96 - used, i ? ", %lld" : "%lld", (long long)dims[i]);
    snprintf(out + used, 96 - used, "]");
    return out;
}

static bool bad_operand(const OpCall *call, int operand, Error *err, const char *expected,
                        const char *found) {
    return err_failed(
        err, "%s %s%s%soperand %s: expected %s, found %s; this is a defect in the model's graph",
        op_info[call->op].name, call->label ? "(" : "", call->label ? call->label : "",
        call->label ? ") " : "", op_info[call->op].operand[operand].name, expected, found);
}

bool want_rank(const OpCall *call, int operand, int ndim, Error *err) {
    const TensorRef *t = &call->t[operand];
    if (!t->buffer || t->ndim == ndim) return true;
    char want[32], found[96];
    snprintf(want, sizeof want, "%d dimensions", ndim);
    return bad_operand(call, operand, err, want, shape_text(found, t->ndim, t->shape));
}

static bool dims_match(const OpCall *call, int operand, int ndim, const int64_t *dims, bool ones,
                       Error *err) {
    const TensorRef *t = &call->t[operand];
    if (!t->buffer) return true;
    bool same = t->ndim == ndim;
    for (int i = 0; same && i < ndim; i++)
        same = t->shape[i] == dims[i] || (ones && t->shape[i] == 1);
    if (same) return true;
    char want[96], found[96];
    return bad_operand(call, operand, err, shape_text(want, ndim, dims),
                       shape_text(found, t->ndim, t->shape));
}

bool want_dims(const OpCall *call, int operand, int ndim, const int64_t *dims, Error *err) {
    return dims_match(call, operand, ndim, dims, false, err);
}

bool want_broadcast(const OpCall *call, int operand, int ndim, const int64_t *dims, Error *err) {
    return dims_match(call, operand, ndim, dims, true, err);
}

bool want_dtype(const OpCall *call, int operand, const DType *allowed, int n, Error *err) {
    const TensorRef *t = &call->t[operand];
    if (!t->buffer) return true;
    for (int i = 0; i < n; i++)
        if (t->dtype == allowed[i]) return true;
    char want[96] = "type";
    for (int i = 0; i < n; i++) {
        size_t used = strlen(want);
        snprintf(want + used, sizeof want - used, i ? " or %s" : " %s", dtype_name(allowed[i]));
    }
    return bad_operand(call, operand, err, want, dtype_name(t->dtype));
}

bool want_float(const OpCall *call, int operand, Error *err) {
    static const DType floats[] = {DT_F32, DT_F16, DT_BF16};
    return want_dtype(call, operand, floats, 3, err);
}

bool want_f32(const OpCall *call, int operand, Error *err) {
    static const DType f32[] = {DT_F32};
    return want_dtype(call, operand, f32, 1, err);
}

// ---- checks common to all ops -----------------------------------------------------------------

// Only these read inputs whose last dimension is not contiguous.
static bool free_last_stride(OpId op, int role) {
    return op == OP_COPY || (op == OP_EWISE && !role_writes(role));
}

static bool check_layout(const OpCall *call, int operand, Error *err) {
    const TensorRef *t = &call->t[operand];
    int role = op_info[call->op].operand[operand].role;
    if (t->ndim < 0 || t->ndim > MAX_DIMS)
        return bad_operand(call, operand, err, "at most 6 dimensions", "more");
    uint64_t span = 1;
    for (int i = 0; i < t->ndim; i++) {
        if (t->shape[i] < 1 || t->shape[i] > UINT32_MAX || t->stride[i] < 0 ||
            t->stride[i] > UINT32_MAX)
            return bad_operand(call, operand, err, "sizes from 1 and strides from 0 to 2^32 - 1",
                               "others");
        if (role_writes(role) && t->stride[i] == 0 && t->shape[i] > 1)
            return bad_operand(call, operand, err, "an output without broadcast dimensions", "one");
        uint64_t step;
        if (!mul_size((uint64_t)(t->shape[i] - 1), (uint64_t)t->stride[i], &step) ||
            !add_size(span, step, &span) || span > UINT64_MAX / 16)
            return bad_operand(call, operand, err, "an extent below 2^60 elements", "more");
    }
    if (t->ndim && t->shape[t->ndim - 1] > 1 && t->stride[t->ndim - 1] != 1 &&
        !free_last_stride(call->op, role))
        return bad_operand(call, operand, err, "a contiguous last dimension", "a strided one");
    int64_t block = dtype_block(t->dtype);
    for (int i = 0; block > 1 && i < t->ndim; i++)
        if ((i == t->ndim - 1 ? t->shape[i] : t->stride[i]) % block)
            return bad_operand(call, operand, err, "rows of whole blocks", "others");
    if (t->offset % (uint64_t)dtype_align(t->dtype))
        return bad_operand(call, operand, err, "an aligned offset", "another");
    if (t->buffer->size < t->offset || t->buffer->size - t->offset < ref_extent(t))
        return bad_operand(call, operand, err, "a tensor inside its buffer", "one that reaches past it");
    return true;
}

static bool same_layout(const TensorRef *a, const TensorRef *b) {
    if (a->offset != b->offset || a->dtype != b->dtype) return false;
    for (int i = 0; i < MAX_DIMS; i++)
        if (ref_dim(a, i) != ref_dim(b, i) || ref_stride(a, i) != ref_stride(b, i)) return false;
    return true;
}

static bool ranges_overlap(const TensorRef *a, const TensorRef *b) {
    return a->buffer == b->buffer && a->offset < b->offset + ref_extent(b) &&
           b->offset < a->offset + ref_extent(a);
}

// Interleaved outputs (dq, dk, dv in one tensor) share ranges without sharing elements: allowed
// where both step over the other, that is where their outer strides agree and windows differ.
static bool interleaved(const TensorRef *a, const TensorRef *b) {
    if (a->ndim < 2 || a->ndim != b->ndim || a->dtype != b->dtype || a->offset == b->offset)
        return false;
    if (dtype_block(a->dtype) > 1) return false;
    uint64_t size = (uint64_t)dtype_size(a->dtype);
    for (int i = 0; i + 1 < a->ndim; i++) {
        if (a->stride[i] != b->stride[i] && a->shape[i] > 1 && b->shape[i] > 1) return false;
        // The part of both below dimension i must fit side by side within one step of it.
        TensorRef ia = *a, ib = *b;
        ia.ndim = ib.ndim = a->ndim - i - 1;
        memmove(ia.shape, a->shape + i + 1, sizeof(int64_t) * (size_t)ia.ndim);
        memmove(ia.stride, a->stride + i + 1, sizeof(int64_t) * (size_t)ia.ndim);
        memmove(ib.shape, b->shape + i + 1, sizeof(int64_t) * (size_t)ib.ndim);
        memmove(ib.stride, b->stride + i + 1, sizeof(int64_t) * (size_t)ib.ndim);
        uint64_t lo = MIN(a->offset, b->offset);
        uint64_t hi = MAX(a->offset + ref_extent(&ia), b->offset + ref_extent(&ib));
        bool apart = a->offset + ref_extent(&ia) <= b->offset || b->offset + ref_extent(&ib) <= a->offset;
        int64_t step = a->shape[i] > 1 ? a->stride[i] : b->stride[i];
        if (apart && hi - lo <= (uint64_t)step * size) return true;
    }
    return false;
}

static bool check_overlaps(const OpCall *call, Error *err) {
    const OpInfo *op = &op_info[call->op];
    for (int i = 0; i < op->operand_count; i++) {
        const TensorRef *out = &call->t[i];
        if (!role_writes(op->operand[i].role) || !out->buffer) continue;
        for (int j = 0; j < op->operand_count; j++) {
            const TensorRef *other = &call->t[j];
            if (i == j || !other->buffer || !ranges_overlap(out, other)) continue;
            if (interleaved(out, other)) continue;
            bool in_place = call->op == OP_EWISE && same_layout(out, other);
            if (!in_place)
                return bad_operand(call, i, err, "memory of its own", op->operand[j].name);
        }
    }
    return true;
}

bool op_check(const OpCall *call, Error *err) {
    if ((unsigned)call->op >= OP_COUNT)
        return err_failed(err, "op: expected a number below %d, found %d; this is a defect",
                          OP_COUNT, (int)call->op);
    const OpInfo *op = &op_info[call->op];
    for (int i = 0; i < op->operand_count; i++) {
        if (call->t[i].buffer) {
            if (!check_layout(call, i, err)) return false;
        } else if (!(op->operand[i].role & ROLE_OPTIONAL)) {
            return bad_operand(call, i, err, "a tensor", "none");
        }
    }
    return op->check(call, err) && check_overlaps(call, err);
}

// ---- activations in f64 -----------------------------------------------------------------------

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

double act_value(uint32_t act, double x) {
    switch (act) {
    case ACT_SILU: return x * sigmoid(x);
    case ACT_GELU: return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
    case ACT_GELU_ERF: return 0.5 * x * (1 + erf(x * 0.7071067811865476));
    case ACT_QUICK_GELU: return x * sigmoid(1.702 * x);
    case ACT_RELU: return x > 0 ? x : x != x ? x : 0; // NaN stays
    case ACT_TANH: return tanh(x);
    case ACT_SIGMOID: return sigmoid(x);
    default: return x;
    }
}

double act_slope(uint32_t act, double x) {
    double s;
    switch (act) {
    case ACT_SILU: s = sigmoid(x); return s * (1 + x * (1 - s));
    case ACT_GELU: {
        double k = 0.7978845608028654, t = tanh(k * (x + 0.044715 * x * x * x));
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * k * (1 + 3 * 0.044715 * x * x);
    }
    case ACT_GELU_ERF:
        return 0.5 * (1 + erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * exp(-0.5 * x * x);
    case ACT_QUICK_GELU: s = sigmoid(1.702 * x); return s * (1 + 1.702 * x * (1 - s));
    case ACT_RELU: return x > 0;
    case ACT_TANH: s = tanh(x); return 1 - s * s;
    case ACT_SIGMOID: s = sigmoid(x); return s * (1 - s);
    default: return 1;
    }
}
