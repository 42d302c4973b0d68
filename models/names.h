// names.h: what models are written with: tables of weights, their names in the layouts of files, sizes that
// these tell, a stack's units, a linear layer.
//
// Thread-safety: pure.
#ifndef KILN_MODELS_NAMES_H
#define KILN_MODELS_NAMES_H

#include "engine/stack.h"

// One line: names that begin with `ours` become `theirs` (up to four parts, stacked), what follows
// is kept. "#" stands for a block's number, the same on both sides; a name in `theirs` that ends
// with "[a:b]" takes those halves of the rows.
typedef struct NameRow {
    const char *ours;
    const char *theirs[BIND_MAX_PIECES];
} NameRow;

typedef struct NameLayout {
    const char *name;   // "diffusers"
    const char *marker; // a file of this layout has this tensor
    const NameRow *rows;
    int count;          // 0: our names as they are
} NameLayout;

// As BindNames; user: the NameLayout. Names that no line translates stay as they are.
int names_translate(const void *user, const char *name, const char **out, void *scratch);
// The layout of `w` among `count`, and *prefix (below parent) of all its names; NULL: none fits.
const NameLayout *names_detect(void *parent, const Weights *w, const NameLayout *layouts, int count,
                               const char **prefix);

// ---- what a file's shapes tell ------------------------------------------------------------------

// The file's tensor behind a name of ours that has one piece in this layout; NULL: none. `w` has no prefix.
const WeightTensor *names_find(const Weights *w, const NameLayout *layout, const char *name);
// How many blocks there are: numbers from 0 on in place of "#" that give the name of a tensor.
int names_blocks(const Weights *w, const NameLayout *layout, const char *name);
// A dimension of a tensor, for a configuration.
typedef struct NameSize {
    const char *name;
    int axis;
    int *size;     // receives it
    bool optional; // 0 where the tensor is missing, else an error
} NameSize;
bool names_sizes(const Weights *w, const NameLayout *layout, const NameSize *sizes, int count, Error *err);

// Of the published sizes of a model, 1/divisor: at least 1.
static inline int scaled_down(int n, int divisor) { return (n + divisor - 1) / divisor; }

// ---- tables of weights ------------------------------------------------------------------------

// What a model wants, block by block: the same rows make the list for bind_weights, the tensors of
// synthetic models and the weights of a stack's unit (in the rows' order).
typedef struct WantRow {
    const char *name;  // "#" is the block's number
    const char *shape; // sizes in words: sums of a factor and a letter that dim_of knows: "3D+M D"
    bool optional;
} WantRow;

typedef struct WantList {
    BindWant *v;
    int n, cap;
    void *parent;
    int64_t (*dim_of)(const void *config, char letter);
    const void *config;
} WantList;
void wants_add(WantList *list, const WantRow *rows, int count, int block);

int64_t wants_parameters(const BindWant *wants, int count);

typedef struct UnitList {
    StackUnit *v;
    int n, cap;
    void *parent;
    const BoundWeight *weight; // [weights] of the model
    int weights;
    int cursor; // private
} UnitList;
// A unit whose weights are those of `rows`. `name` is kept.
void units_add(UnitList *list, int kind, int index, const char *name, const WantRow *rows, int count);

// ---- recording --------------------------------------------------------------------------------

// The type of products that may leave f16's range (feed-forward layers): bf16 in place of f16.
static inline DType wide(DType compute) { return compute == DT_F16 ? DT_BF16 : compute; }

typedef struct Linear {
    Tensor *x;       // [..., K]; cast to `compute`
    Param *weight;   // [N, K]
    Param *bias;     // [N] or NULL
    DType compute, out;
    uint32_t act;
    Tensor *gate, *residual, *y; // as in g_gemm
} Linear;
Tensor *g_linear(Graph *g, const Linear *l);

#endif
