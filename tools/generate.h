// generate.h: `kiln generate`: the values of its command line, and the two ways to a picture: from a
// class (generate_nano.c) and from a prompt (generate_text.c).
#ifndef KILN_TOOLS_GENERATE_H
#define KILN_TOOLS_GENERATE_H

#include "tools/cmd.h"
#include "tools/generate_output.h"
#include "tools/text_model.h"

enum { GENERATE_MAX_PICTURES = 10000, GENERATE_MAX_SIDE = 16384, GENERATE_COLUMNS = 8 };

typedef struct GenerateValues {
    CommonOptions common;
    TextModelNames names;
    const char *prompt, *negative, *init_img;
    bool prompt_weights, raw_prompt;
    OptList classes;
    int64_t width, height, batch, steps, t5_tokens, preview_every;
    uint64_t seed;
    const char *precision, *vae_tiling, *sampler, *schedule, *rng;
    const char *cfg_interval, *cfg_schedule;
    double cfg_scale, guidance, strength, threshold, shift;
    const char *output, *dump, *noise, *preview;
    bool grid;
} GenerateValues;

bool generate_nano(Cmd *cmd, const GenerateValues *v, Error *err);
bool generate_text(Cmd *cmd, const GenerateValues *v, Error *err);

// What both put into their job; pictures per row of a sheet come from --batch-count.
void generate_common(const Cmd *cmd, const GenerateValues *v, Job *job);
// The figures of --json that both report.
typedef struct GenerateReport {
    const char *model, *architecture, *device, *sampler;
    uint64_t planned, peak, weights, arena, driver;
    double cfg_scale;
    char **classes; // NULL: none
    int class_count;
    const FluxPlan *plan; // with what the run measured; NULL: no stages
    const FluxMeasured *measured;
} GenerateReport;
bool generate_print(const Cmd *cmd, const Job *job, const GenerateReport *report, Error *err);
void generate_say(const Cmd *cmd, const Job *job, const char *device);

#endif
