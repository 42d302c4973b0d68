// train_log.h: log.jsonl of a training run (one JSON object per line) and the plot made from it.
//
// Thread-safety: one thread.
#ifndef KILN_ENGINE_TRAIN_LOG_H
#define KILN_ENGINE_TRAIN_LOG_H

#include "engine/json.h"

typedef struct TrainLog TrainLog;

// Opens `path` for appending after keeping only its whole lines whose "step" is at most `last_step`
// (a torn last line goes too); the rewriting is whole or not at all. last_step 0 starts an empty
// log.
TrainLog *train_log_open(void *parent, const char *path, int64_t last_step, Error *err);
// Writes the object in `w` (text then freed) as one line and hands it to the system.
bool train_log_put(TrainLog *log, JsonOut *w, Error *err);
void train_log_close(TrainLog *log); // NULL is allowed
// Draws "loss" (smoothed, and faint as it is) and "validation_loss" over "step" as an SVG.
bool train_log_plot(const char *log_path, const char *svg_path, Error *err);

#endif
