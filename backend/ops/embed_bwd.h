// embed_bwd: dtable[v, :] = sum of dy[n, :] over the n with ids[n] == v, in the order of n.
//   dy [N, D], ids [N] i32, dtable [V, D].
#ifndef KILN_OPS_EMBED_BWD_H
#define KILN_OPS_EMBED_BWD_H
#include "tensor.h"

#define EMBED_BWD_OPERANDS(IN, OPT, OUT, OPT_OUT, RW, OPT_RW) \
    IN(embed_bwd, dy) IN(embed_bwd, ids) OUT(embed_bwd, dtable)
#define EMBED_BWD_FIELDS U32 unused;
#endif
