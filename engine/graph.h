// graph.h: recording. A Graph is a list of op calls over tensors; nothing runs while recording.
//
// Recording calls never fail visibly: the first error sticks in the graph (with op, shapes and
// names) and surfaces from g_error or plan time; after it calls return a harmless tensor. Have at
// most one recording call in one argument list: C leaves their order open.
#ifndef KILN_GRAPH_H
#define KILN_GRAPH_H

#include "engine/store.h"

typedef struct Graph Graph;
typedef struct Node Node;
typedef struct Storage Storage;

// A handle to a tensor or a view of one. Read-only outside engine/; owned by its graph.
typedef struct Tensor {
    Graph *g;
    const char *name; // NULL: unnamed
    DType dtype;
    int ndim;
    int64_t shape[MAX_DIMS];
    int64_t stride[MAX_DIMS]; // elements; 0 broadcasts
    int64_t offset;           // elements from the start of the storage
    Storage *storage;
    Node *node;         // the op that writes it; NULL: inputs, params and views
    struct Tensor *base; // views: what of
    int view;            // views: how (ViewKind)
    bool needs_grad;
    struct Tensor *grad; // after g_backward
    int id;
} Tensor;

Graph *g_new(void *parent);
bool g_error(const Graph *g, Error *err); // true: recording failed, err filled
void g_fail(Graph *g, const char *format, ...) PRINTF_LIKE(2, 3);
int g_node_count(const Graph *g);
void g_scope(Graph *g, const char *label); // names the ops recorded from here on ("blocks.3")

#define DIMS(...) (int)COUNT_OF(((int64_t[]){__VA_ARGS__})), (const int64_t[]){__VA_ARGS__}

// Written by the host before a run (plan_write).
Tensor *g_input(Graph *g, const char *name, DType dtype, int ndim, const int64_t *shape);
Tensor *g_param(Graph *g, Param *param); // one handle per param and graph
// Keeps t readable after the run (plan_read), under this name.
Tensor *g_output(Graph *g, const char *name, Tensor *t);

// ---- views: no work, no memory ----------------------------------------------------------------
// reshape: free wherever strides can express it, else a copy is recorded. One dim may be -1.
Tensor *g_reshape(Tensor *t, int ndim, const int64_t *shape);
Tensor *g_slice(Tensor *t, int axis, int64_t start, int64_t count);
Tensor *g_permute(Tensor *t, int ndim, const int *order); // dim i of the result is order[i] of t
#define ORDER(...) (int)COUNT_OF(((int[]){__VA_ARGS__})), (const int[]){__VA_ARGS__}
Tensor *g_broadcast(Tensor *t, int ndim, const int64_t *shape); // dims of 1 (or missing) repeat
// concat is free where a part is the fresh result of an op (it then writes into the result).
Tensor *g_concat(Graph *g, int axis, int count, Tensor *const *parts);

// ---- ops --------------------------------------------------------------------------------------
// One record per op: its operands (outputs may be given too; NULL: a new tensor), `.dtype` of the
// new outputs (zero: f32), and the op's parameters by their names. Zero is the default of all.
#define OPERAND_FIELD(op, name) Tensor *name;
#define OP(name, NAME, Name)                                                              \
    typedef struct Name##Rec {                                                            \
        NAME##_OPERANDS(OPERAND_FIELD, OPERAND_FIELD, OPERAND_FIELD, OPERAND_FIELD,       \
                        OPERAND_FIELD, OPERAND_FIELD)                                     \
        DType dtype;                                                                      \
        union {                                                                           \
            Name##Params params;                                                          \
            struct { NAME##_FIELDS };                                                     \
        };                                                                                \
    } Name##Rec;
#include "backend/ops.def"
#undef OP

// x [..., K] (any rank; rank 3 where gate or w has a batch), result [..., N]. Where a gradient is
// needed the epilogue is expanded into plain ops.
Tensor *g_gemm(Graph *g, const GemmRec *r);
Tensor *g_attn(Graph *g, const AttnRec *r);     // q [B, T, H, D] -> [B, T, H, D]
Tensor *g_norm(Graph *g, const NormRec *r);     // x [..., C]; scale, shift [B, 1, C] with x [B, M, C];
                                                // NORM_GROUP: x [B, ..., C]
Tensor *g_ewise(Graph *g, const EwiseRec *r);   // broadcasts like NumPy
Tensor *g_reduce(Graph *g, const ReduceRec *r); // x [A, R, C] -> [A, 1, C] f32
Tensor *g_embed(Graph *g, const EmbedRec *r);   // table [V, D], ids [N] -> [N, D]
Tensor *g_copy(Graph *g, const CopyRec *r);     // contiguous result; the cast
void g_adamw(Graph *g, const AdamwRec *r);
// No gradients are written for these yet, nor for a norm of kind NORM_GROUP.
Tensor *g_conv2d(Graph *g, const Conv2dRec *r); // x [B, H, W, C] -> [B, Ho, Wo, O]; bias of O elements
Tensor *g_rope(Graph *g, const RopeRec *r);     // x [B, T, H, D], table [T, P, 2] or [1 or B, T, P, 2]
Tensor *g_dequant(Graph *g, const DequantRec *r); // w of a packed type -> its shape in `.dtype`
// A weight as an operand of type `compute` (f32, f16, bf16): the param itself where it has the type,
// else a copy made at each use: g_cast, or g_dequant (with p->scale) for packed types.
Tensor *g_weight(Graph *g, Param *p, DType compute);
#define GEMM(...) (&(GemmRec){__VA_ARGS__})
#define ATTN(...) (&(AttnRec){__VA_ARGS__})
#define NORM(...) (&(NormRec){__VA_ARGS__})
#define EWISE(...) (&(EwiseRec){__VA_ARGS__})
#define REDUCE(...) (&(ReduceRec){__VA_ARGS__})
#define EMBED(...) (&(EmbedRec){__VA_ARGS__})
#define COPY(...) (&(CopyRec){__VA_ARGS__})
#define ADAMW(...) (&(AdamwRec){__VA_ARGS__})
#define CONV2D(...) (&(Conv2dRec){__VA_ARGS__})
#define ROPE(...) (&(RopeRec){__VA_ARGS__})
#define DEQUANT(...) (&(DequantRec){__VA_ARGS__})

// Short forms over g_ewise, g_copy, g_reduce (f32 results; _as: of a given type).
Tensor *g_add(Tensor *x, Tensor *y);
Tensor *g_sub(Tensor *x, Tensor *y);
Tensor *g_mul(Tensor *x, Tensor *y);
Tensor *g_scale(Tensor *x, float alpha, float beta); // alpha x + beta
Tensor *g_act(Tensor *x, uint32_t act, DType dtype);
Tensor *g_cast(Tensor *x, DType dtype);       // x itself where it has the type
Tensor *g_contiguous(Tensor *x);              // x itself where it is
Tensor *g_sum_to(Tensor *x, int ndim, const int64_t *shape); // sums over broadcast dims, f32
Tensor *g_mse(Tensor *x, Tensor *target);     // mean squared error, [1]

// ---- gradients --------------------------------------------------------------------------------
// Records the gradients of `loss` ([1]) with respect to every param with `train` set; `seed` ([1]
// f32) is d loss (a loss scale; NULL: 1). Then t->grad holds them (NULL: no dependence), f32.
void g_backward(Graph *g, Tensor *loss, Tensor *seed);

#endif
