// conv.c: see conv.h.
#include "backend/cpu/fast/conv.h"

enum { TILE_COLS = 128, TILE_PIXELS = 256 };

static int64_t span(int64_t outputs, int64_t taps, const ConvJob *j) { // of the (enlarged) input
    return (outputs - 1) * j->stride + (taps - 1) * j->dilation + 1;
}

void conv_setup(ConvJob *j, Cpu *cpu, const OpCall *c, int64_t pixel, int64_t size) {
    const Conv2dParams *p = &c->params.conv2d;
    const int64_t *x = c->t[conv2d_x].shape, *w = c->t[conv2d_w].shape, *y = c->t[conv2d_y].shape;
    *j = (ConvJob){.cpu = cpu, .c = c, .B = x[0], .H = x[1], .W = x[2], .C = w[3], .O = w[0],
                   .R = w[1], .S = w[2], .Ho = y[1], .Wo = y[2], .stride = MAX(p->stride, 1u),
                   .dilation = MAX(p->dilation, 1u), .up = MAX(p->upsample, 1u),
                   .groups = MAX(p->groups, 1u), .top = p->pad_top, .left = p->pad_left,
                   .pixel = pixel};
    j->tw = MIN(j->Wo, TILE_COLS);
    j->th = MIN(j->Ho, MAX(TILE_PIXELS / j->tw, 1));
    for (;;) {
        j->ph = span(j->th, j->R, j), j->pw = span(j->tw, j->S, j);
        if (j->ph * j->pw * pixel * size <= CONV_PATCH || j->th * j->tw == 1) break;
        if (j->th > 1) j->th = (j->th + 1) / 2;
        else j->tw = (j->tw + 1) / 2;
    }
    j->tiles_h = (j->Ho + j->th - 1) / j->th;
    j->tiles_w = (j->Wo + j->tw - 1) / j->tw;
}

ConvTile conv_tile(const ConvJob *j, int64_t part) {
    int64_t col = part % j->tiles_w, row = part / j->tiles_w % j->tiles_h;
    ConvTile t = {.b = part / j->tiles_w / j->tiles_h, .h0 = row * j->th, .w0 = col * j->tw};
    t.rows = MIN(j->th, j->Ho - t.h0);
    t.cols = MIN(j->tw, j->Wo - t.w0);
    return t;
}

void conv_patch(const ConvJob *j, const ConvTile *t, int64_t c0, void *patch, int64_t size,
                ConvCopy *copy) {
    const TensorRef *x = &j->c->t[conv2d_x];
    int64_t rows = span(t->rows, j->R, j), cols = span(t->cols, j->S, j);
    int64_t h0 = t->h0 * j->stride - j->top, w0 = t->w0 * j->stride - j->left;
    for (int64_t r = 0; r < rows; r++) {
        char *to = (char *)patch + r * j->pw * j->pixel * size;
        int64_t h = h0 + r;
        for (int64_t s = 0; s < cols; s++, to += j->pixel * size) {
            int64_t w = w0 + s;
            bool inside = h >= 0 && h < j->H * j->up && w >= 0 && w < j->W * j->up;
            int64_t place = inside ? t->b * ref_stride(x, 2) + h / j->up * ref_stride(x, 3) +
                                         w / j->up * ref_stride(x, 4) + c0
                                   : 0;
            const char *from = (const char *)ref_data(x) + place * dtype_size(x->dtype);
            copy(to, x->dtype, inside ? from : NULL, j->C, j->pixel);
        }
    }
}

static bool no(char why[128], const char *text) {
    snprintf(why, 128, "%s", text);
    return false;
}

// The patch of a single output, and all weights, in `size` bytes per element; channels and outputs
// rounded up to `c` and `o`.
static bool fits(const OpCall *call, int64_t size, int64_t c, int64_t o, char why[128]) {
    const Conv2dParams *p = &call->params.conv2d;
    const int64_t *w = call->t[conv2d_w].shape;
    int64_t groups = MAX(p->groups, 1u), dilation = MAX(p->dilation, 1u);
    int64_t C = (w[3] + c - 1) / c * c + (c > 1 ? c : 0), O = (w[0] / groups + o - 1) / o * o;
    double patch = (double)((w[1] - 1) * dilation + 1) * (double)((w[2] - 1) * dilation + 1);
    double weights = (double)w[1] * (double)w[2] * (double)C * (double)O * (double)groups;
    if (patch * (double)C * (double)size > CONV_PATCH) return no(why, "a patch over 3 MiB");
    if (weights * (double)size > CONV_PACK) return no(why, "packed weights over 32 MiB");
    for (int i = 0; i < conv2d_operand_count; i++)
        if (call->t[i].buffer && ref_dim(&call->t[i], 5) != 1 && ref_stride(&call->t[i], 5) != 1)
            return no(why, "an operand's last dimension is not contiguous");
    return true;
}

bool fits_conv2d(const OpCall *c, char why[128]) { return fits(c, 4, 1, 64, why); }

bool fits_conv2d_amx(const OpCall *c, char why[128]) {
    if (c->t[conv2d_x].dtype != DT_BF16 || c->t[conv2d_w].dtype != DT_BF16)
        return no(why, "operands that are not all bf16");
    if (c->params.conv2d.groups > 1) return no(why, "groups");
    // A tile of fewer than 16 outputs reads on behind its patch, within the scratch.
    double pixel = (double)c->t[conv2d_w].shape[3] + 64;
    if (16 * pixel * 2 * MAX(c->params.conv2d.stride, 1u) > 1 << 20)
        return no(why, "outputs too far apart in x");
    return fits(c, 2, 32, 32, why);
}
