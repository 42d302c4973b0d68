// gemm_onednn.c: matrix products of f32 and bf16 on oneDNN: single-threaded primitives on the
// pool's threads. Weights are put into the library's own layout once per call, which makes small
// row blocks as fast as whole matrices. Primitives are cached by shape.
#include "backend/cpu/fast/gemm.h"

#if HAVE_ONEDNN
#include <oneapi/dnnl/dnnl.h>
#if HAVE_GOMP
// Of the OpenMP runtime under oneDNN; both concern the calling thread only.
extern void omp_set_num_threads(int threads);
extern int omp_get_max_threads(void);
#endif

typedef struct Key {
    int64_t m, n, k, xr, xk, wk, wn, ld;
    int64_t like; // rows of the primitive whose packed weights this one reads; 0: unpacked
    int32_t type, add;
} Key;

typedef struct ThreadMemory { dnnl_memory_t x, w, y, pad; } ThreadMemory;

typedef struct Prim {
    Key key;
    dnnl_primitive_t run, reorder; // reorder: weights as they lie to packed; NULL: unpacked
    dnnl_memory_desc_t wd, packed;
    size_t packed_bytes;
    bool unpacked; // asked to choose a layout, the library chose its older path: nothing to run
    ThreadMemory *memory; // per thread
    struct Prim *next;
} Prim;

enum { PRIMS_MAX = 512, PACK_BYTES = 16 << 20 };

typedef struct OneDnn {
    dnnl_engine_t engine;
    dnnl_stream_t *stream; // per thread
    Prim *prims;
    int count, threads;
    char *pack; // packed weights of the running call, PACK_BYTES
} OneDnn;

typedef struct Packed { Prim *main, *tail; dnnl_memory_t weights; } Packed; // of a column block

typedef struct OneDnnJob {
    GemmJob gemm;
    OneDnn *dnn;
    int segment;       // the one running
    int64_t batch, col0, cols; // batch and column blocks of the running chunk
    Packed *block;     // of each column block in it
} OneDnnJob;

static void one_thread(void) {
#if HAVE_GOMP
    if (omp_get_max_threads() != 1) omp_set_num_threads(1);
#endif
}

// ---- primitives -------------------------------------------------------------------------------
static void prim_free(Prim *p, int threads) {
    for (int i = 0; p->memory && i < threads; i++) {
        const ThreadMemory *m = &p->memory[i];
        dnnl_memory_t all[] = {m->x, m->w, m->y, m->pad};
        for (int k = 0; k < 4; k++)
            if (all[k]) dnnl_memory_destroy(all[k]);
    }
    if (p->run) dnnl_primitive_destroy(p->run);
    if (p->reorder) dnnl_primitive_destroy(p->reorder);
    mem_free(p);
}

static void prims_clear(OneDnn *d) {
    while (d->prims) {
        Prim *p = d->prims;
        d->prims = p->next;
        prim_free(p, d->threads);
    }
    d->count = 0;
}

static bool make_reorder(OneDnn *d, Prim *p) {
    dnnl_primitive_desc_t pd;
    if (dnnl_reorder_primitive_desc_create(&pd, &p->wd, d->engine, &p->packed, d->engine, NULL))
        return false;
    bool ok = !dnnl_primitive_create(&p->reorder, pd);
    dnnl_primitive_desc_destroy(pd);
    return ok;
}

static bool make_memory(OneDnn *d, Prim *p, const dnnl_memory_desc_t *xd,
                        const dnnl_memory_desc_t *yd, const dnnl_memory_desc_t *scratchpad) {
    p->memory = MEM_ARRAY(p, ThreadMemory, d->threads);
    for (int i = 0; i < d->threads; i++) {
        ThreadMemory *m = &p->memory[i];
        if (dnnl_memory_create(&m->x, xd, d->engine, DNNL_MEMORY_NONE) ||
            dnnl_memory_create(&m->w, &p->wd, d->engine, DNNL_MEMORY_NONE) ||
            dnnl_memory_create(&m->y, yd, d->engine, DNNL_MEMORY_NONE) ||
            dnnl_memory_create(&m->pad, scratchpad, d->engine, DNNL_MEMORY_NONE))
            return false;
    }
    return true;
}

// Fills p from p->key; `like`: the primitive whose packed layout is to be read.
static bool prim_make(OneDnn *d, Prim *p, const Prim *like) {
    const Key *k = &p->key;
    dnnl_memory_desc_t xd, yd, any;
    dnnl_data_type_t type = k->type == DT_BF16 ? dnnl_bf16 : dnnl_f32;
    dnnl_dims_t xs = {k->m, k->k}, ws = {k->k, k->n}, ys = {k->m, k->n};
    dnnl_dims_t xst = {k->xr, k->xk}, wst = {k->wk, k->wn}, yst = {k->ld, 1};
    if (dnnl_memory_desc_init_by_strides(&xd, 2, xs, type, xst) ||
        dnnl_memory_desc_init_by_strides(&p->wd, 2, ws, type, wst) ||
        dnnl_memory_desc_init_by_strides(&yd, 2, ys, dnnl_f32, yst) ||
        dnnl_memory_desc_init_by_tag(&any, 2, ws, type, dnnl_format_tag_any))
        return false;
    dnnl_primitive_attr_t attr;
    if (dnnl_primitive_attr_create(&attr)) return false;
    dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    dnnl_post_ops_t sum = NULL;
    if (k->add) {
        dnnl_post_ops_create(&sum);
        dnnl_post_ops_append_sum(sum, 1.0f);
        dnnl_primitive_attr_set_post_ops(attr, sum);
    }
    const dnnl_memory_desc_t *weights = !k->like ? &p->wd : like ? &like->packed : &any;
    dnnl_matmul_desc_t md;
    dnnl_primitive_desc_t pd = NULL;
    bool ok = !dnnl_matmul_desc_init(&md, &xd, weights, NULL, &yd) &&
              !dnnl_primitive_desc_create(&pd, &md, attr, d->engine, NULL);
    if (ok) {
        const dnnl_memory_desc_t *pad =
            dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
        p->packed = *dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
        p->packed_bytes = dnnl_memory_desc_get_size(&p->packed);
        const char *name = "";
        dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, &name);
        p->unpacked = k->like && strncmp(name, "brg", 3);
        ok = p->unpacked || (dnnl_memory_desc_get_size(pad) <= SCRATCH_BYTES - ACC_BYTES &&
             !dnnl_primitive_create(&p->run, pd) && make_memory(d, p, &xd, &yd, pad));
        if (ok && k->like && !like && !p->unpacked) ok = make_reorder(d, p);
        dnnl_primitive_desc_destroy(pd);
    }
    if (sum) dnnl_post_ops_destroy(sum);
    dnnl_primitive_attr_destroy(attr);
    return ok;
}

static Prim *prim_get(OneDnn *d, const Key *key, const Prim *like) {
    for (Prim *p = d->prims; p; p = p->next)
        if (!memcmp(&p->key, key, sizeof *key)) return p;
    Prim *p = MEM_NEW(NULL, Prim);
    p->key = *key;
    if (!prim_make(d, p, like)) {
        prim_free(p, d->threads);
        return NULL;
    }
    p->next = d->prims;
    d->prims = p;
    d->count++;
    return p;
}

// ---- a call -----------------------------------------------------------------------------------
static void pack_part(void *arg, int64_t part, int thread) {
    OneDnnJob *j = arg;
    const GemmJob *g = &j->gemm;
    const Segment *s = &g->seg[j->segment];
    Packed *b = &j->block[part];
    one_thread();
    ThreadMemory *m = &b->main->memory[thread];
    int64_t n0 = (j->col0 + part) * g->nb;
    dnnl_memory_set_data_handle(m->w, gemm_at(s->w, j->batch * s->wb + n0 * s->wn));
    dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, m->w}, {DNNL_ARG_TO, b->weights}};
    if (dnnl_primitive_execute(b->main->reorder, j->dnn->stream[thread], 2, args))
        __atomic_store_n(&j->gemm.failed, 1, __ATOMIC_RELAXED);
}

static void run_part(void *arg, int64_t part, int thread) {
    OneDnnJob *j = arg;
    GemmJob *g = &j->gemm;
    const Segment *s = &g->seg[j->segment];
    const Packed *b = &j->block[part / g->row_blocks];
    int64_t col = j->col0 + part / g->row_blocks;
    GemmPart p = gemm_part(g, j->batch, col, part % g->row_blocks, thread);
    const Prim *prim = p.rows == g->mb ? b->main : b->tail;
    one_thread();
    ThreadMemory *m = &prim->memory[thread];
    dnnl_memory_set_data_handle(m->x, gemm_at(s->x, p.b * s->xb + p.m0 * s->xr));
    dnnl_memory_set_data_handle(m->y, p.acc);
    dnnl_memory_set_data_handle(m->pad, (char *)cpu_scratch(g->cpu, thread) + ACC_BYTES);
    if (!b->weights)
        dnnl_memory_set_data_handle(m->w, gemm_at(s->w, p.b * s->wb + p.n0 * s->wn));
    dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, m->x},
                              {DNNL_ARG_WEIGHTS, b->weights ? b->weights : m->w},
                              {DNNL_ARG_DST, m->y},
                              {DNNL_ARG_SCRATCHPAD, m->pad}};
    if (dnnl_primitive_execute(prim->run, j->dnn->stream[thread], 4, args))
        __atomic_store_n(&g->failed, 1, __ATOMIC_RELAXED);
    if (j->segment == g->segments - 1) gemm_finish(g, &p);
}

// The primitives of column block `col`; false where the library has none.
static bool block_prims(OneDnnJob *j, int64_t col, bool pack, Packed *out) {
    const GemmJob *g = &j->gemm;
    const Segment *s = &g->seg[j->segment];
    GemmPart p = gemm_part(g, 0, col, 0, 0);
    Key key = {.m = g->mb, .n = p.cols, .k = s->K, .xr = s->xr, .xk = s->xk, .wk = s->wk,
               .wn = s->wn, .ld = p.ld, .like = pack ? g->mb : 0, .type = s->x->dtype,
               .add = j->segment > 0};
    *out = (Packed){.main = prim_get(j->dnn, &key, NULL)};
    if (out->main && out->main->unpacked) {
        key.like = 0;
        out->main = prim_get(j->dnn, &key, NULL);
    }
    if (!out->main) return false;
    key.m = g->R - (g->row_blocks - 1) * g->mb;
    out->tail = key.m == g->mb ? out->main : prim_get(j->dnn, &key, out->main);
    return out->tail;
}

// Column blocks col0.. of the running segment and batch, as many as the packing space holds;
// returns their number, 0 on failure.
static int64_t run_chunk(OneDnnJob *j, bool pack) {
    GemmJob *g = &j->gemm;
    size_t used = 0;
    j->cols = 0;
    bool ok = true;
    for (int64_t col = j->col0; ok && col < g->col_blocks; col++) {
        Packed *b = &j->block[j->cols];
        ok = block_prims(j, col, pack, b);
        if (!ok || !b->main->reorder) { j->cols += ok; continue; }
        if (used + b->main->packed_bytes > PACK_BYTES) break;
        ok = !dnnl_memory_create(&b->weights, &b->main->packed, j->dnn->engine,
                                 j->dnn->pack + used);
        used += align_up(b->main->packed_bytes, 64);
        j->cols += ok;
    }
    if (ok && j->cols) {
        if (j->block[0].main->reorder) pool_run(g->cpu->pool, j->cols, pack_part, j);
        pool_run(g->cpu->pool, j->cols * g->row_blocks, run_part, j);
    }
    for (int64_t i = 0; i < j->cols; i++)
        if (j->block[i].weights) dnnl_memory_destroy(j->block[i].weights);
    return ok && !g->failed ? j->cols : 0;
}

static bool run_all(OneDnnJob *j) {
    GemmJob *g = &j->gemm;
    for (j->batch = 0; j->batch < g->B; j->batch++)
        for (j->segment = 0; j->segment < g->segments; j->segment++) {
            const Segment *s = &g->seg[j->segment];
            // Products of a transposed x take the library's older path, which packs by itself.
            bool pack = g->row_blocks > 1 && s->xk == 1;
            int64_t done;
            for (j->col0 = 0; j->col0 < g->col_blocks; j->col0 += done)
                if (!(done = run_chunk(j, pack))) return false;
        }
    return true;
}

void onednn_close(Cpu *cpu) {
    OneDnn *d = cpu->onednn;
    if (!d) return;
    prims_clear(d);
    for (int i = 0; i < d->threads; i++)
        if (d->stream[i]) dnnl_stream_destroy(d->stream[i]);
    if (d->engine) dnnl_engine_destroy(d->engine);
    mem_free(d);
    cpu->onednn = NULL;
}

static OneDnn *onednn_open(Cpu *cpu) {
    if (cpu->onednn) return cpu->onednn;
    OneDnn *d = cpu->onednn = MEM_NEW(NULL, OneDnn);
    d->threads = pool_threads(cpu->pool);
    d->stream = MEM_ARRAY(d, dnnl_stream_t, d->threads);
    d->pack = mem_new(d, PACK_BYTES);
    bool ok = !dnnl_engine_create(&d->engine, dnnl_cpu, 0);
    for (int i = 0; ok && i < d->threads; i++)
        ok = !dnnl_stream_create(&d->stream[i], d->engine, dnnl_stream_default_flags);
    return ok ? d : NULL;
}

void gemm_onednn(Cpu *cpu, const OpCall *c) {
    OneDnnJob j = {0};
    gemm_setup(&j.gemm, cpu, c);
#if HAVE_GOMP
    int threads = omp_get_max_threads(); // the caller's setting, put back below
#endif
    one_thread();
    // Rows of y a multiple of a page apart meet in the same cache sets: 10 % slower than a copy.
    bool pages = gemm_part(&j.gemm, 0, 0, 0, 0).ld % 1024 == 0;
    if (j.gemm.direct && pages && j.gemm.segments == 1 && j.gemm.R > 1)
        j.gemm.direct = j.gemm.plain = false;
    j.dnn = onednn_open(cpu);
    // Segments that add up need their products in y: a second pass over all parts.
    bool ok = j.dnn && (j.gemm.segments == 1 || j.gemm.direct);
    if (ok) {
        if (j.dnn->count > PRIMS_MAX) prims_clear(j.dnn);
        j.block = MEM_ARRAY(NULL, Packed, j.gemm.col_blocks);
        ok = run_all(&j);
        mem_free(j.block);
    }
#if HAVE_GOMP
    omp_set_num_threads(threads);
#endif
    if (!ok) gemm_openblas(cpu, c); // what the library refuses
}
#endif
