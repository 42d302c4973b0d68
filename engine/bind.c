// bind.c: see bind.h.
#include "engine/bind.h"

#include <math.h>
#include <stdlib.h>

#include "backend/quant.h"

// ---- what is wrong with a file ------------------------------------------------------------------

typedef struct Lines { ARRAY(const char *) text; } Lines;
typedef struct Binding {
    const Weights *w;
    const BindOptions *options;
    void *scratch;
    Lines missing, wrong, unexpected;
    ARRAY(const WeightTensor *) used;
} Binding;

#define PROBLEM(b, kind, ...) ARR_PUSH((b)->scratch, &(b)->kind.text, mem_printf((b)->scratch, __VA_ARGS__))

// "[3072, 64]"
static const char *shape_text(void *scratch, int ndim, const int64_t *shape) {
    char text[MAX_DIMS * 22 + 3] = "[";
    for (int i = 0; i < ndim; i++) {
        size_t n = strlen(text);
        snprintf(text + n, sizeof text - n, "%s%lld", i ? ", " : "", (long long)shape[i]);
    }
    return mem_printf(scratch, "%s]", text);
}

// One error for all: up to ten lines, shared among the kinds that there are.
static bool report(const Binding *b, int wants, Error *err) {
    const Lines *lists[] = {&b->wrong, &b->missing, &b->unexpected};
    static const char *const kinds[] = {"wrong", "missing", "unexpected"};
    int present = 0;
    for (size_t k = 0; k < COUNT_OF(lists); k++) present += lists[k]->text.n > 0;
    if (!present) return true;
    err_failed(err, "%s: expected the %d tensors of this model, found %d missing, %d wrong, %d unexpected; "
               "check that the file is of this kind of model and complete", weights_path(b->w), wants,
               b->missing.text.n, b->wrong.text.n, b->unexpected.text.n);
    int share = ERROR_ITEMS / present;
    for (int turn = 0; turn < 2; turn++) // the first turn gives each kind its share, then the rest
        for (size_t k = 0; k < COUNT_OF(lists); k++)
            for (int i = turn ? share : 0; i < (turn ? lists[k]->text.n : MIN(share, lists[k]->text.n)); i++)
                err_item(err, "%s: %s", kinds[k], lists[k]->text.v[i]);
    return false;
}

const char *const bind_marks[] = {"scaled_fp8", "*.scale_input", "*.input_scale", "*.comfy_quant",
                                  "*.scaled_fp8", NULL};

bool bind_matches(const char *name, const char *const *patterns) {
    for (; patterns && *patterns; patterns++) {
        const char *p = *patterns;
        if (p[0] == '*') {
            size_t n = strlen(name), m = strlen(p + 1);
            if (n >= m && !strcmp(name + n - m, p + 1)) return true;
        } else if (!strncmp(name, p, strlen(p))) {
            return true;
        }
    }
    return false;
}

// ---- pieces -------------------------------------------------------------------------------------

// Splits "NAME[a:b/n]" in place; without brackets a part is the whole: 0:1/1.
static bool parse_piece(char *name, int *from, int *to, int *parts) {
    *from = 0, *to = *parts = 1;
    size_t n = strlen(name);
    char *open = strrchr(name, '[');
    if (!open || name[n - 1] != ']') return true;
    int a, b, of = 2, end = 0;
    bool ok = (sscanf(open, "[%1d:%1d/%1d]%n", &a, &b, &of, &end) == 3 && !open[end]) ||
              (of = 2, end = 0, sscanf(open, "[%1d:%1d]%n", &a, &b, &end) == 2 && end && !open[end]);
    if (!ok || a < 0 || a >= b || b > of || of > 8) return false;
    *open = 0;
    *from = a, *to = b, *parts = of;
    return true;
}

static int64_t outer_rows(const WeightTensor *t) { return t->ndim ? t->shape[0] : 1; }

// Are the dimensions after the outermost equal, but for ones at the end?
static bool same_inner(const WeightTensor *t, const BindWant *want) {
    for (int i = 1; i < MAX(t->ndim, want->ndim); i++)
        if ((i < t->ndim ? t->shape[i] : 1) != (i < want->ndim ? want->shape[i] : 1)) return false;
    return true;
}

static bool loadable(DType t) {
    return t == DT_F32 || t == DT_F16 || t == DT_BF16 || t == DT_F64 || dtype_is_packed(t);
}

// The scale beside "NAME.weight": "NAME.scale_weight" or "NAME.weight_scale".
static bool find_scale(Binding *b, const WeightTensor *t, float *scale) {
    static const char *const forms[] = {"%.*s.scale_weight", "%.*s.weight_scale"};
    *scale = 1;
    if (!str_ends(t->name, ".weight")) return true;
    int base = (int)strlen(t->name) - (int)strlen(".weight");
    for (size_t i = 0; i < COUNT_OF(forms); i++) {
        const WeightTensor *s = weights_find(b->w, mem_printf(b->scratch, forms[i], base, t->name));
        if (!s) continue;
        ARR_PUSH(b->scratch, &b->used, s);
        char raw[16];
        Error why = {0};
        if (s->count != 1 || !loadable(s->dtype) || s->bytes > sizeof raw || dtype_block(s->dtype) > 1) {
            PROBLEM(b, wrong, "%s: expected one number, found %s %s", s->name, dtype_name(s->dtype),
                    shape_text(b->scratch, s->ndim, s->shape));
            return false;
        }
        if (!weights_read(b->w, s, 0, raw, s->bytes, &why)) {
            PROBLEM(b, wrong, "%s: %s", s->name, why.text);
            return false;
        }
        if (dtype_is_packed(s->dtype)) quant_decode(s->dtype, raw, scale, 1);
        else dtype_convert(DT_F32, scale, s->dtype, raw, 1);
        if (isfinite(*scale)) return true;
        PROBLEM(b, wrong, "%s: expected a finite number, found %g", s->name, (double)*scale);
        return false;
    }
    return true;
}

// ---- one wanted tensor --------------------------------------------------------------------------

static int name_pieces(const Binding *b, const char *name, const char **out) {
    if (b->options->names) return b->options->names(b->options->user, name, out, b->scratch);
    out[0] = name;
    return 1;
}

// Fills bound->piece from the file. False: a problem was noted, or nothing is there (pieces 0).
static bool find_pieces(Binding *b, const BindWant *want, BoundWeight *bound) {
    const char *names[BIND_MAX_PIECES] = {0};
    int count = name_pieces(b, want->name, names), found = 0;
    const char *absent = want->name;
    for (int i = 0; i < count; i++) {
        int from, to, parts;
        char *name = mem_strdup(b->scratch, names[i]);
        if (!parse_piece(name, &from, &to, &parts)) {
            PROBLEM(b, wrong, "%s: not a piece of a tensor: %s; this is a defect", want->name, names[i]);
            return false;
        }
        const WeightTensor *t = weights_find(b->w, name);
        if (!t) {
            absent = name;
            continue;
        }
        ARR_PUSH(b->scratch, &b->used, t);
        int64_t rows = outer_rows(t);
        if (rows % parts) {
            PROBLEM(b, wrong, "%s: expected a multiple of %d rows, found %s", t->name, parts,
                    shape_text(b->scratch, t->ndim, t->shape));
            return false;
        }
        bound->piece[found++] = (BindPiece){t, rows / parts * from, rows / parts * (to - from), 1};
    }
    if (found == count && count > 0) bound->pieces = count;
    else if (found > 0 || !want->optional) PROBLEM(b, missing, "%s", absent);
    return bound->pieces > 0;
}

static DType device_type(const BoundWeight *bound, const BindWant *want, const BindOptions *o) {
    bool keep = o->type != DT_COUNT && dtype_is_packed(o->type) && bind_matches(want->name, o->keep);
    DType asked = keep ? DT_COUNT : o->type;
    const BindPiece *first = &bound->piece[0];
    DType type = first->t->dtype;
    bool same = type != DT_F64;
    for (int i = 1; i < bound->pieces; i++)
        same &= bound->piece[i].t->dtype == type && bound->piece[i].scale == first->scale;
    if (want->ndim < 2) return DT_F32;
    int64_t row = bound->shape[bound->ndim - 1];
    bool conv = want->layout == BIND_CONV;
    if (asked != DT_COUNT && row % dtype_block(asked) == 0 && !(conv && dtype_block(asked) > 1))
        return asked;
    if (!same || row % dtype_block(type) || (conv && dtype_block(type) > 1)) return DT_F32;
    return type;
}

static bool check_shape(Binding *b, const BindWant *want, const BoundWeight *bound) {
    int64_t rows = 0;
    bool ok = true;
    for (int i = 0; i < bound->pieces; i++) {
        const BindPiece *p = &bound->piece[i];
        rows += p->rows;
        int64_t inner = (int64_t)p->t->count / MAX(outer_rows(p->t), 1);
        ok &= same_inner(p->t, want);
        // A piece begins and ends with a whole block (of tensors in blocks with one dimension).
        ok &= p->row * inner % dtype_block(p->t->dtype) == 0 &&
              p->rows * inner % dtype_block(p->t->dtype) == 0;
        if (!loadable(p->t->dtype)) {
            PROBLEM(b, wrong, "%s: expected a type of real numbers, found %s", p->t->name,
                    dtype_name(p->t->dtype));
            return false;
        }
    }
    if (ok && rows == (want->ndim ? want->shape[0] : 1)) return true;
    const WeightTensor *t = bound->piece[0].t;
    PROBLEM(b, wrong, "%s: expected %s, found %s%s%s", t->name,
            shape_text(b->scratch, want->ndim, want->shape), shape_text(b->scratch, t->ndim, t->shape),
            bound->pieces > 1 ? " and more, for " : "", bound->pieces > 1 ? want->name : "");
    return false;
}

static void bind_one(Binding *b, void *parent, const BindWant *want, BoundWeight *bound) {
    *bound = (BoundWeight){.name = mem_strdup(parent, want->name), .source = b->w, .dtype = DT_F32,
                           .ndim = want->ndim, .layout = want->layout, .scale = 1};
    memcpy(bound->shape, want->shape, sizeof bound->shape);
    if (want->layout == BIND_CONV && want->ndim > 2) {
        int last = want->ndim - 1;
        memcpy(&bound->shape[1], &want->shape[2], sizeof(int64_t) * (size_t)(last - 1));
        bound->shape[last] = want->shape[1];
    }
    if (!find_pieces(b, want, bound) || !check_shape(b, want, bound)) return;
    for (int i = 0; i < bound->pieces; i++)
        if (!find_scale(b, bound->piece[i].t, &bound->piece[i].scale)) return;
    bound->dtype = device_type(bound, want, b->options);
    int64_t count = 1;
    for (int i = 0; i < bound->ndim; i++) count *= bound->shape[i];
    bound->bytes = dtype_bytes(bound->dtype, (uint64_t)count);
    bool device_scales = dtype_is_packed(bound->dtype); // what dequantises takes the scale along
    for (int i = 1; i < bound->pieces; i++)
        device_scales &= bound->piece[i].scale == bound->piece[0].scale;
    if (!device_scales) return;
    bound->scale = bound->piece[0].scale;
    for (int i = 0; i < bound->pieces; i++) bound->piece[i].scale = 1;
}

// ---- all of them --------------------------------------------------------------------------------

static int by_address(const void *a, const void *b) {
    uintptr_t x = (uintptr_t)*(const WeightTensor *const *)a, y = (uintptr_t)*(const WeightTensor *const *)b;
    return x < y ? -1 : x > y;
}

static void find_unexpected(Binding *b) {
    if (b->used.n) qsort(b->used.v, (size_t)b->used.n, sizeof *b->used.v, by_address);
    for (int i = 0; i < weights_count(b->w); i++) {
        const WeightTensor *t = weights_at(b->w, i);
        if (b->used.n && bsearch(&t, b->used.v, (size_t)b->used.n, sizeof *b->used.v, by_address)) continue;
        if (!bind_matches(t->name, bind_marks) && !bind_matches(t->name, b->options->ignore))
            PROBLEM(b, unexpected, "%s %s %s", t->name, dtype_name(t->dtype),
                    shape_text(b->scratch, t->ndim, t->shape));
    }
}

BoundWeight *bind_weights(void *parent, const Weights *w, const BindWant *wants, int count,
                          const BindOptions *options, Error *err) {
    static const BindOptions defaults = {.type = DT_COUNT};
    Binding b = {.w = w, .options = options ? options : &defaults, .scratch = mem_new(NULL, 1)};
    BoundWeight *bound = MEM_ARRAY(parent, BoundWeight, MAX(count, 1));
    for (int i = 0; i < count; i++) bind_one(&b, bound, &wants[i], &bound[i]);
    find_unexpected(&b);
    if (!report(&b, count, err)) {
        mem_free(bound);
        bound = NULL;
    }
    mem_free(b.scratch);
    return bound;
}

// ---- loading ------------------------------------------------------------------------------------

enum { SPAN = 2048 }; // elements converted at a time: a multiple of every block

static int64_t inner_count(const BoundWeight *b) { // elements of one outermost row
    int64_t n = 1;
    for (int i = 1; i < b->ndim; i++) n *= b->shape[i];
    return n;
}

uint64_t bound_row_bytes(const BoundWeight *b) {
    return dtype_bytes(b->dtype, b->ndim ? (uint64_t)b->shape[b->ndim - 1] : 1);
}

static void convert(const BoundWeight *b, const BindPiece *p, const void *from, void *to, int64_t n) {
    DType file = p->t->dtype;
    if (p->scale == 1 && !dtype_is_packed(file) && !dtype_is_packed(b->dtype)) {
        dtype_convert(b->dtype, to, file, from, (size_t)n);
        return;
    }
    float value[SPAN];
    if (dtype_is_packed(file)) quant_decode(file, from, value, n);
    else dtype_convert(DT_F32, value, file, from, (size_t)n);
    for (int64_t i = 0; p->scale != 1 && i < n; i++) value[i] *= p->scale;
    if (dtype_is_packed(b->dtype)) quant_encode(b->dtype, value, to, n);
    else dtype_convert(b->dtype, to, DT_F32, value, (size_t)n);
}

static bool as_stored(const BoundWeight *b, const BindPiece *p) {
    return p->t->dtype == b->dtype && p->scale == 1;
}

// Elements [at, at + n) of the file's tensor, converted; both are multiples of its block.
static bool read_span(const BoundWeight *b, const BindPiece *p, int64_t at, int64_t n, uint8_t *out,
                      Error *err) {
    DType file = p->t->dtype;
    uint64_t offset = dtype_bytes(file, (uint64_t)at);
    if (as_stored(b, p))
        return weights_read(b->source, p->t, offset, out, dtype_bytes(file, (uint64_t)n), err);
    enum { RAW = 64 << 10 };
    uint8_t raw[RAW];
    const int64_t span_bytes = (int64_t)dtype_bytes(file, SPAN), most = RAW / span_bytes * SPAN;
    for (int64_t done = 0, part; done < n; done += part) {
        part = MIN(most, n - done);
        uint64_t from = offset + dtype_bytes(file, (uint64_t)done);
        if (!weights_read(b->source, p->t, from, raw, dtype_bytes(file, (uint64_t)part), err)) return false;
        for (int64_t i = 0; i < part; i += SPAN)
            convert(b, p, raw + i / SPAN * span_bytes, out + dtype_bytes(b->dtype, (uint64_t)(done + i)),
                    MIN(SPAN, part - i));
    }
    return true;
}

// Elements [first, end) of the tensor in the file's order.
static bool read_plain(const BoundWeight *b, int64_t first, int64_t end, uint8_t *out, Error *err) {
    int64_t inner = inner_count(b), start = 0; // start: where the piece begins in the tensor
    for (int i = 0; i < b->pieces; i++) {
        const BindPiece *p = &b->piece[i];
        int64_t from = MAX(first, start), to = MIN(end, start + p->rows * inner);
        if (from < to && !read_span(b, p, p->row * inner + from - start, to - from,
                                    out + dtype_bytes(b->dtype, (uint64_t)(from - first)), err))
            return false;
        start += p->rows * inner;
    }
    return true;
}

// A convolution, an output channel at a time: [I, spatial] in the file becomes [spatial, I].
static bool read_conv(const BoundWeight *b, int64_t first, int64_t end, uint8_t *out, Error *err) {
    int64_t inner = inner_count(b), channels = b->shape[b->ndim - 1], spatial = inner / channels;
    size_t size = (size_t)dtype_size(b->dtype);
    uint8_t *row = MEM_ARRAY(NULL, uint8_t, 2 * (size_t)inner * size), *turned = row + (size_t)inner * size;
    bool ok = true;
    for (int64_t o = first / inner; ok && o * inner < end; o++) {
        ok = read_plain(b, o * inner, (o + 1) * inner, row, err);
        for (int64_t i = 0; ok && i < channels; i++)
            for (int64_t s = 0; s < spatial; s++)
                memcpy(turned + (size_t)(s * channels + i) * size,
                       row + (size_t)(i * spatial + s) * size, size);
        int64_t from = MAX(first, o * inner), to = MIN(end, (o + 1) * inner);
        memcpy(out + (size_t)(from - first) * size, turned + (size_t)(from - o * inner) * size,
               (size_t)(to - from) * size);
    }
    mem_free(row);
    return ok;
}

// The range as elements; false where it is not of whole rows inside the tensor.
static bool as_elements(const BoundWeight *b, uint64_t offset, uint64_t bytes, int64_t *first,
                        int64_t *end, Error *err) {
    uint64_t row = bound_row_bytes(b);
    int64_t elements = b->ndim ? b->shape[b->ndim - 1] : 1;
    if (b->pieces == 0 || offset % row || bytes % row || offset > b->bytes || bytes > b->bytes - offset)
        return err_failed(err, "%s: expected whole rows of %llu bytes inside %llu, found %llu at %llu; this "
                          "is a defect", b->name, (unsigned long long)row, (unsigned long long)b->bytes,
                          (unsigned long long)bytes, (unsigned long long)offset);
    *first = (int64_t)(offset / row) * elements;
    *end = *first + (int64_t)(bytes / row) * elements;
    return true;
}

static bool is_turned(const BoundWeight *b) {
    return b->layout == BIND_CONV && b->ndim > 2 && b->shape[b->ndim - 1] != inner_count(b);
}

bool bound_read(const BoundWeight *b, uint64_t offset, void *out, uint64_t bytes, Error *err) {
    int64_t first, end;
    if (!as_elements(b, offset, bytes, &first, &end, err)) return false;
    return (is_turned(b) ? read_conv : read_plain)(b, first, end, out, err);
}

void bound_advise(const BoundWeight *b, uint64_t offset, uint64_t bytes, MapAdvice advice) {
    int64_t first, end, inner = inner_count(b), start = 0;
    if (!as_elements(b, offset, bytes, &first, &end, NULL) || first == end) return;
    if (is_turned(b)) first = first / inner * inner, end = (end + inner - 1) / inner * inner;
    for (int i = 0; i < b->pieces; i++) {
        const BindPiece *p = &b->piece[i];
        int64_t from = MAX(first, start), to = MIN(end, start + p->rows * inner);
        if (from < to) {
            uint64_t at = dtype_bytes(p->t->dtype, (uint64_t)(p->row * inner + from - start));
            uint64_t n = dtype_bytes(p->t->dtype, (uint64_t)(to - from));
            weights_advise(b->source, p->t, at, n, advice);
        }
        start += p->rows * inner;
    }
}
