// names.h: tables that translate a model's own names of weights into those of a file layout.
//
// Thread-safety: pure.
#ifndef KILN_MODELS_NAMES_H
#define KILN_MODELS_NAMES_H

#include "engine/bind.h"

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
int names_translate(void *user, const char *name, const char **out, void *scratch);
// The layout of `w` among `count`, and *prefix (below parent) of all its names; NULL: none fits.
const NameLayout *names_detect(void *parent, const Weights *w, const NameLayout *layouts, int count,
                               const char **prefix);

// Shapes of wanted tensors are tables too: "N" names filled in per block.
typedef struct WantRow {
    const char *name;   // "#" is the block's number
    const char *shape;  // space-separated sizes: a factor, then a letter that `dim_of` knows: "3D D"
    bool optional;
} WantRow;
typedef struct WantList {
    void *parent;
    BindWant *v;
    int n, cap;
    int64_t (*dim_of)(const void *config, char letter);
    const void *config;
} WantList;
void wants_add(WantList *list, const WantRow *rows, int count, int block);
// As tensors of a file: matrices in `matrices`, rows of one dimension in `vectors`.
WeightTensor *wants_tensors(void *parent, const BindWant *wants, int count, DType matrices,
                            DType vectors);

#endif
