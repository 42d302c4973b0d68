// upload.h: bound weights onto a device, from several threads (dev_threads at most): the disk reads
// ahead of the copy, types are converted on the way, and what has been copied leaves the process's
// memory, so that a model is never held twice: beside the device's own memory stand a few MiB per
// thread.
#ifndef KILN_ENGINE_UPLOAD_H
#define KILN_ENGINE_UPLOAD_H

#include "backend/backend.h"
#include "engine/bind.h"
#include "engine/store.h"

// Declares a weight that is there (pieces) in a store, with its scale where the device multiplies by one.
Param *store_add_bound(Store *store, const BoundWeight *weight);

// weight->bytes bytes go to `offset` of `buffer`.
typedef struct UploadItem {
    const BoundWeight *weight;
    Buffer *buffer;
    uint64_t offset;
} UploadItem;

// Called in the caller's thread from time to time with the bytes moved since the last call; false
// stops the upload with STATUS_CANCELLED.
typedef bool UploadGoOn(void *user, uint64_t moved);

// Uploads items in about their order. What dev_upload asks for holds: no program under way may touch
// the ranges. After a failure their contents are undefined. `go_on` may be NULL.
bool upload_weights(const UploadItem *item, int count, UploadGoOn *go_on, void *user, Error *err);
// These will be uploaded next: the disk may begin with the first of them.
void upload_soon(const UploadItem *item, int count);

#endif
