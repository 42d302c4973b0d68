// rows.c: what the ops that touch each element a few times accept and cost: norm, norm_bwd, ewise,
// reduce, embed, embed_bwd, copy, adamw, rope, dequant. Semantics: their headers.
#include "backend/ops.h"

static bool bad_kind(const OpCall *c, uint32_t kind, uint32_t count, Error *err) {
    return err_failed(err, "%s: expected kind or act below %u, found %u; this is a defect",
                      op_info[c->op].name, count, kind);
}

// Memory traffic decides: every operand once, `per` operations per element of operand `main`.
static Work work_of(const OpCall *c, int main, double per) {
    Work work = {per * (double)ref_count(&c->t[main]), 0};
    for (int i = 0; i < op_info[c->op].operand_count; i++)
        if (c->t[i].buffer)
            work.bytes += (double)dtype_bytes(c->t[i].dtype, (uint64_t)ref_count(&c->t[i]));
    return work;
}

static bool all_float_rank(const OpCall *c, int count, int rank, Error *err) {
    for (int i = 0; i < count; i++)
        if (!want_rank(c, i, rank, err) || !want_float(c, i, err)) return false;
    return true;
}

bool op_check_norm(const OpCall *c, Error *err) {
    const NormParams *p = &c->params.norm;
    if (!all_float_rank(c, norm_operand_count, 3, err)) return false;
    if (p->kind > NORM_GROUP) return bad_kind(c, p->kind, NORM_GROUP + 1, err);
    if (p->act >= ACT_COUNT) return bad_kind(c, p->act, ACT_COUNT, err);
    const int64_t *x = c->t[norm_x].shape;
    const int64_t channels[3] = {1, 1, x[2]}, rows[3] = {x[0], x[1], 1};
    bool grouped = p->kind == NORM_GROUP;
    if (p->groups && (!grouped || x[2] % p->groups))
        return err_failed(err, "norm: expected groups that divide %lld channels (0 where the kind is "
                          "not NORM_GROUP), found %u; this is a defect", (long long)x[2], p->groups);
    if (grouped && c->t[norm_rstd].buffer)
        return err_failed(err, "norm: expected no rstd of a group norm, found one; this is a defect");
    return want_dims(c, norm_weight, 3, channels, err) && want_dims(c, norm_bias, 3, channels, err) &&
           want_broadcast(c, norm_scale, 3, x, err) && want_broadcast(c, norm_shift, 3, x, err) &&
           want_dims(c, norm_y, 3, x, err) && want_dims(c, norm_rstd, 3, rows, err) &&
           want_f32(c, norm_rstd, err);
}
Work op_work_norm(const OpCall *c) { return work_of(c, norm_x, 8); }

bool op_check_norm_bwd(const OpCall *c, Error *err) {
    if (!all_float_rank(c, norm_bwd_operand_count, 3, err)) return false;
    if (c->params.norm_bwd.kind > NORM_RMS)
        return bad_kind(c, c->params.norm_bwd.kind, NORM_RMS + 1, err);
    const int64_t *y = c->t[norm_bwd_y].shape;
    const int64_t rows[3] = {y[0], y[1], 1};
    return want_dims(c, norm_bwd_dy, 3, y, err) && want_dims(c, norm_bwd_dx, 3, y, err) &&
           want_dims(c, norm_bwd_rstd, 3, rows, err) && want_f32(c, norm_bwd_rstd, err);
}
Work op_work_norm_bwd(const OpCall *c) { return work_of(c, norm_bwd_y, 8); }

// How many inputs each kind reads.
static const uint8_t ewise_inputs[EW_COUNT] = {
    [EW_SCALE] = 1, [EW_ACT] = 1,    [EW_ACT_BWD] = 2,  [EW_ADD] = 2,    [EW_SUB] = 2,
    [EW_MUL] = 2,   [EW_DIV] = 2,    [EW_MULADD] = 3,   [EW_MODULATE] = 3, [EW_SQUARE] = 1,
    [EW_CLAMP] = 1, [EW_EXP] = 1,    [EW_SQRT] = 1,
};

bool op_check_ewise(const OpCall *c, Error *err) {
    const EwiseParams *p = &c->params.ewise;
    if (p->kind >= EW_COUNT) return bad_kind(c, p->kind, EW_COUNT, err);
    if (p->act >= ACT_COUNT) return bad_kind(c, p->act, ACT_COUNT, err);
    const TensorRef *o = &c->t[ewise_o];
    for (int i = 0; i < ewise_operand_count; i++) {
        if (i < 3 && (i < ewise_inputs[p->kind]) != (c->t[i].buffer != NULL))
            return err_failed(err, "ewise kind %u: expected %d inputs, found another number; this is "
                              "a defect", p->kind, ewise_inputs[p->kind]);
        if (!want_float(c, i, err) || !want_rank(c, i, o->ndim, err) ||
            !want_dims(c, i, o->ndim, o->shape, err))
            return false;
    }
    return true;
}
Work op_work_ewise(const OpCall *c) {
    return work_of(c, ewise_o, c->params.ewise.act ? 20 : 2);
}

bool op_check_reduce(const OpCall *c, Error *err) {
    if (!all_float_rank(c, reduce_operand_count, 3, err)) return false;
    if (c->params.reduce.kind > REDUCE_NONFINITE)
        return bad_kind(c, c->params.reduce.kind, REDUCE_NONFINITE + 1, err);
    const int64_t *x = c->t[reduce_x].shape;
    const int64_t one[3] = {1, 1, 1}, rows[3] = {x[0], 1, x[2]};
    // NONFINITE is one flag for the whole tensor.
    return want_f32(c, reduce_y, err) &&
           want_dims(c, reduce_y, 3, c->params.reduce.kind == REDUCE_NONFINITE ? one : rows, err);
}
Work op_work_reduce(const OpCall *c) { return work_of(c, reduce_x, 1); }

static bool check_ids(const OpCall *c, int ids, int64_t n, Error *err) {
    static const DType i32[] = {DT_I32};
    return want_dtype(c, ids, i32, 1, err) && want_dims(c, ids, 1, &n, err);
}

bool op_check_embed(const OpCall *c, Error *err) {
    if (!want_rank(c, embed_table, 2, err) || !want_float(c, embed_table, err) ||
        !want_rank(c, embed_y, 2, err) || !want_float(c, embed_y, err))
        return false;
    const int64_t *y = c->t[embed_y].shape, *table = c->t[embed_table].shape;
    const int64_t want[2] = {y[0], table[1]};
    return want_dims(c, embed_y, 2, want, err) && check_ids(c, embed_ids, y[0], err);
}
Work op_work_embed(const OpCall *c) { return work_of(c, embed_y, 1); }

bool op_check_embed_bwd(const OpCall *c, Error *err) {
    if (!want_rank(c, embed_bwd_dy, 2, err) || !want_float(c, embed_bwd_dy, err) ||
        !want_rank(c, embed_bwd_dtable, 2, err) || !want_float(c, embed_bwd_dtable, err))
        return false;
    const int64_t *dy = c->t[embed_bwd_dy].shape;
    const int64_t want[2] = {c->t[embed_bwd_dtable].shape[0], dy[1]};
    return want_dims(c, embed_bwd_dtable, 2, want, err) && check_ids(c, embed_bwd_ids, dy[0], err);
}
// Each row of the table scans all ids.
Work op_work_embed_bwd(const OpCall *c) {
    Work work = work_of(c, embed_bwd_dy, 1);
    work.flops += (double)c->t[embed_bwd_dtable].shape[0] * (double)c->t[embed_bwd_dy].shape[0];
    return work;
}

bool op_check_copy(const OpCall *c, Error *err) {
    const TensorRef *x = &c->t[copy_x], *y = &c->t[copy_y];
    bool same_type = x->dtype == y->dtype && dtype_size(x->dtype) == 4; // i32 may be moved
    return (same_type || (want_float(c, copy_x, err) && want_float(c, copy_y, err))) &&
           want_rank(c, copy_x, y->ndim, err) && want_dims(c, copy_x, y->ndim, y->shape, err);
}
Work op_work_copy(const OpCall *c) { return work_of(c, copy_y, 0); }

bool op_check_adamw(const OpCall *c, Error *err) {
    const int64_t one = 1, count = ADAMW_HYPER_COUNT, *n = c->t[adamw_p].shape;
    if (!want_rank(c, adamw_p, 1, err)) return false;
    for (int i = 0; i < adamw_operand_count; i++) {
        const int64_t *dims = i == adamw_hyper ? &count : i == adamw_found_inf ? &one : n;
        if (!want_dims(c, i, 1, dims, err)) return false;
        if (!(i == adamw_g ? want_float(c, i, err) : want_f32(c, i, err))) return false;
    }
    return true;
}
Work op_work_adamw(const OpCall *c) { return work_of(c, adamw_p, 16); }

bool op_check_rope(const OpCall *c, Error *err) {
    if (!all_float_rank(c, rope_operand_count, 4, err)) return false;
    const int64_t *x = c->t[rope_x].shape, *table = c->t[rope_table].shape;
    const int64_t want[4] = {table[0] == 1 ? 1 : x[0], x[1], MIN(table[2], x[3] / 2), 2};
    return want_dims(c, rope_table, 4, want, err) && want_f32(c, rope_table, err) &&
           want_dims(c, rope_y, 4, x, err);
}
Work op_work_rope(const OpCall *c) { return work_of(c, rope_x, 3); }

bool op_check_dequant(const OpCall *c, Error *err) {
    const TensorRef *w = &c->t[dequant_w], *y = &c->t[dequant_y];
    const int64_t one = 1;
    if (!dtype_is_packed(w->dtype))
        return err_failed(err, "dequant: expected w of a packed type, found %s; this is a defect",
                          dtype_name(w->dtype));
    if (ref_dim(w, 5) % dtype_block(w->dtype))
        return err_failed(err, "dequant: expected rows of whole blocks of %d, found %lld elements; this "
                          "is a defect", dtype_block(w->dtype), (long long)ref_dim(w, 5));
    if (!ref_contiguous(w) || !ref_contiguous(y))
        return err_failed(err, "dequant: expected w and y without gaps, found some; this is a defect");
    return want_float(c, dequant_y, err) && want_dims(c, dequant_scale, 1, &one, err) &&
           want_f32(c, dequant_scale, err) && want_dims(c, dequant_y, w->ndim, w->shape, err);
}
Work op_work_dequant(const OpCall *c) { return work_of(c, dequant_y, 2); }
