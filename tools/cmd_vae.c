// cmd_vae.c: `kiln vae`: pictures through an autoencoder and back (engine/vae.h).
#include "tools/cmd.h"

#include "backend/os.h"
#include "engine/image.h"
#include "engine/npy.h"
#include "engine/vae.h"

#include <math.h>

typedef struct Values {
    CommonOptions common;
    const char *vae, *input, *output, *encode, *decode, *tiling, *precision;
    int64_t tile;
} Values;

static const Option options[] = {
    {.name = "vae", .letter = 'm', .kind = OPT_TEXT, FIELD(Values, vae), .value = "PATH", .alias = "model",
     .group = "model",
     .help = "An autoencoder's file (.safetensors, .gguf, .pth), its folder, a folder with *_encoder.* and "
             "*_decoder.* files, or a model's folder or checkpoint."},
    {.name = "input", .letter = 'i', .kind = OPT_TEXT, FIELD(Values, input), .value = "FILE",
     .group = "picture", .help = "The picture, PNG or JPEG."},
    {.name = "output", .letter = 'o', .kind = OPT_TEXT, FIELD(Values, output), .value = "FILE",
     .help = "Where the decoded picture goes, .png or .jpg."},
    {.name = "encode", .kind = OPT_TEXT, FIELD(Values, encode), .value = "FILE.npy",
     .help = "Writes the latents [1, C, h, w] (the posterior's mean, scaled as models take them). Without "
             "-o nothing is decoded."},
    {.name = "decode", .kind = OPT_TEXT, FIELD(Values, decode), .value = "FILE.npy",
     .help = "Decodes these latents in place of a picture's; of several the first."},
    {.name = "vae-tiling", .kind = OPT_CHOICE, FIELD(Values, tiling), .choices = "auto,on,off",
     .value = "T", .fallback = "auto", .group = "device",
     .help = "on: in tiles that overlap, which takes less memory and is approximate. auto: only where the "
             "whole picture does not fit."},
    {.name = "tile", .kind = OPT_INT, FIELD(Values, tile), .value = "PIXELS", .min = 64, .max = 8192,
     .says = "512, or what fits", .help = "Side of a tile, rounded down to whole latents."},
    PRECISION_OPTION(Values),
    COMMON_OPTIONS(Values),
};

typedef struct Job {
    Cmd *cmd;
    const Values *v;
    Device *dev;
    Vae *vae;
    Image *picture;      // as read
    int width, height;   // of what is encoded or decoded: whole latents
    float *planes, *latents, *decoded;
    double encode_seconds, decode_seconds;
    VaeMemory memory;    // of the pass that takes more
    uint64_t peak;
    double mse;
} Job;

// ---- input ------------------------------------------------------------------------------------

// The picture as planes, its edges repeated up to whole latents.
static bool read_picture(Job *j, Error *err) {
    j->picture = image_load(j->cmd->mem, j->v->input, err);
    if (!j->picture) return false;
    int w = j->picture->width, h = j->picture->height, f = vae_info(j->vae).factor;
    j->width = (w + f - 1) / f * f, j->height = (h + f - 1) / f * f;
    if (j->width != w || j->height != h)
        log_msg(j->cmd->log, LOG_INFO, "%s: edges repeated from %d x %d to %d x %d pixels, a multiple of %d",
                j->v->input, w, h, j->width, j->height, f);
    j->planes = MEM_ARRAY(j->cmd->mem, float, 3 * (size_t)j->width * (size_t)j->height);
    for (int c = 0; c < 3; c++)
        for (int y = 0; y < j->height; y++)
            for (int x = 0; x < j->width; x++) {
                size_t from = (size_t)MIN(y, h - 1) * (size_t)w + (size_t)MIN(x, w - 1);
                j->planes[((size_t)c * (size_t)j->height + (size_t)y) * (size_t)j->width + (size_t)x] =
                    image_to_float(j->picture->rgb[3 * from + (size_t)c]);
            }
    return true;
}

static bool read_latents(Job *j, Error *err) {
    VaeInfo info = vae_info(j->vae);
    const int64_t shape[] = {-1, info.channels, -1, -1};
    NpyArray found;
    j->latents = npy_read_f32(j->cmd->mem, j->v->decode, COUNT_OF(shape), shape, &found, err);
    if (!j->latents) return false;
    if (found.shape[0] < 1 || found.shape[2] < 1 || found.shape[3] < 1 ||
        found.shape[2] > IMAGE_MAX_SIDE / info.factor || found.shape[3] > IMAGE_MAX_SIDE / info.factor)
        return err_failed(err, "%s: expected latents of 1 to %d rows and columns, found %lld x %lld",
                          j->v->decode, IMAGE_MAX_SIDE / info.factor, (long long)found.shape[2],
                          (long long)found.shape[3]);
    j->height = (int)found.shape[2] * info.factor;
    j->width = (int)found.shape[3] * info.factor;
    return true;
}

// ---- passes -----------------------------------------------------------------------------------

static void on_tile(void *user, int done, int total) {
    Job *j = user;
    progress_update(j->cmd->progress, done, total, dev_memory(j->dev).used, NULL);
}

static bool pass(Job *j, VaePass which, double *seconds, Error *err) {
    VaeInfo info = vae_info(j->vae);
    VaeSpec spec = {.pass = which, .width = j->width, .height = j->height,
                    .tile = (int)(j->v->tile / info.factor * info.factor),
                    .compute = strcmp(j->v->precision, "f32") ? DT_BF16 : DT_F32};
    vae_tiling_parse(j->v->tiling, &spec.tiling); // the table allows no other names
    VaeRun *run = vae_plan(j->cmd->mem, j->dev, j->vae, &spec, err);
    if (!run) return false;
    VaeCall call = {.cancel = &j->cmd->cancel, .progress = on_tile, .user = j};
    progress_stage(j->cmd->progress, which == VAE_ENCODE ? "encode" : "decode", "tile");
    bool ok = vae_prepare(run, err);
    double start = os_seconds();
    ok = ok && (which == VAE_ENCODE ? vae_encode(run, j->planes, NULL, j->latents, &call, err)
                                    : vae_decode(run, j->latents, j->decoded, &call, err));
    *seconds = os_seconds() - start;
    VaeMemory m = vae_memory(run);
    if (m.peak_bytes > j->memory.peak_bytes) j->memory = m;
    if (ok && m.tiles_x * m.tiles_y > 1)
        log_msg(j->cmd->log, LOG_INFO, "%s: %d x %d tiles of %d x %d pixels",
                which == VAE_ENCODE ? "encode" : "decode", m.tiles_x, m.tiles_y, m.tile_width,
                m.tile_height);
    vae_run_free(run);
    return ok;
}

static bool encode(Job *j, Error *err) {
    VaeInfo info = vae_info(j->vae);
    const int64_t shape[] = {1, info.channels, j->height / info.factor, j->width / info.factor};
    j->latents = MEM_ARRAY(j->cmd->mem, float, shape[1] * shape[2] * shape[3]);
    if (!pass(j, VAE_ENCODE, &j->encode_seconds, err)) return false;
    return !j->v->encode || npy_write(j->v->encode, DT_F32, COUNT_OF(shape), shape, j->latents, err);
}

// Decodes, cuts repeated edges off, compares the 8-bit pictures, writes.
static bool decode(Job *j, Error *err) {
    size_t w = (size_t)j->width, h = (size_t)j->height;
    j->decoded = MEM_ARRAY(j->cmd->mem, float, 3 * w * h);
    if (!pass(j, VAE_DECODE, &j->decode_seconds, err)) return false;
    int width = j->picture ? j->picture->width : j->width;
    int height = j->picture ? j->picture->height : j->height;
    Image *out = image_new(j->cmd->mem, width, height, err);
    if (!out) return false;
    double sum = 0;
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++)
            for (size_t c = 0; c < 3; c++) {
                size_t at = 3 * ((size_t)y * (size_t)width + (size_t)x) + c;
                out->rgb[at] = image_from_float(j->decoded[(c * h + (size_t)y) * w + (size_t)x]);
                double d = j->picture ? (out->rgb[at] - j->picture->rgb[at]) / 255.0 : 0;
                sum += d * d;
            }
    j->mse = sum / (3.0 * width * height);
    return image_save(j->v->output, out, NULL, 0, err);
}

// ---- report -----------------------------------------------------------------------------------

static bool report_json(const Job *j, Error *err) {
    JsonOut w = {.parent = j->cmd->mem};
    VaeInfo info = vae_info(j->vae);
    json_open(&w, '{');
    json_key(&w, "vae"), json_put_string(&w, j->v->vae);
    json_key(&w, "architecture"), json_put_string(&w, info.name);
    json_key(&w, "channels"), json_put_int(&w, info.channels);
    json_key(&w, "device"), json_put_string(&w, dev_info(j->dev)->id);
    json_key(&w, "width"), json_put_int(&w, j->picture ? j->picture->width : j->width);
    json_key(&w, "height"), json_put_int(&w, j->picture ? j->picture->height : j->height);
    if (j->picture && j->decoded) {
        json_key(&w, "mse"), json_put_number(&w, j->mse);
        json_key(&w, "psnr"), json_put_number(&w, -10 * log10(j->mse)); // the same picture: null
    }
    json_key(&w, "tiles"), json_put_int(&w, j->memory.tiles_x * j->memory.tiles_y);
    json_key(&w, "tile_width"), json_put_int(&w, j->memory.tile_width);
    json_key(&w, "tile_height"), json_put_int(&w, j->memory.tile_height);
    json_key(&w, "memory"), json_open(&w, '{');
    json_key(&w, "planned_bytes"), json_put_uint(&w, j->memory.peak_bytes);
    json_key(&w, "peak_bytes"), json_put_uint(&w, j->peak);
    json_close(&w, '}');
    json_key(&w, "seconds"), json_put_number(&w, j->encode_seconds + j->decode_seconds);
    json_key(&w, "encode_seconds"), json_put_number(&w, j->encode_seconds);
    json_key(&w, "decode_seconds"), json_put_number(&w, j->decode_seconds);
    json_close(&w, '}');
    return cmd_print_json(&w, err);
}

static bool report(const Job *j, Error *err) {
    if (j->cmd->common->json) return report_json(j, err);
    if (j->cmd->common->quiet) return true;
    if (j->picture && j->decoded && !cmd_print(err, "mse %.6f, PSNR %.2f dB, ", j->mse, -10 * log10(j->mse)))
        return false;
    return cmd_print(err, "%.2f s\n", j->encode_seconds + j->decode_seconds);
}

static bool check_options(Cmd *cmd, const Values *v, Error *err) {
    if (!v->vae) return cmd_usage(cmd, err, "expected --vae PATH, found none");
    if (!v->input == !v->decode)
        return cmd_usage(cmd, err, "expected either -i PICTURE or --decode FILE.npy, found %s",
                         v->input ? "both" : "neither");
    if (v->decode && v->encode)
        return cmd_usage(cmd, err, "expected either --encode or --decode, found both");
    if (!v->output && !v->encode)
        return cmd_usage(cmd, err, "expected -o PICTURE%s, found none",
                         v->input ? " or --encode FILE.npy" : "");
    return !v->output || cmd_check_picture(cmd, "output", v->output, err);
}

static bool run_job(Job *j, Error *err) {
    const Values *v = j->v;
    j->vae = vae_open_path(NULL, v->vae, err);
    if (!j->vae) return false;
    if (!(v->input ? read_picture(j, err) : read_latents(j, err))) return false;
    j->dev = cmd_open_device(j->cmd, err);
    if (!j->dev) return false;
    bool ok = (!v->input || encode(j, err)) && (!v->output || decode(j, err));
    j->peak = dev_memory(j->dev).peak;
    progress_clear(j->cmd->progress);
    return ok && report(j, err);
}

static bool run(Cmd *cmd, const void *values, Error *err) {
    const Values *v = values;
    if (!check_options(cmd, v, err)) return false;
    if ((v->output && !out_check(v->output, err)) || (v->encode && !out_check(v->encode, err)))
        return false;
    Job job = {.cmd = cmd, .v = v};
    bool ok = run_job(&job, err);
    if (job.dev) dev_close(job.dev);
    vae_close(job.vae);
    return ok;
}

const Command cmd_vae = {
    .name = "vae",
    .summary = "round-trip a picture through an autoencoder",
    .text = "Encodes a picture into latents, decodes it again, and reports the error: mse in units where "
            "pixels are 0..1, and PSNR. --encode and --decode do one half.",
    .examples = "kiln vae --vae ae.safetensors -i photo.png -o back.png\n"
                "kiln vae --vae taef2/ -i photo.png -o back.png --json\n"
                "kiln vae --vae ae.safetensors -i photo.png --encode latents.npy\n"
                "kiln vae --vae ae.safetensors --decode latents.npy -o picture.png",
    COMMAND_OPTIONS(Values, options),
    .common_offset = offsetof(Values, common),
    .run = run,
};
