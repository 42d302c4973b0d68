// dummy.c: see dummy.h.
#include "engine/dummy.h"

#include <math.h>

#include "backend/quant.h"

// Where a block type keeps its f16 scale, and its second one (-1: none), which is `ratio` times the
// first so that the mean is 0. All other bytes of a block may be anything.
typedef struct BlockForm { DType type; int scale_at, second_at; float ratio; } BlockForm;
static const BlockForm block_forms[] = {
    {DT_Q8_0, 0, -1, 0},  {DT_Q4_0, 0, -1, 0},      {DT_Q4_1, 0, 2, -7.5f},    {DT_Q5_0, 0, -1, 0},
    {DT_Q5_1, 0, 2, -15.5f}, {DT_Q2_K, 80, 82, 1.5f}, {DT_Q3_K, 108, -1, 0},   {DT_Q4_K, 0, 2, 7.5f},
    {DT_Q5_K, 0, 2, 15.5f}, {DT_Q6_K, 208, -1, 0},  {DT_IQ4_NL, 0, -1, 0},     {DT_IQ4_XS, 0, -1, 0},
};

// Tensors of one type and size of numbers share a pool; a tensor is pages of about PAGE bytes that
// begin somewhere in the pool, where the generator says. So bytes come at the speed of a copy.
// All lie at whole cells: a block of a block type, else LANES elements.
enum { LANES = 8, CELL_MAX = 256, PAGE = 4096, POOL = 256 << 10, PROBE_BLOCKS = 64 };

typedef struct Pool {
    DType dtype;
    float mean, deviation;
    uint64_t cell, page_cells, cells; // bytes of a cell; cells of a page and of the pool
    uint8_t *data;
} Pool;

typedef struct Source { const Pool *pool; uint64_t key; } Source; // of a tensor

static uint64_t word_at(uint64_t key, uint64_t counter) { // SplitMix64
    uint64_t x = key + counter * UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return x ^ x >> 31;
}

static bool read_range(void *user, int index, uint64_t offset, void *out, uint64_t bytes, Error *err) {
    (void)err;
    const Source *s = &((const Source *)user)[index];
    const Pool *p = s->pool;
    uint64_t page = p->cell * p->page_cells, starts = p->cells - p->page_cells + 1;
    for (uint8_t *to = out; bytes;) {
        uint64_t inside = offset % page, n = MIN(page - inside, bytes);
        uint64_t start = word_at(s->key, offset / page) % starts * p->cell;
        memcpy(to, p->data + start + inside, (size_t)n);
        offset += n, to += n, bytes -= n;
    }
    return true;
}

// ---- pools --------------------------------------------------------------------------------------

static void make_blocks(const BlockForm *form, uint64_t key, float scale, int count, uint8_t *out) {
    int size = dtype_size(form->type);
    uint16_t first = f16_from_f32(scale), second = f16_from_f32(f32_from_f16(first) * form->ratio);
    for (int i = 0; i < count; i++, out += size) {
        for (int k = 0; k < size; k += 8) {
            uint64_t word = word_at(key, (uint64_t)i * 64 + (uint64_t)k);
            memcpy(out + k, &word, (size_t)MIN(size - k, 8));
        }
        memcpy(out + form->scale_at, &first, sizeof first);
        if (form->second_at >= 0) memcpy(out + form->second_at, &second, sizeof second);
    }
}

// Standard deviation of a block type's numbers where the scale is 1: measured.
static float unit_deviation(const BlockForm *form) {
    uint8_t blocks[PROBE_BLOCKS * CELL_MAX];
    float value[PROBE_BLOCKS * 256];
    int n = PROBE_BLOCKS * dtype_block(form->type);
    make_blocks(form, 1, 1, PROBE_BLOCKS, blocks);
    quant_decode(form->type, blocks, value, n);
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)value[i] * (double)value[i];
    return (float)sqrt(sum / n);
}

static const BlockForm *form_of(DType type) {
    for (size_t i = 0; i < COUNT_OF(block_forms); i++)
        if (block_forms[i].type == type) return &block_forms[i];
    return NULL;
}

static void fill_pool(Pool *p, const BlockForm *form, uint64_t seed) {
    int cells = (int)p->cells;
    if (form) {
        make_blocks(form, seed, p->deviation / unit_deviation(form), cells, p->data);
        return;
    }
    float lane[LANES], spread = p->deviation * sqrtf(3); // even over mean - spread .. mean + spread
    for (int i = 0; i < cells; i++) {
        uint64_t word = word_at(seed, (uint64_t)i);
        for (int k = 0; k < LANES; k++)
            lane[k] = p->mean + spread * ((float)(word >> 8 * k & 255) - 127.5f) / 127.5f;
        uint8_t *to = p->data + (uint64_t)i * p->cell;
        if (dtype_is_packed(p->dtype)) quant_encode(p->dtype, lane, to, LANES);
        else dtype_convert(p->dtype, to, DT_F32, lane, LANES);
    }
}

typedef struct Pools { ARRAY(Pool *) v; Source *source; uint64_t seed; } Pools;

static const Pool *pool_for(Pools *pools, DType dtype, float mean, float deviation) {
    for (int i = 0; i < pools->v.n; i++) {
        const Pool *p = pools->v.v[i];
        if (p->dtype == dtype && p->mean == mean && p->deviation == deviation) return p;
    }
    const BlockForm *form = form_of(dtype);
    Pool *p = MEM_NEW(pools, Pool);
    *p = (Pool){.dtype = dtype, .mean = mean, .deviation = deviation};
    p->cell = (uint64_t)dtype_size(dtype) * (form ? 1 : LANES);
    p->page_cells = PAGE / p->cell;
    p->cells = POOL / p->cell;
    p->data = mem_new(p, p->cells * p->cell);
    fill_pool(p, form, word_at(pools->seed, (uint64_t)pools->v.n));
    ARR_PUSH(pools, &pools->v, p);
    return p;
}

// ---- tensors ------------------------------------------------------------------------------------

static DType dummy_type(const BindWant *want, DType type) {
    if (want->ndim < 2) return type == DT_F32 ? DT_F32 : DT_BF16;
    bool whole = want->shape[want->ndim - 1] % dtype_block(type) == 0;
    return !whole || (want->layout == BIND_CONV && dtype_is_packed(type)) ? DT_BF16 : type;
}

Weights *dummy_weights(void *parent, const char *name, const BindWant *wants, int count, DType type,
                       uint64_t seed) {
    WeightTensor *tensors = MEM_ARRAY(NULL, WeightTensor, MAX(count, 1));
    Pools *pools = MEM_NEW(NULL, Pools);
    pools->source = MEM_ARRAY(pools, Source, MAX(count, 1));
    pools->seed = seed;
    for (int i = 0; i < count; i++) {
        const BindWant *want = &wants[i];
        double inputs = 1;
        for (int k = 1; k < want->ndim; k++) inputs *= (double)want->shape[k];
        float mean = 0, deviation = (float)(1 / sqrt(inputs));
        if (want->ndim < 2) {
            bool norm = str_ends(want->name, ".weight") || str_ends(want->name, ".scale");
            mean = norm ? 1 : 0;
            deviation = norm ? 0.06f : 0.012f;
        }
        DType dtype = dummy_type(want, type);
        pools->source[i].pool = pool_for(pools, dtype, mean, deviation);
        pools->source[i].key = word_at(hash_bytes(seed, want->name, strlen(want->name)), 1);
        tensors[i] = (WeightTensor){.name = want->name, .dtype = dtype, .ndim = want->ndim};
        memcpy(tensors[i].shape, want->shape, sizeof want->shape);
    }
    Weights *w = weights_synthetic(parent, name, tensors, count, read_range, pools->source);
    if (w) mem_move(w, pools);
    else mem_free(pools);
    mem_free(tensors);
    return w;
}
