// kiln_impl.h: the inside of libkiln's public objects, and what each kind of model must offer.
// Shared by kiln.c, kiln_nano.c and kiln_text.c.
#ifndef KILN_ENGINE_KILN_IMPL_H
#define KILN_ENGINE_KILN_IMPL_H

#include "engine/image.h"
#include "engine/kiln.h"
#include "engine/model_parts.h"
#include "engine/noise.h"
#include "engine/parameters.h"
#include "engine/pipeline_nano.h"

#ifndef KILN_VERSION
#define KILN_VERSION "unknown"
#endif

struct KilnContext {
    Device *dev;
    KilnDevice device;
    Log log;
    KilnOptions options;
};

typedef struct KilnKind {
    // model->path is set. On failure the model is closed by the caller.
    bool (*open)(KilnModel *m, const KilnModelOptions *options, Error *err);
    void (*close)(KilnModel *m);
    KilnModelInfo (*info)(const KilnModel *m);
    KilnRequest (*request)(const KilnModel *m);
    bool (*plan)(KilnModel *m, const KilnRequest *r, KilnPlan *plan, Error *err);
    // Fills images->image, prompt, seed, parameters; images->count is the request's.
    bool (*generate)(KilnModel *m, const KilnRequest *r, KilnImages *images, Error *err);
} KilnKind;
extern const KilnKind kiln_nano, kiln_text;

struct KilnModel {
    KilnContext *ctx;
    const KilnKind *kind;
    char *path;
    // nano
    NanoPipeline *nano;
    char **names; // [classes]
    // text
    ModelParts *parts;
    struct FluxPipeline *flux;
};

struct KilnImages {
    int count;
    Image **image;
    Parameters parameters; // all but prompt and seed
    char **prompt;         // [count]
    uint64_t seed;
};

KilnPlan kiln_plan_of(const RunMemory *m);
Cancel kiln_cancel(const KilnCallbacks *callbacks); // always one that may be asked
bool kiln_precision(KilnPrecision p, DType *out, Error *err);
NoiseKind kiln_noise(KilnRng rng);
// Makes room for r->count pictures; then one from floats [3, height, width].
void kiln_images_begin(KilnImages *images, const KilnModel *m, const KilnRequest *r, int steps,
                       double cfg_scale, int width, int height);
bool kiln_images_put(KilnImages *images, int k, const char *prompt, const float *planes, Error *err);

#endif
