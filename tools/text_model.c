// text_model.c: see text_model.h.
#include "tools/text_model.h"

#include "engine/pipeline_dummy.h"

static DType compute_type(const char *precision) {
    return precision && !strcmp(precision, "f32") ? DT_F32 : DT_BF16;
}

bool text_model_open(Cmd *cmd, const TextModelNames *names, TextModel *out, Error *err) {
    FluxPipelineOptions options = {.compute = compute_type(names->precision)};
    int divisor;
    const char *dummy = names->dummy && !*names->dummy ? "flux-dev" : names->dummy;
    if (!cmd_weight_type(names->type, &options.type, err) ||
        !pipeline_dummy_divisor(names->dummy_scale, &divisor, err) || (dummy && !pipeline_dummy_check(dummy, err)))
        return err_prefix(err, "%s", cmd->command->name);
    out->parts = dummy ? pipeline_dummy_open(cmd->mem, dummy, divisor, options.type)
                       : model_parts_open(cmd->mem, &names->paths, err);
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
