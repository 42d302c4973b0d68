// generate_output.c: see generate_output.h.
#include "tools/generate_output.h"

#include "backend/os.h"
#include "engine/npy.h"
#include "engine/parameters.h"
#include "tools/cmd.h"

enum { GAP = 2, WHITE = 255, MAX_DIGITS = 9, SHEET_COLUMNS = 8 };
#define MAX_TRACE_BYTES ((uint64_t)2 << 30)

Job *job_new(void *parent) {
    Job *job = MEM_NEW(parent, Job);
    job->started = os_seconds();
    return job;
}

void job_free(Job *job) { mem_free(job); }

// ---- names ------------------------------------------------------------------------------------

// `%d` or `%0Nd` in the file's name; NULL: none. *length of the whole, *digits N.
static const char *find_number(const char *path, int *length, int *digits) {
    for (const char *at = strchr(path, '%'); at; at = strchr(at + 1, '%')) {
        const char *c = at + 1;
        *digits = 0;
        if (*c == '0' && c[1] >= '1' && c[1] <= '0' + MAX_DIGITS) *digits = c[1] - '0', c += 2;
        if (*c != 'd') continue;
        *length = (int)(c + 1 - at);
        return at;
    }
    return NULL;
}

static char *picture_path(Job *job, int k, bool numbered) {
    int length, digits;
    const char *number = find_number(job->output, &length, &digits);
    if (number)
        return mem_printf(job, "%.*s%0*d%s", (int)(number - job->output), job->output, digits, k,
                          number + length);
    if (!numbered) return mem_strdup(job, job->output);
    const char *ending = strrchr(job->output, '.'); // image_can_save has seen one
    return mem_printf(job, "%.*s-%d%s", (int)(ending - job->output), job->output, k, ending);
}

// One row per class; a single class fills rows of SHEET_COLUMNS.
static int sheet_columns(const Job *job) {
    return job->rows > 1 ? job->columns : MIN(job->columns, (int)SHEET_COLUMNS);
}

static bool same_folder(const char *a, const char *b) {
    size_t n = (size_t)(os_base_name(a) - a);
    return n == (size_t)(os_base_name(b) - b) && memcmp(a, b, n) == 0;
}

// What cannot be held or shown is refused before it is computed.
static bool check_sizes(const Job *job, Error *err) {
    if (!image_check_count(job->count, job->width, job->height, err)) return false;
    if (!job->grid || job->count == 1) return true;
    int64_t columns = sheet_columns(job), rows = (job->count + columns - 1) / columns;
    int64_t width = columns * (job->width + GAP) + GAP, height = rows * (job->height + GAP) + GAP;
    if (width > IMAGE_MAX_SIDE || height > IMAGE_MAX_SIDE || width * height > IMAGE_MAX_PIXELS)
        return err_failed(err,
                          "--grid: expected a sheet of at most %d pixels per side and %d in all, "
                          "found %lld x %lld; lower -b", IMAGE_MAX_SIDE, IMAGE_MAX_PIXELS,
                          (long long)width, (long long)height);
    return true;
}

bool job_check_outputs(Job *job, Error *err) {
    job->numbers = (size_t)3 * (size_t)job->width * (size_t)job->height;
    job->latent_numbers =
        (size_t)job->channels * (size_t)job->latent_width * (size_t)job->latent_height;
    if (!check_sizes(job, err)) return false;
    job->path_count = job->grid ? 1 : job->count;
    job->paths = MEM_ARRAY(job, char *, job->path_count);
    for (int i = 0; i < job->path_count; i++)
        job->paths[i] = picture_path(job, i, job->path_count > 1);
    if (job->dump && !os_make_dirs(job->dump, err)) return err_prefix(err, "--dump");
    if (job->preview && !out_check(job->preview, err)) return err_prefix(err, "--preview");
    for (int i = 0; i < job->path_count; i++) { // %d may stand in a folder's name too
        if (i > 0 && same_folder(job->paths[i - 1], job->paths[i])) continue;
        if (!out_check(job->paths[i], err)) return err_prefix(err, "--output");
    }
    job->pictures = MEM_ARRAY(job, float, (size_t)job->count * job->numbers);
    return true;
}

// ---- while it runs ----------------------------------------------------------------------------

bool job_dump(const Job *job, const char *name, int ndim, const int64_t *shape, const float *v,
              Error *err) {
    if (!job->dump) return true;
    char *file = mem_printf(NULL, "%s.npy", name), *path = os_path_join(file, job->dump, file);
    bool ok = npy_write(path, DT_F32, ndim, shape, v, err);
    mem_free(file);
    return ok;
}

static bool dump_latents(const Job *job, const char *name, const float *v, Error *err) {
    const int64_t shape[] = {job->count, job->channels, job->latent_height, job->latent_width};
    return job_dump(job, name, COUNT_OF(shape), shape, v, err);
}

static int steps_of(const Job *job) { return job->taken ? job->taken : job->steps; }

bool job_begin_trace(Job *job, Error *err) {
    if (!job->dump) return true;
    uint64_t bytes =
        (uint64_t)job->count * job->latent_numbers * sizeof(float) * (uint64_t)steps_of(job);
    if (bytes > MAX_TRACE_BYTES)
        return err_failed(err, "--dump: expected at most %d MiB of latents, found %d; lower -b or "
                          "--steps", (int)(MAX_TRACE_BYTES >> 20), (int)(bytes >> 20));
    job->trace = mem_new(job, bytes);
    return true;
}

bool job_begin_dump(Job *job, const float *noise, const float *sigmas, int points, Error *err) {
    if (!job->dump) return true;
    return job_begin_trace(job, err) && dump_latents(job, "noise", noise, err) &&
           job_dump(job, "sigmas", 1, (const int64_t[]){points}, sigmas, err);
}

void job_keep_latents(Job *job, int step, int first, int pictures, const float *latents) {
    size_t n = job->latent_numbers;
    if (!job->trace || step >= steps_of(job)) return;
    memcpy(job->trace + ((size_t)step * (size_t)job->count + (size_t)first) * n, latents,
           (size_t)pictures * n * sizeof(float));
}

bool job_preview_due(const Job *job, int step) {
    return job->preview && ((step + 1) % job->preview_every == 0 || step == steps_of(job) - 1);
}

bool job_preview(Job *job, const Image *const *images, int count, Error *err) {
    Image *grid = count == 1 ? NULL : image_grid(NULL, images, count, MIN(count, sheet_columns(job)),
                                                 GAP, WHITE, err);
    bool ok = (count == 1 || grid) &&
              image_save(job->preview, grid ? grid : images[0], NULL, 0, err);
    mem_free(grid);
    return ok || err_prefix(err, "--preview");
}

// ---- at the end -------------------------------------------------------------------------------

// Of picture k; -1: of the sheet.
static char *settings(void *parent, const Job *job, int k) {
    Parameters p = job->parameters;
    p.prompt = k >= 0 ? job->texts[k] : job->sheet_text;
    p.width = job->width, p.height = job->height, p.steps = job->steps;
    p.seeded = !job->noise || job->draws, p.seed = job->seed + (uint64_t)MAX(k, 0);
    p.version = KILN_VERSION;
    return parameters_text(parent, &p);
}

static bool write_dump(const Job *job, const float *final_latents, Error *err) {
    if (!job->dump) return true;
    size_t n = (size_t)job->count * job->latent_numbers;
    for (int i = 0; i < steps_of(job); i++) {
        char name[32];
        snprintf(name, sizeof name, "latent.%d", i);
        if (!dump_latents(job, name, job->trace + (size_t)i * n, err)) return false;
    }
    if (!dump_latents(job, "latent.final", final_latents, err)) return false;
    n = (size_t)job->count * job->numbers;
    float *image = MEM_ARRAY(NULL, float, n);
    for (size_t i = 0; i < n; i++) image[i] = MAX(-1.0f, MIN(1.0f, job->pictures[i]));
    const int64_t shape[] = {job->count, 3, job->height, job->width};
    bool ok = job_dump(job, "image", COUNT_OF(shape), shape, image, err);
    mem_free(image);
    return ok;
}

static Image *sheet(void *parent, const Job *job, Error *err) {
    const Image **images = MEM_ARRAY(parent, const Image *, job->count);
    for (int i = 0; i < job->count; i++) {
        images[i] = image_from_floats(parent, job->pictures + (size_t)i * job->numbers, job->width,
                                      job->height, err);
        if (!images[i]) return NULL;
    }
    return image_grid(parent, images, job->count, sheet_columns(job), GAP, WHITE, err);
}

bool job_write(Job *job, const float *final_latents, Error *err) {
    if (!write_dump(job, final_latents, err)) return false;
    bool ok = true;
    for (int i = 0; i < job->path_count && ok; i++) {
        void *scratch = mem_new(NULL, 1);
        Image *image = job->grid && job->count > 1
                           ? sheet(scratch, job, err)
                           : image_from_floats(scratch, job->pictures + (size_t)i * job->numbers,
                                               job->width, job->height, err);
        ImageText text = {"parameters", settings(scratch, job, job->grid ? -1 : i)};
        ok = image && image_save(job->paths[i], image, &text, 1, err);
        mem_free(scratch);
    }
    return ok;
}
