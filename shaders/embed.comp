// embed.comp: y[n, :] = table[ids[n], :], zeros where the id is outside the table (ops/embed.h).
// A tile is one row n and TILE_5 columns.
#version 460
#extension GL_GOOGLE_include_directive : require
#include "common/kiln.glsl"
#include "embed.h"
KILN_ARGS(Embed, EMBED_OPERANDS, EMBED_FIELDS)
#define args EmbedBlock(push.block).a
layout(local_size_x_id = 6) in;
layout(constant_id = 16) const uint TABLE_TYPE = 0;
layout(constant_id = 18) const uint Y_TYPE = 0;

void main() {
    TensorArg table = args.table, ids = args.ids, y = args.y;
    uint at[6];
    tile_origin(y, at);
    int id = RefI32(addr_add(tensor_addr(ids), at[4], ids.stride[5], DTYPE_I32)).v[0];
    bool known = id >= 0 && uint(id) < table.shape[4];
    uvec2 from = addr_add(tensor_addr(table), known ? uint(id) : 0, table.stride[4], TABLE_TYPE);
    uvec2 to = addr_add(tensor_addr(y), at[4], y.stride[4], Y_TYPE);
    uint end = min(y.shape[5], at[5] + TILE_5);
    for (uint i = at[5] + gl_LocalInvocationIndex; i < end; i += gl_WorkGroupSize.x) {
        float v = load(from, i, TABLE_TYPE);
        store(to, i, Y_TYPE, known ? v : 0.0);
    }
}
