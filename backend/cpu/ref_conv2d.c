// ref_conv2d.c: the oracle of ops/conv2d.h: output by output, tap by tap.
#include "backend/cpu/ref.h"

void ref_conv2d(const OpCall *c) {
    const Conv2dParams *p = &c->params.conv2d;
    View x = ref_view(&c->t[conv2d_x]), w = ref_view(&c->t[conv2d_w]);
    View bias = ref_view(&c->t[conv2d_bias]), residual = ref_view(&c->t[conv2d_residual]);
    View y = ref_view(&c->t[conv2d_y]);
    int64_t stride = MAX(p->stride, 1u), dilation = MAX(p->dilation, 1u);
    int64_t up = MAX(p->upsample, 1u), groups = MAX(p->groups, 1u);
    int64_t R = w.n[1], S = w.n[2], C = w.n[3], O = w.n[0], patch = R * S * C;
    // The patch of x under one output, all groups; the weights once as f64.
    double *in = MEM_ARRAY(NULL, double, patch * groups), *wf = MEM_ARRAY(in, double, patch * O);
    for (int64_t o = 0; o < O; o++)
        for (int64_t i = 0; i < patch; i++)
            wf[o * patch + i] = view_get(&w, o, i / (S * C), i / C % S, i % C);
    for (int64_t b = 0; b < y.n[0]; b++)
        for (int64_t h = 0; h < y.n[1]; h++)
            for (int64_t v = 0; v < y.n[2] && !ref_cancelled(c); v++) {
                for (int64_t g = 0; g < groups; g++)
                    for (int64_t i = 0; i < patch; i++) {
                        int64_t at = h * stride + i / (S * C) * dilation - p->pad_top;
                        int64_t to = v * stride + i / C % S * dilation - p->pad_left;
                        bool inside = at >= 0 && at < x.n[1] * up && to >= 0 && to < x.n[2] * up;
                        in[g * patch + i] =
                            inside ? view_get(&x, b, at / up, to / up, g * C + i % C) : 0;
                    }
                for (int64_t o = 0; o < O; o++) {
                    const double *from = in + o / (O / groups) * patch;
                    double sum = 0;
                    for (int64_t i = 0; i < patch; i++) sum += from[i] * wf[o * patch + i];
                    if (bias.data) sum += view_get(&bias, 0, 0, 0, o);
                    sum = act_value(p->act, sum);
                    if (residual.data) sum += view_get(&residual, b, h, v, o);
                    view_put(&y, b, h, v, o, sum);
                }
            }
    mem_free(in);
}
