// text_model.c: see text_model.h.
#include "tools/text_model.h"

#include "engine/pipeline_dummy.h"

static DType compute_type(const char *precision) {
    return precision && !strcmp(precision, "f32") ? DT_F32 : DT_BF16;
}

static bool names_parts(const TextModelNames *n) {
    bool any = n->paths.distill;
    for (int i = 0; i < PART_COUNT; i++) any = any || n->paths.part[i];
    return any;
}

bool text_model_given(const TextModelNames *n) { return n->dummy || names_parts(n); }

bool text_model_check(const Cmd *cmd, const TextModelNames *n, const char *model, Error *err) {
    if (!n->paths.model && !text_model_given(n))
        return cmd_usage(cmd, err, "expected %s, found none; try `kiln help %s`", model,
                         cmd->command->name);
    if (n->dummy && n->paths.model)
        return cmd_usage(cmd, err, "--dummy: expected no %s beside it, found %.100s", model,
                         n->paths.model);
    if (n->dummy && names_parts(n))
        return cmd_usage(cmd, err, "--dummy: expected no files of parts beside it, found some");
    if (n->dummy_scale && !n->dummy)
        return cmd_usage(cmd, err, "--dummy-scale: expected --dummy beside it, found none");
    return true;
}

ModelParts *text_model_parts(Cmd *cmd, const TextModelNames *n, DType *type, Error *err) {
    int divisor;
    const char *dummy = n->dummy && !*n->dummy ? pipeline_dummy_name(0) : n->dummy;
    if (!cmd_weight_type(n->type, type, err) ||
        !pipeline_dummy_divisor(n->dummy_scale, &divisor, err) ||
        (dummy && !pipeline_dummy_check(dummy, err))) {
        err_prefix(err, "%s", cmd->command->name);
        return NULL;
    }
    return dummy ? pipeline_dummy_open(cmd->mem, dummy, divisor, *type)
                 : model_parts_open(cmd->mem, &n->paths, err);
}

bool text_model_open(Cmd *cmd, const TextModelNames *names, const char *precision, TextModel *out,
                     Error *err) {
    FluxPipelineOptions options = {.compute = compute_type(precision)};
    out->parts = text_model_parts(cmd, names, &options.type, err);
    if (!out->parts) return false;
    out->dev = cmd_open_device(cmd, err);
    if (!out->dev) return false;
    out->pipeline = flux_pipeline_open(cmd->mem, out->dev, out->parts, &options, err);
    return out->pipeline != NULL;
}

void text_model_close(TextModel *m) {
    flux_pipeline_close(m->pipeline);
    if (m->dev) dev_close(m->dev);
    model_parts_close(m->parts);
    *m = (TextModel){0};
}
