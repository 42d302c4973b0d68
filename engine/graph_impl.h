// graph_impl.h: the inside of a graph, shared by graph.c, record.c, grad.c and plan.c.
#ifndef KILN_GRAPH_IMPL_H
#define KILN_GRAPH_IMPL_H

#include "engine/graph.h"

typedef enum { STORAGE_VALUE, STORAGE_INPUT, STORAGE_PARAM } StorageKind;

// What a tensor and all its views live in. Offsets are assigned by the plan.
struct Storage {
    StorageKind kind;
    uint64_t bytes;
    Param *param;
    bool output; // kept until the end of the run
    int id, handles; // tensors that live in it
};

typedef enum {
    VIEW_NONE, VIEW_RESHAPE, VIEW_SLICE, VIEW_PERMUTE, VIEW_BROADCAST
} ViewKind;

struct Node {
    OpId op;
    Tensor *t[MAX_OPERANDS]; // as the backend sees them: in the op's own ranks
    OpParams params;
    const char *label;
    // For the gradient: the operands and the result as the model sees them.
    Tensor *seen[MAX_OPERANDS];
    Tensor *result;
};

typedef struct ConcatPart { Tensor *part; int64_t start; } ConcatPart;

// A range of a sliced tensor's gradient that has been written, and by the gradient of which slice.
// `done`: that slice has been visited; until then further contributions to the range go to it.
typedef struct Piece { Tensor *slice; int64_t start, count; bool done; } Piece;

// The rest of a tensor, indexed by Tensor.id.
typedef struct TensorExtra {
    int axis;             // slices and concats
    int64_t start, count; // slices
    int order[MAX_DIMS];  // permutes
    ARRAY(ConcatPart) parts; // a concat's result
    Tensor *whole;           // g_backward: the gradient that the slices of this tensor fill
    int whole_axis;
    ARRAY(Piece) pieces;
} TensorExtra;

struct Graph {
    Error error;
    bool failed;
    ARRAY(Tensor *) tensors;
    ARRAY(TensorExtra *) extra;
    ARRAY(Node *) nodes;
    ARRAY(Storage *) storages;
    ARRAY(Tensor *) params; // one handle each
    const char *scope; // label of the nodes recorded now
};

static inline TensorExtra *extra_of(const Tensor *t) { return t->g->extra.v[t->id]; }
static inline int64_t tensor_count(const Tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->ndim; i++) n *= t->shape[i];
    return n;
}
bool tensor_contiguous(const Tensor *t);
bool same_shape(const Tensor *a, const Tensor *b);
// A new contiguous tensor with storage of its own.
Tensor *tensor_new(Graph *g, DType dtype, int ndim, const int64_t *shape);
// Appends an op. `operands` in backend form. Tensors written get this node.
Node *g_record(Graph *g, OpId op, Tensor *const *operands, const void *params);
// A tensor whose last dimension is contiguous (a copy is recorded where it is not).
Tensor *g_rows(Tensor *t);

// vjp_<op>: given node->result->grad, adds to the gradients of node->seen.
#define OP(name, NAME, Name) void vjp_##name(Graph *g, Node *node, Tensor *dy);
#include "backend/ops.def"
#undef OP

#endif
