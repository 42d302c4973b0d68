// conform_model.h: whole models on a device against the reference, and against themselves under
// every way of planning.
#ifndef KILN_CONFORM_MODEL_H
#define KILN_CONFORM_MODEL_H

#include "tests/conform.h"

// `model`: "nano" (a small configuration with random weights). Uses device, seed, options, report
// and user of `o`. Returns false where nothing could be run; failing cases are in `totals`.
bool conform_model(const ConformOptions *o, const char *model, ConformTotals *totals, Error *err);

#endif
