// pytorch.c: PyTorch's checkpoints (torch.save since 1.6): a zip archive with a pickle that names
// tensors and their storages, and one member per storage. The pickle is read as data (pickle.h).
#include <stdlib.h>

#include "engine/json.h"
#include "engine/pickle.h"
#include "engine/weights_impl.h"
#include "engine/zip.h"

// Names that checkpoints use, and what they mean here; all others are refused.
typedef enum {
    IS_DICT, IS_TENSOR_V2, IS_TENSOR_V3, IS_PARAMETER, IS_STORAGE, IS_UNTYPED, IS_DTYPE, IS_OTHER
} Meaning;
static const struct { const char *name; Meaning meaning; DType dtype; } globals[] = {
    {"collections.OrderedDict", IS_DICT, 0},
    {"torch._utils._rebuild_tensor_v2", IS_TENSOR_V2, 0},
    {"torch._utils._rebuild_tensor_v3", IS_TENSOR_V3, 0},
    {"torch._utils._rebuild_parameter", IS_PARAMETER, 0},
    {"torch.storage.UntypedStorage", IS_UNTYPED, 0},
    {"torch.UntypedStorage", IS_UNTYPED, 0},
    {"torch.FloatStorage", IS_STORAGE, DT_F32},
    {"torch.HalfStorage", IS_STORAGE, DT_F16},
    {"torch.BFloat16Storage", IS_STORAGE, DT_BF16},
    {"torch.DoubleStorage", IS_STORAGE, DT_F64},
    {"torch.ByteStorage", IS_STORAGE, DT_U8},
    {"torch.CharStorage", IS_STORAGE, DT_I8},
    {"torch.ShortStorage", IS_STORAGE, DT_I16},
    {"torch.IntStorage", IS_STORAGE, DT_I32},
    {"torch.LongStorage", IS_STORAGE, DT_I64},
    {"torch.BoolStorage", IS_STORAGE, DT_BOOL},
    {"torch.float32", IS_DTYPE, DT_F32},
    {"torch.float16", IS_DTYPE, DT_F16},
    {"torch.bfloat16", IS_DTYPE, DT_BF16},
    {"torch.float64", IS_DTYPE, DT_F64},
    {"torch.float8_e4m3fn", IS_DTYPE, DT_F8_E4M3},
    {"torch.float8_e5m2", IS_DTYPE, DT_F8_E5M2},
    {"torch.uint8", IS_DTYPE, DT_U8},
    {"torch.int8", IS_DTYPE, DT_I8},
    {"torch.int16", IS_DTYPE, DT_I16},
    {"torch.int32", IS_DTYPE, DT_I32},
    {"torch.int64", IS_DTYPE, DT_I64},
    {"torch.bool", IS_DTYPE, DT_BOOL},
    {"torch.Size", IS_OTHER, 0},
    {"torch.device", IS_OTHER, 0},
};

static int global_find(const char *name) {
    for (size_t i = 0; i < COUNT_OF(globals); i++)
        if (!strcmp(name, globals[i].name)) return (int)i;
    return -1;
}
static bool global_allowed(const char *name) { return global_find(name) >= 0; }

// The row of a value that is an allowed name (they all are); -1: another kind of value.
static int global_of(const PickleValue *v) {
    return v->kind == PICKLE_GLOBAL ? global_find(v->text) : -1;
}
static bool is_call(const PickleValue *v, Meaning meaning) {
    return v->kind == PICKLE_CALL && globals[global_of(v->item[0])].meaning == meaning;
}

typedef struct Reader {
    void *parent;
    const char *path;
    const uint8_t *data;
    size_t size;
    Zip zip;
    const char *folder; // what stands before "data.pkl": "archive/"
    WeightList *out;
    int visited;
    size_t name_bytes; // of all names
    Error *err;
} Reader;

enum { MAX_DEPTH = 32, MAX_VISITED = 2000000, MAX_NAME_BYTES = 32 << 20 };
// Storages of larger archives are as large as the model: checksums would take as long as loading.
#define CHECKED_ARCHIVE ((size_t)64 << 20)

static bool bad_tensor(Reader *r, const char *name, const char *found) {
    return err_failed(r->err, "%s: tensor %.100s: expected a storage with a shape inside it, found %s; "
                      "the file is damaged or hostile", r->path, name, found);
}

static bool ints(const PickleValue *v, int most, int *n, int64_t *out) {
    if (v->kind != PICKLE_TUPLE || v->n > most) return false;
    for (*n = 0; *n < v->n; ++*n) {
        if (v->item[*n]->kind != PICKLE_INT || v->item[*n]->i < 0) return false;
        out[*n] = v->item[*n]->i;
    }
    return true;
}

// ('storage', type, key, device, count): the member and its type.
static bool find_storage(Reader *r, const char *name, const PickleValue *v, DType dtype, DType *type,
                         uint64_t *count, const ZipMember **member) {
    const PickleValue *id = v->kind == PICKLE_PERSISTENT ? v->item[0] : NULL;
    if (!id || id->kind != PICKLE_TUPLE || id->n < 5 || !pickle_is(id->item[0], PICKLE_TEXT, "storage") ||
        global_of(id->item[1]) < 0 || id->item[2]->kind != PICKLE_TEXT || id->item[2]->bytes > 200 ||
        id->item[4]->kind != PICKLE_INT || id->item[4]->i < 0)
        return bad_tensor(r, name, "another kind of value");
    int g = global_of(id->item[1]);
    bool untyped = globals[g].meaning == IS_UNTYPED;
    if (globals[g].meaning != IS_STORAGE && !untyped) return bad_tensor(r, name, "another kind of storage");
    *type = untyped ? dtype : globals[g].dtype;
    if (*type == DT_COUNT) return bad_tensor(r, name, "a storage without a type");
    char *key = mem_printf(NULL, "%sdata/%.*s", r->folder, (int)id->item[2]->bytes, id->item[2]->text);
    *member = zip_find(&r->zip, key);
    mem_free(key);
    if (!*member) return bad_tensor(r, name, "a storage that the archive lacks");
    uint64_t size = (uint64_t)dtype_size(*type), have = (*member)->size / size;
    *count = (uint64_t)id->item[4]->i / (untyped ? size : 1);
    if (*count > have)
        return err_failed(r->err, "%s: tensor %.100s: expected a storage of %llu elements, found %llu; "
                          "the file is cut or damaged", r->path, name, (unsigned long long)*count,
                          (unsigned long long)have);
    return true;
}

// Strides are kept only where the tensor is not contiguous.
static bool set_strides(Reader *r, WeightTensor *t, const int64_t *stride, uint64_t offset,
                        uint64_t available) {
    uint64_t last = offset, step;
    bool contiguous = true;
    int64_t expect = 1;
    for (int i = t->ndim - 1; i >= 0; i--) {
        if (t->shape[i] != 1 && stride[i] != expect) contiguous = false;
        expect *= t->shape[i]; // no overflow: weight_measure has multiplied them
        if (t->count && (!mul_size((uint64_t)t->shape[i] - 1, (uint64_t)stride[i], &step) ||
                         !add_size(last, step, &last)))
            return bad_tensor(r, t->name, "strides without bounds");
    }
    if (t->count > available || (t->count && last >= available))
        return bad_tensor(r, t->name, "one that reaches past it");
    if (!contiguous && t->count) {
        int64_t *copy = MEM_ARRAY(r->parent, int64_t, t->ndim);
        memcpy(copy, stride, sizeof(int64_t) * (size_t)t->ndim);
        t->stride = copy;
    }
    return true;
}

static bool add_tensor(Reader *r, const char *name, const PickleValue *call) {
    while (is_call(call, IS_PARAMETER)) { // (tensor, requires_grad, hooks)
        if (call->item[1]->n < 1) return bad_tensor(r, name, "no tensor");
        call = call->item[1]->item[0];
        if (++r->visited > MAX_VISITED) return bad_tensor(r, name, "parameters of parameters");
    }
    bool v3 = is_call(call, IS_TENSOR_V3);
    const PickleValue *args = call->kind == PICKLE_CALL ? call->item[1] : NULL;
    if (!args || (!v3 && !is_call(call, IS_TENSOR_V2)) || args->n < (v3 ? 7 : 4))
        return bad_tensor(r, name, "another kind of value");
    DType dtype = DT_COUNT;
    if (v3) { // the last argument is the type
        int g = global_of(args->item[6]);
        if (g < 0 || globals[g].meaning != IS_DTYPE) return bad_tensor(r, name, "no type");
        dtype = globals[g].dtype;
    }
    WeightTensor t = {.name = name};
    int64_t stride[MAX_DIMS];
    int strides = 0;
    uint64_t count = 0;
    const ZipMember *member = NULL;
    if (!ints(args->item[2], MAX_DIMS, &t.ndim, t.shape) ||
        !ints(args->item[3], MAX_DIMS, &strides, stride) || strides != t.ndim ||
        args->item[1]->kind != PICKLE_INT || args->item[1]->i < 0)
        return bad_tensor(r, name, "another form of shape");
    if (!find_storage(r, name, args->item[0], dtype, &t.dtype, &count, &member) ||
        !weight_measure(r->path, &t, r->err))
        return false;
    uint64_t offset = (uint64_t)args->item[1]->i;
    if (!set_strides(r, &t, stride, offset, count)) return false;
    t.at = (uint64_t)(member->data - r->data) + (t.count ? offset * (uint64_t)dtype_size(t.dtype) : 0);
    ARR_PUSH(r->parent, &r->out->tensors, t);
    return weight_list_room(r->path, (uint64_t)r->out->tensors.n, r->err);
}

static bool is_dict(const PickleValue *v) { return v->kind == PICKLE_DICT || is_call(v, IS_DICT); }
static bool is_tensor(const PickleValue *v) {
    return is_call(v, IS_TENSOR_V2) || is_call(v, IS_TENSOR_V3) || is_call(v, IS_PARAMETER);
}

// Tensors of a dictionary, and of those in it under "KEY.": other values are of no interest.
static bool collect(Reader *r, const PickleValue *dict, const char *prefix, int depth) {
    if (depth > MAX_DEPTH)
        return err_failed(r->err, "%s: expected dictionaries nested up to %d deep, found more; the file "
                          "is hostile", r->path, MAX_DEPTH);
    int first = dict->kind == PICKLE_CALL ? 2 : 0;
    for (int i = first; i + 1 < dict->n; i += 2) {
        if (++r->visited > MAX_VISITED)
            return err_failed(r->err, "%s: expected at most %d values, found more; the file is hostile",
                              r->path, MAX_VISITED);
        const PickleValue *key = dict->item[i], *value = dict->item[i + 1];
        if (key->kind != PICKLE_TEXT || (!is_tensor(value) && !is_dict(value))) continue;
        if (strlen(prefix) + key->bytes > 4096)
            return bad_tensor(r, prefix, "a name of more than 4096 bytes");
        r->name_bytes += strlen(prefix) + key->bytes;
        if (r->name_bytes > MAX_NAME_BYTES)
            return err_failed(r->err, "%s: expected names of at most %d MiB in all, found more; the file is "
                              "hostile", r->path, MAX_NAME_BYTES >> 20);
        char *name = mem_printf(r->parent, "%s%.*s", prefix, (int)key->bytes, key->text);
        if (is_tensor(value)) {
            if (!add_tensor(r, name, value)) return false;
            continue;
        }
        char *below = mem_printf(NULL, "%s.", name);
        bool ok = collect(r, value, below, depth + 1);
        mem_free(below);
        mem_free(name);
        if (!ok) return false;
    }
    return true;
}

// Trainers wrap the weights: {"state_dict": {...}, "epoch": 3}.
static const PickleValue *unwrap(const PickleValue *root) {
    static const char *const wrappers[] = {"state_dict", "model_state_dict", "params_ema", "params",
                                           "model", "module"};
    int first = root->kind == PICKLE_CALL ? 2 : 0;
    for (int i = first; i + 1 < root->n; i += 2)
        if (is_tensor(root->item[i + 1])) return root;
    for (size_t w = 0; w < COUNT_OF(wrappers); w++)
        for (int i = first; i + 1 < root->n; i += 2)
            if (pickle_is(root->item[i], PICKLE_TEXT, wrappers[w]) && is_dict(root->item[i + 1]))
                return root->item[i + 1];
    return root;
}

// The one member "FOLDER/data.pkl".
static const ZipMember *find_pickle(Reader *r) {
    const ZipMember *found = NULL;
    for (int i = 0; i < r->zip.n; i++) {
        const char *name = r->zip.members[i].name, *slash = strchr(name, '/');
        if (strcmp(slash ? slash + 1 : name, "data.pkl")) continue;
        if (found) {
            err_failed(r->err, "%s: expected one data.pkl, found two; the file is damaged", r->path);
            return NULL;
        }
        found = &r->zip.members[i];
        r->folder = mem_strndup(r->parent, name, slash ? (size_t)(slash + 1 - name) : 0);
    }
    if (!found)
        err_failed(r->err, "%s: expected a PyTorch checkpoint (a data.pkl in the zip archive), found "
                   "none; is it another kind of archive?", r->path);
    return found;
}

static bool check_sums(Reader *r, const ZipMember *pickle) {
    for (int i = 0; i < r->zip.n; i++) {
        const ZipMember *m = &r->zip.members[i];
        if ((m == pickle || r->size <= CHECKED_ARCHIVE) && !zip_check(r->path, m, r->err)) return false;
    }
    return true;
}

bool pytorch_read(void *parent, const char *path, const uint8_t *data, size_t size, WeightList *out,
                  Error *err) {
    void *scratch = mem_new(NULL, 1); // tree and directory
    Reader r = {.parent = parent, .path = path, .data = data, .size = size, .out = out,
                .err = err};
    bool ok = zip_read(scratch, path, data, size, &r.zip, err);
    const ZipMember *pickle = ok ? find_pickle(&r) : NULL;
    if (pickle && !check_sums(&r, pickle)) pickle = NULL;
    PickleValue *root = pickle ? pickle_read(scratch, path, pickle->data, (size_t)pickle->size,
                                             global_allowed, err) : NULL;
    if (root) {
        char *order_name = mem_printf(scratch, "%sbyteorder", r.folder);
        const ZipMember *order = zip_find(&r.zip, order_name);
        ok = !order || (order->size >= 6 && !memcmp(order->data, "little", 6)) ||
             err_failed(err, "%s: expected little-endian numbers, found another byte order; save it anew "
                        "on a common machine", path);
        ok = ok && (is_dict(root) ||
                    err_failed(err, "%s: expected a dictionary of tensors, found another value; save "
                               "the state_dict", path));
        ok = ok && collect(&r, unwrap(root), "", 0);
    }
    mem_free(scratch);
    return ok && root && weight_list_check(path, out, size, false, err);
}
