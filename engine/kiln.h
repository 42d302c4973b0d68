// kiln.h: the public interface of libkiln: from a device and a model file to pictures, and
// training. The only header that is installed; it includes nothing of Kiln's.
//
//     KilnError err;
//     KilnContext *ctx = kiln_open("auto", NULL, &err);
//     KilnModel *model = kiln_model_open(ctx, "nano", NULL, &err);
//     KilnRequest request = kiln_request(model);
//     request.class_name = "cat"; // a text model: request.prompt = "a cat in the snow";
//     KilnImages *images = kiln_generate(model, &request, &err);
//     kiln_image_save(images, 0, "cat.png", &err);
//
// Errors are values: a function that fails returns NULL, false or -1 and fills `err` (which may be
// NULL everywhere; it need not be initialised). Nothing is printed, and nothing ends the program,
// except that running out of host memory for small bookkeeping does.
//
// Threads: there is no global state. Contexts can live side by side, each used by one thread at a
// time together with its models. Callbacks run on the calling thread. KilnImages belong to no
// context and may be read by any number of threads; kiln_memory, kiln_devices and kiln_version may
// be called at any time by any thread.
//
// Ownership: what a function returns is freed by the function named beside it. Strings and arrays
// in options are read during the call only. Structs of options are made by the functions that fill
// in the defaults (or by {0} where said), then changed.
#ifndef KILN_H
#define KILN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__) && !defined(_WIN32)
#define KILN_API __attribute__((visibility("default")))
#else
#define KILN_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

KILN_API const char *kiln_version(void); // "0.1.0"

// ---- errors and callbacks -----------------------------------------------------------------------

typedef enum KilnStatus {
    KILN_OK = 0,
    KILN_FAILED = 1,      // the work failed: files, memory, devices, values that do not fit
    KILN_USAGE = 2,       // called with something that can never be right
    KILN_CANCELLED = 130, // a callback asked for it
} KilnStatus;

typedef struct KilnError {
    KilnStatus status;
    char text[3072]; // "WHAT: expected ..., found ...; TRY", then, where several things are wrong,
                     // one more line for each of up to ten
} KilnError;

typedef struct KilnProgress {
    const char *stage; // generate: "load", "sample", or "text", "encode", "schedule", "denoise",
                       // "decode"; train: "data", "train", "validate", "samples",
                       // "checkpoint"
    int64_t done, total; // steps; "load" MiB, "text" and "schedule" blocks, "encode" and "decode" tiles,
                         // "data" pictures; total 0: not known
    double seconds_left; // 0: not known yet
    // Training:
    int epoch, epochs;   // from 1
    double loss, lr, images_per_second;
} KilnProgress;

typedef struct KilnCallbacks {
    void (*progress)(void *user, const KilnProgress *progress); // may be NULL
    bool (*cancel)(void *user); // asked often; true: stop soon, with KILN_CANCELLED; may be NULL
    void *user;
} KilnCallbacks;

// ---- devices ------------------------------------------------------------------------------------

typedef enum KilnDeviceKind {
    KILN_CPU, KILN_INTEGRATED, KILN_DISCRETE, KILN_SOFTWARE,
} KilnDeviceKind;

typedef struct KilnDevice {
    char id[32]; // for kiln_open: "cpu", "ref" (the slow, exact reference), "vulkan:0"
    char name[256], driver[256];
    KilnDeviceKind kind;
    uint64_t memory_total, memory_free; // bytes
} KilnDevice;

// Fills the first `room` of `devices` (NULL with 0 to count) and returns how many there are.
KILN_API int kiln_devices(KilnDevice *devices, int room);

typedef struct KilnOptions { // {0}: all defaults
    uint64_t memory_limit; // bytes that the context may take on the device; 0: 90 % of what is free
    int threads;           // of the host: CPU devices' work, uploads; 0: all cores
    bool no_cache;         // keep compiled kernels in memory only, not in the user's cache folder
    void (*log)(void *user, int level, const char *line); // 0 errors .. 3 debugging; NULL: none
    void *log_user;
} KilnOptions;

// A context is one open device with its memory. `device`: "auto", "cpu", "ref", "vulkan",
// "vulkan:N"; `options` may be NULL.
typedef struct KilnContext KilnContext;
KILN_API KilnContext *kiln_open(const char *device, const KilnOptions *options, KilnError *err);
KILN_API void kiln_close(KilnContext *ctx); // after its models are closed; NULL is allowed
KILN_API const KilnDevice *kiln_device(const KilnContext *ctx);

typedef struct KilnMemory {
    uint64_t used, peak, limit; // bytes on the device, as its allocator counted them
} KilnMemory;
KILN_API KilnMemory kiln_memory(const KilnContext *ctx);

// ---- models -------------------------------------------------------------------------------------

typedef enum KilnPrecision { KILN_F32, KILN_F16, KILN_BF16 } KilnPrecision;

typedef struct KilnModelOptions { // {0}: all defaults
    KilnPrecision precision; // of matrix products and activations
    // Text models: parts in files of their own (they replace the model's), each may be NULL.
    const char *diffusion_model, *clip_l, *t5xxl, *vae;
    const char *distill;     // a distilled T5-Base in place of T5-XXL; NULL: none
    const char *type;        // of the weights on the device, as `kiln generate --type`; NULL: the file's
    const char *dummy;       // "flux-dev", "flux-schnell": synthetic weights, no files; NULL: none
    int dummy_divisor;       // narrower and shallower by it; 0: 1
} KilnModelOptions;

// `path`: a model file (or a diffusers folder), a folder with model.safetensors, or a bare name
// that is looked up in the folder KILN_MODELS, beside the program and in Kiln's data folder
// ("nano": the shipped model). The file's header is checked here; weights are read when they are
// first needed. Keep the file as it is until the model is closed. `options` may be NULL.
typedef struct KilnModel KilnModel;
KILN_API KilnModel *kiln_model_open(KilnContext *ctx, const char *path,
                                    const KilnModelOptions *options, KilnError *err);
KILN_API void kiln_model_close(KilnModel *model); // NULL is allowed

typedef struct KilnModelInfo {
    const char *architecture, *variant, *path; // "flux", "dev"; live as long as the model
    int width, height;                // of its pictures (text models: the default)
    int classes;                      // 0: not a class-conditional model
    int64_t parameters;
} KilnModelInfo;
KILN_API KilnModelInfo kiln_model_info(const KilnModel *model);
// Name of class i (its number where the file names none); NULL past the last. Lives as long as the
// model.
KILN_API const char *kiln_model_class(const KilnModel *model, int i);

// ---- pictures -----------------------------------------------------------------------------------

typedef enum KilnRng {
    KILN_RNG_TORCH, // PyTorch's CPU generator: a seed of other tools makes the same noise
    KILN_RNG_CUDA,  // PyTorch's CUDA generator
} KilnRng;

typedef struct KilnRequest {
    const char *prompt;     // models that take text; NULL for others (anything else is refused)
    const char *class_name; // of all pictures: a name or a number; NULL: `classes` decides
    const int *classes;     // [count] numbers of classes; NULL (and no class_name): all in turn
    int count;              // pictures, 1..10000
    int width, height;      // 0: the model's
    uint64_t seed;          // picture k uses seed + k
    KilnRng rng;
    const float *noise;     // in place of random numbers, or NULL: nano [count, 3, height, width],
                            // FLUX [count, 16, height / 8, width / 8]
    const char *sampler;    // "euler"
    int steps;              // 1..10000
    double cfg_scale;       // classifier-free guidance; 1: none, in half the time
    // Text models:
    const char *negative_prompt; // counts where cfg_scale is not 1; NULL: empty
    bool prompt_weights;    // read (word:1.3), [word] and BREAK as A1111 does; else they are plain text
    int t5_tokens;          // length of T5's text; 0: the model's
    double guidance;        // the distilled guidance of FLUX dev
    double cfg_low, cfg_high; // part of the run, 0..1, in which cfg_scale acts; both 0: all of it
    const char *cfg_schedule; // "constant", "triangle", "cosine"; NULL: constant
    double threshold;       // quantile of dynamic thresholding; 0: off
    double shift;           // fixed shift of the schedule; 0: the model's
    const uint8_t *init;    // [height, width, 3] picture to start from; NULL: from noise alone
    double strength;        // 0..1: how much of it is replaced
    KilnCallbacks callbacks;
} KilnRequest;

// The model's defaults: one picture, seed 0.
KILN_API KilnRequest kiln_request(const KilnModel *model);

typedef struct KilnPlan {
    uint64_t weights, arena, programs, staging; // bytes on the device
    uint64_t peak;   // their sum: what kiln_generate will reach, of this model alone
    uint64_t driver; // allowance for the driver, outside the peak
} KilnPlan;
// What a request will take, before anything is allocated.
KILN_API bool kiln_plan(KilnModel *model, const KilnRequest *request, KilnPlan *plan,
                        KilnError *err);

typedef struct KilnImages KilnImages;
// Refused, with the figure needed, where the plan does not fit the memory limit.
KILN_API KilnImages *kiln_generate(KilnModel *model, const KilnRequest *request, KilnError *err);
KILN_API void kiln_images_free(KilnImages *images); // NULL is allowed

typedef struct KilnImage {
    int width, height;
    const uint8_t *rgb; // [height, width, 3], rows from the top; lives as long as the images
    uint64_t seed;
} KilnImage;
KILN_API int kiln_image_count(const KilnImages *images);
KILN_API KilnImage kiln_image(const KilnImages *images, int k); // zeros where k is out of range
// Written whole or not at all, as the name says: .png, .jpg or .jpeg. The settings go into the file
// in the form of the A1111 web UI.
KILN_API bool kiln_image_save(const KilnImages *images, int k, const char *path, KilnError *err);
// All pictures on one sheet, `columns` in a row.
KILN_API bool kiln_images_save_sheet(const KilnImages *images, int columns, const char *path,
                                     KilnError *err);

// ---- training -----------------------------------------------------------------------------------

typedef struct KilnTraining {
    const char *data; // a folder of CIFAR-10 binary files, of classes of pictures, or of tar shards
    const char *out; // folder for log, checkpoints, model.safetensors, sample sheets and loss curve
    const char *val;  // as data; NULL: the test split of CIFAR-10, else none
    const char *weights; // a model file to start from; NULL: fresh
    int patch, dim, depth, heads, size;
    int epochs, batch;
    int64_t limit_steps; // stop after this step; 0: none
    double lr, weight_decay, ema_decay, label_dropout;
    int warmup;          // steps; -1: a tenth of the run, at most 1000
    bool cosine, flip, samples;
    KilnPrecision precision;
    int checkpoint_every; // epochs; 0: only at the end and when cancelled
    int keep;             // checkpoints
    bool resume;          // go on from the newest whole checkpoint in `out`, bit for bit
    bool seed_given;      // with resume: the checkpoint's seed must be `seed`
    uint64_t seed;
    KilnCallbacks callbacks;
} KilnTraining;

KILN_API KilnTraining kiln_training(void); // the defaults; data and out are to be set

typedef struct KilnTrained {
    int64_t step, skipped;        // the last step; steps that the loss scaler skipped
    double loss, validation_loss; // the last ones; NaN: none
    double seconds;
    KilnPlan memory;              // what the training was planned to take
} KilnTrained;
// Trains Nano-Sora to the end. Cancelled: a checkpoint is written first, and `resume` goes on from
// it. `trained` may be NULL and is filled in any case.
KILN_API bool kiln_train(KilnContext *ctx, const KilnTraining *training, KilnTrained *trained,
                         KilnError *err);

#ifdef __cplusplus
}
#endif
#endif
