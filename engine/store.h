// store.h: tensors that outlive a run: weights, optimiser moments, EMA copies. A Store gathers
// them, then places all on the device at once; graphs refer to them (g_param).
#ifndef KILN_STORE_H
#define KILN_STORE_H

#include "backend/backend.h"

typedef struct Store Store;

typedef struct Param {
    Store *store;
    const char *name;
    DType dtype;
    int ndim;
    int64_t shape[MAX_DIMS];
    bool train;      // g_backward makes a gradient for it
    struct Param *scale; // [1] f32, multiplied with what a packed weight decodes to; NULL: none
    Buffer *buffer;  // set by store_commit
    uint64_t offset; // bytes
} Param;

Store *store_new(void *parent, Device *dev);
void store_free(Store *store); // with its device memory; before dev_close
// Adds a tensor (before store_commit). The name is copied and unique within the store.
Param *store_add(Store *store, const char *name, DType dtype, int ndim, const int64_t *shape);
// Adds "NAME.scale" and sets p->scale.
void store_add_scale(Param *p);
Param *store_find(const Store *store, const char *name); // NULL: none
int store_count(const Store *store);
Param *store_at(Store *store, int i);  // in the order of store_add
uint64_t store_bytes(const Store *store); // what store_commit allocates (aligned)
// Allocates device memory for all params, in blocks no larger than the device allows. Contents
// are undefined. Refused with the figure needed where the budget does not allow it.
bool store_commit(Store *store, Error *err);
bool store_committed(const Store *store);
// The whole tensor, `from`/`to` being the host's element type (converted on the host).
bool param_write(Param *p, DType from, const void *data, Error *err);
bool param_read(Param *p, DType to, void *data, Error *err);
bool param_zero(Param *p, Error *err);
int64_t param_count(const Param *p); // elements
uint64_t param_bytes(const Param *p);

// The same for any contiguous tensor in a buffer (offset in bytes, count elements).
bool tensor_write(Buffer *buffer, uint64_t offset, DType dtype, int64_t count, DType from,
                  const void *data, Error *err);
bool tensor_read(Buffer *buffer, uint64_t offset, DType dtype, int64_t count, DType to, void *data,
                 Error *err);

#endif
