// train_log.c: see train_log.h.
#include "engine/train_log.h"

#include "backend/os.h"
#include "engine/svg.h"

#include <errno.h>

struct TrainLog {
    char *path;
    FILE *file;
};

enum { LINE_MAX_BYTES = 1 << 16 };
static const size_t log_limit = (size_t)1 << 30;

// Calls `each` for every line that ends, is a JSON object and has a step.
typedef void EachLine(void *user, const char *line, size_t n, int64_t step, const Json *object);

static void for_lines(const char *text, size_t size, EachLine *each, void *user) {
    for (const char *line = text, *end; line < text + size; line = end + 1) {
        end = memchr(line, '\n', (size_t)(text + size - line));
        if (!end) return; // torn
        size_t n = (size_t)(end - line);
        if (n == 0 || n > LINE_MAX_BYTES) continue;
        Json *object = json_parse(line, n, "log", NULL);
        int64_t step = json_int(json_get(object, "step"), -1);
        if (object && step >= 0) each(user, line, n, step, object);
        json_free(object);
    }
}

typedef struct Keep {
    int64_t last_step;
    char *text;
    size_t n;
} Keep;

static void keep_line(void *user, const char *line, size_t n, int64_t step, const Json *object) {
    Keep *keep = user;
    (void)object;
    if (step > keep->last_step) return;
    memcpy(keep->text + keep->n, line, n);
    keep->text[keep->n + n] = '\n';
    keep->n += n + 1;
}

static bool rewrite(const char *path, int64_t last_step, Error *err) {
    if (last_step <= 0 || os_path_kind(path) == PATH_NONE)
        return os_write_file(path, "", 0, err);
    size_t size;
    uint8_t *text = os_read_file(NULL, path, log_limit, &size, err);
    if (!text) return false;
    Keep keep = {.last_step = last_step, .text = mem_new(text, size + 1)};
    for_lines((const char *)text, size, keep_line, &keep);
    bool ok = os_write_file(path, keep.text, keep.n, err);
    mem_free(text);
    return ok;
}

static bool cannot_write(const char *path, Error *err) {
    return err_failed(err,
                      "%s: expected room to write it, found \"%s\"; free space or choose another "
                      "folder, and go on with --resume",
                      path, strerror(errno));
}

TrainLog *train_log_open(void *parent, const char *path, int64_t last_step, Error *err) {
    if (!rewrite(path, last_step, err)) return NULL;
    TrainLog *log = MEM_NEW(parent, TrainLog);
    log->path = mem_strdup(log, path);
    log->file = fopen(path, "ab");
    if (log->file) return log;
    cannot_write(path, err);
    mem_free(log);
    return NULL;
}

bool train_log_put(TrainLog *log, JsonOut *w, Error *err) {
    bool ok = fwrite(w->text, 1, w->n, log->file) == w->n && fputc('\n', log->file) != EOF &&
              fflush(log->file) == 0;
    json_out_free(w);
    return ok || cannot_write(log->path, err);
}

void train_log_close(TrainLog *log) {
    if (!log) return;
    fclose(log->file);
    mem_free(log);
}

// ---- plot -------------------------------------------------------------------------------------

typedef struct Curves {
    void *scratch;
    ARRAY(SvgPoint) loss, validation;
} Curves;

static void plot_line(void *user, const char *line, size_t n, int64_t step, const Json *object) {
    Curves *c = user;
    (void)line, (void)n;
    const Json *loss = json_get(object, "loss"), *val = json_get(object, "validation_loss");
    if (json_is_number(loss))
        ARR_PUSH(c->scratch, &c->loss, ((SvgPoint){(double)step, json_number(loss, 0)}));
    if (json_is_number(val))
        ARR_PUSH(c->scratch, &c->validation, ((SvgPoint){(double)step, json_number(val, 0)}));
}

// At most `limit` points, each the mean of a run of neighbours.
static SvgPoint *thin(void *parent, const SvgPoint *v, int n, int limit, int *count) {
    int group = n > limit ? (n + limit - 1) / limit : 1;
    *count = (n + group - 1) / group;
    SvgPoint *out = MEM_ARRAY(parent, SvgPoint, *count + 1);
    for (int i = 0; i < *count; i++) {
        int from = i * group, to = MIN(from + group, n);
        for (int k = from; k < to; k++) {
            out[i].x += v[k].x / (to - from);
            out[i].y += v[k].y / (to - from);
        }
    }
    return out;
}

// Mean over a window of about a hundredth of the run.
static SvgPoint *smooth(void *parent, const SvgPoint *v, int n) {
    int radius = n / 200;
    SvgPoint *out = MEM_ARRAY(parent, SvgPoint, n + 1);
    double sum = 0;
    int low = 0, high = 0; // the window [low, high)
    for (int i = 0; i < n; i++) {
        int r = MIN(radius, MIN(i, n - 1 - i));
        while (high < i + r + 1) sum += v[high++].y;
        while (low < i - r) sum -= v[low++].y;
        out[i] = (SvgPoint){v[i].x, sum / (high - low)};
    }
    return out;
}

bool train_log_plot(const char *log_path, const char *svg_path, Error *err) {
    size_t size;
    uint8_t *text = os_read_file(NULL, log_path, log_limit, &size, err);
    if (!text) return false;
    Curves c = {.scratch = text};
    for_lines((const char *)text, size, plot_line, &c);
    int faint_n, mean_n;
    SvgPoint *faint = thin(text, c.loss.v, c.loss.n, 2000, &faint_n);
    SvgPoint *wide = smooth(text, c.loss.v, c.loss.n);
    SvgPoint *mean = thin(text, wide, c.loss.n, 500, &mean_n);
    const SvgCurve curves[] = {
        {NULL, "#c8d4e8", 0.6, faint, faint_n},
        {"training loss", "#2050a0", 1.6, mean, mean_n},
        {"validation loss (averaged weights)", "#c04020", 1.6, c.validation.v, c.validation.n},
    };
    bool ok = svg_plot(svg_path, "Loss", "step", curves, COUNT_OF(curves), err);
    mem_free(text);
    return ok;
}
