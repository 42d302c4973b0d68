// graph.c: tensors, views and the node list of a recorded graph. See graph.h.
#include "engine/graph_impl.h"

Graph *g_new(void *parent) { return MEM_NEW(parent, Graph); }

bool g_error(const Graph *g, Error *err) {
    if (g->failed && err) *err = g->error;
    return g->failed;
}

void g_fail(Graph *g, const char *format, ...) {
    if (g->failed) return; // the first error is the one that explains the rest
    char text[ERROR_TEXT];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    g->failed = true;
    err_failed(&g->error, "%s%s%s", g->scope ? g->scope : "", g->scope ? ": " : "", text);
}

int g_node_count(const Graph *g) { return g->nodes.n; }

void g_scope(Graph *g, const char *label) { g->scope = label ? mem_strdup(g, label) : NULL; }

// ---- tensors ----------------------------------------------------------------------------------

bool tensor_contiguous(const Tensor *t) {
    int64_t expect = 1;
    for (int i = t->ndim - 1; i >= 0; i--) {
        if (t->shape[i] != 1 && t->stride[i] != expect) return false;
        expect *= t->shape[i];
    }
    return true;
}

bool same_shape(const Tensor *a, const Tensor *b) {
    return a->ndim == b->ndim && !memcmp(a->shape, b->shape, sizeof(int64_t) * (size_t)a->ndim);
}

static Tensor *add_tensor(Graph *g, Tensor *t) {
    t->g = g;
    t->id = g->tensors.n;
    t->storage->handles++;
    ARR_PUSH(g, &g->tensors, t);
    ARR_PUSH(g, &g->extra, MEM_NEW(g, TensorExtra));
    return t;
}

static Storage *add_storage(Graph *g, StorageKind kind, uint64_t bytes) {
    Storage *s = MEM_NEW(g, Storage);
    s->kind = kind;
    s->bytes = bytes;
    s->id = g->storages.n;
    ARR_PUSH(g, &g->storages, s);
    return s;
}

static void set_shape(Tensor *t, int ndim, const int64_t *shape) {
    t->ndim = ndim;
    int64_t stride = 1;
    for (int i = ndim - 1; i >= 0; i--) {
        t->shape[i] = shape[i];
        t->stride[i] = stride;
        stride *= shape[i];
    }
}

static bool bad_shape(Graph *g, int ndim, const int64_t *shape) {
    uint64_t n = 1;
    bool ok = ndim >= 0 && ndim <= MAX_DIMS;
    for (int i = 0; ok && i < ndim; i++)
        ok = shape[i] >= 1 && shape[i] <= UINT32_MAX && mul_size(n, (uint64_t)shape[i], &n) &&
             n < UINT64_MAX / 16;
    if (!ok)
        g_fail(g, "tensor: expected up to 6 dimensions from 1 to 2^32 - 1, found others; take "
                  "another size");
    return !ok;
}

static Tensor *make(Graph *g, StorageKind kind, const char *name, DType dtype, int ndim,
                    const int64_t *shape) {
    static const int64_t one = 1;
    if (bad_shape(g, ndim, shape)) ndim = 1, shape = &one; // a stand-in, so that recording can go on
    if (ndim && shape[ndim - 1] % dtype_block(dtype))
        g_fail(g, "tensor: expected rows of whole %s blocks of %d, found %lld; take another type",
               dtype_name(dtype), dtype_block(dtype), (long long)shape[ndim - 1]);
    Tensor *t = MEM_NEW(g, Tensor);
    t->name = name ? mem_strdup(t, name) : NULL;
    t->dtype = dtype;
    set_shape(t, ndim, shape);
    t->storage = add_storage(g, kind, dtype_bytes(dtype, (uint64_t)tensor_count(t)));
    return add_tensor(g, t);
}

Tensor *tensor_new(Graph *g, DType dtype, int ndim, const int64_t *shape) {
    return make(g, STORAGE_VALUE, NULL, dtype, ndim, shape);
}

Tensor *g_input(Graph *g, const char *name, DType dtype, int ndim, const int64_t *shape) {
    return make(g, STORAGE_INPUT, name, dtype, ndim, shape);
}

Tensor *g_param(Graph *g, Param *param) {
    for (int i = g->params.n - 1; i >= 0; i--)
        if (g->params.v[i]->storage->param == param) return g->params.v[i];
    Tensor *t = make(g, STORAGE_PARAM, param->name, param->dtype, param->ndim, param->shape);
    t->storage->param = param;
    t->needs_grad = param->train;
    ARR_PUSH(g, &g->params, t);
    return t;
}

Tensor *g_output(Graph *g, const char *name, Tensor *t) {
    t = g_contiguous(t);
    if (t->storage->kind != STORAGE_VALUE || t->offset) t = g_copy(g, COPY(.x = t, .dtype = t->dtype));
    t->name = mem_strdup(t, name);
    t->storage->output = true;
    return t;
}

// ---- views ------------------------------------------------------------------------------------

// With the base's layout.
static Tensor *tensor_view(Tensor *base, ViewKind view) {
    Tensor *t = MEM_NEW(base->g, Tensor);
    *t = (Tensor){.dtype = base->dtype, .ndim = base->ndim, .offset = base->offset,
                  .storage = base->storage, .base = base, .view = view,
                  .needs_grad = base->needs_grad};
    memcpy(t->shape, base->shape, sizeof t->shape);
    memcpy(t->stride, base->stride, sizeof t->stride);
    return add_tensor(base->g, t);
}

// The strides that show `t` as `shape` without moving anything; false where there are none.
// Works group by group: the smallest runs of old and new dims with equal products must each be
// contiguous among themselves.
static bool reshape_strides(const Tensor *t, int ndim, const int64_t *shape, int64_t *stride) {
    int64_t old_shape[MAX_DIMS], old_stride[MAX_DIMS];
    int old = 0;
    for (int i = 0; i < t->ndim; i++)
        if (t->shape[i] != 1) old_shape[old] = t->shape[i], old_stride[old++] = t->stride[i];
    int i = 0, j = 0; // first dims of the current groups
    while (i < old && j < ndim) {
        int i_end = i + 1, j_end = j + 1;
        int64_t have = old_shape[i], want = shape[j];
        while (have != want) {
            if (have < want) {
                if (i_end == old) return false;
                have *= old_shape[i_end++];
            } else {
                if (j_end == ndim) return false;
                want *= shape[j_end++];
            }
        }
        for (int k = i; k + 1 < i_end; k++)
            if (old_stride[k] != old_stride[k + 1] * old_shape[k + 1]) return false;
        int64_t step = old_stride[i_end - 1];
        for (int k = j_end - 1; k >= j; k--) stride[k] = step, step *= shape[k];
        i = i_end;
        j = j_end;
    }
    for (; j < ndim; j++) stride[j] = 1; // only dims of 1 are left
    return true;
}

Tensor *g_reshape(Tensor *t, int ndim, const int64_t *shape) {
    int64_t dims[MAX_DIMS] = {0}, known = 1;
    int open = -1;
    for (int i = 0; i < MIN(ndim, MAX_DIMS); i++) {
        dims[i] = shape[i];
        if (shape[i] == -1) open = i;
        else known *= shape[i];
    }
    if (open >= 0 && known > 0) dims[open] = tensor_count(t) / known, known *= dims[open];
    if (ndim > MAX_DIMS || known != tensor_count(t)) {
        g_fail(t->g, "reshape: expected %lld elements, found %lld; this is a defect",
               (long long)tensor_count(t), (long long)known);
        return t;
    }
    int64_t stride[MAX_DIMS] = {0};
    if (!reshape_strides(t, ndim, dims, stride)) return g_reshape(g_contiguous(t), ndim, dims);
    Tensor *view = tensor_view(t, VIEW_RESHAPE);
    view->ndim = ndim;
    memcpy(view->shape, dims, sizeof dims);
    memcpy(view->stride, stride, sizeof stride);
    return view;
}

Tensor *g_slice(Tensor *t, int axis, int64_t start, int64_t count) {
    if (axis < 0 || axis >= t->ndim || start < 0 || count < 1 || start > t->shape[axis] - count) {
        g_fail(t->g, "slice: expected a range inside axis %d, found %lld + %lld; this is a defect",
               axis, (long long)start, (long long)count);
        return t;
    }
    Tensor *view = tensor_view(t, VIEW_SLICE);
    view->shape[axis] = count;
    view->offset += start * t->stride[axis];
    TensorExtra *x = extra_of(view);
    x->axis = axis;
    x->start = start;
    x->count = count;
    return view;
}

Tensor *g_permute(Tensor *t, int ndim, const int *order) {
    int seen = 0;
    for (int i = 0; i < ndim; i++) seen |= 1 << order[i];
    if (ndim != t->ndim || seen != (1 << ndim) - 1) {
        g_fail(t->g, "permute: expected each of %d axes once; this is a defect", t->ndim);
        return t;
    }
    Tensor *view = tensor_view(t, VIEW_PERMUTE);
    for (int i = 0; i < ndim; i++) {
        view->shape[i] = t->shape[order[i]];
        view->stride[i] = t->stride[order[i]];
        extra_of(view)->order[i] = order[i];
    }
    return view;
}

Tensor *g_broadcast(Tensor *t, int ndim, const int64_t *shape) {
    int front = ndim - t->ndim;
    bool fits = front >= 0;
    for (int i = 0; fits && i < t->ndim; i++)
        fits = t->shape[i] == 1 || t->shape[i] == shape[front + i];
    if (!fits) {
        g_fail(t->g, "broadcast: expected dims of 1 or equal ones, found others; this is a defect");
        return t;
    }
    if (front == 0 && !memcmp(shape, t->shape, sizeof(int64_t) * (size_t)ndim)) return t;
    Tensor *view = tensor_view(t, VIEW_BROADCAST);
    view->ndim = ndim;
    for (int i = 0; i < ndim; i++) {
        bool repeats = i < front || t->shape[i - front] != shape[i];
        view->shape[i] = shape[i];
        view->stride[i] = repeats ? 0 : t->stride[i - front];
    }
    return view;
}

// ---- concat -----------------------------------------------------------------------------------

// Lets the op that makes `part` write into `place` (a slice of the result) instead. Possible where
// part is the whole fresh result of an op that nobody has looked at yet, and where place can be
// shown in the shape that the op's operand has.
static bool retarget(Tensor *part, Tensor *place) {
    Node *node = part->node;
    if (!node || part->dtype != place->dtype || part->storage->output) return false;
    int operand = -1;
    for (int i = 0; i < op_info[node->op].operand_count; i++)
        if (node->t[i] && node->t[i]->storage == part->storage) {
            if (operand >= 0) return false;
            operand = i;
        }
    if (operand < 0) return false;
    Tensor *seen = node->t[operand];
    int handles = 1 + (seen != part);
    if (part->storage->handles > handles) return false;
    int64_t stride[MAX_DIMS];
    if (!reshape_strides(place, seen->ndim, seen->shape, stride)) return false;
    if (stride[seen->ndim - 1] != 1 && seen->shape[seen->ndim - 1] != 1) return false;
    memcpy(part->stride, place->stride, sizeof part->stride);
    memcpy(seen->stride, stride, sizeof seen->stride);
    part->offset = seen->offset = place->offset;
    part->storage->handles -= handles;
    place->storage->handles += handles;
    part->storage = seen->storage = place->storage;
    return true;
}

Tensor *g_concat(Graph *g, int axis, int count, Tensor *const *parts) {
    int64_t shape[MAX_DIMS];
    memcpy(shape, parts[0]->shape, sizeof shape);
    bool ok = axis >= 0 && axis < parts[0]->ndim;
    for (int i = 1; ok && i < count; i++) {
        for (int d = 0; ok && d < parts[0]->ndim; d++)
            ok = d == axis || parts[i]->shape[d] == shape[d];
        ok = ok && parts[i]->ndim == parts[0]->ndim && parts[i]->dtype == parts[0]->dtype;
        if (ok) shape[axis] += parts[i]->shape[axis];
    }
    if (!ok) {
        g_fail(g, "concat: expected parts that differ along axis %d only; this is a defect", axis);
        return parts[0];
    }
    Tensor *all = tensor_new(g, parts[0]->dtype, parts[0]->ndim, shape);
    extra_of(all)->axis = axis;
    int64_t start = 0;
    for (int i = 0; i < count; i++) {
        Tensor *place = g_slice(all, axis, start, parts[i]->shape[axis]);
        if (!retarget(parts[i], place)) g_copy(g, COPY(.x = parts[i], .y = place));
        ConcatPart part = {parts[i], start};
        ARR_PUSH(g, &extra_of(all)->parts, part);
        all->needs_grad |= parts[i]->needs_grad;
        start += parts[i]->shape[axis];
    }
    return all;
}

// ---- nodes ------------------------------------------------------------------------------------

Node *g_record(Graph *g, OpId op, Tensor *const *operands, const void *params) {
    Node *node = MEM_NEW(g, Node);
    node->op = op;
    memcpy(node->t, operands, sizeof(Tensor *) * (size_t)op_info[op].operand_count);
    memcpy(&node->params, params, op_info[op].params_size);
    node->label = g->scope;
    ARR_PUSH(g, &g->nodes, node);
    return node;
}
