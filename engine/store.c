// store.c: see store.h.
#include "engine/store.h"

struct Store {
    Device *dev;
    ARRAY(Param *) params;
    ARRAY(Buffer *) blocks;
    bool committed;
};

Store *store_new(void *parent, Device *dev) {
    Store *store = MEM_NEW(parent, Store);
    store->dev = dev;
    return store;
}

void store_free(Store *store) {
    if (!store) return;
    for (int i = 0; i < store->blocks.n; i++) buf_free(store->blocks.v[i]);
    mem_free(store);
}

Param *store_add(Store *store, const char *name, DType dtype, int ndim, const int64_t *shape) {
    Param *p = MEM_NEW(store, Param);
    p->store = store;
    p->name = mem_strdup(p, name);
    p->dtype = dtype;
    p->ndim = ndim;
    memcpy(p->shape, shape, sizeof(int64_t) * (size_t)ndim);
    ARR_PUSH(store, &store->params, p);
    return p;
}

void store_add_scale(Param *p) {
    char *name = mem_printf(NULL, "%s.scale", p->name);
    const int64_t one = 1;
    p->scale = store_add(p->store, name, DT_F32, 1, &one);
    mem_free(name);
}

Param *store_find(const Store *store, const char *name) {
    for (int i = 0; i < store->params.n; i++)
        if (!strcmp(store->params.v[i]->name, name)) return store->params.v[i];
    return NULL;
}

int store_count(const Store *store) { return store->params.n; }
Param *store_at(Store *store, int i) { return store->params.v[i]; }
bool store_committed(const Store *store) { return store->committed; }

int64_t param_count(const Param *p) {
    int64_t n = 1;
    for (int i = 0; i < p->ndim; i++) n *= p->shape[i];
    return n;
}

uint64_t param_bytes(const Param *p) {
    return dtype_bytes(p->dtype, (uint64_t)param_count(p));
}

// Lays the params out in blocks no larger than the device allows; block_bytes[i] receives the
// size of block i. Returns the number of blocks, or -1 where one tensor exceeds a block.
static int lay_out(const Store *store, int *block_of, uint64_t *offset, uint64_t *block_bytes) {
    const DeviceInfo *info = dev_info(store->dev);
    int blocks = 0;
    uint64_t used = 0;
    for (int i = 0; i < store->params.n; i++) {
        uint64_t size = align_up(param_bytes(store->params.v[i]), info->buffer_align);
        if (size > info->max_buffer) return -1;
        if (blocks == 0 || used > info->max_buffer - size) blocks++, used = 0;
        block_of[i] = blocks - 1;
        offset[i] = used;
        used += size;
        block_bytes[blocks - 1] = used;
    }
    return blocks;
}

typedef struct Layout { int blocks, *block_of; uint64_t *offset, *bytes; } Layout;

static Layout layout_new(void *parent, const Store *store) {
    size_t n = (size_t)MAX(store->params.n, 1);
    Layout l = {0, MEM_ARRAY(parent, int, n), MEM_ARRAY(parent, uint64_t, n),
                MEM_ARRAY(parent, uint64_t, n)};
    l.blocks = lay_out(store, l.block_of, l.offset, l.bytes);
    return l;
}

uint64_t store_bytes(const Store *store) {
    void *scratch = mem_new(NULL, 1);
    Layout l = layout_new(scratch, store);
    uint64_t total = 0;
    for (int i = 0; i < l.blocks; i++) total += l.bytes[i];
    mem_free(scratch);
    return total;
}

bool store_commit(Store *store, Error *err) {
    if (store->committed) return true;
    void *scratch = mem_new(NULL, 1);
    Layout l = layout_new(scratch, store);
    bool ok = l.blocks >= 0 ||
              err_failed(err, "weights: expected every tensor within the device's largest buffer "
                         "(%llu bytes), found a larger one; use --device cpu",
                         (unsigned long long)dev_info(store->dev)->max_buffer);
    for (int i = 0; ok && i < l.blocks; i++) {
        Buffer *block = buf_new(store->dev, l.bytes[i], "weights", err);
        if (block) ARR_PUSH(store, &store->blocks, block);
        else ok = false;
    }
    for (int i = 0; ok && i < store->params.n; i++) {
        store->params.v[i]->buffer = store->blocks.v[l.block_of[i]];
        store->params.v[i]->offset = l.offset[i];
    }
    if (!ok) {
        for (int i = 0; i < store->blocks.n; i++) buf_free(store->blocks.v[i]);
        store->blocks.n = 0;
    }
    mem_free(scratch);
    return store->committed = ok;
}

bool tensor_write(Buffer *buffer, uint64_t offset, DType dtype, int64_t count, DType from,
                  const void *data, Error *err) {
    if (from == dtype)
        return dev_write(buffer, offset, data, dtype_bytes(dtype, (uint64_t)count), err);
    uint8_t *converted = MEM_ARRAY(NULL, uint8_t, dtype_bytes(dtype, (uint64_t)count));
    dtype_convert(dtype, converted, from, data, (size_t)count);
    bool ok = dev_write(buffer, offset, converted, dtype_bytes(dtype, (uint64_t)count), err);
    mem_free(converted);
    return ok;
}

bool tensor_read(Buffer *buffer, uint64_t offset, DType dtype, int64_t count, DType to, void *data,
                 Error *err) {
    uint64_t bytes = dtype_bytes(dtype, (uint64_t)count);
    if (to == dtype) return dev_read(buffer, offset, data, bytes, err);
    uint8_t *raw = MEM_ARRAY(NULL, uint8_t, bytes);
    bool ok = dev_read(buffer, offset, raw, bytes, err);
    if (ok) dtype_convert(to, data, dtype, raw, (size_t)count);
    mem_free(raw);
    return ok;
}

bool param_write(Param *p, DType from, const void *data, Error *err) {
    return tensor_write(p->buffer, p->offset, p->dtype, param_count(p), from, data, err);
}

bool param_read(Param *p, DType to, void *data, Error *err) {
    return tensor_read(p->buffer, p->offset, p->dtype, param_count(p), to, data, err);
}

bool param_zero(Param *p, Error *err) {
    return dev_fill(p->buffer, p->offset, align_up(param_bytes(p), 4), 0, err);
}
