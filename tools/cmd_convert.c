// cmd_convert.c: `kiln convert`: weights into another layout or type (engine/pipeline_convert.h).
#include "tools/cmd.h"

#include "backend/os.h"
#include "engine/pipeline_convert.h"
#include "tools/text_model.h"

typedef struct Values {
    CommonOptions common;
    TextModelNames names;
    const char *part, *output;
} Values;

#define V(f) FIELD(Values, f)

static const Option options[] = {
    {.name = "model", .letter = 'm', .kind = OPT_TEXT, V(names.paths.model), .value = "PATH",
     .group = "model",
     .help = "A diffusers folder, a checkpoint of one or all parts (.safetensors, .gguf, a PyTorch "
             "file), a folder with one part, or nano."},
    PART_OPTIONS(Values),
    {.name = "distill", .kind = OPT_TEXT, V(names.paths.distill), .value = "PATH",
     .help = "A distilled T5-Base in place of T5-XXL."},
    {.name = "part", .kind = OPT_CHOICE, V(part), .choices = "transformer,clip_l,t5xxl,vae",
     .value = "PART", .says = "all that there are", .help = "Take this part of the model alone."},
    {.name = "output", .letter = 'o', .kind = OPT_TEXT, V(output), .value = "FILE",
     .group = "output", .help = "Where the weights go, .safetensors or .gguf."},
    {.name = "type", .kind = OPT_TEXT, V(names.type), .value = "TYPE", .says = "as in the file",
     .help = "f32, f16, bf16; in .gguf also q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1, q4_0, "
             "iq4_nl, iq4_xs, q3_k, q2_k; in .safetensors also fp8 (fp8_e4m3) and fp8_e5m2."},
    {.name = "threads", .letter = 't', .kind = OPT_INT, V(common.threads), .value = "N", .min = 1,
     .max = CMD_MAX_THREADS, .says = "all cores", .help = "Threads that convert."},
    REPORT_OPTIONS(Values, "One JSON object on standard output; everything else goes to standard "
                           "error.", "Say more.", "Errors only."),
};

typedef struct Shown { Progress *progress; const char *stage; } Shown;

static void show(void *user, const char *stage, uint64_t done, uint64_t total) {
    Shown *s = user;
    if (s->stage != stage) progress_stage(s->progress, s->stage = stage, "MiB");
    progress_update(s->progress, (int64_t)(done >> 20), (int64_t)(total >> 20), 0, NULL);
}

// ---- report -------------------------------------------------------------------------------------

static void say(const Cmd *cmd, const ConvertModel *m, const char *path, DType type,
                const ConvertReport *r) {
    char size[32];
    const Log *log = cmd->log;
    if (m->note) log_msg(log, LOG_INFO, "%s", m->note);
    if (r->odd)
        log_msg(log, LOG_INFO, "%d matrices kept a wider type: their rows are not whole blocks of "
                "%d (%s: %lld)", r->odd, dtype_block(type), r->odd_name, (long long)r->odd_row);
    if (r->kept)
        log_msg(log, LOG_DEBUG, "%d tensors kept their type: embedders, tables, final layers and "
                "convolutions stay out of packed types", r->kept);
    for (int t = 0; t < DT_COUNT; t++) {
        if (!r->by_type[t]) continue;
        format_bytes(size, r->type_bytes[t]);
        log_msg(log, LOG_DEBUG, "%d tensors in %s, %s", r->by_type[t], dtype_name((DType)t), size);
    }
    format_bytes(size, r->bytes);
    log_msg(log, LOG_INFO, "wrote %s: %s, %d tensors, %s in %.1f s", path, m->what, r->tensors,
            size, r->seconds);
}

static bool print_json(const ConvertModel *m, const char *path, const ConvertReport *r,
                       Error *err) {
    JsonOut w = {0};
    json_open(&w, '{');
    json_key(&w, "output"), json_put_string(&w, path);
    json_key(&w, "architecture"), json_put_string(&w, m->architecture);
    json_key(&w, "content"), json_put_string(&w, m->what);
    json_key(&w, "tensors"), json_put_int(&w, r->tensors);
    json_key(&w, "bytes"), json_put_uint(&w, r->bytes);
    json_key(&w, "types"), json_open(&w, '{');
    for (int t = 0; t < DT_COUNT; t++) {
        if (!r->by_type[t]) continue;
        json_key(&w, dtype_name((DType)t)), json_open(&w, '{');
        json_key(&w, "tensors"), json_put_int(&w, r->by_type[t]);
        json_key(&w, "bytes"), json_put_uint(&w, r->type_bytes[t]);
        json_close(&w, '}');
    }
    json_close(&w, '}');
    json_key(&w, "kept"), json_put_int(&w, r->kept);
    json_key(&w, "kept_for_odd_rows"), json_put_int(&w, r->odd);
    json_key(&w, "seconds"), json_put_number(&w, r->seconds);
    json_close(&w, '}');
    return cmd_print_json(&w, err);
}

// ---- the run ------------------------------------------------------------------------------------

static bool check_line(Cmd *cmd, const Values *v, ConvertModelOptions *o, Error *err) {
    if (!v->names.paths.model && !text_model_given(&v->names))
        return cmd_usage(cmd, err, "expected a model, found none; give -m PATH");
    if (!v->output)
        return cmd_usage(cmd, err, "expected a file to write, found none; give -o FILE.safetensors "
                         "or -o FILE.gguf");
    o->part = PART_COUNT;
    for (int i = 0; v->part && i < PART_COUNT; i++)
        if (!strcmp(v->part, model_part_name((PartId)i))) o->part = (PartId)i;
    o->paths = v->names.paths;
    return (cmd_weight_type(v->names.type, &o->type, err) &&
            convert_format(v->output, &o->format, err) &&
            convert_check_type(o->format, o->type, err)) ||
           err_prefix(err, "%s", cmd->command->name);
}

static bool run(Cmd *cmd, const void *values, Error *err) {
    const Values *v = values;
    ConvertModelOptions options;
    if (!check_line(cmd, v, &options, err)) return false;
    if (convert_is_source(&options.paths, v->output))
        return err_failed(err, "%s: expected another file than the ones to read, found one of "
                          "them; choose another name", v->output);
    os_remove_stale(os_dir_name(cmd->mem, v->output)); // they are large
    if (!out_check(v->output, err)) return false;
    ConvertModel *m = convert_model_open(cmd->mem, &options, err);
    if (!m) return false;
    Shown shown = {.progress = cmd->progress};
    const ConvertOptions how = {.threads = (int)cmd->common->threads, .cancel = &cmd->cancel,
                                .progress = show, .user = &shown};
    ConvertReport report;
    bool ok = conversion_write(m->conversion, v->output, &how, &report, err) ||
              err_prefix(err, "%s", cmd->command->name);
    progress_clear(cmd->progress);
    if (ok) say(cmd, m, v->output, options.type, &report);
    if (ok && v->common.json) ok = print_json(m, v->output, &report, err);
    convert_model_close(m);
    return ok;
}

const Command cmd_convert = {
    .name = "convert", .summary = "change the layout or type of weights",
    .text =
        "Writes the weights of a model, or of a part of it, into one file of another layout or "
        "type: tensor by tensor, whole or not at all.\n\n"
        "FLUX.1's transformer gets its original names, text encoders those of transformers (T5 in "
        "a .gguf: llama.cpp's), other weights keep theirs. Several parts become ComfyUI's "
        "checkpoint; a .gguf takes the transformer of such a model. Without --type, types stay.\n\n"
        "Block types and fp8 are for matrices: biases and norms, embedders, tables of tokens and "
        "the final layer keep their type, as do matrices whose rows are not whole blocks (32 or "
        "256 numbers). In a .gguf, biases and norms are f32. In a checkpoint, --type is for the "
        "transformer and T5. fp8 is a plain cast, as `generate --type fp8` makes it, but where a "
        "part has weights too large or too small for that: its matrices then have scales "
        "(ComfyUI's scale_weight).",
    .examples = "kiln convert -m FLUX.1-dev -o flux1-dev-q8_0.gguf --type q8_0\n"
                "kiln convert -m FLUX.1-schnell -o schnell-fp8.safetensors --type fp8\n"
                "kiln convert --t5xxl FLUX.1-dev/text_encoder_2 -o t5xxl-q5_k.gguf --type q5_k\n"
                "kiln convert -m flux1-dev-q8_0.gguf -o flux1-dev.safetensors --type bf16",
    COMMAND_OPTIONS(Values, options), .common_offset = offsetof(Values, common), .run = run,
};
