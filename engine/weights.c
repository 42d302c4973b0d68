// weights.c: see weights.h.
#include "engine/weights.h"

#include <stdlib.h>

#include "engine/json.h"
#include "engine/safetensors.h"
#include "engine/weights_impl.h"

struct Weights {
    const char *path, *format;
    int count, meta_count;
    WeightTensor *tensors; // sorted by name
    WeightMeta *meta;
    struct { FileMap *v; int n, cap; } maps; // by WeightTensor.file
    WeightsRead *read; // synthetic
    void *user;
    const Weights *of; // a part: whose data it shows
    bool borrowed;     // the maps are the caller's memory
};

// ---- checks that all formats share --------------------------------------------------------------

bool weight_measure(const char *path, WeightTensor *t, Error *err) {
    t->count = 1;
    bool ok = true;
    for (int i = 0; i < t->ndim; i++) ok = ok && mul_size(t->count, (uint64_t)t->shape[i], &t->count);
    if (!ok || t->count > INT64_MAX || !dtype_bytes_checked(t->dtype, t->count, &t->bytes))
        return err_failed(err, "%s: tensor %.100s: expected a shape that fits in memory, found more "
                          "than 2^63 elements; the file is damaged", path, t->name);
    int64_t row = t->ndim ? t->shape[t->ndim - 1] : 1;
    if (row % dtype_block(t->dtype))
        return err_failed(err, "%s: tensor %.100s: expected rows of whole %s blocks of %d, found %lld; "
                          "the file is damaged", path, t->name, dtype_name(t->dtype),
                          dtype_block(t->dtype), (long long)row);
    return true;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const WeightTensor *)a)->name, ((const WeightTensor *)b)->name);
}

static int by_place(const void *a, const void *b) {
    const WeightTensor *x = *(const WeightTensor *const *)a, *y = *(const WeightTensor *const *)b;
    if (x->at != y->at) return x->at < y->at ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

static bool check_disjoint(const char *path, const WeightList *list, Error *err) {
    int n = list->tensors.n;
    const WeightTensor **order = MEM_ARRAY(NULL, const WeightTensor *, MAX(n, 1));
    for (int i = 0; i < n; i++) order[i] = &list->tensors.v[i];
    if (n) qsort(order, (size_t)n, sizeof *order, by_place);
    bool ok = true;
    for (int i = 1; ok && i < n; i++)
        if (order[i]->bytes && order[i - 1]->at + order[i - 1]->bytes > order[i]->at)
            ok = err_failed(err, "%s: tensor %.100s: expected data of its own, found it overlapping "
                            "tensor %.100s; the file is damaged", path, order[i]->name,
                            order[i - 1]->name);
    mem_free(order);
    return ok;
}

bool weight_list_room(const char *path, uint64_t tensors, Error *err) {
    return tensors <= WEIGHTS_MAX_TENSORS ||
           err_failed(err,
                      "%s: expected at most %d tensors, found %llu; the file is damaged or hostile",
                      path, WEIGHTS_MAX_TENSORS, (unsigned long long)tensors);
}

bool weight_list_check(const char *path, WeightList *list, uint64_t size, bool disjoint, Error *err) {
    int n = list->tensors.n;
    WeightTensor *v = list->tensors.v;
    if (!weight_list_room(path, (uint64_t)n, err)) return false;
    if (n) qsort(v, (size_t)n, sizeof *v, by_name);
    for (int i = 0; i < n; i++) {
        if (i && !strcmp(v[i - 1].name, v[i].name))
            return err_failed(err, "%s: expected each tensor once, found %.100s twice; the file is "
                              "damaged", path, v[i].name);
        if (!json_is_utf8(v[i].name))
            return err_failed(err, "%s: expected tensor names in UTF-8, found \"%.60s\"; the file is "
                              "damaged", path, v[i].name);
        if (v[i].at > size || v[i].bytes > size - v[i].at)
            return err_failed(err, "%s: tensor %.100s: expected data inside the file's %llu bytes, "
                              "found %llu bytes at %llu; the file is cut or damaged", path, v[i].name,
                              (unsigned long long)size, (unsigned long long)v[i].bytes,
                              (unsigned long long)v[i].at);
    }
    return !disjoint || check_disjoint(path, list, err);
}

static bool safetensors_read(void *parent, const char *path, const uint8_t *data, size_t size,
                             WeightList *out, Error *err) {
    StFile *f = st_parse(NULL, path, data, size, err);
    if (!f) return false;
    bool ok = true;
    for (int i = 0; ok && i < f->n; i++) {
        const StTensor *s = &f->tensors[i];
        WeightTensor t = {.name = mem_strdup(parent, s->name), .dtype = s->dtype, .ndim = s->ndim,
                          .at = (uint64_t)(s->data - data)};
        if (s->ndim > MAX_DIMS) {
            ok = err_failed(err, "%s: tensor %.100s: expected at most %d dimensions, found %d", path,
                            s->name, MAX_DIMS, s->ndim);
            break;
        }
        memcpy(t.shape, s->shape, sizeof(int64_t) * (size_t)s->ndim);
        ok = weight_measure(path, &t, err);
        ARR_PUSH(parent, &out->tensors, t);
    }
    for (int i = 0; i < f->meta_n; i++) {
        WeightMeta m = {mem_strdup(parent, f->meta[i].key), mem_strdup(parent, f->meta[i].value)};
        ARR_PUSH(parent, &out->meta, m);
    }
    mem_free(f);
    return ok && weight_list_check(path, out, size, true, err);
}

// ---- one file -------------------------------------------------------------------------------------

typedef bool Read(void *parent, const char *path, const uint8_t *data, size_t size, WeightList *out,
                  Error *err);

// What other files begin with (or hold at `at`), and what they are.
#define MAGIC(at, bytes, what) {at, sizeof bytes - 1, bytes, what}
static const struct { size_t at, n; const char *bytes, *what; } foreign[] = {
    MAGIC(0, "version https://git-lfs", "a Git LFS pointer, not the file itself; fetch it (git lfs pull)"),
    MAGIC(0, "\x80\x02", "a bare pickle, as PyTorch wrote before 1.6; save it anew, as safetensors best"),
    MAGIC(0, "\x80\x03", "a bare pickle; save it anew, as safetensors best"),
    MAGIC(0, "\x80\x04", "a bare pickle; save it anew, as safetensors best"),
    MAGIC(0, "\x80\x05", "a bare pickle; save it anew, as safetensors best"),
    MAGIC(0, "FUGG", "a big-endian GGUF; convert it with its own tools"),
    MAGIC(0, "ggml", "ggml's format before GGUF; convert it with its own tools"),
    MAGIC(0, "lmgg", "ggml's format before GGUF; convert it with its own tools"),
    MAGIC(0, "tjgg", "ggml's format before GGUF; convert it with its own tools"),
    MAGIC(0, "PK\5\6", "an empty zip archive; download the file again"),
    MAGIC(0, "\x1f\x8b", "a gzip archive; unpack it first"),
    MAGIC(0, "BZh", "a bzip2 archive; unpack it first"),
    MAGIC(0, "\xfd" "7zXZ", "an xz archive; unpack it first"),
    MAGIC(0, "\x28\xb5\x2f\xfd", "a zstd archive; unpack it first"),
    MAGIC(0, "7z\xbc\xaf", "a 7-Zip archive; unpack it first"),
    MAGIC(0, "Rar!", "a RAR archive; unpack it first"),
    MAGIC(257, "ustar", "a tar archive; unpack it first"),
    MAGIC(0, "\x89PNG", "a picture; name the model's file"),
    MAGIC(0, "\xff\xd8\xff", "a picture; name the model's file"),
    MAGIC(0, "\x89HDF", "an HDF5 file (Keras); take the model as safetensors"),
    MAGIC(0, "\x93NUMPY", "a NumPy array; name the model's file"),
    MAGIC(0, "\x7f" "ELF", "a program; name the model's file"),
    MAGIC(0, "%PDF", "a PDF document; name the model's file"),
};

// Only letters, digits and the like at its beginning? A safetensors file has zeros there.
static bool is_text(const uint8_t *d, size_t n) {
    for (size_t i = 0; i < MIN(n, 512); i++)
        if ((d[i] < 0x20 && !strchr("\t\n\r\f", d[i])) || !d[i] || d[i] == 0x7f) return false;
    return n > 0;
}

static bool is_web_page(const uint8_t *d, size_t n) {
    static const char *const starts[] = {"<!doctype html", "<html", "<head", "<?xml", "<script", "<!--"};
    size_t at = n >= 3 && !memcmp(d, "\xef\xbb\xbf", 3) ? 3 : 0;
    while (at < n && strchr(" \t\r\n", d[at]) && d[at]) at++;
    for (size_t i = 0; i < COUNT_OF(starts); i++) {
        size_t k = 0;
        while (starts[i][k] && at + k < n &&
               (d[at + k] | (starts[i][k] > 0x40 ? 0x20 : 0)) == starts[i][k])
            k++;
        if (!starts[i][k]) return true;
    }
    return false;
}

// The reader for what the file begins with; NULL with an error for kinds that are known and not read.
static Read *reader_of(const char *path, const uint8_t *d, size_t n, const char **format, Error *err) {
    const char *wrong = NULL;
    if (n >= 4 && !memcmp(d, "GGUF", 4)) return *format = "gguf", gguf_read;
    if (n >= 4 && !memcmp(d, "PK\3\4", 4)) return *format = "pytorch", pytorch_read;
    // The length of a header may look like another kind's beginning: 640 like a pickle's.
    uint64_t length = UINT64_MAX;
    if (n > 8) memcpy(&length, d, 8);
    if (length <= ST_MAX_HEADER && d[8] == '{') return *format = "safetensors", safetensors_read;
    for (size_t i = 0; i < COUNT_OF(foreign) && !wrong; i++)
        if (n >= foreign[i].at + foreign[i].n && !memcmp(d + foreign[i].at, foreign[i].bytes, foreign[i].n))
            wrong = foreign[i].what;
    if (n == 0) wrong = "an empty one; download it again";
    else if (!wrong && is_web_page(d, n))
        wrong = "a web page; open the address in a browser (a login or a licence may stand before the "
                "download)";
    else if (!wrong && is_text(d, n))
        wrong = d[0] == '{' ? "JSON; name the weight file, its *.safetensors.index.json or its folder"
                            : "a text; name the model's file";
    if (!wrong) return *format = "safetensors", safetensors_read;
    err_failed(err, "%s: expected a weight file (safetensors, GGUF or PyTorch), found %s", path, wrong);
    return NULL;
}

static bool read_last(Weights *w, const char *path, WeightList *list, Error *err) { // the last mapping
    const FileMap *map = &w->maps.v[w->maps.n - 1];
    const char *format;
    Read *read = reader_of(path, map->data, map->size, &format, err);
    if (!read || !read(w, path, map->data, map->size, list, err)) return false;
    w->format = format;
    for (int i = 0; i < list->tensors.n; i++) list->tensors.v[i].file = w->maps.n - 1;
    return true;
}

// Maps a file and adds its tensors. The mapping stays with `w`, error or not.
static bool add_file(Weights *w, const char *path, WeightList *list, Error *err) {
    FileMap map;
    if (os_path_kind(path) == PATH_DIR)
        return err_failed(err, "%s: expected a weight file, found a folder", path);
    if (!os_map(&map, path, err)) return false;
    ARR_PUSH(w, &w->maps, map);
    return read_last(w, path, list, err);
}

static void adopt(Weights *w, const WeightList *list) {
    w->tensors = list->tensors.v;
    w->count = list->tensors.n;
    w->meta = list->meta.v;
    w->meta_count = list->meta.n;
}

// ---- shards ---------------------------------------------------------------------------------------

enum { MAX_INDEX = 8 << 20, MAX_SHARDS = 1000 };

typedef struct Shard { const char *file; WeightList list; } Shard;
typedef struct Index {
    Weights *w;
    const char *path;
    char *dir;
    ARRAY(Shard) shards;
    WeightList out;
} Index;

// Shards lie beside the index: their names are names, not paths.
static bool plain_name(const char *name) {
    return *name && strlen(name) < 256 && !strpbrk(name, "/\\:") && strcmp(name, ".") && strcmp(name, "..");
}

static Shard *shard_of(Index *x, const char *file) {
    for (int i = 0; i < x->shards.n; i++)
        if (!strcmp(x->shards.v[i].file, file)) return &x->shards.v[i];
    return NULL;
}

static bool list_shards(Index *x, const Json *map, Error *err) {
    for (const Json *m = json_first(map); m; m = json_next(m)) {
        const char *file = json_string(m, "");
        if (!plain_name(file))
            return err_failed(err, "%s: %.100s: expected the name of a file in the same folder, found "
                              "\"%.100s\"; the index is damaged or hostile", x->path, json_name(m), file);
        if (shard_of(x, file)) continue;
        if (x->shards.n == MAX_SHARDS)
            return err_failed(err, "%s: expected at most %d shards, found more; the index is damaged",
                              x->path, MAX_SHARDS);
        Shard shard = {.file = mem_strdup(x->w, file)};
        ARR_PUSH(x->w, &x->shards, shard);
    }
    return x->shards.n ||
           err_failed(err, "%s: expected a weight_map with tensors, found an empty one", x->path);
}

static bool open_shards(Index *x, Error *err) {
    Error missing = {0};
    int lost = 0;
    for (int i = 0; i < x->shards.n; i++) {
        char *path = os_path_join(NULL, x->dir, x->shards.v[i].file);
        if (os_path_kind(path) != PATH_FILE) {
            err_item(&missing, "%s: missing", path);
            lost++;
        }
        mem_free(path);
    }
    if (lost) {
        if (err) *err = missing;
        err_failed(err, "%s: expected the %d files that it names, found %d of them missing; download "
                   "the rest", x->path, x->shards.n, lost);
        if (err) err->items = lost; // setting the text emptied the list's count, not its lines
        return false;
    }
    for (int i = 0; i < x->shards.n; i++) {
        char *path = os_path_join(x->w, x->dir, x->shards.v[i].file);
        if (!add_file(x->w, path, &x->shards.v[i].list, err)) return false;
        if (strcmp(x->w->format, "safetensors"))
            return err_failed(err, "%s: expected a safetensors file, found %s", path, x->w->format);
    }
    return true;
}

static const WeightTensor *find_in(const WeightTensor *v, int n, const char *name) {
    WeightTensor key = {.name = name};
    return n ? bsearch(&key, v, (size_t)n, sizeof key, by_name) : NULL;
}

static bool pick_tensors(Index *x, const Json *map, Error *err) {
    Error wrong = {0};
    int lies = 0;
    for (const Json *m = json_first(map); m; m = json_next(m)) {
        const Shard *shard = shard_of(x, json_string(m, ""));
        const WeightTensor *t = find_in(shard->list.tensors.v, shard->list.tensors.n, json_name(m));
        if (t) {
            ARR_PUSH(x->w, &x->out.tensors, *t);
            continue;
        }
        err_item(&wrong, "%.120s: not in %s", json_name(m), shard->file);
        lies++;
    }
    if (lies) {
        if (err) *err = wrong;
        err_failed(err, "%s: expected every tensor in the file that the index names, found %d elsewhere "
                   "or nowhere; take index and shards from one place", x->path, lies);
        if (err) err->items = lies;
        return false;
    }
    WeightTensor *v = x->out.tensors.v;
    qsort(v, (size_t)x->out.tensors.n, sizeof *v, by_name);
    if (x->shards.n) x->out.meta.v = x->shards.v[0].list.meta.v, x->out.meta.n = x->shards.v[0].list.meta.n;
    return true;
}

static bool open_index(Weights *w, const char *path, Error *err) {
    FileMap file; // mapped, not read: a pipe is refused, not waited for
    if (!os_map(&file, path, err)) return false;
    const char *text = file.size ? (const char *)file.data : "";
    // A tensor named twice is refused here.
    Json *json = file.size > MAX_INDEX ? NULL : json_parse(text, file.size, path, err);
    if (file.size > MAX_INDEX)
        err_failed(err, "%s: expected an index of at most %d MiB, found %zu bytes; the file is damaged", path,
                   MAX_INDEX >> 20, file.size);
    os_unmap(&file);
    if (!json) return false;
    Index x = {.w = w, .path = path, .dir = os_dir_name(w, path)};
    const Json *map = json_get(json, "weight_map");
    bool ok = json_is_object(map) ||
              err_failed(err, "%s: expected an index with a weight_map, found none", path);
    ok = ok && list_shards(&x, map, err) && open_shards(&x, err) && pick_tensors(&x, map, err);
    if (ok) adopt(w, &x.out);
    json_free(json);
    return ok;
}

// ---- folders --------------------------------------------------------------------------------------

static bool is_index(const char *path) { return str_ends(path, ".safetensors.index.json"); }

static bool is_weight_name(const char *name) {
    static const char *const ends[] = {".safetensors", ".gguf", ".pth", ".pt", ".bin", ".ckpt"};
    for (size_t i = 0; i < COUNT_OF(ends); i++)
        if (str_ends(name, ends[i])) return true;
    return false;
}

// "model-00001-of-00002.safetensors"
static bool is_shard_name(const char *name) {
    const char *of = strstr(name, "-of-");
    return of && of > name && of[-1] >= '0' && of[-1] <= '9' && of[4] >= '0' && of[4] <= '9';
}

// The file in a folder that stands for it: a common name, else the only candidate.
static char *pick_file(void *parent, const char *dir, Error *err) {
    static const char *const common[] = {
        "diffusion_pytorch_model.safetensors.index.json", "model.safetensors.index.json",
        "diffusion_pytorch_model.safetensors", "model.safetensors",
    };
    for (size_t i = 0; i < COUNT_OF(common); i++) {
        char *path = os_path_join(parent, dir, common[i]);
        if (os_path_kind(path) == PATH_FILE) return path;
        mem_free(path);
    }
    char **names, *found = NULL;
    int count, indices = 0, files = 0;
    Error list = {0};
    if (!os_list(parent, dir, &names, &count, err)) return NULL;
    for (int i = 0; i < count; i++) indices += is_index(names[i]);
    for (int i = 0; i < count; i++) {
        bool take = indices ? is_index(names[i]) : is_weight_name(names[i]) && !is_shard_name(names[i]);
        if (!take) continue;
        err_item(&list, "%s", names[i]);
        if (files++ == 0) found = os_path_join(parent, dir, names[i]);
    }
    if (files == 1) return found;
    int shards = 0;
    for (int i = 0; i < count && !files; i++) shards += is_shard_name(names[i]);
    if (err) *err = list;
    err_failed(err, "%s: expected one weight file (model.safetensors, ...) in the folder, found %s; %s",
               dir,
               files ? "several" : shards ? "shards without their *.safetensors.index.json" : "none",
               files ? "name one of them" : "name the file");
    if (err) err->items = files;
    return NULL;
}

// ---- the public functions -------------------------------------------------------------------------

Weights *weights_open(void *parent, const char *path, Error *err) {
    Weights *w = MEM_NEW(parent, Weights);
    w->path = mem_strdup(w, path);
    const char *file = w->path;
    bool ok = true;
    if (os_path_kind(path) == PATH_DIR) ok = (file = pick_file(w, path, err)) != NULL;
    if (ok && is_index(file)) {
        ok = open_index(w, file, err);
    } else if (ok) {
        WeightList list = {0};
        ok = add_file(w, file, &list, err);
        adopt(w, &list);
    }
    if (ok) return w;
    weights_close(w);
    return NULL;
}

void weights_close(Weights *w) {
    if (!w) return;
    for (int i = 0; i < w->maps.n && !w->borrowed; i++) os_unmap(&w->maps.v[i]);
    mem_free(w);
}

Weights *weights_parse(void *parent, const char *path, const void *data, size_t size, Error *err) {
    Weights *w = MEM_NEW(parent, Weights);
    w->path = mem_strdup(w, path);
    w->borrowed = true;
    FileMap map = {.data = data, .size = size};
    ARR_PUSH(w, &w->maps, map);
    WeightList list = {0};
    bool ok = read_last(w, path, &list, err);
    adopt(w, &list);
    if (ok) return w;
    mem_free(w);
    return NULL;
}

const char *weights_path(const Weights *w) { return w->path; }
const char *weights_format(const Weights *w) { return w->format; }
int weights_count(const Weights *w) { return w->count; }
const WeightTensor *weights_at(const Weights *w, int i) { return &w->tensors[i]; }
const WeightTensor *weights_find(const Weights *w, const char *name) {
    return find_in(w->tensors, w->count, name);
}

const char *weights_meta(const Weights *w, const char *key) {
    for (int i = 0; i < w->meta_count; i++)
        if (!strcmp(w->meta[i].key, key)) return w->meta[i].value;
    return NULL;
}
int weights_meta_count(const Weights *w) { return w->meta_count; }
const char *weights_meta_at(const Weights *w, int i, const char **value) {
    *value = w->meta[i].value;
    return w->meta[i].key;
}

// Elements that do not lie side by side, one after the other.
static void read_strided(const uint8_t *data, const WeightTensor *t, uint64_t offset, uint8_t *out,
                         uint64_t bytes) {
    uint64_t size = (uint64_t)dtype_size(t->dtype);
    while (bytes) {
        uint64_t index = offset / size, inside = offset % size, at = 0;
        for (int i = t->ndim - 1; i >= 0; i--) {
            at += index % (uint64_t)t->shape[i] * (uint64_t)t->stride[i];
            index /= (uint64_t)t->shape[i];
        }
        uint64_t n = MIN(bytes, size - inside);
        memcpy(out, data + at * size + inside, (size_t)n);
        out += n;
        offset += n;
        bytes -= n;
    }
}

static const Weights *root_of(const Weights *w) {
    while (w->of) w = w->of;
    return w;
}

bool weights_read(const Weights *w, const WeightTensor *t, uint64_t offset, void *out, uint64_t bytes,
                  Error *err) {
    if (offset > t->bytes || bytes > t->bytes - offset)
        return err_failed(err, "%s: tensor %.100s: expected a range within %llu bytes, found %llu at "
                          "%llu; this is a defect", w->path, t->name, (unsigned long long)t->bytes,
                          (unsigned long long)bytes, (unsigned long long)offset);
    const Weights *root = root_of(w);
    if (root->read) return root->read(root->user, (int)t->at, offset, out, bytes, err);
    if (!bytes) return true;
    const FileMap *map = &root->maps.v[t->file];
    if (!t->stride) return os_map_read(map, w->path, t->at + offset, out, bytes, err);
    read_strided(map->data + t->at, t, offset, out, bytes);
    return true;
}

const void *weights_data(const Weights *w, const WeightTensor *t) {
    const Weights *root = root_of(w);
    return root->read || t->stride ? NULL : root->maps.v[t->file].data + t->at;
}

void weights_advise(const Weights *w, const WeightTensor *t, uint64_t offset, uint64_t bytes,
                    MapAdvice advice) {
    const Weights *root = root_of(w);
    if (root->read || root->borrowed || t->stride || !bytes) return;
    const FileMap *map = &root->maps.v[t->file];
    uint64_t at = (t->at + offset) / MAP_STEP * MAP_STEP; // whole steps, also around the ends
    uint64_t end = MIN(align_up(t->at + offset + bytes, MAP_STEP), map->size);
    if (at < end) os_map_advise(map, at, end - at, advice);
}

Weights *weights_synthetic(void *parent, const char *name, const WeightTensor *tensors, int count,
                           WeightsRead *read, void *user) {
    Weights *w = MEM_NEW(parent, Weights);
    w->path = mem_strdup(w, name);
    w->format = "synthetic";
    w->count = count;
    w->tensors = MEM_ARRAY(w, WeightTensor, MAX(count, 1));
    for (int i = 0; i < count; i++) {
        WeightTensor *t = &w->tensors[i];
        *t = tensors[i];
        t->name = mem_strdup(w, tensors[i].name);
        t->at = (uint64_t)i;
        t->stride = NULL;
        weight_measure(name, t, NULL); // shapes are the caller's own
    }
    if (count) qsort(w->tensors, (size_t)count, sizeof *w->tensors, by_name);
    w->read = read;
    w->user = user;
    return w;
}

Weights *weights_part(void *parent, const Weights *whole, const char *prefix) {
    Weights *w = MEM_NEW(parent, Weights);
    size_t length = strlen(prefix);
    w->path = mem_strdup(w, whole->path);
    w->format = whole->format;
    w->meta = whole->meta;
    w->meta_count = whole->meta_count;
    w->of = whole;
    w->tensors = MEM_ARRAY(w, WeightTensor, MAX(whole->count, 1));
    for (int i = 0; i < whole->count; i++) { // in order: they share the prefix
        const WeightTensor *t = &whole->tensors[i];
        if (strncmp(t->name, prefix, length) || !t->name[length]) continue;
        w->tensors[w->count] = *t;
        w->tensors[w->count++].name = t->name + length;
    }
    return w;
}
