// heads.glsl: what attn and attn_bwd share. Each invocation owns OWN rows (queries, or keys in the
// second half of the gradient) of one head: their D numbers and running sums sit in its registers,
// split over PARTS neighbouring invocations where D is large. The other rows pass by one at a time,
// the same for all:
//   (none)  from shared memory, where blocks of BLOCK rows are put together
//   LANES   one subgroup of 8 per workgroup (drivers on the CPU): a gather of 8 numbers, then
//           broadcasts, nothing in shared memory.
// A row past the end of its tensor repeats the last one, and its results are not stored.
#ifdef LANES
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_ballot : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#endif
#ifdef SPLIT
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#endif

layout(local_size_x_id = 6) in;
layout(constant_id = 32) const uint D = 64;
layout(constant_id = 33) const uint PARTS = 1; // 1, 2 or 4; 1 without SPLIT
layout(constant_id = 34) const uint OWN = 1;
layout(constant_id = 35) const uint BLOCK = 16;

const uint THREADS = gl_WorkGroupSize.x;
const uint LINE = (D + 15) / 16 * 16; // numbers per row, padded with zeros
const uint MINE = LINE / PARTS;       // of these, what one invocation keeps
#define NEVER uintBitsToFloat(0xff800000u) // -infinity

uint part() { return gl_LocalInvocationIndex % PARTS; }
// Which number of its row an invocation's i-th one is: whole vectors of 4, in turns.
uint dim_of(uint i) { return (i / 4 * PARTS + part()) * 4 + i % 4; }

float sum_of_parts(float x) {
#ifdef SPLIT
    if (PARTS > 1) x += subgroupShuffleXor(x, 1);
    if (PARTS > 2) x += subgroupShuffleXor(x, 2);
#endif
    return x;
}

// [B, row, H, D] (padded: dimensions 2..5): address of row 0 of a head.
uvec2 head_addr(TensorArg t, uint b, uint h) {
    uvec2 a = addr_add(tensor_addr(t), b, t.stride[2], t.dtype);
    return addr_add(a, h, t.stride[4], t.dtype);
}
float load_dim(uvec2 row, uint d, uint dtype) {
    float x = load(row, min(d, D - 1), dtype);
    return d < D ? x : 0.0;
}
// This invocation's numbers of a row of its own.
#define LOAD_OWN(OUT, T, HEAD, ROW, TYPE)                                                         \
    {                                                                                             \
        uvec2 row_ = addr_add(HEAD, ROW, T.stride[3], TYPE);                                      \
        [[unroll]] for (uint i_ = 0; i_ < MINE; i_++) OUT[i_] = load_dim(row_, dim_of(i_), TYPE); \
    }
// Rolled where rows are long and on the CPU, where a store is much code.
#ifdef LANES
const bool ROLLED = true;
#else
const bool ROLLED = MINE > 64;
#endif
#define STORE_OWN(T, HEAD, ROW, FACTOR, IN, TYPE)                                                 \
    {                                                                                             \
        uvec2 row_ = addr_add(HEAD, ROW, T.stride[3], TYPE);                                      \
        if (ROLLED) {                                                                             \
            float out_[MINE];                                                                     \
            [[unroll]] for (uint i_ = 0; i_ < MINE; i_++) out_[i_] = FACTOR * IN[i_];             \
            [[dont_unroll]] for (uint i_ = 0; i_ < MINE; i_++)                                    \
                if (dim_of(i_) < D) store(row_, dim_of(i_), TYPE, out_[i_]);                      \
        } else {                                                                                  \
            [[unroll]] for (uint i_ = 0; i_ < MINE; i_++)                                         \
                if (dim_of(i_) < D) store(row_, dim_of(i_), TYPE, FACTOR * IN[i_]);               \
        }                                                                                         \
    }

#ifdef LANES
// Row ROW of the others, whole, in every invocation.
#define OTHER(OUT, T, HEAD, FIRST, J, SHARED, TYPE)                                               \
    {                                                                                             \
        uvec2 row_ = addr_add(HEAD, FIRST + J, T.stride[3], TYPE);                                \
        [[unroll]] for (uint c_ = 0; c_ < LINE; c_ += 8) {                                        \
            float eight_ = load_dim(row_, c_ + gl_SubgroupInvocationID, TYPE);                    \
            [[unroll]] for (uint i_ = 0; i_ < 8; i_++)                                            \
                OUT[c_ + i_] = subgroupBroadcast(eight_, i_);                                     \
        }                                                                                         \
    }
#define STAGE(T, HEAD, FIRST, ROWS, SHARED, TYPE)
#else
shared float block_a[BLOCK * LINE], block_b[BLOCK * LINE];
#define OTHER(OUT, T, HEAD, FIRST, J, SHARED, TYPE)                                               \
    [[unroll]] for (uint i_ = 0; i_ < MINE; i_++) OUT[i_] = SHARED[(J) * LINE + dim_of(i_)];
// Rows FIRST.. (ROWS of them exist in all) into shared memory.
#define STAGE(T, HEAD, FIRST, ROWS, SHARED, TYPE)                                                 \
    {                                                                                             \
        uvec2 first_ = addr_add(HEAD, FIRST, T.stride[3], TYPE);                                  \
        for (uint e_ = gl_LocalInvocationIndex; e_ < BLOCK * LINE; e_ += THREADS) {               \
            uint j_ = min(e_ / LINE, (ROWS) - 1 - (FIRST));                                       \
            uint d_ = e_ % LINE, at_ = j_ * T.stride[3] + min(d_, D - 1);                         \
            float x_ = load(first_, at_, TYPE);                                                   \
            SHARED[e_] = d_ < D ? x_ : 0.0;                                                       \
        }                                                                                         \
    }
#endif

// Keys that query t of T may see, of S: all, or with `causal` those up to t + S - T.
uint keys_seen(uint causal, uint t, uint T, uint S) {
    return causal == 0 ? S : uint(max(int(t) + int(S) - int(T) + 1, 0));
}
float score_scale(float scale) { return scale == 0.0 ? 1.0 / sqrt(float(D)) : scale; }
// Address of element [b, h, t, 0] of a mask, where any dimension may be 1.
uvec2 mask_row(TensorArg t, uint b, uint h, uint q) {
    uvec2 a = addr_add(tensor_addr(t), t.shape[2] == 1 ? 0 : b, t.stride[2], t.dtype);
    a = addr_add(a, t.shape[3] == 1 ? 0 : h, t.stride[3], t.dtype);
    return addr_add(a, t.shape[4] == 1 ? 0 : q, t.stride[4], t.dtype);
}
