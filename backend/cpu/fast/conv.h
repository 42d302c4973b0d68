// conv.h: what the convolution rows share: the cut of the output into tiles by shape alone, and the
// patch of x under a tile, copied with its borders of zeros so that inner loops know of none.
#ifndef KILN_CPU_CONV_H
#define KILN_CPU_CONV_H

#include "backend/cpu/cpu.h"

typedef struct ConvJob {
    Cpu *cpu;
    const OpCall *c;
    int64_t B, H, W, C, O, R, S, Ho, Wo; // C: channels of a group's input; O: of all groups
    int64_t stride, dilation, up, groups, top, left;
    int64_t th, tw, tiles_h, tiles_w; // outputs of a tile, tiles of an output
    int64_t ph, pw, pixel;            // patch: rows, columns, elements of a pixel
    void *pack;                       // weights as the row wants them
    void (*store)(const OpCall *c, int64_t b, int64_t h, int64_t w, int64_t pixels, int64_t o0,
                  int64_t n, const float *acc, int64_t ld);
} ConvJob;

enum {
    CONV_PACK = 32 << 20,       // bytes of packed weights, at most (cpu->pack)
    CONV_PATCH = 3 << 20,       // bytes of a patch, at most; at the start of a thread's scratch
    CONV_ACC = SCRATCH_BYTES / 2, // where in the scratch the sums stand
};

// `pixel`: elements of a pixel in the patch, of `size` bytes.
void conv_setup(ConvJob *job, Cpu *cpu, const OpCall *c, int64_t pixel, int64_t size);
typedef struct ConvTile { int64_t b, h0, w0, rows, cols; } ConvTile; // outputs
ConvTile conv_tile(const ConvJob *job, int64_t part);
// Calls copy(to, from, n) for each pixel of the tile's patch: `from` its n channels from channel c0
// on, NULL where it lies outside of x. `size`: bytes of an element of the patch.
typedef void ConvCopy(void *to, DType type, const void *from, int64_t n, int64_t pixel);
void conv_patch(const ConvJob *job, const ConvTile *tile, int64_t c0, void *patch, int64_t size,
                ConvCopy *copy);

#define ISA(isa)                                                                              \
    void conv2d_store_##isa(const OpCall *c, int64_t b, int64_t h, int64_t w, int64_t pixels, \
                            int64_t o0, int64_t n, const float *acc, int64_t ld);
ISA(avx512)
ISA(avx2)
ISA(plain)
#undef ISA

#endif
