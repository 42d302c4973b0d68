// vae.c: planning and running an autoencoder, whole or in tiles. See vae.h.
#include "engine/vae_impl.h"

#include "engine/finite.h"
#include "engine/plan.h"
#include "engine/upload.h"

#include <math.h>

// Tiles along one side, in latents: all of one length, spread evenly.
enum { MAX_TILES = 4096 };
typedef struct Axis {
    int length, tile, count;
    int start[MAX_TILES];
} Axis;

struct VaeRun {
    Device *dev;
    const Vae *vae;
    VaeSpec spec;
    const VaeHalf *half;
    Store *store;
    Param **weight; // [half->count]; NULL: missing
    Run *run;
    Plan *plan;
    Graph *graph;
    Tensor *in, *out;
    BandRules rules;
    Axis x, y;
    bool ready;
};

enum {
    TILE = 512,           // pixels per side where tiling is asked for
    SMALLEST_TILE = 128,  // that is chosen to fit a budget
    TILE_SIZES = 16,      // that are tried, at most
    OVERLAP = 4,          // tiles share at least one in so many of their pixels
};

static const char *const PASS_NAMES[] = {[VAE_DECODE] = "decode", [VAE_ENCODE] = "encode"};

bool vae_tiling_parse(const char *name, VaeTiling *out) {
    static const char *const names[] = {"auto", "on", "off"};
    for (size_t i = 0; i < COUNT_OF(names); i++)
        if (!strcmp(name, names[i])) return *out = (VaeTiling)i, true;
    return false;
}

// ---- tiles ------------------------------------------------------------------------------------

static bool axis_set(Axis *a, int length, int tile) {
    a->length = length;
    a->tile = MIN(tile, length);
    int step = a->tile - MAX(1, a->tile / OVERLAP), rest = length - a->tile;
    if (rest && step < 1) return false;
    a->count = rest ? (rest + step - 1) / step + 1 : 1;
    if (a->count > MAX_TILES) return false;
    for (int i = 0; i < a->count; i++)
        a->start[i] = a->count > 1 ? (int)((int64_t)rest * i / (a->count - 1)) : 0;
    return true;
}

// From 0 to 1 across the pixels that two tiles share. Near a tile's end its convolutions see zeros
// in place of the picture, so a quarter at either end belongs to the neighbour alone.
static float ramp(double part) {
    double r = MIN(MAX((part - 0.25) * 2, 0), 1);
    return (float)(r * r * (3 - 2 * r));
}

// What tile i counts at each of its positions (`scale` per latent): shares of all tiles add to 1.
static void axis_weights(const Axis *a, int i, int scale, float *out) {
    for (int p = 0; p < a->tile * scale; p++) {
        float mine = 0, sum = 0;
        int at = a->start[i] * scale + p;
        for (int k = 0; k < a->count; k++) {
            int first = a->start[k] * scale, last = first + a->tile * scale;
            if (at < first || at >= last) continue;
            float w = 1;
            if (k > 0) {
                int shared = (a->start[k - 1] + a->tile) * scale - first;
                w = MIN(w, ramp((at - first + 0.5) / shared));
            }
            if (k < a->count - 1) {
                int shared = last - a->start[k + 1] * scale;
                w = MIN(w, ramp((last - at - 0.5) / shared));
            }
            sum += w;
            if (k == i) mine = w;
        }
        out[p] = mine / sum;
    }
}

// ---- planning ---------------------------------------------------------------------------------

static void forget_plan(VaeRun *r) {
    run_free(r->run);
    mem_free(r->graph);
    r->run = NULL;
    r->graph = NULL;
}

static void record_graph(VaeRun *r) {
    const VaeHalf *half = r->half;
    const VaeInfo *info = &r->vae->info;
    bool decode = r->spec.pass == VAE_DECODE;
    int scale = decode ? 1 : info->factor;
    r->graph = g_new(r);
    r->in = g_input(r->graph, decode ? "latents" : "picture", DT_F32,
                    DIMS(1, r->y.tile * scale, r->x.tile * scale, decode ? info->channels : 3));
    Tensor *out = info->kind == VAE_TINY ? taesd_run(&half->tiny, r->store, r->in, &r->rules)
                  : decode               ? kl_decode(&half->kl, r->store, r->in, &r->rules)
                                         : kl_encode(&half->kl, r->store, r->in, &r->rules);
    r->out = g_output(r->graph, decode ? "picture" : "latents", g_contiguous(out));
}

// Plans for tiles of this size in pixels (as large as the picture: whole).
static bool plan_tiles(VaeRun *r, int tile, Error *err) {
    const VaeSpec *s = &r->spec;
    int factor = r->vae->info.factor;
    forget_plan(r);
    if (!axis_set(&r->x, s->width / factor, tile / factor) ||
        !axis_set(&r->y, s->height / factor, tile / factor))
        return err_failed(err, "%s: expected tiles of a few latents (%d pixels each), found %d pixels",
                          PASS_NAMES[s->pass], factor, tile);
    r->rules = (BandRules){.limit = dev_info(r->dev)->max_buffer / 4096 * 4096, .at_least = s->bands,
                           .compute = s->compute};
    r->run = run_new(r, r->dev, NULL);
    run_add_store(r->run, r->store);
    record_graph(r);
    r->plan = run_add_plan(r->run, r->graph, PASS_NAMES[s->pass], err);
    return r->plan != NULL;
}

static void add_weights(VaeRun *r) {
    r->weight = MEM_ARRAY(r, Param *, MAX(r->half->count, 1));
    for (int i = 0; i < r->half->count; i++)
        if (r->half->weight[i].pieces) r->weight[i] = store_add_bound(r->store, &r->half->weight[i]);
}

static bool check_spec(const Vae *vae, const VaeSpec *s, Error *err) {
    int factor = vae->info.factor, most = 1 << 17;
    const char *pass = PASS_NAMES[s->pass];
    if (!vae->half[s->pass].count)
        return err_failed(err, "%s: expected an autoencoder with a half that can %s, found only the other; "
                          "give a file that has it with --vae", vae->path, pass);
    const int side[] = {s->width, s->height};
    for (size_t i = 0; i < COUNT_OF(side); i++)
        if (side[i] < factor || side[i] > most || side[i] % factor)
            return err_failed(err, "%s: expected a %s of %d to %d pixels in multiples of %d, found %d; try "
                              "%d", pass, i ? "height" : "width", factor, most, factor, side[i],
                              MIN(MAX(side[i] / factor * factor, factor), most));
    if (s->tile < 0 || s->tile % factor)
        return err_failed(err, "%s: expected tiles in multiples of %d pixels, found %d", pass, factor,
                          s->tile);
    return s->compute == DT_F32 || s->compute == DT_BF16 || s->compute == DT_F16 ||
           err_failed(err, "%s: expected products in f32, bf16 or f16, found %s", pass,
                      dtype_name(s->compute));
}

static uint64_t peak_of(const VaeRun *r) { return run_memory(r->run).peak_bytes; }

static bool over_budget(const VaeRun *r, uint64_t budget, uint64_t least, Error *err) {
    char need[32], have[32];
    format_bytes(need, least);
    format_bytes(have, budget);
    return err_failed(err, "%s: expected a budget of at least %s (%llu bytes) for %d x %d pixels%s, found "
                      "%s; give --vram %lluM or more%s", PASS_NAMES[r->spec.pass], need,
                      (unsigned long long)least, r->spec.width, r->spec.height,
                      r->x.count * r->y.count > 1 ? " in the smallest tiles" : "", have,
                      (unsigned long long)((least + (1 << 20) - 1) >> 20),
                      r->spec.tiling == VAE_TILING_OFF ? ", or --vae-tiling auto" : "");
}

// The sizes of tiles that the spec allows, in the order in which they are tried. Returns how many.
static int tile_sizes(const VaeRun *r, int out[TILE_SIZES]) {
    static const int SIZES[] = {4096, 3072, 2048, 1536, 1280, 1024, 768, 640, 512, 448, 384, 320, 256,
                                192, SMALLEST_TILE};
    const VaeSpec *s = &r->spec;
    int n = 0, whole = MAX(s->width, s->height);
    out[n++] = s->tiling != VAE_TILING_ON ? whole : s->tile ? s->tile : TILE;
    if (s->tiling == VAE_TILING_OFF || (s->tiling == VAE_TILING_ON && s->tile)) return n;
    if (s->tile) return out[n++] = s->tile, n; // for where it does not fit whole
    for (size_t i = 0; i < COUNT_OF(SIZES); i++)
        if (SIZES[i] < out[0] && SIZES[i] % r->vae->info.factor == 0) out[n++] = SIZES[i];
    return n;
}

// Plans for the first size that fits. *least: the smallest budget that one of those tried needs; 0: none
// could be planned, for another reason.
static bool choose(VaeRun *r, uint64_t budget, uint64_t *least, Error *err) {
    int size[TILE_SIZES], n = tile_sizes(r, size);
    bool planned = false;
    *least = 0;
    for (int i = 0; i < n; i++) {
        planned = plan_tiles(r, size[i], err);
        if (!planned) continue;
        if (peak_of(r) <= budget) return true;
        *least = *least ? MIN(*least, peak_of(r)) : peak_of(r);
    }
    return planned && over_budget(r, budget, *least, err);
}

static uint64_t budget_of(const Device *dev, const VaeSpec *s) {
    const MemoryStats now = dev_memory(dev);
    uint64_t held = MIN(now.used, dev_info(dev)->staging_bytes);
    return s->budget ? s->budget : now.budget - MIN(now.budget, now.used - held);
}

static VaeRun *new_run(void *parent, Device *dev, const Vae *vae, const VaeSpec *spec) {
    VaeRun *r = MEM_NEW(parent, VaeRun);
    r->dev = dev;
    r->vae = vae;
    r->spec = *spec;
    r->half = &vae->half[spec->pass];
    r->store = store_new(r, dev);
    add_weights(r);
    return r;
}

VaeRun *vae_plan(void *parent, Device *dev, const Vae *vae, const VaeSpec *spec, Error *err) {
    if (!check_spec(vae, spec, err)) return NULL;
    VaeRun *r = new_run(parent, dev, vae, spec);
    uint64_t least;
    if (choose(r, budget_of(dev, spec), &least, err)) return r;
    vae_run_free(r);
    return NULL;
}

uint64_t vae_smallest(Device *dev, const Vae *vae, const VaeSpec *spec, Error *err) {
    if (!check_spec(vae, spec, err)) return 0;
    VaeRun *r = new_run(NULL, dev, vae, spec);
    Error why = {0};
    uint64_t least;
    choose(r, 0, &least, &why); // nothing fits: all sizes are tried
    if (!least && err) *err = why;
    vae_run_free(r);
    return least;
}

void vae_run_free(VaeRun *r) {
    if (!r) return;
    forget_plan(r);
    store_free(r->store);
    mem_free(r);
}

VaeMemory vae_memory(const VaeRun *r) {
    RunMemory m = run_memory(r->run);
    int factor = r->vae->info.factor;
    return (VaeMemory){
        .weights_bytes = m.weights_bytes, .arena_bytes = m.arena_bytes, .program_bytes = m.program_bytes,
        .staging_bytes = m.staging_bytes, .peak_bytes = m.peak_bytes,
        .tile_width = r->x.tile * factor, .tile_height = r->y.tile * factor,
        .tiles_x = r->x.count, .tiles_y = r->y.count, .bands = r->rules.most,
        .flops = plan_stats(r->plan).flops * r->x.count * r->y.count,
    };
}

// ---- weights ----------------------------------------------------------------------------------

static bool go_on(void *user, uint64_t moved) {
    const Cancel *cancel = user;
    (void)moved;
    return !cancel || !cancel->asked(cancel->user);
}

static bool load_weights(VaeRun *r, const Cancel *cancel, Error *err) {
    int count = r->half->count, items = 0;
    UploadItem *item = MEM_ARRAY(NULL, UploadItem, MAX(count, 1));
    bool ok = true;
    for (int i = 0; ok && i < count; i++) {
        const BoundWeight *b = &r->half->weight[i];
        Param *p = r->weight[i];
        if (p) item[items++] = (UploadItem){b, p->buffer, p->offset};
        if (p && p->scale) ok = param_write(p->scale, DT_F32, &b->scale, err);
    }
    ok = ok && upload_weights(item, items, go_on, (void *)(uintptr_t)cancel, err);
    mem_free(item);
    return ok;
}

static bool prepare(VaeRun *r, const Cancel *cancel, Error *err) {
    if (r->ready) return true;
    return r->ready = run_prepare(r->run, err) && load_weights(r, cancel, err);
}

bool vae_prepare(VaeRun *r, Error *err) { return prepare(r, NULL, err); }

// ---- running ----------------------------------------------------------------------------------

// A window of planes [C, H, W] as rows of pixels [h, w, C], each value through `change`.
typedef struct Window {
    int channels, width, height; // of the planes
    int x, y, w, h;
} Window;

typedef float Change(const VaeInfo *info, float v);

static float keep(const VaeInfo *info, float v) { (void)info; return v; }
static float to_unit(const VaeInfo *info, float v) { (void)info; return (v + 1) * 0.5f; }
static float unscale(const VaeInfo *info, float v) {
    return v / (float)info->scale + (float)info->shift;
}
static float unscale_tiny(const VaeInfo *info, float v) { return 3 * tanhf(unscale(info, v) / 3); }

static void take(const Window *n, const float *planes, const VaeInfo *info, Change *change, float *out) {
    for (int c = 0; c < n->channels; c++)
        for (int y = 0; y < n->h; y++) {
            const float *row = planes + ((size_t)c * (size_t)n->height + (size_t)(n->y + y)) *
                               (size_t)n->width + n->x;
            float *to = out + (size_t)y * (size_t)n->w * (size_t)n->channels + c;
            for (int x = 0; x < n->w; x++) to[(size_t)x * (size_t)n->channels] = change(info, row[x]);
        }
}

// Adds a window's pixels to planes, weighted by row and column.
static void blend(const Window *n, const float *pixels, const float *wx, const float *wy, float *planes) {
    for (int c = 0; c < n->channels; c++)
        for (int y = 0; y < n->h; y++) {
            float *row = planes + ((size_t)c * (size_t)n->height + (size_t)(n->y + y)) *
                         (size_t)n->width + n->x;
            const float *from = pixels + (size_t)y * (size_t)n->w * (size_t)n->channels + c;
            for (int x = 0; x < n->w; x++) row[x] += wx[x] * wy[y] * from[(size_t)x * (size_t)n->channels];
        }
}

static bool check_finite(const VaeRun *r, const float *v, size_t n, const Cancel *cancel, Error *err) {
    if (all_finite(v, n)) return true;
    while (isfinite(*v)) v++;
    err_failed(err, "%s: expected finite numbers, found %g; try --precision f32", PASS_NAMES[r->spec.pass],
               (double)*v);
    bound_finite(r->half->weight, r->half->count, cancel, err);
    return false;
}

// One picture: planes in, planes out (zeroed here), tile by tile.
static bool run_picture(VaeRun *r, const float *in, float *out, int *done, int total,
                        const VaeCall *call, Error *err) {
    const VaeInfo *info = &r->vae->info;
    bool decode = r->spec.pass == VAE_DECODE, tiny = info->kind == VAE_TINY;
    int from = decode ? 1 : info->factor, to = decode ? info->factor : 1; // positions per latent
    Change *change = decode ? tiny ? unscale_tiny : unscale : tiny ? to_unit : keep;
    Window a = {.channels = (int)r->in->shape[3], .width = r->x.length * from,
                .height = r->y.length * from, .w = r->x.tile * from, .h = r->y.tile * from};
    Window b = {.channels = (int)r->out->shape[3], .width = r->x.length * to,
                .height = r->y.length * to, .w = r->x.tile * to, .h = r->y.tile * to};
    size_t count = (size_t)b.w * (size_t)b.h * (size_t)b.channels;
    void *scratch = mem_new(NULL, 1);
    float *pixels = MEM_ARRAY(scratch, float, (size_t)a.w * (size_t)a.h * (size_t)a.channels);
    float *result = MEM_ARRAY(scratch, float, count);
    float *wx = MEM_ARRAY(scratch, float, b.w), *wy = MEM_ARRAY(scratch, float, b.h);
    memset(out, 0, sizeof(float) * (size_t)b.width * (size_t)b.height * (size_t)b.channels);
    bool ok = true;
    for (int j = 0; ok && j < r->y.count; j++)
        for (int i = 0; ok && i < r->x.count; i++) {
            if (call->progress) call->progress(call->user, (*done)++, total);
            a.x = r->x.start[i] * from, a.y = r->y.start[j] * from;
            b.x = r->x.start[i] * to, b.y = r->y.start[j] * to;
            take(&a, in, info, change, pixels);
            ok = plan_write(r->plan, r->in, DT_F32, pixels, err) && plan_run(r->plan, call->cancel, err) &&
                 plan_read(r->plan, r->out, DT_F32, result, err) &&
                 check_finite(r, result, count, call->cancel, err);
            axis_weights(&r->x, i, to, wx);
            axis_weights(&r->y, j, to, wy);
            if (ok) blend(&b, result, wx, wy, out);
        }
    mem_free(scratch);
    return ok;
}

static const VaeCall one_picture = {.batch = 1};

static bool check_pass(const VaeRun *r, VaePass pass, Error *err) {
    return r->spec.pass == pass || err_failed(err, "%s: expected a run planned for it, found one to %s; "
                                              "this is a defect", PASS_NAMES[pass],
                                              PASS_NAMES[r->spec.pass]);
}

bool vae_decode(VaeRun *r, const float *latents, float *image, const VaeCall *call, Error *err) {
    if (!call) call = &one_picture;
    if (!check_pass(r, VAE_DECODE, err) || !prepare(r, call->cancel, err)) return false;
    const VaeInfo *info = &r->vae->info;
    size_t area = (size_t)r->x.length * (size_t)r->y.length, pixels = 3 * area * (size_t)info->factor *
                                                                      (size_t)info->factor;
    int batch = MAX(call->batch, 1), done = 0, total = batch * r->x.count * r->y.count;
    for (int k = 0; k < batch; k++) {
        float *picture = image + (size_t)k * pixels;
        if (!run_picture(r, latents + (size_t)k * area * (size_t)info->channels, picture, &done, total,
                         call, err))
            return false;
        for (size_t i = 0; info->kind == VAE_TINY && i < pixels; i++) picture[i] = picture[i] * 2 - 1;
    }
    return true;
}

// n numbers of one sample from the encoder's result: the mean, behind it (AutoencoderKL) the log variance.
static void sample(const VaeInfo *info, size_t n, const float *moments, const float *noise, float *z) {
    bool drawn = noise && info->kind == VAE_KL;
    for (size_t i = 0; i < n; i++) {
        float v = moments[i];
        if (drawn) v += noise[i] * expf(0.5f * MIN(MAX(moments[n + i], -30.0f), 20.0f));
        z[i] = (v - (float)info->shift) * (float)info->scale;
    }
}

bool vae_encode(VaeRun *r, const float *image, const float *noise, float *latents, const VaeCall *call,
                Error *err) {
    if (!call) call = &one_picture;
    if (!check_pass(r, VAE_ENCODE, err) || !prepare(r, call->cancel, err)) return false;
    const VaeInfo *info = &r->vae->info;
    size_t area = (size_t)r->x.length * (size_t)r->y.length, n = area * (size_t)info->channels;
    size_t pixels = 3 * area * (size_t)info->factor * (size_t)info->factor;
    size_t samples = (size_t)MAX(call->samples, 1);
    int batch = MAX(call->batch, 1), done = 0, total = batch * r->x.count * r->y.count;
    bool ok = true;
    float *moments = MEM_ARRAY(NULL, float, 2 * n);
    for (int k = 0; ok && k < batch; k++) {
        ok = run_picture(r, image + (size_t)k * pixels, moments, &done, total, call, err);
        for (size_t i = 0; ok && i < samples; i++) {
            size_t at = ((size_t)k * samples + i) * n;
            sample(info, n, moments, noise ? noise + at : NULL, latents + at);
        }
    }
    mem_free(moments);
    return ok;
}
