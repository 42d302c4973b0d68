// svg.c: see svg.h.
#include "engine/svg.h"

#include "backend/os.h"

#include <math.h>
#include <stdlib.h>

enum { WIDTH = 860, HEIGHT = 480, LEFT = 70, RIGHT = 20, TOP = 44, BOTTOM = 50 };

typedef struct Axes { double x0, x1, y0, y1; } Axes;
typedef struct Text { char *v; size_t n, cap; } Text;

static void put(Text *t, const char *format, ...) PRINTF_LIKE(2, 3);
static void put(Text *t, const char *format, ...) {
    char line[512];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    size_t add = (size_t)MIN(MAX(n, 0), (int)sizeof line - 1);
    if (t->n + add + 1 > t->cap) {
        t->cap = 2 * (t->n + add + 1);
        t->v = mem_resize(NULL, t->v, t->cap);
    }
    memcpy(t->v + t->n, line, add);
    t->n += add;
}

static bool finite_point(const SvgPoint *p) { return isfinite(p->x) && isfinite(p->y); }
static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static Axes range_of(const SvgCurve *curves, int count) {
    Axes a = {INFINITY, -INFINITY, INFINITY, -INFINITY};
    int total = 0;
    for (int c = 0; c < count; c++) total += curves[c].count;
    double *late = MEM_ARRAY(NULL, double, total + 1);
    int n = 0;
    for (int c = 0; c < count; c++)
        for (int i = 0; i < curves[c].count; i++) {
            const SvgPoint *p = &curves[c].points[i];
            if (!finite_point(p)) continue;
            a.x0 = fmin(a.x0, p->x), a.x1 = fmax(a.x1, p->x);
            a.y0 = fmin(a.y0, p->y), a.y1 = fmax(a.y1, p->y);
            if (i >= curves[c].count / 2) late[n++] = p->y;
        }
    qsort(late, (size_t)n, sizeof *late, by_value);
    if (n && late[n / 2] > 0) a.y1 = fmin(a.y1, 10 * late[n / 2]);
    mem_free(late);
    if (!(a.x1 > a.x0)) a.x0 = isfinite(a.x0) ? a.x0 - 1 : 0, a.x1 = a.x0 + 2;
    if (!(a.y1 > a.y0)) a.y0 = isfinite(a.y0) ? a.y0 - 1 : 0, a.y1 = a.y0 + 2;
    double margin = 0.04 * (a.y1 - a.y0);
    a.y0 -= margin, a.y1 += margin;
    return a;
}

// 1, 2 or 5 times a power of ten, at most `parts` of them in the range.
static double round_step(double range, int parts) {
    double raw = range / parts, power = pow(10, floor(log10(raw)));
    double m = raw / power;
    return power * (m <= 1 ? 1 : m <= 2 ? 2 : m <= 5 ? 5 : 10);
}

static double pixel_x(const Axes *a, double x) {
    return LEFT + (x - a->x0) / (a->x1 - a->x0) * (WIDTH - LEFT - RIGHT);
}
static double pixel_y(const Axes *a, double y) {
    double v = HEIGHT - BOTTOM - (y - a->y0) / (a->y1 - a->y0) * (HEIGHT - TOP - BOTTOM);
    return fmin(fmax(v, TOP), HEIGHT - BOTTOM);
}

static void put_axes(Text *t, const Axes *a, const char *x_label) {
    double sx = round_step(a->x1 - a->x0, 8), sy = round_step(a->y1 - a->y0, 8);
    put(t, "<g font-size=\"12\" fill=\"#444\" stroke=\"none\">\n");
    for (double x = ceil(a->x0 / sx) * sx; x <= a->x1; x += sx) {
        put(t, "<path d=\"M%.1f %d V%d\" stroke=\"#e4e4e4\"/>", pixel_x(a, x), TOP,
            HEIGHT - BOTTOM);
        put(t, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%.6g</text>\n", pixel_x(a, x),
            HEIGHT - BOTTOM + 18, x);
    }
    for (double y = ceil(a->y0 / sy) * sy; y <= a->y1; y += sy) {
        if (fabs(y) < sy * 1e-9) y = 0;
        put(t, "<path d=\"M%d %.1f H%d\" stroke=\"#e4e4e4\"/>", LEFT, pixel_y(a, y), WIDTH - RIGHT);
        put(t, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.6g</text>\n", LEFT - 8,
            pixel_y(a, y) + 4, y);
    }
    put(t, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">%s</text>\n</g>\n", WIDTH / 2,
        HEIGHT - 12, x_label);
    put(t, "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"none\" stroke=\"#888\"/>\n",
        LEFT, TOP, WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
}

static void put_curve(Text *t, const Axes *a, const SvgCurve *c) {
    put(t, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"%.1f\" points=\"", c->colour,
        c->width);
    for (int i = 0; i < c->count; i++)
        if (finite_point(&c->points[i]))
            put(t, "%.1f,%.1f ", pixel_x(a, c->points[i].x), pixel_y(a, c->points[i].y));
    put(t, "\"/>\n");
}

bool svg_plot(const char *path, const char *title, const char *x_label, const SvgCurve *curves,
              int count, Error *err) {
    Text t = {0};
    Axes a = range_of(curves, count);
    put(&t,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" "
        "font-family=\"sans-serif\">\n<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n",
        WIDTH, HEIGHT, WIDTH, HEIGHT);
    put(&t, "<text x=\"%d\" y=\"24\" font-size=\"16\">%s</text>\n", LEFT, title);
    put_axes(&t, &a, x_label);
    int legend = 0;
    for (int c = 0; c < count; c++) {
        put_curve(&t, &a, &curves[c]);
        if (!curves[c].label || !curves[c].count) continue;
        int y = TOP + 20 + 18 * legend++;
        put(&t, "<path d=\"M%d %d h24\" stroke=\"%s\" stroke-width=\"2\"/>", WIDTH - 270, y - 4,
            curves[c].colour);
        put(&t, "<text x=\"%d\" y=\"%d\" font-size=\"12\">%s</text>\n", WIDTH - 240, y,
            curves[c].label);
    }
    put(&t, "</svg>\n");
    bool ok = os_write_file(path, t.v, t.n, err);
    mem_free(t.v);
    return ok;
}
