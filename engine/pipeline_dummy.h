// pipeline_dummy.h: whole models with synthetic weights (engine/dummy.h): the parts that
// model_parts_open would find in files, for `--dummy`.
#ifndef KILN_ENGINE_PIPELINE_DUMMY_H
#define KILN_ENGINE_PIPELINE_DUMMY_H

#include "engine/model_parts.h"

enum { PIPELINE_DUMMY_MAX_DIVISOR = 64 };

const char *pipeline_dummy_name(int i); // "flux-dev", "flux-schnell"; NULL past the last
bool pipeline_dummy_check(const char *name, Error *err); // STATUS_USAGE lists the names
// --dummy-scale: "1/16" gives 16; "1" or NULL gives 1.
bool pipeline_dummy_divisor(const char *text, int *divisor, Error *err);
// The model at 1/divisor of its width and depth (rounded up to whole heads of the real size; at
// least one block of each kind), matrices in `type` (DT_COUNT: bf16). model_parts_close ends it.
ModelParts *pipeline_dummy_open(void *parent, const char *name, int divisor, DType type);
// The same with divisors for width and depth, from 1 up: at 1 and 64 one block of each kind has its
// full size.
ModelParts *pipeline_dummy_sized(void *parent, const char *name, int width, int depth, DType type);

#endif
