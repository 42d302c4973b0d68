// checkpoint.c: see checkpoint.h.
#include "engine/checkpoint.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

static const char name_start[] = "checkpoint-", name_end[] = ".safetensors";
static const char checksum_key[] = "kiln.checksum";

// Does not depend on the order of tensors: each one's hash, from its name on, is added up.
static uint64_t tensor_sum(const char *name, const void *data, size_t n) {
    return hash_bytes(hash_bytes(0, name, strlen(name)), data, n);
}

char *checkpoint_path(void *parent, const char *dir, int64_t step) {
    char *name = mem_printf(NULL, "%s%" PRId64 "%s", name_start, step, name_end);
    char *path = os_path_join(parent, dir, name);
    mem_free(name);
    return path;
}

// Reads a store into host memory below `parent` and hands it to the writer.
static bool put_store(StWriter *w, const CheckpointPart *part, uint64_t *sum, Error *err) {
    for (int i = 0; i < store_count(part->store); i++) {
        Param *p = store_at(part->store, i);
        size_t n = (size_t)param_count(p);
        float *values = MEM_ARRAY(w, float, n);
        if (!param_read(p, DT_F32, values, err)) return false;
        char *name = mem_printf(w, "%s%s", part->prefix, p->name);
        st_put(w, name, DT_F32, p->ndim, p->shape, values);
        *sum += tensor_sum(name, values, n * sizeof(float));
    }
    return true;
}

bool checkpoint_save(const char *dir, int64_t step, const CheckpointPart *parts, int part_count,
                     const CheckpointMeta *meta, int meta_count, Error *err) {
    StWriter *w = st_writer(NULL);
    uint64_t sum = 0;
    bool ok = true;
    for (int i = 0; i < part_count && ok; i++) ok = put_store(w, &parts[i], &sum, err);
    for (int i = 0; i < meta_count; i++) st_put_meta(w, meta[i].key, meta[i].value);
    char text[20];
    snprintf(text, sizeof text, "%016" PRIx64, sum);
    st_put_meta(w, checksum_key, text);
    char *path = checkpoint_path(w, dir, step);
    ok = ok && st_write(w, path, err);
    mem_free(w);
    return ok;
}

static int newest_first(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

// checkpoint-<digits>.safetensors
static bool parse_name(const char *name, int64_t *step) {
    size_t start = sizeof name_start - 1;
    if (strncmp(name, name_start, start)) return false;
    size_t digits = strspn(name + start, "0123456789");
    if (digits < 1 || digits > 18 || strcmp(name + start + digits, name_end)) return false;
    *step = strtoll(name + start, NULL, 10);
    return true;
}

int64_t *checkpoint_list(void *parent, const char *dir, int *count) {
    char **names;
    int n;
    *count = 0;
    void *scratch = mem_new(NULL, 1);
    if (os_path_kind(dir) != PATH_DIR || !os_list(scratch, dir, &names, &n, NULL)) {
        mem_free(scratch);
        return NULL;
    }
    int64_t *steps = MEM_ARRAY(parent, int64_t, n + 1);
    for (int i = 0; i < n; i++)
        if (parse_name(names[i], &steps[*count])) (*count)++;
    mem_free(scratch);
    qsort(steps, (size_t)*count, sizeof *steps, newest_first);
    return steps;
}

static bool verify(const StFile *file, Error *err) {
    const char *want = st_meta(file, checksum_key);
    if (!want) return err_failed(err, "%s: expected a checksum, found none", file->path);
    uint64_t sum = 0;
    for (int i = 0; i < file->n; i++)
        sum += tensor_sum(file->tensors[i].name, file->tensors[i].data,
                          (size_t)file->tensors[i].bytes);
    char text[20];
    snprintf(text, sizeof text, "%016" PRIx64, sum);
    return !strcmp(text, want) || err_failed(err, "%s: expected checksum %s, found %s", file->path,
                                             want, text);
}

StFile *checkpoint_newest(void *parent, const char *dir, int64_t *step, const Log *log,
                          Error *err) {
    int n;
    int64_t *steps = checkpoint_list(NULL, dir, &n);
    StFile *file = NULL;
    if (err) *err = (Error){0};
    for (int i = 0; i < n && !file; i++) {
        char *path = checkpoint_path(steps, dir, steps[i]);
        Error why = {0};
        file = st_open(parent, path, &why);
        if (file && !verify(file, &why)) {
            st_close(file);
            file = NULL;
        }
        if (file) *step = steps[i];
        else log_msg(log, LOG_WARN, "damaged checkpoint passed over: %s", why.text);
    }
    if (!file && n)
        err_failed(err, "%s: expected a whole checkpoint, found %d damaged; move them away to "
                   "start anew", dir, n);
    mem_free(steps);
    return file;
}

bool checkpoint_load(const StFile *file, const CheckpointPart *parts, int part_count, Error *err) {
    int total = 0, k = 0;
    for (int i = 0; i < part_count; i++) total += store_count(parts[i].store);
    StWant *wants = MEM_ARRAY(NULL, StWant, total);
    for (int i = 0; i < part_count; i++)
        for (int j = 0; j < store_count(parts[i].store); j++, k++) {
            Param *p = store_at(parts[i].store, j);
            wants[k].name = mem_printf(wants, "%s%s", parts[i].prefix, p->name);
            wants[k].ndim = p->ndim;
            for (int d = 0; d < p->ndim; d++) wants[k].shape[d] = p->shape[d];
        }
    bool ok = st_check(file, wants, total, err);
    k = 0;
    for (int i = 0; i < part_count && ok; i++)
        for (int j = 0; j < store_count(parts[i].store) && ok; j++, k++) {
            const StTensor *t = st_get(file, wants[k].name, err);
            float *values = MEM_ARRAY(NULL, float, t ? t->count : 0);
            ok = t != NULL;
            if (ok) st_to_f32(t, values);
            ok = ok && param_write(store_at(parts[i].store, j), DT_F32, values, err);
            mem_free(values);
        }
    mem_free(wants);
    return ok;
}

void checkpoint_prune(const char *dir, int64_t step, int keep, const Log *log) {
    int n, kept = 0;
    int64_t *steps = checkpoint_list(NULL, dir, &n);
    for (int i = 0; i < n; i++) {
        if (steps[i] > step || kept++ < keep) continue;
        Error err = {0};
        if (!os_remove(checkpoint_path(steps, dir, steps[i]), &err))
            log_msg(log, LOG_WARN, "%s", err.text);
    }
    mem_free(steps);
}

static bool put_model_tensor(StWriter *w, Param *p, DType type, Error *err) {
    size_t n = (size_t)param_count(p);
    float *values = MEM_ARRAY(w, float, n);
    if (!param_read(p, DT_F32, values, err)) return false;
    if (type == DT_F32) {
        st_put(w, p->name, type, p->ndim, p->shape, values);
        return true;
    }
    for (size_t i = 0; i < n; i++)
        if (isfinite(values[i]) && !isfinite(f32_from_f16(f16_from_f32(values[i]))))
            return err_failed(err, "%s: expected numbers that f16 can hold, found %g; take f32",
                              p->name, (double)values[i]);
    uint16_t *half = MEM_ARRAY(w, uint16_t, n);
    dtype_convert(type, half, DT_F32, values, n);
    mem_free(values);
    st_put(w, p->name, type, p->ndim, p->shape, half);
    return true;
}

bool checkpoint_save_model(const char *path, Store *store, DType type, const CheckpointMeta *meta,
                           int meta_count, Error *err) {
    if (type != DT_F32 && type != DT_F16)
        return err_failed(err, "%s: expected f32 or f16 weights, found %s", path, dtype_name(type));
    StWriter *w = st_writer(NULL);
    bool ok = true;
    for (int i = 0; i < store_count(store) && ok; i++)
        ok = put_model_tensor(w, store_at(store, i), type, err);
    for (int i = 0; i < meta_count; i++) st_put_meta(w, meta[i].key, meta[i].value);
    ok = ok && st_write(w, path, err);
    mem_free(w);
    return ok;
}
