// grad.c: reverse-mode gradients, recorded on the same graph: one rule (vjp_<op>) per op, one per
// view. Tensors are visited in the reverse of their recording; a tensor's gradient is complete
// when it is reached, since everything that reads it was recorded after it.
#include "engine/graph_impl.h"

// ---- collecting -------------------------------------------------------------------------------

static void grad_add(Tensor *t, Tensor *grad) {
    if (!t || !t->needs_grad || t->g->failed) return;
    if (!same_shape(t, grad)) grad = g_sum_to(grad, t->ndim, t->shape);
    bool param = t->storage->kind == STORAGE_PARAM;
    if (!t->grad) t->grad = grad;
    else t->grad = g_ewise(t->g, EWISE(.kind = EW_ADD, .x = t->grad, .y = grad,
                                       .dtype = param ? DT_F32 : t->dtype));
}

static Tensor *whole_grad(Tensor *base, int axis) {
    TensorExtra *x = extra_of(base);
    if (!x->whole) {
        x->whole = tensor_new(base->g, base->dtype, base->ndim, base->shape);
        x->whole_axis = axis;
    }
    if (x->whole_axis != axis)
        g_fail(base->g, "gradient: expected slices of a tensor along one axis, found two; this is a "
               "defect in the model's graph");
    return x->whole;
}

// Where the gradient of `t` may be written at once, because t is (a reshape of) a slice: its place
// in the gradient of the sliced tensor. NULL: nowhere, make a new tensor. The place becomes t's
// gradient and reaches the slice as any gradient does, so that nothing is counted twice.
static Tensor *grad_place(Tensor *t) {
    if (!t->needs_grad || t->grad) return NULL;
    if (t->view == VIEW_RESHAPE) {
        Tensor *place = grad_place(t->base);
        return place ? g_reshape(place, t->ndim, t->shape) : NULL;
    }
    if (t->view != VIEW_SLICE) return NULL;
    TensorExtra *s = extra_of(t), *b = extra_of(t->base);
    Tensor *whole = whole_grad(t->base, s->axis);
    for (int i = 0; i < b->pieces.n; i++)
        if (b->pieces.v[i].start < s->start + s->count &&
            s->start < b->pieces.v[i].start + b->pieces.v[i].count)
            return NULL;
    Piece piece = {t, s->start, s->count, false};
    ARR_PUSH(t->g, &b->pieces, piece);
    return g_slice(whole, s->axis, s->start, s->count);
}

// The finished gradient of slice `t` goes to its place in the base's gradient.
static void finish_slice(Tensor *t) {
    Graph *g = t->g;
    TensorExtra *s = extra_of(t), *b = extra_of(t->base);
    Tensor *whole = whole_grad(t->base, s->axis);
    Tensor *place = g_slice(whole, s->axis, s->start, s->count);
    for (int i = 0; i < b->pieces.n; i++) {
        Piece *p = &b->pieces.v[i];
        bool apart = p->start >= s->start + s->count || s->start >= p->start + p->count;
        if (apart) continue;
        if (p->start != s->start || p->count != s->count) {
            g_fail(g, "gradient: expected slices that are equal or apart, found an overlap; this is "
                   "a defect in the model's graph");
            return;
        }
        if (p->slice == t) { // written in place, and perhaps summed in t->grad with more
            p->done = true;
            if (t->grad->storage != whole->storage) g_copy(g, COPY(.x = t->grad, .y = place));
        } else if (!p->done) { // its sum would be written over what is added to the place now
            grad_add(p->slice, t->grad);
        } else {
            g_ewise(g, EWISE(.kind = EW_ADD, .x = place, .y = t->grad, .o = place));
        }
        return;
    }
    g_copy(g, COPY(.x = t->grad, .y = place));
    Piece piece = {t, s->start, s->count, true};
    ARR_PUSH(g, &b->pieces, piece);
}

// A sliced tensor is reached: what no slice has written is zero.
static void finish_whole(Tensor *t) {
    TensorExtra *x = extra_of(t);
    int64_t at = 0, end = t->shape[x->whole_axis];
    while (at < end) {
        int64_t next = end, skip = 0;
        for (int i = 0; i < x->pieces.n; i++) {
            Piece *p = &x->pieces.v[i];
            if (p->start <= at && at < p->start + p->count) skip = MAX(skip, p->start + p->count - at);
            else if (p->start > at) next = MIN(next, p->start);
        }
        if (!skip) {
            Tensor *gap = g_slice(x->whole, x->whole_axis, at, next - at);
            Tensor *of = g_slice(t, x->whole_axis, at, next - at);
            g_ewise(t->g, EWISE(.kind = EW_SCALE, .x = of, .o = gap));
            skip = next - at;
        }
        at += skip;
    }
    Tensor *whole = x->whole;
    x->whole = NULL;
    grad_add(t, whole);
}

static void view_vjp(Tensor *t) {
    Tensor *base = t->base, *dy = t->grad;
    switch (t->view) {
    case VIEW_RESHAPE: grad_add(base, g_reshape(dy, base->ndim, base->shape)); return;
    case VIEW_SLICE: finish_slice(t); return;
    case VIEW_PERMUTE: {
        int inverse[MAX_DIMS] = {0};
        for (int i = 0; i < t->ndim; i++) inverse[extra_of(t)->order[i]] = i;
        grad_add(base, g_permute(dy, t->ndim, inverse));
        return;
    }
    default: grad_add(base, dy); return; // broadcast: grad_add sums
    }
}

static void concat_vjp(Tensor *t) {
    TensorExtra *x = extra_of(t);
    for (int i = 0; i < x->parts.n; i++) {
        Tensor *part = x->parts.v[i].part;
        grad_add(part, g_slice(t->grad, x->axis, x->parts.v[i].start, part->shape[x->axis]));
    }
}

static void (*const rules[OP_COUNT])(Graph *, Node *, Tensor *) = {
#define OP(name, NAME, Name) vjp_##name,
#include "backend/ops.def"
#undef OP
};

void g_backward(Graph *g, Tensor *loss, Tensor *seed) {
    if (tensor_count(loss) != 1) g_fail(g, "backward: expected a loss of one element");
    if (g->failed) return;
    int last = g->tensors.n;
    for (int i = 0; i < last; i++) g->tensors.v[i]->grad = NULL;
    Tensor *one = seed ? g_reshape(seed, loss->ndim, loss->shape)
                       : g_ewise(g, EWISE(.kind = EW_SCALE, .x = loss, .beta = 1));
    grad_add(loss, one);
    for (int i = last - 1; i >= 0 && !g->failed; i--) {
        Tensor *t = g->tensors.v[i];
        if (extra_of(t)->whole) finish_whole(t);
        if (!t->grad || !t->needs_grad) continue;
        if (t->view) view_vjp(t);
        else if (extra_of(t)->parts.n) concat_vjp(t);
        else if (t->node && t->node->result == t) rules[t->node->op](g, t->node, t->grad);
    }
}

// ---- rules ------------------------------------------------------------------------------------

static Tensor *flat_rows(Tensor *t) {
    return g_rows(g_reshape(t, DIMS(tensor_count(t) / t->shape[t->ndim - 1], t->shape[t->ndim - 1])));
}

// y = x w^T: dx = dy w, dw = dy^T x. dy is rounded to the operands' type where that is narrower (as
// PyTorch's autocast does): products of mixed types have no fast kernels.
static void product_vjp(Graph *g, Tensor *x, Tensor *w, Tensor *dy) {
    bool batched = w->ndim == 3;
    if (dy->dtype == DT_F32 && x->dtype == w->dtype) dy = g_cast(dy, x->dtype);
    Tensor *rows = batched ? g_rows(dy) : flat_rows(dy);
    if (x->needs_grad) {
        Tensor *dx = g_gemm(g, GEMM(.x = rows, .w = w, .trans_w = 1, .dtype = x->dtype));
        grad_add(x, g_reshape(dx, x->ndim, x->shape));
    }
    if (w->needs_grad) {
        Tensor *in = batched ? g_rows(x) : flat_rows(x);
        grad_add(w, g_gemm(g, GEMM(.x = rows, .trans_x = 1, .w = in, .trans_w = 1)));
    }
}

void vjp_gemm(Graph *g, Node *node, Tensor *dy) {
    Tensor **s = node->seen;
    if (node->params.gemm.trans_x || node->params.gemm.trans_w) {
        g_fail(g, "gradient: expected a gemm without transposed operands; this is a defect");
        return;
    }
    product_vjp(g, s[gemm_x], s[gemm_w], dy);
    if (s[gemm_x2]) product_vjp(g, s[gemm_x2], s[gemm_w2], dy);
    if (s[gemm_bias] && s[gemm_bias]->needs_grad) grad_add(s[gemm_bias], dy);
}

void vjp_attn(Graph *g, Node *node, Tensor *dy) {
    Tensor **s = node->seen, **t = node->t;
    if (t[attn_mask] && s[attn_mask]->needs_grad)
        g_fail(g, "gradient: expected an attention mask without gradient; this is a defect");
    Tensor *in[3] = {s[attn_q], s[attn_k], s[attn_v]}, *out[3];
    for (int i = 0; i < 3; i++) {
        out[i] = grad_place(in[i]);
        if (!out[i]) out[i] = tensor_new(g, in[i]->dtype, 4, in[i]->shape);
    }
    Tensor *operands[attn_bwd_operand_count] = {
        [attn_bwd_q] = t[attn_q],     [attn_bwd_k] = t[attn_k], [attn_bwd_v] = t[attn_v],
        [attn_bwd_mask] = t[attn_mask], [attn_bwd_y] = t[attn_y], [attn_bwd_lse] = t[attn_lse],
        [attn_bwd_dy] = g_rows(dy),   [attn_bwd_dq] = out[0],   [attn_bwd_dk] = out[1],
        [attn_bwd_dv] = out[2]};
    AttnBwdParams p = {.scale = node->params.attn.scale, .causal = node->params.attn.causal};
    g_record(g, OP_ATTN_BWD, operands, &p);
    for (int i = 0; i < 3; i++) grad_add(in[i], out[i]);
}

void vjp_norm(Graph *g, Node *node, Tensor *dy) {
    Tensor *y = node->t[norm_y], *x = node->seen[norm_x];
    Tensor *dx = tensor_new(g, x->dtype, y->ndim, y->shape);
    Tensor *rows = g_rows(g_reshape(dy, y->ndim, y->shape));
    Tensor *operands[norm_bwd_operand_count] = {y, rows, node->t[norm_rstd], dx};
    NormBwdParams p = {.kind = node->params.norm.kind};
    g_record(g, OP_NORM_BWD, operands, &p);
    grad_add(x, g_reshape(dx, x->ndim, x->shape));
}

// o = kind(a, b, dtype of the tensor whose gradient it is); a sum over broadcast dims wants f32.
static Tensor *ew(uint32_t kind, Tensor *a, Tensor *b, Tensor *c, Tensor *of) {
    bool summed = tensor_count(of) != tensor_count(a) && tensor_count(a) > 1;
    return g_ewise(a->g, EWISE(.kind = kind, .x = a, .y = b, .z = c,
                               .dtype = summed || of->storage->kind == STORAGE_PARAM ? DT_F32 : of->dtype));
}

static Tensor *scaled(Tensor *dy, float alpha, Tensor *of) {
    if (alpha == 1 && dy->dtype == of->dtype) return dy;
    return g_ewise(dy->g, EWISE(.kind = EW_SCALE, .x = dy, .alpha = alpha, .dtype = of->dtype));
}

void vjp_ewise(Graph *g, Node *node, Tensor *dy) {
    Tensor *x = node->seen[0], *y = node->seen[1], *z = node->seen[2], *o = node->result;
    const EwiseParams *p = &node->params.ewise;
    bool gx = x->needs_grad, gy = y && y->needs_grad, gz = z && z->needs_grad;
    switch (p->kind) {
    case EW_SCALE: grad_add(x, scaled(dy, p->alpha, x)); break;
    case EW_ACT: {
        Tensor *dx = g_ewise(g, EWISE(.kind = EW_ACT_BWD, .act = p->act, .x = x, .y = dy,
                                      .dtype = x->dtype));
        grad_add(x, dx);
        break;
    }
    case EW_ADD:
    case EW_SUB:
        if (gx) grad_add(x, dy);
        if (gy) grad_add(y, p->kind == EW_ADD ? dy : scaled(dy, -1, dy));
        break;
    case EW_MUL:
        if (gx) grad_add(x, ew(EW_MUL, dy, y, NULL, x));
        if (gy) grad_add(y, ew(EW_MUL, dy, x, NULL, y));
        break;
    case EW_DIV: // dx = dy / y, dy = -dy o / y
        if (gx) grad_add(x, ew(EW_DIV, dy, y, NULL, x));
        if (gy) {
            Tensor *quotient = ew(EW_DIV, o, y, NULL, dy);
            Tensor *product = ew(EW_MUL, dy, quotient, NULL, dy);
            grad_add(y, scaled(product, -1, product));
        }
        break;
    case EW_MULADD:
    case EW_MODULATE:
        if (gx) grad_add(x, ew(p->kind == EW_MULADD ? EW_MUL : EW_MULADD, dy, y,
                               p->kind == EW_MULADD ? NULL : dy, x));
        if (gy) grad_add(y, ew(EW_MUL, dy, x, NULL, y));
        if (gz) grad_add(z, dy);
        break;
    case EW_SQUARE: {
        Tensor *product = ew(EW_MUL, dy, x, NULL, x);
        grad_add(x, scaled(product, 2, product));
        break;
    }
    case EW_EXP: grad_add(x, ew(EW_MUL, dy, o, NULL, x)); break;
    case EW_SQRT: {
        Tensor *quotient = ew(EW_DIV, dy, o, NULL, x);
        grad_add(x, scaled(quotient, 0.5f, quotient));
        break;
    }
    default:
        g_fail(g, "gradient: expected an ewise kind with a rule, found %u; this is a defect", p->kind);
    }
}

void vjp_reduce(Graph *g, Node *node, Tensor *dy) {
    const ReduceParams *p = &node->params.reduce;
    Tensor *x = node->seen[0];
    if (p->kind != REDUCE_SUM || p->accumulate) {
        g_fail(g, "gradient: expected a plain sum; this is a defect");
        return;
    }
    Tensor *form = node->t[reduce_x]; // x as [A, R, C]
    Tensor *wide = g_broadcast(g_reshape(dy, node->t[reduce_y]->ndim, node->t[reduce_y]->shape),
                               form->ndim, form->shape);
    Tensor *dx = g_ewise(g, EWISE(.kind = EW_SCALE, .x = wide, .alpha = p->alpha ? p->alpha : 1,
                                  .dtype = x->dtype));
    grad_add(x, g_reshape(dx, x->ndim, x->shape));
}

void vjp_embed(Graph *g, Node *node, Tensor *dy) {
    Tensor *table = node->seen[embed_table];
    Tensor *dtable = tensor_new(g, DT_F32, table->ndim, table->shape);
    Tensor *operands[embed_bwd_operand_count] = {g_rows(dy), node->t[embed_ids], dtable};
    EmbedBwdParams p = {0};
    g_record(g, OP_EMBED_BWD, operands, &p);
    grad_add(table, dtable);
}

void vjp_copy(Graph *g, Node *node, Tensor *dy) {
    (void)g;
    Tensor *x = node->seen[copy_x];
    // A cast of a weight: the gradient may stay in f32, whatever type the cast had.
    bool weight = x->dtype == DT_F32 && dy->dtype == DT_F32;
    grad_add(x, weight ? dy : g_cast(dy, x->dtype));
}

static void no_rule(Graph *g, const char *op) {
    g_fail(g, "gradient: expected an op with a gradient, found %s; this is a defect", op);
}
void vjp_attn_bwd(Graph *g, Node *n, Tensor *dy) { (void)n, (void)dy, no_rule(g, "attn_bwd"); }
void vjp_norm_bwd(Graph *g, Node *n, Tensor *dy) { (void)n, (void)dy, no_rule(g, "norm_bwd"); }
void vjp_embed_bwd(Graph *g, Node *n, Tensor *dy) { (void)n, (void)dy, no_rule(g, "embed_bwd"); }
void vjp_adamw(Graph *g, Node *n, Tensor *dy) { (void)n, (void)dy, no_rule(g, "adamw"); }
void vjp_conv2d(Graph *g, Node *n, Tensor *dy) { (void)n, (void)dy, no_rule(g, "conv2d"); }
void vjp_rope(Graph *g, Node *n, Tensor *dy) { (void)n, (void)dy, no_rule(g, "rope"); }
void vjp_dequant(Graph *g, Node *n, Tensor *dy) { (void)n, (void)dy, no_rule(g, "dequant"); }
