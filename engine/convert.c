// convert.c: see convert.h.
#include "engine/convert.h"

#include <float.h>
#include <math.h>

#include "backend/exact.h"
#include "backend/os.h"
#include "backend/quant.h"
#include "engine/gguf.h"
#include "engine/safetensors.h"

// A span is converted by all threads before it is written: small enough that an interrupt is heard
// within a second, large enough that starting threads costs nothing.
enum { SPAN_ELEMENTS = 1 << 22, SPAN_BYTES = 1 << 24, BATCH = 1 << 14, MAX_THREADS = 256 };

typedef struct Item {
    Conversion *of;
    const char *name;
    DType type;       // in the new file
    int ndim;
    int64_t shape[MAX_DIMS];
    int64_t row, rows; // elements of a row; rows: what is read and converted at a time
    BoundWeight from; // of `type` where bytes are copied; else as f32, scales folded in
    bool copied;
    bool measured;    // fp8 made here: whether it needs a scale is seen before writing
    float scale;      // fp8: that the numbers in the file are multiplied with; else 1
} Item;

typedef struct Meta { const char *key, *value; } Meta;

struct Conversion {
    ConvertFormat format;
    DType type;
    const char *architecture;
    ARRAY(Item *) items;
    ARRAY(Meta) meta;
    ARRAY(const char *) parts; // prefixes of conversion_mark
    ConvertReport report;
    // While writing:
    const ConvertOptions *options;
    int threads;
    const char *stage;
    uint64_t done, total;
    struct { const Item *of; uint8_t *v; uint64_t at, n, cap; } span; // bytes [at, at + n) of `of`
};

// ---- formats ------------------------------------------------------------------------------------

bool convert_format(const char *path, ConvertFormat *out, Error *err) {
    *out = str_ends(path, ".gguf") ? CONVERT_GGUF : CONVERT_SAFETENSORS;
    return *out == CONVERT_GGUF || str_ends(path, ".safetensors") ||
           err_set(err, STATUS_USAGE, "--output: expected a name that ends with .safetensors or "
                   ".gguf, found %.200s", path);
}

static bool holds(ConvertFormat format, DType t) {
    return format == CONVERT_GGUF ? gguf_type(t) >= 0 : dtype_info[t].file_name != NULL;
}

#define FOR_GGUF "q8_0, f16, bf16 or another type that it has, or --output FILE.safetensors"
#define FOR_SAFETENSORS "f16, bf16, f32, fp8_e4m3 or fp8_e5m2, or --output FILE.gguf"

bool convert_check_type(ConvertFormat format, DType type, Error *err) {
    if (type == DT_COUNT || holds(format, type)) return true;
    return err_set(err, STATUS_USAGE, "--type: expected a type that %s files have, found %s; take "
                   "%s", format == CONVERT_GGUF ? "GGUF" : "safetensors", dtype_name(type),
                   format == CONVERT_GGUF ? FOR_GGUF : FOR_SAFETENSORS);
}

Conversion *conversion_new(void *parent, ConvertFormat format, DType type) {
    Conversion *c = MEM_NEW(parent, Conversion);
    c->format = format;
    c->type = type;
    c->architecture = "unknown";
    return c;
}

void conversion_architecture(Conversion *c, const char *name) {
    c->architecture = mem_strdup(c, name);
}

void conversion_meta(Conversion *c, const char *key, const char *value) {
    for (int i = 0; i < c->meta.n; i++)
        if (!strcmp(c->meta.v[i].key, key)) return;
    Meta m = {mem_strdup(c, key), mem_strdup(c, value)};
    ARR_PUSH(c, &c->meta, m);
}

// ---- which type ---------------------------------------------------------------------------------

static bool is_fp8(DType t) { return t == DT_F8_E4M3 || t == DT_F8_E5M2; }

// What the pieces have in common: their type (DT_COUNT: they differ) and scale.
typedef struct Stored { DType type; float scale; bool one_scale; } Stored;

static Stored stored_as(const BoundWeight *b) { // after folding
    Stored s = {b->piece[0].t->dtype, b->piece[0].scale, true};
    for (int i = 1; i < b->pieces; i++) {
        if (b->piece[i].t->dtype != s.type) s.type = DT_COUNT;
        if (b->piece[i].scale != s.scale) s.one_scale = false;
    }
    return s;
}

// The type of a tensor that is not to be made smaller; DT_COUNT: the format has it not.
static DType own_type(const Conversion *c, const Stored *s, bool widen) {
    if (s->type == DT_COUNT) return DT_F32;
    if (holds(c->format, s->type)) return s->type;
    if (!widen) return DT_COUNT;
    return is_fp8(s->type) && s->one_scale && s->scale == 1 ? DT_F16 : DT_F32;
}

static bool can_pack(const Item *it, DType type) { // apart from the length of its rows
    return it->ndim == 2 && (!is_fp8(type) || str_ends(it->name, ".weight"));
}

static DType choose_type(Conversion *c, const Item *it, const Stored *s, const ConvertRules *r) {
    DType own = own_type(c, s, r->widen || r->type != DT_COUNT);
    if (own == DT_COUNT) return own;
    if (c->format == CONVERT_GGUF && it->ndim < 2) return DT_F32;
    if (r->type == DT_COUNT) return own;
    if (!dtype_is_packed(r->type)) return r->type;
    if (it->ndim < 2) return own;
    bool whole = it->row % dtype_block(r->type) == 0;
    if (!r->keep && can_pack(it, r->type) && whole) return r->type;
    if (own == r->type) return own;
    if (r->keep || !can_pack(it, r->type)) {
        c->report.kept++;
    } else if (c->report.odd++ == 0) {
        c->report.odd_name = it->name;
        c->report.odd_row = it->row;
    }
    return own;
}

static bool lacks_type(const Conversion *c, const char *name, DType t, Error *err) {
    bool gguf = c->format == CONVERT_GGUF;
    return err_failed(err, "tensor %.100s: expected a type that %s files have, found %s; give "
                      "--type %s", name, gguf ? "GGUF" : "safetensors", dtype_name(t),
                      gguf ? FOR_GGUF : FOR_SAFETENSORS);
}

// ---- tensors ------------------------------------------------------------------------------------

static Item *new_item(Conversion *c, const char *name, int ndim, const int64_t *shape) {
    Item *it = MEM_NEW(c, Item);
    it->of = c;
    it->name = mem_strdup(c, name);
    it->ndim = ndim;
    it->row = 1;
    it->rows = 1;
    memcpy(it->shape, shape, sizeof *shape * (size_t)ndim);
    for (int i = 0; i + 1 < ndim; i++) it->rows *= shape[i];
    if (ndim) it->row = shape[ndim - 1];
    return it;
}

// Tensors of one dimension are read number by number, so that no row is larger than memory.
static void split_line(Item *it) {
    if (it->ndim > 1) return;
    for (int i = 0; i < it->from.pieces; i++)
        if (dtype_block(it->from.piece[i].t->dtype) > 1) return;
    it->rows *= it->row;
    it->row = 1;
    it->from.ndim = 2;
    it->from.shape[0] = it->rows;
    it->from.shape[1] = 1;
}

static void finish_item(Item *it, DType read_as) {
    uint64_t count = (uint64_t)it->row * (uint64_t)it->rows;
    it->from.dtype = read_as;
    it->from.bytes = dtype_bytes(read_as, count);
    it->from.name = it->name;
    split_line(it);
    ARR_PUSH(it->of, &it->of->items, it);
}

bool conversion_add(Conversion *c, const char *name, const BoundWeight *from,
                    const ConvertRules *rules, Error *err) {
    if (!from->pieces) return true;
    Item *it = new_item(c, name, from->ndim, from->shape);
    it->from = *from;
    for (int i = 0; from->scale != 1 && i < from->pieces; i++)
        it->from.piece[i].scale = from->scale;
    it->from.scale = 1;
    Stored s = stored_as(&it->from);
    it->type = choose_type(c, it, &s, rules);
    if (it->type == DT_COUNT) return lacks_type(c, name, s.type, err);
    it->copied = s.type == it->type && s.one_scale && (s.scale == 1 || is_fp8(it->type));
    it->scale = it->copied ? s.scale : 1;
    it->measured = is_fp8(it->type) && !it->copied && str_ends(name, ".weight");
    for (int i = 0; i < from->pieces && it->copied; i++) it->from.piece[i].scale = 1;
    finish_item(it, it->copied ? it->type : DT_F32);
    return true;
}

bool conversion_copy(Conversion *c, const char *name, const Weights *w, const WeightTensor *t,
                     Error *err) {
    if (!holds(c->format, t->dtype)) return lacks_type(c, name, t->dtype, err);
    Item *it = new_item(c, name, t->ndim, t->shape);
    it->type = t->dtype;
    it->copied = true;
    it->scale = 1;
    it->from = (BoundWeight){.source = w, .ndim = t->ndim, .scale = 1, .pieces = 1,
                             .piece = {{t, 0, t->ndim ? t->shape[0] : 1, 1}}};
    memcpy(it->from.shape, t->shape, sizeof t->shape);
    finish_item(it, t->dtype);
    return true;
}

// A scale beside a weight: bind_weights reads it with that.
static bool is_scale(const Weights *w, const char *name) {
    static const char *const ends[] = {".scale_weight", ".weight_scale"};
    bool found = false;
    for (size_t i = 0; i < COUNT_OF(ends) && !found; i++) {
        if (!str_ends(name, ends[i])) continue;
        char *weight = mem_printf(NULL, "%.*s.weight", (int)(strlen(name) - strlen(ends[i])), name);
        found = weights_find(w, weight) != NULL;
        mem_free(weight);
    }
    return found;
}

bool conversion_add_all(Conversion *c, const char *prefix, const Weights *w,
                        const ConvertRules *rules, Error *err) {
    int n = weights_count(w), wanted = 0, others = 0;
    BindWant *wants = MEM_ARRAY(c, BindWant, MAX(n, 1));
    const char **other = MEM_ARRAY(c, const char *, n + 1);
    for (int i = 0; i < n; i++) {
        const WeightTensor *t = weights_at(w, i);
        if (bind_matches(t->name, bind_marks) || is_scale(w, t->name)) continue;
        if (!dtype_is_float(t->dtype)) {
            other[others++] = t->name;
            continue;
        }
        BindWant *want = &wants[wanted++];
        *want = (BindWant){.name = t->name, .ndim = t->ndim};
        memcpy(want->shape, t->shape, sizeof t->shape);
    }
    const BindOptions options = {.type = DT_COUNT, .ignore = other};
    const BoundWeight *bound = bind_weights(c, w, wants, wanted, &options, err);
    bool ok = bound != NULL;
    char *name = NULL;
    for (int i = 0; ok && i < wanted; i++, mem_free(name)) {
        name = mem_printf(NULL, "%s%s", prefix, bound[i].name);
        ok = conversion_add(c, name, &bound[i], rules, err);
    }
    for (int i = 0; ok && i < others; i++, mem_free(name)) {
        name = mem_printf(NULL, "%s%s", prefix, other[i]);
        ok = conversion_copy(c, name, w, weights_find(w, other[i]), err);
    }
    return ok || err_prefix(err, "%s", weights_path(w));
}

void conversion_mark(Conversion *c, const char *prefix) {
    char *copy = mem_strdup(c, prefix);
    ARR_PUSH(c, &c->parts, copy);
}

// ---- converting a span --------------------------------------------------------------------------

typedef struct Size { float largest; double squares; } Size; // of numbers: magnitude, sum

// What one thread does: rows [from, to) of an item into `out` (NULL: only their size).
typedef struct Share {
    const Item *item;
    int64_t from, to;
    uint8_t *out;
    Size size;
    bool ok;
    Error err;
} Share;

static float type_limit(DType t) { // magnitudes below it stay finite; blocks have scales in f16
    return t == DT_F16 || dtype_block(t) > 1 ? 65520.0f : t == DT_BF16 ? 0x1.ffp127f : INFINITY;
}

static bool out_of_range(const Item *it, const float *x, int64_t n, Error *err) {
    float limit = type_limit(it->type);
    for (int64_t i = 0; i < n; i++) {
        if (fabsf(x[i]) < limit) continue;
        if (!isfinite(x[i]))
            return err_failed(err, "tensor %.100s: expected finite numbers, found %s; the file is "
                              "damaged (where types stay it is copied as it is)", it->name,
                              isnan(x[i]) ? "NaN" : "infinity");
        return err_failed(err, "tensor %.100s: expected numbers that %s can hold, found %g; take "
                          "bf16 or f32", it->name, dtype_name(it->type), (double)x[i]);
    }
    return true;
}

static bool convert_batch(Share *w, float *x, int64_t at, int64_t n, Error *err) { // n elements
    const Item *it = w->item;
    const ExactRow *row = exact_row();
    uint32_t bits = row->largest(x, (size_t)n);
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    if (!(largest < type_limit(it->type))) return out_of_range(it, x, n, err);
    if (!w->out) {
        w->size.largest = MAX(w->size.largest, largest);
        w->size.squares += row->squares(x, (size_t)n);
        return true;
    }
    uint8_t *out = w->out + dtype_bytes(it->type, (uint64_t)at);
    float inverse = 1 / it->scale;
    for (int64_t i = 0; it->scale != 1 && i < n; i++) x[i] *= inverse;
    if (dtype_is_packed(it->type)) quant_encode(it->type, x, out, n);
    else dtype_convert(it->type, out, DT_F32, x, (size_t)n);
    return true;
}

static void run_work(void *user) {
    Share *w = user;
    const Item *it = w->item;
    uint64_t row = bound_row_bytes(&it->from);
    if (it->copied && w->out) {
        w->ok = bound_read(&it->from, (uint64_t)w->from * row, w->out,
                           (uint64_t)(w->to - w->from) * row, &w->err);
        return;
    }
    int64_t rows = MAX(1, BATCH / it->row);
    float *x = MEM_ARRAY(NULL, float, rows * it->row);
    w->ok = true;
    for (int64_t at = w->from; w->ok && at < w->to; at += rows) {
        int64_t n = MIN(rows, w->to - at);
        w->ok = bound_read(&it->from, (uint64_t)at * row, x, (uint64_t)n * row, &w->err) &&
                convert_batch(w, x, (at - w->from) * it->row, n * it->row, &w->err);
    }
    mem_free(x);
}

// Rows [from, to), shared among the threads. `size` grows; it may be NULL.
static bool run_threads(Conversion *c, const Item *it, int64_t from, int64_t to, uint8_t *out,
                        Size *size, Error *err) {
    int n = (int)MIN((int64_t)c->threads, to - from);
    if (it->copied || (to - from) * it->row < 4 * BATCH) n = 1;
    Share *work = MEM_ARRAY(NULL, Share, n);
    Thread *thread[MAX_THREADS] = {NULL};
    for (int i = 0; i < n; i++) {
        int64_t first = from + (to - from) * i / n;
        uint64_t skip = dtype_bytes(it->type, (uint64_t)((first - from) * it->row));
        work[i] = (Share){.item = it, .from = first, .to = from + (to - from) * (i + 1) / n,
                          .out = out ? out + skip : NULL};
        if (i + 1 < n) thread[i] = thread_start(NULL, run_work, &work[i]);
        if (!thread[i]) run_work(&work[i]); // the last, and where no thread can be had
    }
    bool ok = true;
    for (int i = 0; i < n; i++) {
        if (thread[i]) thread_join(thread[i]);
        if (ok && !work[i].ok && err) *err = work[i].err;
        ok = ok && work[i].ok;
        if (size) size->largest = MAX(size->largest, work[i].size.largest);
        if (size) size->squares += work[i].size.squares;
    }
    mem_free(work);
    // A file that is read once need not stay in memory.
    uint64_t row = bound_row_bytes(&it->from);
    bound_advise(&it->from, (uint64_t)from * row, (uint64_t)(to - from) * row, MAP_DONE);
    return ok;
}

static bool go_on(Conversion *c, uint64_t more, Error *err) {
    const ConvertOptions *o = c->options;
    if (o->cancel && o->cancel->asked && o->cancel->asked(o->cancel->user))
        return err_set(err, STATUS_CANCELLED, "interrupted; nothing was written");
    c->done += more;
    if (o->progress) o->progress(o->user, c->stage, c->done, c->total);
    return true;
}

static int64_t span_rows(const Item *it, int64_t from) {
    int64_t row = MAX(it->row, 1), bytes = (int64_t)MAX(dtype_bytes(it->type, (uint64_t)row), 1);
    int64_t rows = MAX(1, MIN(SPAN_ELEMENTS / row, SPAN_BYTES / bytes));
    return MIN(rows, it->rows - from);
}

// Makes the span that begins at byte `offset`, the beginning of a row.
static bool make_span(Conversion *c, const Item *it, uint64_t offset, Error *err) {
    uint64_t row = dtype_bytes(it->type, (uint64_t)it->row);
    int64_t from = (int64_t)(offset / row), rows = span_rows(it, from);
    uint64_t n = (uint64_t)rows * row;
    if (n > c->span.cap) {
        os_block_free(c->span.v);
        c->span.v = os_block_new(n);
        c->span.cap = c->span.v ? n : 0;
        if (!c->span.v)
            return err_failed(err, "tensor %.100s: expected memory for a row of it, %llu bytes, "
                              "found less", it->name, (unsigned long long)n);
    }
    c->span.of = NULL;
    if (!run_threads(c, it, from, from + rows, c->span.v, NULL, err)) return false;
    c->span.of = it;
    c->span.at = offset;
    c->span.n = n;
    return go_on(c, n, err);
}

static bool fill(void *user, uint64_t offset, void *to, size_t n, Error *err) {
    Item *it = user;
    Conversion *c = it->of;
    uint8_t *out = to;
    while (n) {
        bool inside = c->span.of == it && offset >= c->span.at && offset < c->span.at + c->span.n;
        if (!inside && !make_span(c, it, offset, err)) return false;
        uint64_t skip = offset - c->span.at;
        size_t part = (size_t)MIN((uint64_t)n, c->span.n - skip);
        memcpy(out, c->span.v + skip, part);
        out += part, offset += part, n -= part;
    }
    return true;
}

// ---- writing ------------------------------------------------------------------------------------

static uint64_t item_bytes(const Item *it) {
    return dtype_bytes(it->type, (uint64_t)it->row * (uint64_t)it->rows);
}

static void begin_stage(Conversion *c, const char *stage, uint64_t total) {
    c->stage = stage;
    c->done = 0;
    c->total = total;
}

// Does fp8 lose range on these numbers: past its largest, or half of them below its smallest normal
// number, where mantissa bits are lost? Then their largest becomes the type's largest; else 1.
static float fp8_scale(const Item *it, const Size *size) {
    bool e4m3 = it->type == DT_F8_E4M3;
    float top = e4m3 ? 448.0f : 57344.0f;
    double rms = sqrt(size->squares / (double)MAX(it->row * it->rows, 1));
    if (size->largest <= top && rms >= (e4m3 ? 0x1p-5 : 0x1p-13)) return 1;
    float scale = size->largest / top;
    return scale >= FLT_MIN ? scale : 1; // all zeros, or hardly more
}

static bool measure(Conversion *c, Error *err) {
    uint64_t total = 0;
    for (int i = 0; i < c->items.n; i++)
        if (c->items.v[i]->measured) total += item_bytes(c->items.v[i]);
    begin_stage(c, "measure", total);
    for (int i = 0; i < c->items.n; i++) {
        Item *it = c->items.v[i];
        if (!it->measured) continue;
        Size size = {0};
        for (int64_t at = 0, rows; at < it->rows && it->row; at += rows) {
            rows = span_rows(it, at);
            if (!run_threads(c, it, at, at + rows, NULL, &size, err) ||
                !go_on(c, (uint64_t)(rows * it->row), err))
                return false;
        }
        it->scale = fp8_scale(it, &size);
    }
    return true;
}

static void count_items(Conversion *c) {
    ConvertReport *r = &c->report;
    for (int i = 0; i < c->items.n; i++) {
        const Item *it = c->items.v[i];
        r->tensors++;
        r->bytes += item_bytes(it);
        r->by_type[it->type]++;
        r->type_bytes[it->type] += item_bytes(it);
    }
}

// llama.cpp's numbers for "mostly of this type" (LLAMA_FTYPE).
static uint32_t file_type(const Conversion *c) {
    static const struct { DType type; uint32_t number; } numbers[] = {
        {DT_F32, 0},   {DT_F16, 1},   {DT_Q4_0, 2},  {DT_Q4_1, 3},  {DT_Q8_0, 7},    {DT_Q5_0, 8},
        {DT_Q5_1, 9},  {DT_Q2_K, 10}, {DT_Q3_K, 12}, {DT_Q4_K, 15}, {DT_Q5_K, 17},   {DT_Q6_K, 18},
        {DT_IQ4_NL, 25}, {DT_IQ4_XS, 30}, {DT_BF16, 32},
    };
    const uint64_t *bytes = c->report.type_bytes;
    DType most = c->type;
    for (int t = 0; t < DT_COUNT && c->type == DT_COUNT; t++)
        if (most == DT_COUNT || bytes[t] > bytes[most]) most = (DType)t;
    for (size_t i = 0; i < COUNT_OF(numbers); i++)
        if (numbers[i].type == most) return numbers[i].number;
    return 0;
}

static bool write_gguf(Conversion *c, const char *path, Error *err) {
    GgufWriter *w = gguf_writer(c);
    gguf_put_text(w, "general.architecture", c->architecture);
    gguf_put_u32(w, "general.quantization_version", 2);
    gguf_put_u32(w, "general.file_type", file_type(c));
    for (int i = 0; i < c->meta.n; i++) gguf_put_text(w, c->meta.v[i].key, c->meta.v[i].value);
    static const int64_t one = 1;
    for (int i = 0; i < c->items.n; i++) {
        Item *it = c->items.v[i];
        gguf_put_tensor(w, it->name, it->type, MAX(it->ndim, 1), it->ndim ? it->shape : &one, fill,
                        it);
    }
    return gguf_write(w, path, err);
}

static bool is_in_part(const Item *it, const char *prefix) {
    return is_fp8(it->type) && !strncmp(it->name, prefix, strlen(prefix)) &&
           str_ends(it->name, ".weight");
}

// ComfyUI's marker for a part, and a scale for every matrix of it: readers expect all or none.
static void put_scales(Conversion *c, StWriter *w, const char *prefix) {
    static const uint8_t zeros[2];
    static const int64_t two = 2;
    const Item *first = NULL;
    for (int i = 0; i < c->items.n && !first; i++)
        if (is_in_part(c->items.v[i], prefix) && c->items.v[i]->scale != 1) first = c->items.v[i];
    if (!first) return;
    for (int i = 0; i < c->items.n; i++) {
        const Item *it = c->items.v[i];
        if (!is_in_part(it, prefix)) continue;
        int base = (int)(strlen(it->name) - strlen(".weight"));
        char *name = mem_printf(NULL, "%.*s.scale_weight", base, it->name);
        st_put(w, name, DT_F32, 0, NULL, &it->scale);
        mem_free(name);
    }
    char *name = mem_printf(NULL, "%sscaled_fp8", prefix);
    st_put(w, name, first->type, 1, &two, zeros);
    mem_free(name);
}

static bool write_safetensors(Conversion *c, const char *path, Error *err) {
    StWriter *w = st_writer(c);
    conversion_meta(c, "format", "pt"); // transformers refuses files without it
    for (int i = 0; i < c->meta.n; i++) st_put_meta(w, c->meta.v[i].key, c->meta.v[i].value);
    for (int i = 0; i < c->items.n; i++) {
        Item *it = c->items.v[i];
        st_put_fill(w, it->name, it->type, it->ndim, it->shape, fill, it);
    }
    for (int i = 0; i < c->parts.n; i++) put_scales(c, w, c->parts.v[i]);
    return st_write(w, path, err);
}

bool conversion_write(Conversion *c, const char *path, const ConvertOptions *options,
                      ConvertReport *report, Error *err) {
    double start = os_seconds();
    c->options = options;
    c->threads = MAX(1, MIN(options->threads ? options->threads : os_cpu_count(), MAX_THREADS));
    count_items(c);
    bool ok = measure(c, err);
    begin_stage(c, "write", c->report.bytes);
    ok = ok && go_on(c, 0, err);
    if (ok && c->format == CONVERT_GGUF) ok = write_gguf(c, path, err);
    else if (ok) ok = write_safetensors(c, path, err);
    os_block_free(c->span.v);
    c->span.v = NULL;
    c->span.cap = 0;
    c->span.of = NULL;
    c->report.seconds = os_seconds() - start;
    if (report) *report = c->report;
    return ok;
}
