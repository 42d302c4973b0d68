// attn.c: what attn and attn_bwd accept and cost. Semantics: attn.h, attn_bwd.h.
#include "backend/ops.h"

// The shapes both ops share; operand numbers differ, so they are given.
static bool check_shapes(const OpCall *c, int q, int k, int v, int mask, int y, int lse, Error *err) {
    const TensorRef *t = c->t;
    const int four[] = {q, k, v, y};
    for (size_t i = 0; i < COUNT_OF(four); i++)
        if (!want_rank(c, four[i], 4, err) || !want_float(c, four[i], err)) return false;
    int64_t B = t[q].shape[0], T = t[q].shape[1], H = t[q].shape[2], D = t[q].shape[3];
    int64_t S = t[k].shape[1], Hk = t[k].shape[2];
    const int64_t keys[4] = {B, S, Hk, D}, scores[4] = {B, H, T, S}, rows[3] = {B, H, T};
    if (H % Hk)
        return err_failed(err, "attn: expected heads in multiples of %lld, found %lld; this is a defect",
                          (long long)Hk, (long long)H);
    return want_dims(c, k, 4, keys, err) && want_dims(c, v, 4, keys, err) &&
           want_dims(c, y, 4, t[q].shape, err) && want_dims(c, lse, 3, rows, err) &&
           want_f32(c, lse, err) && want_rank(c, mask, 4, err) && want_float(c, mask, err) &&
           want_broadcast(c, mask, 4, scores, err);
}

static Work work_of(const OpCall *c, double products, int q, int k) {
    const TensorRef *t = c->t;
    double scores = (double)t[q].shape[0] * (double)t[q].shape[1] * (double)t[q].shape[2] *
                    (double)t[k].shape[1];
    Work work = {products * 2 * scores * (double)t[q].shape[3], 0};
    for (int i = 0; i < op_info[c->op].operand_count; i++)
        if (t[i].buffer) work.bytes += (double)dtype_bytes(t[i].dtype, (uint64_t)ref_count(&t[i]));
    return work;
}

bool op_check_attn(const OpCall *c, Error *err) {
    return check_shapes(c, attn_q, attn_k, attn_v, attn_mask, attn_y, attn_lse, err);
}

Work op_work_attn(const OpCall *c) { return work_of(c, 2, attn_q, attn_k); }

bool op_check_attn_bwd(const OpCall *c, Error *err) {
    const TensorRef *t = c->t;
    if (!check_shapes(c, attn_bwd_q, attn_bwd_k, attn_bwd_v, attn_bwd_mask, attn_bwd_y,
                      attn_bwd_lse, err))
        return false;
    const struct { int operand, like; } grads[] = {{attn_bwd_dy, attn_bwd_q},
                                                   {attn_bwd_dq, attn_bwd_q},
                                                   {attn_bwd_dk, attn_bwd_k},
                                                   {attn_bwd_dv, attn_bwd_v}};
    for (size_t i = 0; i < COUNT_OF(grads); i++)
        if (!want_dims(c, grads[i].operand, 4, t[grads[i].like].shape, err) ||
            !want_float(c, grads[i].operand, err))
            return false;
    return true;
}

// Scores are recomputed: q k^T, dy v^T, and the three products of the gradients.
Work op_work_attn_bwd(const OpCall *c) { return work_of(c, 5, attn_bwd_q, attn_bwd_k); }
