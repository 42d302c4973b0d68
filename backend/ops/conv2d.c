// conv2d.c: what conv2d accepts and what it costs. Semantics: conv2d.h.
#include "backend/ops.h"

int64_t conv2d_size(int64_t n, int64_t r, const Conv2dParams *p, uint32_t pad_before,
                    uint32_t pad_after) {
    int64_t span = (int64_t)MAX(p->dilation, 1u) * (r - 1) + 1;
    int64_t room = n * MAX(p->upsample, 1u) + pad_before + pad_after - span;
    return room < 0 ? 0 : room / MAX(p->stride, 1u) + 1;
}

bool op_check_conv2d(const OpCall *c, Error *err) {
    const TensorRef *t = c->t;
    const Conv2dParams *p = &c->params.conv2d;
    for (int i = 0; i < conv2d_operand_count; i++)
        if (!want_rank(c, i, 4, err) || !want_float(c, i, err)) return false;
    const uint32_t small[] = {p->stride, p->dilation, p->pad_top, p->pad_bottom, p->pad_left,
                              p->pad_right};
    for (size_t i = 0; i < COUNT_OF(small); i++)
        if (small[i] > 65535)
            return err_failed(err, "conv2d: expected stride, dilation and padding below 65,536, "
                              "found %u; this is a defect", small[i]);
    if (p->upsample > 2 || p->act >= ACT_COUNT)
        return err_failed(err, "conv2d: expected upsample 1 or 2 and act below %d, found %u and %u; "
                          "this is a defect", ACT_COUNT, p->upsample, p->act);
    const int64_t *x = t[conv2d_x].shape, *w = t[conv2d_w].shape;
    int64_t O = w[0], groups = MAX(p->groups, 1u);
    if (x[3] % groups || O % groups)
        return err_failed(err, "conv2d: expected channels in multiples of %lld groups, found %lld "
                          "and %lld; this is a defect", (long long)groups, (long long)x[3],
                          (long long)O);
    const int64_t weights[4] = {O, w[1], w[2], x[3] / groups}, bias[4] = {1, 1, 1, O};
    const int64_t y[4] = {x[0], conv2d_size(x[1], w[1], p, p->pad_top, p->pad_bottom),
                          conv2d_size(x[2], w[2], p, p->pad_left, p->pad_right), O};
    return want_dims(c, conv2d_w, 4, weights, err) && want_dims(c, conv2d_bias, 4, bias, err) &&
           want_dims(c, conv2d_residual, 4, y, err) && want_dims(c, conv2d_y, 4, y, err);
}

Work op_work_conv2d(const OpCall *c) {
    const int64_t *w = c->t[conv2d_w].shape;
    double taps = (double)w[1] * (double)w[2] * (double)w[3];
    Work work = {2 * taps * (double)ref_count(&c->t[conv2d_y]), 0};
    for (int i = 0; i < conv2d_operand_count; i++)
        if (c->t[i].buffer)
            work.bytes += (double)ref_count(&c->t[i]) * dtype_size(c->t[i].dtype);
    return work;
}
