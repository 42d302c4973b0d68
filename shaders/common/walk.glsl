// walk.glsl: going over the elements of strided tensors of one shape by a single number.
//
// The host has merged neighbouring dimensions that lie one after the other in every tensor (a row's
// .merge), and says how many are left: RANK, the last ones of the padded shape. What is contiguous
// everywhere is one dimension and costs no division. A unit is VEC elements of the last dimension.
// All indices into arrays are constants after unrolling, so that they stay in registers.
layout(constant_id = 40) const uint RANK = 6; // FROM_RANK: dimensions left
layout(constant_id = 41) const uint WIDE = 1; // FROM_WIDE: some tensor is past 2^31 elements

// Coordinates of unit i (row-major) of a tensor of this shape.
void walk_at(TensorArg t, uint vec, uint i, out uint at[6]) {
    [[unroll]] for (int d = 5; d >= 0; d--) {
        uint size = d == 5 ? t.shape[d] / vec : t.shape[d];
        if (d < 6 - int(RANK)) {
            at[d] = 0;
        } else if (d == 6 - int(RANK)) {
            at[d] = i;
        } else {
            uint q = i / size;
            at[d] = i - q * size;
            i = q;
        }
    }
}

// Moves `base` and gives the index from there to the unit in this tensor, in elements.
uint walk_index(TensorArg t, uint vec, uint at[6], inout uvec2 base, uint dtype) {
    uint index = 0;
    [[unroll]] for (int d = 6 - int(RANK); d < 6; d++) {
        uint stride = d == 5 ? t.stride[d] * vec : t.stride[d];
        if (WIDE != 0) base = addr_add(base, at[d], stride, dtype);
        else index += at[d] * stride;
    }
    return index;
}
