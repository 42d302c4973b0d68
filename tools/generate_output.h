// generate_output.h: what `kiln generate` leaves behind: picture files with their settings as text,
// sheets, previews, and arrays for comparison (--dump). Everything is written whole or not at all.
// It knows no model.
#ifndef KILN_TOOLS_GENERATE_OUTPUT_H
#define KILN_TOOLS_GENERATE_OUTPUT_H

#include "engine/image.h"
#include "engine/parameters.h"

// One call of `kiln generate`: what is made, and where it goes.
typedef struct Job {
    int rows, columns;       // of the sheet; rows * columns = count
    int count, width, height; // pictures in all; pixels
    size_t numbers;          // in one picture: 3 * width * height
    int channels, latent_width, latent_height; // of the latents that are sampled
    size_t latent_numbers;
    int steps;               // asked for
    int taken;               // that are run: fewer where a run starts from a picture; 0: all
    Parameters parameters;   // of all pictures; prompt and seed are set per picture
    char **texts;            // [count] prompt or class of each picture
    const char *sheet_text;  // of the sheet
    uint64_t seed;           // of the first picture
    float *noise;            // [count, C, h, w]: given (--noise); NULL: drawn from the seed
    bool draws;              // more than the first noise is drawn from the seed
    const char *output, *dump, *preview;
    int preview_every;       // steps
    bool grid;
    float *pictures;         // [count, 3, H, W] in -1..1
    char **paths;            // files written
    int path_count;
    double started, load_seconds, text_seconds, denoise_seconds, decode_seconds;
    float *trace;            // --dump: [steps, count, C, h, w]
} Job;

Job *job_new(void *parent);
void job_free(Job *job);
// Names the files (in paths) and finds out whether they can be written, before any work is done.
// Sets numbers and latent_numbers, makes `pictures`.
bool job_check_outputs(Job *job, Error *err);
// --dump: one array, "NAME.npy". Nothing where no dump is asked for.
bool job_dump(const Job *job, const char *name, int ndim, const int64_t *shape, const float *v, Error *err);
// --dump: makes room for the latents of all steps; with a cause where they are too many.
bool job_begin_trace(Job *job, Error *err);
// The same, and noise [count, C, h, w] and the schedule's points are written.
bool job_begin_dump(Job *job, const float *noise, const float *sigmas, int points, Error *err);
// Latents of `pictures` pictures from `first` on, after step `step` (from 0).
void job_keep_latents(Job *job, int step, int first, int pictures, const float *latents);
// Whether a preview is to be made after step `step` (from 0); after the last one always.
bool job_preview_due(const Job *job, int step);
bool job_preview(Job *job, const Image *const *images, int count, Error *err); // rewrites the file
bool job_write(Job *job, const float *final_latents, Error *err);

#endif
