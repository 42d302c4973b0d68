// cmd_dataset.c: `kiln dataset`: import, describe and preview labelled pictures (engine/dataset.h).
#include "tools/cmd.h"

#include "backend/os.h"
#include "engine/dataset.h"

#include <inttypes.h>

typedef struct Values {
    CommonOptions common;
    const char *action, *source, *target, *output;
    uint64_t shard_size;
    int64_t rows, columns, size;
    bool gzip, strict, test;
} Values;

#define MIN_SHARD 65536.0         // 64K
#define MAX_SHARD 1099511627776.0 // 1T

static const Option options[] = {
    {.name = "ACTION", .kind = OPT_CHOICE, FIELD(Values, action), .choices = "import,info,preview",
     .operand = true, .required = true,
     .help = "import SRC DST: write WebDataset shards. info PATH: count and check. preview PATH -o "
             "FILE: a contact sheet."},
    {.name = "PATH", .kind = OPT_TEXT, FIELD(Values, source), .operand = true, .required = true,
     .help = "A folder with one folder of JPEG or PNG files per class, CIFAR-10 binary files, or "
             "WebDataset shards (.tar, .tar.gz)."},
    {.name = "DST", .kind = OPT_TEXT, FIELD(Values, target), .operand = true,
     .help = "import: a new or empty folder."},
    {.name = "shard-size", .kind = OPT_SIZE, FIELD(Values, shard_size), .value = "SIZE",
     .min = MIN_SHARD, .max = MAX_SHARD, .fallback = "256M", .group = "import",
     .help = "Largest size of a shard, before packing."},
    {.name = "gzip", .kind = OPT_FLAG, FIELD(Values, gzip), .help = "Write .tar.gz shards."},
    {.name = "strict", .kind = OPT_FLAG, FIELD(Values, strict), .group = "reading",
     .help = "Refuse damaged pictures in place of leaving them out."},
    {.name = "test", .kind = OPT_FLAG, FIELD(Values, test),
     .help = "Of a CIFAR-10 folder: the test split."},
    {.name = "output", .letter = 'o', .kind = OPT_TEXT, FIELD(Values, output), .value = "FILE",
     .group = "preview", .help = "The contact sheet, .png or .jpg."},
    {.name = "rows", .kind = OPT_INT, FIELD(Values, rows), .value = "N", .min = 1, .max = 100,
     .fallback = "20", .help = "Classes shown, at most."},
    {.name = "columns", .kind = OPT_INT, FIELD(Values, columns), .value = "N", .min = 1, .max = 100,
     .fallback = "10", .help = "Pictures of each class."},
    {.name = "size", .kind = OPT_INT, FIELD(Values, size), .value = "PIXELS", .min = 8, .max = 512,
     .fallback = "64", .help = "Side of each picture."},
    REPORT_OPTIONS(Values, "One JSON object on standard output.", "Name every damaged picture.",
                   "Errors only."),
};

enum { SHOWN_DAMAGE = 10, SHOWN_SIZES = 5 };

typedef struct Watch {
    Cmd *cmd;
    const char *stage;
} Watch;

static bool watch_progress(void *user, const char *stage, int done, int total) {
    Watch *w = user;
    if (w->stage != stage) progress_stage(w->cmd->progress, stage, "picture");
    w->stage = stage;
    progress_update(w->cmd->progress, done, total, 0, NULL);
    return !w->cmd->cancel.asked(w->cmd->cancel.user);
}

static void warn_damage(Cmd *cmd, const Dataset *set) {
    int n = dataset_damage_count(set), kept = MIN(n, (int)DATASET_KEPT_DAMAGE);
    if (!n) return;
    log_msg(cmd->log, LOG_WARN, "%s: %d damaged, left out", dataset_path(set), n);
    int shown = cmd->common->verbose ? kept : MIN(kept, (int)SHOWN_DAMAGE);
    for (int i = 0; i < shown; i++) log_msg(cmd->log, LOG_WARN, "  %s", dataset_damage(set, i));
    if (shown < n) log_msg(cmd->log, LOG_WARN, "  and %d more", n - shown);
}

static void put_damage(JsonOut *w, const Dataset *set) {
    int n = dataset_damage_count(set);
    json_key(w, "damaged"), json_put_int(w, n);
    json_key(w, "damage"), json_open(w, '[');
    for (int i = 0; i < MIN(n, (int)DATASET_KEPT_DAMAGE); i++)
        json_put_string(w, dataset_damage(set, i));
    json_close(w, ']');
}

// ---- info -------------------------------------------------------------------------------------

static bool info_json(const Dataset *set, const DatasetInfo *info, Error *err) {
    JsonOut w = {0};
    json_open(&w, '{');
    json_key(&w, "path"), json_put_string(&w, dataset_path(set));
    json_key(&w, "kind"), json_put_string(&w, dataset_kind_name(info->kind));
    json_key(&w, "count"), json_put_int(&w, info->count);
    json_key(&w, "bytes"), json_put_uint(&w, info->bytes);
    json_key(&w, "classes"), json_open(&w, '[');
    for (int i = 0; i < info->classes; i++) {
        json_open(&w, '{');
        json_key(&w, "name"), json_put_string(&w, dataset_class(set, i));
        json_key(&w, "count"), json_put_int(&w, info->per_class[i]);
        json_close(&w, '}');
    }
    json_close(&w, ']');
    json_key(&w, "sizes"), json_open(&w, '[');
    for (int i = 0; i < info->size_count; i++) {
        json_open(&w, '{');
        json_key(&w, "width"), json_put_int(&w, info->sizes[i].width);
        json_key(&w, "height"), json_put_int(&w, info->sizes[i].height);
        json_key(&w, "count"), json_put_int(&w, info->sizes[i].count);
        json_close(&w, '}');
    }
    json_close(&w, ']');
    json_key(&w, "parts"), json_open(&w, '[');
    for (int i = 0; i < info->part_count; i++) {
        json_open(&w, '{');
        json_key(&w, "name"), json_put_string(&w, info->parts[i].name);
        json_key(&w, "count"), json_put_int(&w, info->parts[i].count);
        json_key(&w, "bytes"), json_put_uint(&w, info->parts[i].bytes);
        json_close(&w, '}');
    }
    json_close(&w, ']');
    put_damage(&w, set);
    json_close(&w, '}');
    return cmd_print_json(&w, err);
}

static bool info_text(const Dataset *set, const DatasetInfo *info, Error *err) {
    char bytes[32];
    format_bytes(bytes, info->bytes);
    bool ok = cmd_print(err, "%s: %s, %d pictures, %d classes, %s, %d damaged\n", dataset_path(set),
                        dataset_kind_name(info->kind), info->count, info->classes, bytes,
                        dataset_damage_count(set));
    for (int i = 0; i < info->classes && ok; i++)
        ok = cmd_print(err, "  %7d  %s\n", info->per_class[i], dataset_class(set, i));
    for (int i = 0; i < MIN(info->size_count, (int)SHOWN_SIZES) && ok; i++)
        ok = cmd_print(err, "  %7d  of %d x %d pixels\n", info->sizes[i].count,
                       info->sizes[i].width,
                       info->sizes[i].height);
    if (ok && info->size_count > SHOWN_SIZES)
        ok = cmd_print(err, "           and %d more sizes\n", info->size_count - SHOWN_SIZES);
    for (int i = 0; i < info->part_count && ok; i++)
        ok = cmd_print(err, "  %7d  in %s\n", info->parts[i].count, info->parts[i].name);
    return ok;
}

static bool run_info(Cmd *cmd, const Values *v, Dataset *set, Error *err) {
    DatasetInfo info;
    Watch watch = {cmd, NULL};
    if (!dataset_info(cmd->mem, set, &info, watch_progress, &watch, err)) return false;
    progress_clear(cmd->progress);
    bool ok = v->common.json ? info_json(set, &info, err) : info_text(set, &info, err);
    warn_damage(cmd, set);
    return ok;
}

// ---- import -----------------------------------------------------------------------------------

static bool run_import(Cmd *cmd, const Values *v, Dataset *set, Error *err) {
    Watch watch = {cmd, NULL};
    DatasetImport o = {.shard_size = v->shard_size, .gzip = v->gzip, .progress = watch_progress,
                       .user = &watch};
    DatasetImported done;
    if (!dataset_import(set, v->target, &o, &done, err)) return false;
    progress_clear(cmd->progress);
    warn_damage(cmd, set);
    char bytes[32];
    format_bytes(bytes, done.bytes);
    log_msg(cmd->log, LOG_INFO, "%s: %d pictures in %d shards, %s", v->target, done.count,
            done.shards,
            bytes);
    if (!v->common.json) return true;
    JsonOut w = {0};
    json_open(&w, '{');
    json_key(&w, "path"), json_put_string(&w, v->target);
    json_key(&w, "count"), json_put_int(&w, done.count);
    json_key(&w, "shards"), json_put_int(&w, done.shards);
    json_key(&w, "bytes"), json_put_uint(&w, done.bytes);
    put_damage(&w, set);
    json_close(&w, '}');
    return cmd_print_json(&w, err);
}

// ---- preview ----------------------------------------------------------------------------------

static bool run_preview(Cmd *cmd, const Values *v, Dataset *set, Error *err) {
    int rows = MIN((int)v->rows, dataset_class_count(set));
    Image *sheet = dataset_preview(cmd->mem, set, rows, (int)v->columns, (int)v->size, err);
    if (!sheet || !image_save(v->output, sheet, NULL, 0, err)) return false;
    log_msg(cmd->log, LOG_INFO, "%s: %d classes, %d pictures each", v->output, rows,
            (int)v->columns);
    if (!v->common.json) return true;
    JsonOut w = {0};
    json_open(&w, '{');
    json_key(&w, "images"), json_open(&w, '['), json_put_string(&w, v->output), json_close(&w, ']');
    json_key(&w, "width"), json_put_int(&w, sheet->width);
    json_key(&w, "height"), json_put_int(&w, sheet->height);
    json_close(&w, '}');
    return cmd_print_json(&w, err);
}

// ---- run --------------------------------------------------------------------------------------

// Options belong to an action: one given with another action is a mistake, not noise.
static bool check(const Cmd *cmd, const Values *v, Error *err) {
    static const struct { const char *option, *action; } owners[] = {
        {"shard-size", "import"}, {"gzip", "import"}, {"output", "preview"}, {"rows", "preview"},
        {"columns", "preview"}, {"size", "preview"}, {"DST", "import"},
    };
    for (size_t i = 0; i < COUNT_OF(owners); i++)
        if (cmd_given(cmd, owners[i].option) && strcmp(v->action, owners[i].action) != 0)
            return cmd_usage(cmd, err, "%s: expected %s%s with %s only, found it beside it",
                             v->action,
                             strcmp(owners[i].option, "DST") ? "--" : "", owners[i].option,
                             owners[i].action);
    if (strcmp(v->action, "import") == 0 && !v->target)
        return cmd_usage(cmd, err, "import: expected SRC and DST, found %s alone", v->source);
    if (strcmp(v->action, "preview") != 0) return true;
    if (!v->output) return cmd_usage(cmd, err, "preview: expected -o FILE, found none");
    return cmd_check_picture(cmd, "output", v->output, err);
}

static bool run(Cmd *cmd, const void *values, Error *err) {
    const Values *v = values;
    if (!check(cmd, v, err)) return false;
    bool preview = strcmp(v->action, "preview") == 0;
    if (preview && !out_check(v->output, err)) return err_prefix(err, "--output");
    DatasetOptions o = {.strict = v->strict, .test = v->test};
    Dataset *set = dataset_open(cmd->mem, v->source, &o, err);
    if (!set) return false;
    bool ok = preview ? run_preview(cmd, v, set, err)
              : strcmp(v->action, "info") == 0 ? run_info(cmd, v, set, err)
                                               : run_import(cmd, v, set, err);
    dataset_close(set);
    return ok;
}

const Command cmd_dataset = {
    .name = "dataset",
    .summary = "import pictures into WebDataset shards, describe and preview them",
    .text = "Reads labelled pictures from folders of classes, CIFAR-10 binary files or WebDataset "
            "shards. Damaged pictures are named, counted and left out.",
    .examples = "kiln dataset info cifar-10-batches-bin\n"
                "kiln dataset import pictures shards --shard-size 64M\n"
                "kiln dataset preview shards -o sheet.png",
    COMMAND_OPTIONS(Values, options),
    .common_offset = offsetof(Values, common),
    .run = run,
};
