// embed_bwd.comp: dtable[v, :] = sum of dy[n, :] where ids[n] == v, in the order of n
// (ops/embed_bwd.h). A tile is one row v and TILE_5 columns, one invocation a column; no atomics,
// so that the sum never depends on timing.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common/kiln.glsl"
#include "common/sum.glsl"
#include "embed_bwd.h"
KILN_ARGS(EmbedBwd, EMBED_BWD_OPERANDS, EMBED_BWD_FIELDS)
#define args EmbedBwdBlock(push.block).a
layout(local_size_x_id = 6) in;
layout(constant_id = 16) const uint DY_TYPE = 0;
layout(constant_id = 18) const uint DTABLE_TYPE = 0;

void main() {
    TensorArg dy = args.dy, ids = args.ids, dtable = args.dtable;
    uint at[6];
    tile_origin(dtable, at);
    uint column = at[5] + gl_LocalInvocationIndex;
    bool inside = column < dtable.shape[5];
    Sum sum = sum_start();
    for (uint n = 0; n < ids.shape[5]; n++) {
        if (RefI32(tensor_addr(ids)).v[n] != int(at[4])) continue; // the same for the whole group
        uvec2 row = addr_add(tensor_addr(dy), n, dy.stride[4], DY_TYPE);
        if (inside) sum_add(sum, load(row, column, DY_TYPE));
    }
    if (inside)
        store(addr_add(tensor_addr(dtable), at[4], dtable.stride[4], DTABLE_TYPE), column,
              DTABLE_TYPE, sum_total(sum));
}
