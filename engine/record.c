// record.c: one recorder per op: from what a model says (any rank, any view) to the op's own form.
#include "engine/graph_impl.h"

Tensor *g_rows(Tensor *t) {
    bool rows = t->ndim == 0 || t->stride[t->ndim - 1] == 1 || t->shape[t->ndim - 1] == 1;
    return rows ? t : g_contiguous(t);
}

Tensor *g_contiguous(Tensor *x) {
    return tensor_contiguous(x) ? x : g_copy(x->g, COPY(.x = x, .dtype = x->dtype));
}

Tensor *g_cast(Tensor *x, DType dtype) {
    return x->dtype == dtype ? x : g_copy(x->g, COPY(.x = x, .dtype = dtype));
}

// The rank-3 form [B, M, C] of an operand: rank 3 stays, others become one batch of rows.
static Tensor *as_rank3(Tensor *t) {
    if (!t || t->ndim == 3) return t ? g_rows(t) : NULL;
    int64_t last = t->ndim ? t->shape[t->ndim - 1] : 1;
    return g_rows(g_reshape(t, DIMS(1, tensor_count(t) / last, last)));
}

static Tensor *to_shape(Tensor *t, int ndim, const int64_t *shape) {
    bool same = t->ndim == ndim && !memcmp(t->shape, shape, sizeof(int64_t) * (size_t)ndim);
    return same ? t : g_reshape(t, ndim, shape);
}

// The same for a result: only as a view; a copy would be written and nobody would read it.
static Tensor *result_shape(Tensor *t, int ndim, const int64_t *shape) {
    Tensor *view = to_shape(t, ndim, shape);
    if (view->storage != t->storage)
        g_fail(t->g, "expected a result whose strides fit the op's form, found gaps; this is a defect");
    return view;
}

static bool any_grad(int count, Tensor *const *t) {
    for (int i = 0; i < count; i++)
        if (t[i] && t[i]->needs_grad) return true;
    return false;
}

static Tensor *no_gradient(Graph *g, const char *op, Tensor *stand_in) {
    g_fail(g, "%s: no gradient is written for it yet; keep what it reads out of training", op);
    return stand_in;
}

// The operands as the model gave them, for the gradient rule; the result carries the node.
static Tensor *finish(Node *node, int count, Tensor *const *seen, Tensor *result) {
    memcpy(node->seen, seen, sizeof(Tensor *) * (size_t)count);
    node->result = result;
    result->node = node;
    result->needs_grad |= any_grad(count, seen);
    return result;
}

// ---- gemm -------------------------------------------------------------------------------------

// Epilogue as ops of their own: the gradient rules are about plain products.
static Tensor *gemm_expanded(Graph *g, const GemmRec *r) {
    Tensor *y = g_gemm(g, GEMM(.x = r->x, .w = r->w, .x2 = r->x2, .w2 = r->w2, .bias = r->bias,
                               .trans_x = r->trans_x, .trans_w = r->trans_w, .dtype = r->dtype));
    if (r->act) y = g_act(y, r->act, r->dtype);
    if (r->gate && r->residual)
        return g_ewise(g, EWISE(.kind = EW_MULADD, .x = y, .y = r->gate, .z = r->residual,
                                .dtype = r->dtype));
    if (r->gate) y = g_ewise(g, EWISE(.kind = EW_MUL, .x = y, .y = r->gate, .dtype = r->dtype));
    if (r->residual)
        y = g_ewise(g, EWISE(.kind = EW_ADD, .x = y, .y = r->residual, .dtype = r->dtype));
    return y;
}

Tensor *g_gemm(Graph *g, const GemmRec *r) {
    Tensor *const seen[] = {r->x, r->w, r->x2, r->w2, r->bias, r->gate, r->residual};
    bool epilogue = r->act || r->gate || r->residual;
    if (epilogue && any_grad(COUNT_OF(seen), seen)) return gemm_expanded(g, r);
    if (r->w->ndim < 2 || r->w->ndim > 3 || r->x->ndim < 2) {
        g_fail(g, "gemm: expected x of 2 or more and w of 2 or 3 dimensions, found %d and %d; "
               "this is a defect", r->x->ndim, r->w->ndim);
        return r->x;
    }
    // A given result of several batches with gaps between them has no form as one batch of rows.
    bool gaps = r->y && r->y->ndim == 3 && r->x->ndim == 3 && !tensor_contiguous(r->y);
    bool batched = r->w->ndim == 3 || (r->gate && r->gate->ndim == 3) || gaps;
    Tensor *x = batched || (r->x->ndim == 3 && r->x->shape[0] == 1) ? g_rows(r->x) : as_rank3(
        r->x->ndim == 3 && !r->trans_x ? g_reshape(r->x, DIMS(-1, r->x->shape[2])) : r->x);
    if (x->ndim != 3) {
        g_fail(g, "gemm: expected x [B, M, K] beside a batched w or gate, found %d dimensions; "
               "this is a defect", x->ndim);
        return r->x;
    }
    int64_t N = r->w->shape[r->w->ndim - (r->trans_w ? 1 : 2)];
    int64_t B = x->shape[0], M = x->shape[r->trans_x ? 2 : 1];
    int64_t shape[MAX_DIMS];
    memcpy(shape, r->x->shape, sizeof shape);
    if (r->trans_x) shape[r->x->ndim - 2] = M;
    shape[r->x->ndim - 1] = N;
    Tensor *y = r->y ? r->y : tensor_new(g, r->dtype, r->x->ndim, shape);
    const int64_t full[3] = {B, M, N};
    Tensor *t[gemm_operand_count] = {
        [gemm_x] = x,
        [gemm_w] = as_rank3(r->w->ndim == 2 ? g_reshape(r->w, DIMS(1, r->w->shape[0], r->w->shape[1]))
                                            : r->w),
        [gemm_x2] = r->x2 ? g_rows(to_shape(r->x2, DIMS(B, M, r->x2->shape[r->x2->ndim - 1]))) : NULL,
        [gemm_w2] = as_rank3(r->w2),
        [gemm_bias] = r->bias ? g_reshape(r->bias, DIMS(1, 1, N)) : NULL,
        [gemm_gate] = as_rank3(r->gate),
        [gemm_residual] = r->residual ? g_rows(to_shape(r->residual, 3, full)) : NULL,
        [gemm_y] = result_shape(y, 3, full),
    };
    return finish(g_record(g, OP_GEMM, t, &r->params), COUNT_OF(seen), seen, y);
}

// ---- attn -------------------------------------------------------------------------------------

Tensor *g_attn(Graph *g, const AttnRec *r) {
    if (r->q->ndim != 4 || r->k->ndim != 4 || r->v->ndim != 4) {
        g_fail(g, "attn: expected q, k, v [B, T, H, D], found other ranks; this is a defect");
        return r->q;
    }
    const int64_t *q = r->q->shape;
    Tensor *y = r->y ? r->y : tensor_new(g, r->dtype, 4, q);
    Tensor *lse = r->lse ? r->lse : tensor_new(g, DT_F32, DIMS(q[0], q[2], q[1]));
    Tensor *t[attn_operand_count] = {
        [attn_q] = g_rows(r->q), [attn_k] = g_rows(r->k), [attn_v] = g_rows(r->v),
        [attn_mask] = r->mask ? g_rows(r->mask) : NULL, [attn_y] = y, [attn_lse] = lse};
    Tensor *const seen[] = {r->q, r->k, r->v, r->mask, y, lse};
    Node *node = g_record(g, OP_ATTN, t, &r->params);
    return finish(node, COUNT_OF(seen), seen, y);
}

// ---- norm -------------------------------------------------------------------------------------

// weight, bias, scale, shift and activation as ops of their own; the plain norm keeps f32.
static Tensor *norm_expanded(Graph *g, const NormRec *r) {
    Tensor *y = g_norm(g, NORM(.x = r->x, .kind = r->kind, .eps = r->eps));
    DType last = r->dtype;
    bool more = r->scale || r->shift || r->act;
    if (r->weight && r->bias)
        y = g_ewise(g, EWISE(.kind = EW_MULADD, .x = y, .y = r->weight, .z = r->bias,
                             .dtype = more ? DT_F32 : last));
    else if (r->weight)
        y = g_ewise(g, EWISE(.kind = EW_MUL, .x = y, .y = r->weight, .dtype = more ? DT_F32 : last));
    else if (r->bias)
        y = g_ewise(g, EWISE(.kind = EW_ADD, .x = y, .y = r->bias, .dtype = more ? DT_F32 : last));
    if (r->scale && r->shift)
        y = g_ewise(g, EWISE(.kind = EW_MODULATE, .x = y, .y = r->scale, .z = r->shift,
                             .dtype = r->act ? DT_F32 : last));
    else if (r->scale)
        y = g_ewise(g, EWISE(.kind = EW_MULADD, .x = y, .y = r->scale, .z = y,
                             .dtype = r->act ? DT_F32 : last));
    else if (r->shift)
        y = g_ewise(g, EWISE(.kind = EW_ADD, .x = y, .y = r->shift, .dtype = r->act ? DT_F32 : last));
    return r->act ? g_act(y, r->act, last) : y;
}

Tensor *g_norm(Graph *g, const NormRec *r) {
    Tensor *const seen[] = {r->x, r->weight, r->bias, r->scale, r->shift};
    bool grad = any_grad(COUNT_OF(seen), seen), grouped = r->kind == NORM_GROUP;
    if (grouped && grad) return no_gradient(g, "group norm", r->x);
    if (grad && (r->weight || r->bias || r->scale || r->shift || r->act)) return norm_expanded(g, r);
    Tensor *y = r->y ? r->y : tensor_new(g, r->dtype, r->x->ndim, r->x->shape);
    // The batches of a group norm must not become rows of one.
    const int64_t batches[3] = {r->x->shape[0], -1, r->x->shape[MAX(r->x->ndim - 1, 0)]};
    bool image = grouped && r->x->ndim > 3;
    Tensor *x = as_rank3(image ? g_reshape(r->x, 3, batches) : r->x), *rstd = r->rstd;
    if (grad && !rstd) rstd = tensor_new(g, DT_F32, DIMS(x->shape[0], x->shape[1], 1));
    Tensor *t[norm_operand_count] = {
        [norm_x] = x, [norm_weight] = as_rank3(r->weight), [norm_bias] = as_rank3(r->bias),
        [norm_scale] = as_rank3(r->scale), [norm_shift] = as_rank3(r->shift),
        [norm_y] = result_shape(y, x->ndim, x->shape), [norm_rstd] = rstd};
    return finish(g_record(g, OP_NORM, t, &r->params), COUNT_OF(seen), seen, y);
}

// ---- ewise ------------------------------------------------------------------------------------

static void broadcast_shape(Graph *g, Tensor *const *in, int *ndim, int64_t *shape) {
    *ndim = 0;
    for (int i = 0; i < 3; i++)
        if (in[i]) *ndim = MAX(*ndim, in[i]->ndim);
    for (int d = 0; d < *ndim; d++) shape[d] = 1;
    for (int i = 0; i < 3; i++)
        for (int d = 0; in[i] && d < in[i]->ndim; d++) {
            int64_t n = in[i]->shape[d], *s = &shape[*ndim - in[i]->ndim + d];
            if (n != 1 && *s != 1 && n != *s)
                g_fail(g, "ewise: expected shapes that broadcast, found %lld beside %lld; this is a "
                       "defect", (long long)n, (long long)*s);
            *s = MAX(*s, n);
        }
}

Tensor *g_ewise(Graph *g, const EwiseRec *r) {
    Tensor *const seen[] = {r->x, r->y, r->z};
    int ndim;
    int64_t shape[MAX_DIMS];
    broadcast_shape(g, seen, &ndim, shape);
    if (g->failed) return r->x;
    Tensor *o = r->o ? r->o : tensor_new(g, r->dtype, ndim, shape);
    Tensor *t[ewise_operand_count] = {[ewise_o] = o};
    for (int i = 0; i < 3; i++)
        if (seen[i]) t[i] = g_broadcast(seen[i], o->ndim, o->shape);
    return finish(g_record(g, OP_EWISE, t, &r->params), COUNT_OF(seen), seen, o);
}

Tensor *g_add(Tensor *x, Tensor *y) { return g_ewise(x->g, EWISE(.kind = EW_ADD, .x = x, .y = y)); }
Tensor *g_sub(Tensor *x, Tensor *y) { return g_ewise(x->g, EWISE(.kind = EW_SUB, .x = x, .y = y)); }
Tensor *g_mul(Tensor *x, Tensor *y) { return g_ewise(x->g, EWISE(.kind = EW_MUL, .x = x, .y = y)); }

Tensor *g_scale(Tensor *x, float alpha, float beta) {
    return g_ewise(x->g, EWISE(.kind = EW_SCALE, .x = x, .alpha = alpha, .beta = beta));
}

Tensor *g_act(Tensor *x, uint32_t act, DType dtype) {
    return g_ewise(x->g, EWISE(.kind = EW_ACT, .x = x, .act = act, .dtype = dtype));
}

// ---- reduce, embed, copy ----------------------------------------------------------------------

Tensor *g_reduce(Graph *g, const ReduceRec *r) {
    Tensor *x = as_rank3(r->x);
    bool flag = r->kind == REDUCE_NONFINITE;
    Tensor *y = r->y ? r->y : tensor_new(g, DT_F32, DIMS(flag ? 1 : x->shape[0], 1,
                                                         flag ? 1 : x->shape[2]));
    Tensor *t[reduce_operand_count] = {[reduce_x] = x, [reduce_y] = y->ndim == 3 ? y : as_rank3(y)};
    Tensor *const seen[] = {r->x};
    return finish(g_record(g, OP_REDUCE, t, &r->params), COUNT_OF(seen), seen, y);
}

Tensor *g_sum_to(Tensor *x, int ndim, const int64_t *shape) {
    int front = x->ndim - ndim;
    int64_t dims[MAX_DIMS];
    memcpy(dims, x->shape, sizeof dims);
    // Each run of neighbouring summed axes is one reduce: [before, run, after].
    for (int end = x->ndim; end > 0;) {
        int d = end - 1;
        int64_t want = d < front ? 1 : shape[d - front];
        if (dims[d] == want) { end--; continue; }
        int start = d;
        while (start > 0 && dims[start - 1] != (start - 1 < front ? 1 : shape[start - 1 - front]))
            start--;
        int64_t a = 1, r = 1, c = 1;
        for (int i = 0; i < start; i++) a *= dims[i];
        for (int i = start; i < end; i++) r *= dims[i], dims[i] = 1;
        for (int i = end; i < x->ndim; i++) c *= dims[i];
        Tensor *flat = g_reshape(x, DIMS(a, r, c));
        x = g_reshape(g_reduce(x->g, REDUCE(.x = flat)), x->ndim, dims);
        end = start;
    }
    return g_reshape(x, ndim, shape);
}

Tensor *g_mse(Tensor *x, Tensor *target) {
    Tensor *diff = g_sub(x, target);
    Tensor *square = g_ewise(x->g, EWISE(.kind = EW_SQUARE, .x = diff));
    int64_t n = tensor_count(square);
    Tensor *flat = g_reshape(square, DIMS(1, n, 1));
    return g_reshape(g_reduce(x->g, REDUCE(.x = flat, .alpha = 1.0f / (float)n)), DIMS(1));
}

Tensor *g_embed(Graph *g, const EmbedRec *r) {
    Tensor *y = r->y ? r->y : tensor_new(g, r->dtype, DIMS(tensor_count(r->ids), r->table->shape[1]));
    Tensor *t[embed_operand_count] = {
        [embed_table] = g_rows(r->table), [embed_ids] = g_rows(r->ids), [embed_y] = y};
    Tensor *const seen[] = {r->table, r->ids};
    return finish(g_record(g, OP_EMBED, t, &r->params), COUNT_OF(seen), seen, y);
}

Tensor *g_copy(Graph *g, const CopyRec *r) {
    Tensor *y = r->y ? r->y : tensor_new(g, r->dtype, r->x->ndim, r->x->shape);
    Tensor *t[copy_operand_count] = {[copy_x] = r->x, [copy_y] = y};
    Tensor *const seen[] = {r->x};
    return finish(g_record(g, OP_COPY, t, &r->params), COUNT_OF(seen), seen, y);
}

// ---- adamw ------------------------------------------------------------------------------------

void g_adamw(Graph *g, const AdamwRec *r) {
    Tensor *t[adamw_operand_count] = {r->p, r->m, r->v, r->ema, r->g, r->hyper, r->found_inf};
    for (int i = 0; i < adamw_operand_count; i++)
        if (t[i]) t[i] = g_reshape(t[i], DIMS(-1));
    g_record(g, OP_ADAMW, t, &r->params);
}

// ---- conv2d, rope, dequant --------------------------------------------------------------------

Tensor *g_conv2d(Graph *g, const Conv2dRec *r) {
    Tensor *const seen[] = {r->x, r->w, r->bias, r->residual};
    if (any_grad(COUNT_OF(seen), seen)) return no_gradient(g, "conv2d", r->x);
    if (r->x->ndim != 4 || r->w->ndim != 4) {
        g_fail(g, "conv2d: expected x [B, H, W, C] and w [O, R, S, C], found %d and %d dimensions; "
               "this is a defect", r->x->ndim, r->w->ndim);
        return r->x;
    }
    const int64_t *x = r->x->shape, *w = r->w->shape;
    const int64_t shape[4] = {x[0], conv2d_size(x[1], w[1], &r->params, r->pad_top, r->pad_bottom),
                              conv2d_size(x[2], w[2], &r->params, r->pad_left, r->pad_right), w[0]};
    if (shape[1] < 1 || shape[2] < 1) {
        g_fail(g, "conv2d: expected x of at least the kernel's size, found %lld x %lld; take a larger "
               "size", (long long)x[1], (long long)x[2]);
        return r->x;
    }
    Tensor *y = r->y ? r->y : tensor_new(g, r->dtype, 4, shape);
    Tensor *t[conv2d_operand_count] = {
        [conv2d_x] = g_rows(r->x), [conv2d_w] = g_rows(r->w),
        [conv2d_bias] = r->bias ? g_rows(g_reshape(r->bias, DIMS(1, 1, 1, w[0]))) : NULL,
        [conv2d_residual] = r->residual ? g_rows(r->residual) : NULL, [conv2d_y] = y};
    return finish(g_record(g, OP_CONV2D, t, &r->params), COUNT_OF(seen), seen, y);
}

Tensor *g_rope(Graph *g, const RopeRec *r) {
    Tensor *const seen[] = {r->x, r->table};
    if (any_grad(COUNT_OF(seen), seen)) return no_gradient(g, "rope", r->x);
    Tensor *y = r->y ? r->y : tensor_new(g, r->dtype, r->x->ndim, r->x->shape);
    Tensor *table = r->table;
    if (table->ndim == 3)
        table = g_reshape(table, DIMS(1, table->shape[0], table->shape[1], table->shape[2]));
    Tensor *t[rope_operand_count] = {
        [rope_x] = g_rows(r->x), [rope_table] = g_rows(table), [rope_y] = y};
    return finish(g_record(g, OP_ROPE, t, &r->params), COUNT_OF(seen), seen, y);
}

Tensor *g_dequant(Graph *g, const DequantRec *r) {
    Tensor *const seen[] = {r->w, r->scale};
    if (any_grad(COUNT_OF(seen), seen)) return no_gradient(g, "dequant", r->w);
    Tensor *y = r->y ? r->y : tensor_new(g, r->dtype, r->w->ndim, r->w->shape);
    Tensor *t[dequant_operand_count] = {
        [dequant_w] = r->w, [dequant_scale] = r->scale ? g_reshape(r->scale, DIMS(1)) : NULL,
        [dequant_y] = y};
    return finish(g_record(g, OP_DEQUANT, t, &r->params), COUNT_OF(seen), seen, y);
}

Tensor *g_weight(Graph *g, Param *p, DType compute) {
    Tensor *w = g_param(g, p);
    if (!dtype_is_packed(p->dtype)) return g_cast(w, compute);
    Tensor *s = p->scale ? g_param(g, p->scale) : NULL;
    return g_dequant(g, DEQUANT(.w = w, .scale = s, .dtype = compute));
}
