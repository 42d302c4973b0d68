// checkpoint.h: the state of a training run on disk: checkpoint-<step>.safetensors, written whole
// or not at all, with a checksum over its tensors in the metadata.
//
// Thread-safety: as the stores'.
#ifndef KILN_ENGINE_CHECKPOINT_H
#define KILN_ENGINE_CHECKPOINT_H

#include "engine/safetensors.h"
#include "engine/store.h"

// The tensors of a store are saved as PREFIX + name, in f32.
typedef struct CheckpointPart {
    const char *prefix; // "", "ema.", ...
    Store *store;
} CheckpointPart;

typedef struct CheckpointMeta { const char *key, *value; } CheckpointMeta;

// DIR/checkpoint-<step>.safetensors. Earlier ones stay where this fails.
bool checkpoint_save(const char *dir, int64_t step, const CheckpointPart *parts, int part_count,
                     const CheckpointMeta *meta, int meta_count, Error *err);
// Steps of the checkpoints in DIR, newest first; NULL with *count 0 when there are none.
int64_t *checkpoint_list(void *parent, const char *dir, int *count);
char *checkpoint_path(void *parent, const char *dir, int64_t step);
// The newest checkpoint whose bytes are as they were written; damaged ones are reported to `log`
// and passed over. NULL without an error (err->status STATUS_OK) where there is none at all, NULL
// with an error where all are damaged. End with st_close.
StFile *checkpoint_newest(void *parent, const char *dir, int64_t *step, const Log *log, Error *err);
// Fills the stores (after store_commit) from a file that holds exactly these parts.
bool checkpoint_load(const StFile *file, const CheckpointPart *parts, int part_count, Error *err);
// Removes all but the `keep` newest up to `step`, the one just written. Later ones are damaged (or
// the run would have gone on from them): they must not push out whole ones, and are left to look
// at.
void checkpoint_prune(const char *dir, int64_t step, int keep, const Log *log);

// A store alone, as a model file: f32 or f16 (rounded) tensors under their own names. A number that
// f16 cannot hold is an error.
bool checkpoint_save_model(const char *path, Store *store, DType type, const CheckpointMeta *meta,
                           int meta_count, Error *err);

#endif
