// ref_ewise.c: the oracle of ops/ewise.h.
#include "backend/cpu/ref.h"

#include <math.h>

static double value(const EwiseParams *p, double x, double y, double z) {
    switch (p->kind) {
    case EW_SCALE: return p->alpha * x + p->beta;
    case EW_ACT: return act_value(p->act, x);
    case EW_ACT_BWD: return y * act_slope(p->act, x);
    case EW_ADD: return x + y;
    case EW_SUB: return x - y;
    case EW_MUL: return x * y;
    case EW_DIV: return x / y;
    case EW_MULADD: return x * y + z;
    case EW_MODULATE: return x * (1 + y) + z;
    case EW_SQUARE: return x * x;
    // Written so that a NaN stays one.
    case EW_CLAMP: return x < p->alpha ? MIN(p->alpha, p->beta) : x > p->beta ? p->beta : x;
    case EW_EXP: return exp(x);
    case EW_SQRT: return sqrt(x);
    }
    return NAN;
}

void ref_ewise(const OpCall *c) {
    const TensorRef *t = c->t, *o = &t[ewise_o];
    int64_t at[MAX_DIMS] = {0}, left = ref_count(o);
    while (left-- > 0 && (left % ASK || !ref_cancelled(c))) {
        double v[4] = {0};
        size_t place[4] = {0};
        for (int i = 0; i < ewise_operand_count; i++) {
            if (!ref_has(&t[i])) continue;
            int64_t index = 0; // inputs may have fewer dimensions or length 1 where o is longer
            for (int d = 0; d < MAX_DIMS; d++)
                if (ref_dim(&t[i], d) != 1) index += at[d] * ref_stride(&t[i], d);
            place[i] = (size_t)index;
            if (i != ewise_o) v[i] = dtype_load(t[i].dtype, ref_data(&t[i]), place[i]);
        }
        double r = value(&c->params.ewise, v[ewise_x], v[ewise_y], v[ewise_z]);
        dtype_store(o->dtype, ref_data(o), place[ewise_o], (float)r);
        for (int d = MAX_DIMS - 1; d >= 0; d--) {
            if (++at[d] < ref_dim(o, d)) break;
            at[d] = 0;
        }
    }
}
