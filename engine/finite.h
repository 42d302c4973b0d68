// finite.h: the weights that are to blame where a run's numbers are no longer finite. Looked for only
// then, since it reads them all: loading costs nothing more.
//
// Thread-safety: reads what never changes.
#ifndef KILN_ENGINE_FINITE_H
#define KILN_ENGINE_FINITE_H

#include "backend/backend.h"
#include "engine/bind.h"

bool all_finite(const float *v, size_t n);
// The first tensor of `count` with a number that is not finite becomes the error (its file, its name,
// the number), in place of what `err` holds; true where there is none, or where `cancel` (may be NULL)
// ended the search.
bool bound_finite(const BoundWeight *w, int count, const Cancel *cancel, Error *err);

#endif
