// fuse.c: weights that stay packed until a product packs them for its kernel: a dequant into bf16
// scratch writes and reads a large model's weights twice per step, which bounds small pictures.
#include "backend/cpu/cpu.h"
#include "backend/impl.h"

typedef struct Range { uint64_t start, end; } Range;

static Range range_of(const TensorRef *t) {
    uint64_t start = t->buffer ? t->buffer->address + t->offset : 0;
    return (Range){start, t->buffer ? start + ref_extent(t) : 0};
}
static bool meet(Range a, Range b) { return a.start < b.end && b.start < a.end; }

static bool step_meets(const BoundStep *s, Range r, bool writes) {
    const OpInfo *op = &op_info[s->call.op];
    for (int i = 0; i < op->operand_count; i++) {
        int role = op->operand[i].role;
        if ((writes ? role_writes(role) : role_reads(role)) && meet(range_of(&s->call.t[i]), r))
            return true;
    }
    return false;
}

// Is w all that this product reads of y, as whole rows? Then where they lie among y's elements.
static bool rows_of_y(const OpCall *product, const TensorRef *y, int64_t *element) {
    const TensorRef *w = &product->t[gemm_w];
    int64_t K = w->shape[2];
    uint64_t from = w->offset - y->offset, row = (uint64_t)K * 2;
    if (w->buffer != y->buffer || w->offset < y->offset || range_of(w).end > range_of(y).end) return false;
    for (int i = 0; i < gemm_operand_count; i++)
        if (i != gemm_w && meet(range_of(&product->t[i]), range_of(y))) return false;
    *element = (int64_t)(from / 2);
    return product->params.gemm.trans_w == 0 && w->shape[0] == 1 && w->stride[2] == 1 &&
           w->stride[1] == K && K == y->shape[y->ndim - 1] && from % row == 0;
}

// May the products that read what `first` decodes take it packed? No: something else reads it, or what
// it is decoded from changes before the last of them. *end: the first step that cannot read it.
static bool may_fuse(const Program *prog, int first, const bool *packs, int *end) {
    const OpCall *c = &prog->steps[first].call;
    const Range w = range_of(&c->t[dequant_w]), scale = range_of(&c->t[dequant_scale]),
                y = range_of(&c->t[dequant_y]);
    bool changed = false;
    for (int i = first + 1; i < prog->count; i++) {
        const BoundStep *s = &prog->steps[i];
        int64_t element;
        if (step_meets(s, y, false) &&
            (changed || !packs[i] || !rows_of_y(&s->call, &c->t[dequant_y], &element)))
            return false;
        *end = i + 1;
        if (step_meets(s, y, true)) break;
        changed = changed || step_meets(s, w, true) || step_meets(s, scale, true);
    }
    return true;
}

static void fuse(const Program *prog, int first, int end, Fused *fused) {
    const OpCall *c = &prog->steps[first].call;
    const TensorRef *w = &c->t[dequant_w], *y = &c->t[dequant_y], *scale = &c->t[dequant_scale];
    for (int i = first + 1; i < end; i++) {
        const BoundStep *s = &prog->steps[i];
        int64_t element;
        if (!step_meets(s, range_of(y), false) || !rows_of_y(&s->call, y, &element)) continue;
        const uint8_t *rows = (const uint8_t *)ref_data(w) + dtype_bytes(w->dtype, (uint64_t)element);
        fused[i].packed =
            (PackedRows){w->dtype, rows, ref_has(scale) ? (const float *)ref_data(scale) : NULL};
    }
    fused[first].skip = true;
}

Fused *fuse_dequant(Program *prog, const bool *packs) {
    Fused *fused = MEM_ARRAY(prog, Fused, MAX(prog->count, 1));
    bool any = false;
    for (int i = 0; i < prog->count; i++) {
        const BoundStep *s = &prog->steps[i];
        int end = i + 1;
        if (s->call.op != OP_DEQUANT || !s->internal || s->call.t[dequant_y].dtype != DT_BF16 ||
            !may_fuse(prog, i, packs, &end))
            continue;
        fuse(prog, i, end, fused);
        any = true;
    }
    if (any) return fused;
    mem_free(fused);
    return NULL;
}
