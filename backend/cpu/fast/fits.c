// fits.c: which calls the fast rows take. They read f32, f16 and bf16 operands in any mixture,
// rows contiguous; what is left goes to the oracle.
#include "backend/cpu/cpu.h"

static bool no(char why[128], const char *text) {
    snprintf(why, 128, "%s", text);
    return false;
}

// Is each present operand's last dimension contiguous (or single)?
static bool rows_contiguous(const OpCall *c, char why[128]) {
    for (int i = 0; i < op_info[c->op].operand_count; i++) {
        const TensorRef *t = &c->t[i];
        if (t->buffer && ref_dim(t, 5) != 1 && ref_stride(t, 5) != 1)
            return no(why, "an operand's last dimension is not contiguous");
    }
    return true;
}

// Has operand `i` (if present) the same last dimension as operand `like`?
static bool full_last(const OpCall *c, int i, int like, char why[128]) {
    if (!c->t[i].buffer || ref_dim(&c->t[i], 5) == ref_dim(&c->t[like], 5)) return true;
    return no(why, "an operand broadcasts over the last dimension");
}

bool fits_ewise(const OpCall *c, char why[128]) { (void)c, (void)why; return true; }
bool fits_copy(const OpCall *c, char why[128]) { (void)c, (void)why; return true; }

bool fits_norm(const OpCall *c, char why[128]) {
    if (ref_dim(&c->t[norm_x], 5) > 65536) return no(why, "rows of more than 65,536 elements");
    return rows_contiguous(c, why) && full_last(c, norm_scale, norm_x, why) &&
           full_last(c, norm_shift, norm_x, why);
}

bool fits_norm_bwd(const OpCall *c, char why[128]) {
    if (ref_dim(&c->t[norm_bwd_y], 5) > 65536) return no(why, "rows of more than 65,536 elements");
    return rows_contiguous(c, why);
}

bool fits_reduce(const OpCall *c, char why[128]) { return rows_contiguous(c, why); }
bool fits_embed(const OpCall *c, char why[128]) { return rows_contiguous(c, why); }
bool fits_embed_bwd(const OpCall *c, char why[128]) { return rows_contiguous(c, why); }
bool fits_rope(const OpCall *c, char why[128]) {
    if (ref_dim(&c->t[rope_x], 5) > 4096) return no(why, "heads wider than 4,096");
    return rows_contiguous(c, why);
}

bool fits_dequant(const OpCall *c, char why[128]) { (void)c, (void)why; return true; }
bool fits_adamw(const OpCall *c, char why[128]) { return rows_contiguous(c, why); }

// The mask may broadcast everywhere but over keys.
bool fits_attn(const OpCall *c, char why[128]) {
    if (ref_dim(&c->t[attn_q], 5) > 512) return no(why, "heads wider than 512");
    const TensorRef *mask = &c->t[attn_mask];
    if (mask->buffer && ref_dim(mask, 5) != ref_dim(&c->t[attn_k], 3))
        return no(why, "a mask that broadcasts over keys");
    return rows_contiguous(c, why);
}

bool fits_attn_bwd(const OpCall *c, char why[128]) {
    int64_t D = (ref_dim(&c->t[attn_bwd_q], 5) + 15) / 16 * 16, S = ref_dim(&c->t[attn_bwd_k], 3);
    if (D > 512) return no(why, "heads wider than 512");
    // Blocks of queries and keys, two of scores, sums for all keys: simd_attn.h.
    if ((7 * 128 * D + 2 * 64 * 128 + 2 * S * D) * 4 > SCRATCH_BYTES)
        return no(why, "more keys than a thread's scratch holds");
    return rows_contiguous(c, why);
}
