// embed: y[n, :] = table[ids[n], :]; an id outside 0..V-1 gives a row of zeros.
//   table [V, D], ids [N] i32, y [N, D].
#ifndef KILN_OPS_EMBED_H
#define KILN_OPS_EMBED_H
#include "tensor.h"

#define EMBED_OPERANDS(IN, OPT, OUT, OPT_OUT, RW, OPT_RW) IN(embed, table) IN(embed, ids) OUT(embed, y)
#define EMBED_FIELDS U32 unused;
#endif
