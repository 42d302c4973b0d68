// cmd_generate.c: `kiln generate`: the options, and what is common to all models.
#include "tools/generate.h"

#include "backend/os.h"
#include "engine/model_parts.h"
#include "engine/guidance.h"
#include "engine/sampler.h"

#include <inttypes.h>

static const char *sampler_name(int i) {
    const Sampler *s = sampler_at(i);
    return s ? s->name : NULL;
}

static const char *schedule_name(int i) {
    const ScheduleKind *s = schedule_at(i);
    return s ? s->name : NULL;
}

#define LATER(NAME, HELP) {.name = NAME, .kind = OPT_LATER, .help = HELP}
#define V(f) FIELD(GenerateValues, f)

static const Option options[] = {
    {.name = "model", .letter = 'm', .kind = OPT_TEXT, V(names.paths.model), .value = "PATH",
     .group = "model",
     .help = "A diffusers folder, a single checkpoint (.safetensors, .gguf), or nano (the model that "
             "Kiln ships, found from any folder). A bare name is looked up in KILN_MODELS."},
    PART_OPTIONS(GenerateValues),
    {.name = "distill", .kind = OPT_MAYBE, V(names.paths.distill), .value = "PATH",
     .help = "A distilled T5-Base (with its projection to 4096) in place of T5-XXL."},
    DUMMY_OPTIONS(GenerateValues),
    LATER("clip-g", "no model of this version has a second CLIP"),
    LATER("llm", "no model of this version has a language model"),
    LATER("lora", "LoRA is a later addition"),
    {.name = "prompt", .letter = 'p', .kind = OPT_TEXT, V(prompt), .value = "TEXT", .group = "picture",
     .help = "What the picture shows. @FILE reads a file, - standard input. May be empty."},
    {.name = "negative-prompt", .letter = 'n', .kind = OPT_TEXT, V(negative), .value = "TEXT",
     .help = "What it should not show; counts with a --cfg-scale other than 1."},
    {.name = "prompt-weights", .kind = OPT_FLAG, V(prompt_weights),
     .help = "Read (word:1.3), [word] and BREAK as A1111 does; the weights scale T5's states. Without it "
             "FLUX takes them as plain text."},
    {.name = "raw-prompt", .kind = OPT_FLAG, V(raw_prompt),
     .help = "Take (word:1.3), [word] and BREAK as plain text, whatever the model's habit."},
    {.name = "t5-tokens", .kind = OPT_INT, V(t5_tokens), .value = "N", .min = 1, .max = 512,
     .says = "the model's (dev: 512, schnell: 256)",
     .help = "Length that T5's tokens are padded or cut to."},
    {.name = "class", .kind = OPT_LIST, V(classes), .value = "NAME", .says = "every class in turn",
     .help = "nano: class of the pictures, by name or number; may be given several times."},
    {.name = "width", .letter = 'W', .kind = OPT_INT, V(width), .value = "PIXELS", .min = 8,
     .max = GENERATE_MAX_SIDE, .says = "the model's (FLUX: 1024)",
     .help = "Width. FLUX: a multiple of 16; nano makes pictures of its own size only."},
    {.name = "height", .letter = 'H', .kind = OPT_INT, V(height), .value = "PIXELS", .min = 8,
     .max = GENERATE_MAX_SIDE, .says = "the model's (FLUX: 1024)", .help = "Height, likewise."},
    {.name = "batch-count", .letter = 'b', .kind = OPT_INT, V(batch), .value = "N", .min = 1,
     .max = GENERATE_MAX_PICTURES, .says = "1; nano with --grid 8",
     .help = "Pictures; nano: of each class."},
    {.name = "seed", .letter = 's', .kind = OPT_SEED, V(seed), .value = "N",
     .says = "random, and printed",
     .help = "Of the first picture; picture k (from 0) uses seed + k. The same seed makes the same "
             "noise as in diffusers and ComfyUI."},
    {.name = "init-img", .kind = OPT_TEXT, V(init_img), .value = "FILE",
     .help = "Start from this picture (PNG or JPEG, cut to the shape and resized), not from noise alone. "
             "As in diffusers the seed draws the autoencoder's sample of it first, then the noise."},
    {.name = "strength", .kind = OPT_NUMBER, V(strength), .value = "S", .min = 0, .max = 1,
     .fallback = "0.75", .help = "With --init-img: how much of it is replaced."},
    LATER("mask", "inpainting is a later addition"),
    LATER("clip-skip", "FLUX takes no layer choice; leave it out"),
    {.name = "steps", .kind = OPT_INT, V(steps), .value = "N", .min = 1, .max = SCHEDULE_MAX_STEPS,
     .group = "sampling", .says = "the model's (nano: 50, FLUX dev: 28, schnell: 4)",
     .help = "Sampling steps."},
    {.name = "sampler", .alias = "sampling-method", .kind = OPT_CHOICE, V(sampler),
     .choice_at = sampler_name, .value = "NAME", .says = "euler", .help = "Solver."},
    {.name = "schedule", .kind = OPT_CHOICE, V(schedule), .choice_at = schedule_name,
     .value = "NAME", .says = "the model's", .help = "Times at which the model is asked."},
    {.name = "cfg-scale", .kind = OPT_NUMBER, V(cfg_scale), .value = "SCALE", .min = 0, .max = 100,
     .says = "the model's (nano: 4, FLUX: 1)",
     .help = "Classifier-free guidance; 1: none, in half the time."},
    {.name = "guidance", .kind = OPT_NUMBER, V(guidance), .value = "SCALE", .min = 0, .max = 100,
     .fallback = "3.5", .help = "The distilled guidance of FLUX dev."},
    {.name = "cfg-interval", .kind = OPT_TEXT, V(cfg_interval), .value = "LO:HI", .says = "0:1",
     .help = "Part of the run, 0 to 1, in which --cfg-scale acts."},
    {.name = "cfg-schedule", .kind = OPT_CHOICE, V(cfg_schedule), .choices = "constant,triangle,cosine",
     .value = "KIND", .fallback = "constant",
     .help = "How --cfg-scale changes over the run: low-high-low with the same mean."},
    {.name = "threshold", .kind = OPT_NUMBER, V(threshold), .value = "Q", .min = 0, .max = 1,
     .says = "off", .help = "Dynamic thresholding at this quantile, for example 0.995; 0: off."},
    {.name = "shift", .kind = OPT_NUMBER, V(shift), .value = "S", .min = 0.01, .max = 100,
     .says = "the model's", .help = "A fixed shift of the schedule in place of the model's."},
    {.name = "rng", .kind = OPT_CHOICE, V(rng), .choices = "torch,cuda", .value = "KIND",
     .fallback = "torch",
     .help = "Whose random numbers: PyTorch's CPU generator, or its CUDA generator."},
    PRECISION_OPTION(GenerateValues),
    {.name = "type", .kind = OPT_TEXT, V(names.type), .value = "TYPE", .says = "as in the file",
     .help = "Type of the weights on the device: f32, f16, bf16, fp8 (fp8_e4m3), fp8_e5m2, q8_0, "
             "q4_0 and the other types of GGUF."},
    {.name = "vae-tiling", .kind = OPT_CHOICE, V(vae_tiling), .choices = "auto,on,off",
     .value = "WHEN", .fallback = "auto",
     .help = "Decode in tiles with blended overlaps: less memory, nearly the same picture. auto: "
             "where the whole does not fit."},
    {.name = "output", .letter = 'o', .kind = OPT_TEXT, V(output), .value = "FILE",
     .group = "output", .fallback = "output.png",
     .help = ".png or .jpg. With more than one picture %d becomes its number (%03d: with zeros); "
             "without %d the number is put before the ending. Pictures carry their settings as "
             "text."},
    {.name = "grid", .kind = OPT_FLAG, V(grid),
     .help = "One contact sheet in place of single files; nano: one row per class."},
    {.name = "dump", .kind = OPT_TEXT, V(dump), .value = "DIR",
     .help = "float32 .npy files for comparison with other engines: noise, text.<encoder>, sigmas, "
             "latent.<step> after each step (from 0), latent.final, image ([B, 3, H, W], -1..1, "
             "before rounding)."},
    {.name = "noise", .kind = OPT_TEXT, V(noise), .value = "FILE.npy",
     .help = "Start from this array [B, C, h, w] (the latent's layout) in place of the seed's random "
             "numbers."},
    {.name = "preview", .kind = OPT_TEXT, V(preview), .value = "FILE",
     .help = "Picture file that is rewritten as the pictures form."},
    {.name = "preview-every", .kind = OPT_INT, V(preview_every), .value = "N", .min = 1,
     .max = SCHEDULE_MAX_STEPS, .fallback = "1",
     .help = "Steps from one preview to the next. The last step always makes one."},
    COMMON_OPTIONS(GenerateValues),
};

// ---- which model ------------------------------------------------------------------------------

// Options that say something to one kind of model only.
static const char *const of_text[] = {"prompt", "negative-prompt", "prompt-weights", "raw-prompt",
                                      "t5-tokens", "init-img", "strength", "guidance", "cfg-interval",
                                      "cfg-schedule", "threshold", "shift", "type", "vae-tiling"};
static const char *const of_nano[] = {"class"};

static bool refuse_given(const Cmd *cmd, const char *const *names, size_t n, const char *why,
                         Error *err) {
    for (size_t i = 0; i < n; i++)
        if (cmd_given(cmd, names[i]))
            return cmd_usage(cmd, err, "--%s: expected a model that takes it, found %s", names[i],
                             why);
    return true;
}

static bool check(const Cmd *cmd, const GenerateValues *v, Error *err) {
    if (!text_model_check(cmd, &v->names, "-m MODEL", err)) return false;
    if (v->prompt_weights && v->raw_prompt)
        return cmd_usage(cmd, err, "--raw-prompt: expected it or --prompt-weights, found both");
    if (cmd_given(cmd, "strength") && !v->init_img)
        return cmd_usage(cmd, err, "--strength: expected --init-img beside it, found none");
    if (cmd_given(cmd, "preview-every") && !v->preview)
        return cmd_usage(cmd, err, "--preview-every: expected --preview beside it, found none");
    return cmd_check_picture(cmd, "output", v->output, err) &&
           (!v->preview || cmd_check_picture(cmd, "preview", v->preview, err));
}

static bool run(Cmd *cmd, const void *values, Error *err) {
    const GenerateValues *v = values;
    if (!check(cmd, v, err)) return false;
    bool text = text_model_given(&v->names);
    if (!text && !model_has_parts(v->names.paths.model, &text, err)) return false;
    if (text)
        return refuse_given(cmd, of_nano, COUNT_OF(of_nano), "a model that takes --prompt", err) &&
               generate_text(cmd, v, err);
    return refuse_given(cmd, of_text, COUNT_OF(of_text), "Nano-Sora; it takes --class", err) &&
           generate_nano(cmd, v, err);
}

// ---- shared -----------------------------------------------------------------------------------

void generate_common(const Cmd *cmd, const GenerateValues *v, Job *job) {
    job->seed = cmd_given(cmd, "seed") ? v->seed : os_random_seed();
    job->output = v->output, job->dump = v->dump, job->preview = v->preview;
    job->preview_every = (int)v->preview_every;
    job->grid = v->grid;
    job->parameters.torch_rng = strcmp(v->rng, "torch") == 0;
}

// What each stage took beside what was planned.
static void put_stages(JsonOut *w, const FluxPlan *plan, const FluxMeasured *m) {
    json_key(w, "stages"), json_open(w, '[');
    for (int i = 0; i < MIN(plan->stages, m->stages); i++) {
        json_open(w, '{');
        json_key(w, "name"), json_put_string(w, m->stage[i].name);
        if (plan->stage[i].pictures) json_key(w, "pictures"), json_put_int(w, plan->stage[i].pictures);
        json_key(w, "planned_bytes"), json_put_uint(w, plan->stage[i].peak_bytes);
        json_key(w, "used_bytes"), json_put_uint(w, m->stage[i].used_bytes);
        json_key(w, "passes"), json_put_int(w, m->stage[i].passes);
        json_key(w, "planned_moved_bytes_per_step"), json_put_uint(w, plan->stage[i].moved_bytes_per_step);
        json_key(w, "moved_bytes"), json_put_uint(w, m->stage[i].moved_bytes);
        json_close(w, '}');
    }
    json_close(w, ']');
}

bool generate_print(const Cmd *cmd, const Job *job, const GenerateReport *r, Error *err) {
    JsonOut w = {0};
    json_open(&w, '{');
    json_key(&w, "images"), json_open(&w, '[');
    for (int i = 0; i < job->path_count; i++) json_put_string(&w, job->paths[i]);
    json_close(&w, ']');
    json_key(&w, "seed");
    if (job->noise && !job->draws && !cmd_given(cmd, "seed")) json_put_null(&w);
    else json_put_uint(&w, job->seed);
    json_key(&w, "model"), json_put_string(&w, r->model);
    json_key(&w, "architecture"), json_put_string(&w, r->architecture);
    json_key(&w, "device"), json_put_string(&w, r->device);
    json_key(&w, "width"), json_put_int(&w, job->width);
    json_key(&w, "height"), json_put_int(&w, job->height);
    json_key(&w, "steps"), json_put_int(&w, job->steps);
    json_key(&w, "cfg_scale"), json_put_number(&w, r->cfg_scale);
    json_key(&w, "sampler"), json_put_string(&w, r->sampler);
    if (r->classes) {
        json_key(&w, "classes"), json_open(&w, '[');
        for (int i = 0; i < r->class_count; i++) json_put_string(&w, r->classes[i]);
        json_close(&w, ']');
    }
    json_key(&w, "memory"), json_open(&w, '{');
    json_key(&w, "planned_bytes"), json_put_uint(&w, r->planned);
    json_key(&w, "peak_bytes"), json_put_uint(&w, r->peak);
    json_key(&w, "weights_bytes"), json_put_uint(&w, r->weights);
    json_key(&w, "arena_bytes"), json_put_uint(&w, r->arena);
    json_key(&w, "driver_bytes"), json_put_uint(&w, r->driver);
    json_close(&w, '}');
    if (r->plan) put_stages(&w, r->plan, r->measured);
    json_key(&w, "seconds"), json_open(&w, '{');
    json_key(&w, "load"), json_put_number(&w, job->load_seconds);
    json_key(&w, "text"), json_put_number(&w, job->text_seconds);
    json_key(&w, "denoise"), json_put_number(&w, job->denoise_seconds);
    json_key(&w, "decode"), json_put_number(&w, job->decode_seconds);
    json_key(&w, "total"), json_put_number(&w, os_seconds() - job->started);
    json_close(&w, '}');
    json_close(&w, '}');
    return cmd_print_json(&w, err);
}

void generate_say(const Cmd *cmd, const Job *job, const char *device) {
    progress_clear(cmd->progress);
    char seeds[64] = "given noise";
    if (!job->noise || job->draws) snprintf(seeds, sizeof seeds, "seed %" PRIu64, job->seed);
    log_msg(cmd->log, LOG_INFO, "%s%s: %d picture%s, %s, %d steps, %s, %.1f s", job->paths[0],
            job->path_count > 1 ? " ..." : "", job->count, job->count > 1 ? "s" : "", seeds,
            job->steps, device, os_seconds() - job->started);
}

const Command cmd_generate = {
    .name = "generate",
    .summary = "make pictures from a prompt or a class",
    .text = "Makes pictures: FLUX.1 (dev, schnell) from a prompt, or `-m nano`, the model that comes "
            "with Kiln: 32 x 32 pictures of the ten classes of CIFAR-10.",
    .examples = "kiln generate -m nano --class cat -o cat.png\n"
                "kiln generate -m nano --class cat --class dog -b 4 -o '%d.png'\n"
                "kiln generate -m nano --grid --seed 1 -o sheet.png",
    COMMAND_OPTIONS(GenerateValues, options),
    .common_offset = offsetof(GenerateValues, common),
    .run = run,
};
