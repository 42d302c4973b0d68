// weights_impl.h: between weights.c and the readers of formats. A reader fills a list from a file in
// memory; names and texts are owned by `parent`, data is only pointed at (WeightTensor.at).
#ifndef KILN_ENGINE_WEIGHTS_IMPL_H
#define KILN_ENGINE_WEIGHTS_IMPL_H

#include "backend/os.h"
#include "engine/weights.h"

typedef struct WeightMeta { const char *key, *value; } WeightMeta;

typedef struct WeightList {
    ARRAY(WeightTensor) tensors; // in any order; names may repeat: weights.c refuses that
    ARRAY(WeightMeta) meta;
} WeightList;

// More tensors than any model has: bounds the memory that a hostile header takes.
enum { WEIGHTS_MAX_TENSORS = 100000 };
bool weight_list_room(const char *path, uint64_t tensors, Error *err); // false where there are more

// Fills count and bytes from dtype and shape, and checks them: at most MAX_DIMS dimensions, no
// overflow, rows of whole blocks.
bool weight_measure(const char *path, WeightTensor *t, Error *err);
// The same checks for a list: names (unique, UTF-8), ranges inside `size`, no overlaps where
// `disjoint`. Sorts by name.
bool weight_list_check(const char *path, WeightList *list, uint64_t size, bool disjoint, Error *err);

bool gguf_read(void *parent, const char *path, const uint8_t *data, size_t size, WeightList *out,
               Error *err);
bool pytorch_read(void *parent, const char *path, const uint8_t *data, size_t size, WeightList *out,
                  Error *err);

#endif
