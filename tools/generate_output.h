// generate_output.h: what `kiln generate` leaves behind: picture files with their settings as text,
// sheets, previews, and arrays for comparison (--dump). Everything is written whole or not at all.
#ifndef KILN_TOOLS_GENERATE_OUTPUT_H
#define KILN_TOOLS_GENERATE_OUTPUT_H

#include "engine/image.h"
#include "engine/pipeline_nano.h"

// One call of `kiln generate`: what is made, and where it goes.
typedef struct Job {
    const char *model;      // path, for the text
    int rows, columns;      // classes, and pictures of each
    int count, size;        // pictures in all, pixels per side
    size_t numbers;         // in one picture
    int *kinds;             // [rows] class of each row
    int *classes;           // [count]
    char **names;           // of classes; NULL: numbers
    int steps;
    const Sampler *sampler;
    const ScheduleKind *schedule;
    double cfg_scale;
    NoiseKind rng;
    uint64_t seed;
    float *noise;           // [count, 3, S, S]: given (--noise); NULL: drawn from the seed
    const char *output, *dump, *preview;
    bool grid;
    float *pictures;        // [count, 3, S, S]
    char **paths;           // files written
    int path_count;
    double started, load_seconds, denoise_seconds, decode_seconds;
    // For --dump and --preview.
    float *trace;           // [steps, count, 3, S, S]
    double last_preview;
} Job;

Job *job_new(void *parent);
void job_free(Job *job);
const char *job_class(const Job *job, int c);
// Names the files (in paths) and finds out whether they can be written, before any work is done.
bool job_check_outputs(Job *job, Error *err);
bool job_begin_dump(Job *job, Error *err);
bool job_after_step(Job *job, const NanoProgress *p, Error *err);
bool job_write(Job *job, Error *err);

#endif
