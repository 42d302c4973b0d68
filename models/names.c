// names.c: see names.h.
#include "models/names.h"

#include <ctype.h>
#include <stdlib.h>

// ---- names ------------------------------------------------------------------------------------

// How many characters of `name` the pattern covers (0: it does not begin the name); *block: the
// number that stands where the pattern has "#".
static size_t match(const char *pattern, const char *name, int *block) {
    const char *at = name;
    for (; *pattern; pattern++) {
        if (*pattern != '#') {
            if (*at++ != *pattern) return 0;
            continue;
        }
        size_t digits = strspn(at, "0123456789");
        if (!digits || digits > 6) return 0;
        *block = atoi(at);
        at += digits;
    }
    return (size_t)(at - name);
}

// The pattern with its number, and `rest` behind it (in front of a "[a:b]").
static const char *fill_in(void *scratch, const char *pattern, int block, const char *rest) {
    const char *bracket = strchr(pattern, '['), *number = strchr(pattern, '#');
    int end = bracket ? (int)(bracket - pattern) : (int)strlen(pattern);
    if (!bracket) bracket = "";
    if (!number) return mem_printf(scratch, "%.*s%s%s", end, pattern, rest, bracket);
    int head = (int)(number - pattern);
    return mem_printf(scratch, "%.*s%d%.*s%s%s", head, pattern, block, end - head - 1, number + 1,
                      rest, bracket);
}

int names_translate(const void *user, const char *name, const char **out, void *scratch) {
    const NameLayout *layout = user;
    for (int i = 0; i < layout->count; i++) {
        const NameRow *row = &layout->rows[i];
        int block = 0, n = 0;
        size_t covered = match(row->ours, name, &block);
        if (!covered) continue;
        for (; n < BIND_MAX_PIECES && row->theirs[n]; n++)
            out[n] = fill_in(scratch, row->theirs[n], block, name + covered);
        return n;
    }
    out[0] = name;
    return 1;
}

const NameLayout *names_detect(void *parent, const Weights *w, const NameLayout *layouts, int count,
                               const char **prefix) {
    const NameLayout *found = NULL;
    size_t shortest = SIZE_MAX;
    const char *where = NULL;
    for (int i = 0; i < count; i++) {
        size_t marker = strlen(layouts[i].marker);
        for (int k = 0; k < weights_count(w); k++) {
            const char *name = weights_at(w, k)->name;
            size_t n = strlen(name), front = n - marker;
            bool ends = n >= marker && !strcmp(name + front, layouts[i].marker) &&
                        (front == 0 || name[front - 1] == '.');
            if (!ends || front >= shortest) continue;
            shortest = front;
            where = name;
            found = &layouts[i];
        }
    }
    if (found && prefix) *prefix = mem_strndup(parent, where, shortest);
    return found;
}

// ---- what a file's shapes tell ----------------------------------------------------------------

const WeightTensor *names_find(const Weights *w, const NameLayout *layout, const char *name) {
    void *scratch = mem_new(NULL, 1);
    const char *pieces[BIND_MAX_PIECES];
    names_translate(layout, name, pieces, scratch);
    const WeightTensor *t = weights_find(w, pieces[0]);
    mem_free(scratch);
    return t;
}

int names_blocks(const Weights *w, const NameLayout *layout, const char *name) {
    void *scratch = mem_new(NULL, 1);
    int n = 0;
    while (n < 10000 && names_find(w, layout, fill_in(scratch, name, n, ""))) n++;
    mem_free(scratch);
    return n;
}

bool names_sizes(const Weights *w, const NameLayout *layout, const NameSize *sizes, int count, Error *err) {
    for (int i = 0; i < count; i++) {
        const NameSize *s = &sizes[i];
        const WeightTensor *t = names_find(w, layout, s->name);
        int64_t size = t && t->ndim > s->axis ? t->shape[s->axis] : 0;
        if (!t && s->optional) continue;
        if (size < 1 || size > INT32_MAX / 8)
            return err_failed(err, "%s: expected the tensor `%s` (%s layout), found %s", weights_path(w),
                              s->name, layout->name, t ? "another shape" : "none");
        *s->size = (int)size;
    }
    return true;
}

// ---- tables -----------------------------------------------------------------------------------

static int64_t size_of(const WantList *list, const char **at) {
    int64_t sum = 0;
    for (;; (*at)++) {
        int64_t factor = 1;
        bool digits = isdigit((unsigned char)**at);
        if (digits) {
            char *end;
            factor = strtoll(*at, &end, 10);
            *at = end;
        }
        if (isalpha((unsigned char)**at)) factor *= list->dim_of(list->config, *(*at)++);
        sum += factor;
        if (**at != '+') return sum;
    }
}

void wants_add(WantList *list, const WantRow *rows, int count, int block) {
    for (int i = 0; i < count; i++) {
        BindWant want = {.name = fill_in(list->parent, rows[i].name, block, ""),
                         .optional = rows[i].optional};
        for (const char *at = rows[i].shape; *at; at += *at == ' ')
            want.shape[want.ndim++] = size_of(list, &at);
        ARR_PUSH(list->parent, list, want);
    }
}

static int64_t elements(const BindWant *w) {
    int64_t n = 1;
    for (int d = 0; d < w->ndim; d++) n *= w->shape[d];
    return n;
}

int64_t wants_parameters(const BindWant *wants, int count) {
    int64_t n = 0;
    for (int i = 0; i < count; i++) n += elements(&wants[i]);
    return n;
}

// ---- units ------------------------------------------------------------------------------------

void units_add(UnitList *list, int kind, int index, const char *name, const WantRow *rows, int count) {
    BoundWeight *w = MEM_ARRAY(list->parent, BoundWeight, MAX(count, 1));
    for (int i = 0; i < count; i++) {
        const char *wanted = fill_in(list->parent, rows[i].name, index, "");
        const BoundWeight *found = NULL;
        // Units come in the order of the model's list: the next one is nearly always right here.
        for (int k = 0; k < list->weights && !found; k++) {
            int at = (list->cursor + k) % list->weights;
            if (strcmp(list->weight[at].name, wanted)) continue;
            found = &list->weight[at];
            list->cursor = at + 1;
        }
        if (found) w[i] = *found;
        else w[i] = (BoundWeight){.name = wanted};
    }
    StackUnit unit = {.name = name, .kind = kind, .weights = count, .weight = w,
                      .index = index};
    ARR_PUSH(list->parent, list, unit);
}

// ---- recording --------------------------------------------------------------------------------

Tensor *g_linear(Graph *g, const Linear *l) {
    Tensor *x = g_cast(l->x, l->compute);
    Tensor *w = g_weight(g, l->weight, l->compute);
    Tensor *bias = l->bias ? g_param(g, l->bias) : NULL;
    return g_gemm(g, GEMM(.x = x, .w = w, .bias = bias, .gate = l->gate, .residual = l->residual,
                          .y = l->y, .act = l->act, .dtype = l->out));
}
