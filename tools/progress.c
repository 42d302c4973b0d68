// progress.c: see progress.h.
#include "tools/progress.h"

#include "backend/os.h"

struct Progress {
    bool shown, colour, drawn;
    char stage[32], unit[16], note[96];
    double start;       // of the stage
    double first_done;  // of the first unit, which holds one-time work: not in the rate
    int64_t first;      // its number
    int64_t done, total; // as last told
    uint64_t bytes;
    double part;        // of the unit under way, 0..1
    double last_draw;
};

Progress *progress_new(void *parent, bool quiet) {
    Progress *p = MEM_NEW(parent, Progress);
    const char *no_colour = os_env("NO_COLOR");
    p->shown = !quiet && os_is_terminal(stderr);
    p->colour = p->shown && !(no_colour && *no_colour);
    return p;
}

bool progress_shown(const Progress *p) { return p && p->shown; }

void progress_clear(Progress *p) {
    if (!p || !p->drawn) return;
    fputs("\r\033[K", stderr);
    fflush(stderr);
    p->drawn = false;
}

void progress_stage(Progress *p, const char *stage, const char *unit) {
    if (!progress_shown(p)) return;
    progress_clear(p);
    snprintf(p->stage, sizeof p->stage, "%s", stage);
    snprintf(p->unit, sizeof p->unit, "%s", unit ? unit : "");
    p->start = os_seconds();
    p->first = -1;
    p->done = 0, p->part = 0;
    p->last_draw = 0;
    progress_update(p, 0, 0, 0, NULL);
}

static void format_time(char out[32], double seconds) {
    long s = (long)(seconds + 0.5);
    if (s < 60) snprintf(out, 32, "%lds", s);
    else if (s < 3600) snprintf(out, 32, "%ldm%02lds", s / 60, s % 60);
    else snprintf(out, 32, "%ldh%02ldm", s / 3600, s / 60 % 60);
}

// Appends to a line of `size` bytes; what does not fit is cut.
static size_t append(char *line, size_t size, size_t at, const char *text) {
    int n = snprintf(line + at, size - at, "%s", text);
    return MIN(size - 1, at + (size_t)(n < 0 ? 0 : n));
}

// Seconds per unit; 0: nothing is known yet.
static double pace(const Progress *p, double now) {
    double since = (double)(p->done - p->first) + p->part;
    if (p->done > p->first && p->first >= 0) return (now - p->first_done) / since;
    return (double)p->done + p->part > 0 ? (now - p->start) / ((double)p->done + p->part) : 0;
}

static void draw(Progress *p);

void progress_part(Progress *p, int64_t done, int64_t total) {
    if (!progress_shown(p) || total <= 0) return;
    p->part = (double)done / (double)total;
    draw(p);
}

void progress_update(Progress *p, int64_t done, int64_t total, uint64_t bytes, const char *note) {
    if (!progress_shown(p)) return;
    double now = os_seconds();
    if (done < p->done) p->start = now, p->first = -1; // the next of several runs in a stage
    if (done > 0 && p->first < 0) p->first = done, p->first_done = now;
    p->done = done, p->total = total, p->bytes = bytes, p->part = 0;
    snprintf(p->note, sizeof p->note, "%s", note ? note : "");
    draw(p);
}

static void draw(Progress *p) {
    int64_t done = p->done, total = p->total;
    double now = os_seconds(), each = pace(p, now);
    if (now - p->last_draw < 0.1 && !(total && done == total)) return;
    p->last_draw = now;

    char line[512], part[96], time[32];
    size_t n = append(line, sizeof line, 0, p->stage);
    if (total) {
        snprintf(part, sizeof part, "  %s %lld/%lld (%lld%%)", p->unit, (long long)done,
                 (long long)total, (long long)(done * 100 / total));
        n = append(line, sizeof line, n, part);
    } else if (done) {
        snprintf(part, sizeof part, "  %s %lld", p->unit, (long long)done);
        n = append(line, sizeof line, n, part);
    }
    if (each > 0) {
        if (each >= 0.1) snprintf(part, sizeof part, "  %.2f s/%s", each, p->unit);
        else snprintf(part, sizeof part, "  %.1f ms/%s", each * 1e3, p->unit);
        n = append(line, sizeof line, n, part);
        if (total) {
            format_time(time, each * ((double)(total - done) - p->part));
            snprintf(part, sizeof part, "  %s left", time);
            n = append(line, sizeof line, n, part);
        }
    }
    if (p->bytes) {
        format_bytes(time, p->bytes);
        snprintf(part, sizeof part, "  %s", time);
        n = append(line, sizeof line, n, part);
    }
    if (*p->note) {
        n = append(line, sizeof line, n, "  ");
        n = append(line, sizeof line, n, p->note);
    }
    // A line wider than the terminal would wrap and could not be taken back.
    size_t width = (size_t)MAX(os_terminal_width(stderr) - 1, 10);
    if (n > width) line[width] = 0;
    size_t head = MIN(strlen(p->stage), strlen(line));
    if (p->colour) fprintf(stderr, "\r\033[1m%.*s\033[0m%s\033[K", (int)head, line, line + head);
    else fprintf(stderr, "\r%s\033[K", line);
    fflush(stderr);
    p->drawn = true;
}
