// walk.glsl: going over the elements of strided tensors of one shape by a single number.
//
// A walk is the shape in units of VEC elements along the last dimension, and per tensor the strides
// of those units in elements. Neighbouring dimensions that lie one after the other in every tensor
// are merged first: what is contiguous everywhere ends as one dimension and costs no division.
// All indices into the arrays are constants after unrolling, so that they stay in registers.

struct Walk {
    uint shape[6];
    uint stride[4][6];
};

void walk_tensor(inout Walk w, int k, TensorArg t, uint vec) {
    [[unroll]] for (int d = 0; d < 6; d++) w.stride[k][d] = t.stride[d];
    w.stride[k][5] *= vec;
}

// `tensors`: how many of the four are in use; the rest must be left out of the merging.
void walk_merge(inout Walk w, const int tensors) {
    [[unroll]] for (int d = 0; d < 5; d++) {
        uint hi, lo;
        umulExtended(w.shape[d], w.shape[d + 1], hi, lo);
        bool from_inner = hi == 0, inner_one = w.shape[d + 1] == 1, outer_one = w.shape[d] == 1;
        [[unroll]] for (int k = 0; k < tensors; k++) {
            uint over, span;
            umulExtended(w.stride[k][d + 1], w.shape[d + 1], over, span);
            from_inner = from_inner && over == 0 && w.stride[k][d] == span;
        }
        if (outer_one || inner_one || from_inner) {
            [[unroll]] for (int k = 0; k < tensors; k++)
                if (inner_one && !outer_one) w.stride[k][d + 1] = w.stride[k][d];
            w.shape[d + 1] = lo;
            w.shape[d] = 1;
        }
    }
}

// Coordinates of unit i (row-major).
void walk_at(Walk w, uint i, out uint at[6]) {
    [[unroll]] for (int d = 5; d >= 0; d--) {
        bool outer = false; // is there a dimension outside this one?
        [[unroll]] for (int e = 0; e < d; e++) outer = outer || w.shape[e] != 1;
        if (!outer) {
            at[d] = i;
            i = 0;
        } else if (w.shape[d] == 1) {
            at[d] = 0;
        } else {
            uint q = i / w.shape[d];
            at[d] = i - q * w.shape[d];
            i = q;
        }
    }
}

// Address of a unit in tensor k.
uvec2 walk_addr(Walk w, int k, uint at[6], uvec2 base, uint dtype) {
    [[unroll]] for (int d = 0; d < 6; d++)
        if (w.shape[d] != 1) base = addr_add(base, at[d], w.stride[k][d], dtype);
    return base;
}
