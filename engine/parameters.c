// parameters.c: see parameters.h.
#include "engine/parameters.h"

#include "backend/os.h"

#include <ctype.h>
#include <inttypes.h>

// "out/cats/model.safetensors" is known as "cats", "models/nano.safetensors" as "nano".
static void model_name(const char *path, char *out, size_t size) {
    snprintf(out, size, "%s", os_base_name(path));
    if (!strcmp(out, "model.safetensors")) {
        char *dir = os_dir_name(NULL, path);
        if (strcmp(dir, ".")) snprintf(out, size, "%s", os_base_name(dir));
        mem_free(dir);
    }
    if (str_ends(out, ".safetensors")) out[strlen(out) - strlen(".safetensors")] = 0;
}

char *parameters_text(void *parent, const Parameters *p) {
    char model[200], seed[48] = "", sampler[64], guidance[64] = "";
    model_name(p->model, model, sizeof model);
    snprintf(sampler, sizeof sampler, "%s", p->sampler);
    sampler[0] = (char)toupper((unsigned char)sampler[0]);
    if (p->seeded) snprintf(seed, sizeof seed, "Seed: %" PRIu64 ", ", p->seed);
    if (p->guidance > 0)
        snprintf(guidance, sizeof guidance, "Distilled CFG Scale: %.15g, ", p->guidance);
    bool negative = p->negative && *p->negative;
    return mem_printf(parent,
                      "%s\n%s%s%sSteps: %d, Sampler: %s, CFG scale: %.15g, %s%sSize: %dx%d, Model: "
                      "%s%s%s%s",
                      p->prompt ? p->prompt : "", negative ? "Negative prompt: " : "",
                      negative ? p->negative : "", negative ? "\n" : "", p->steps, sampler,
                      p->cfg_scale, guidance, seed, p->width, p->height, model,
                      p->torch_rng ? ", RNG: CPU" : "", p->version ? ", Version: Kiln " : "",
                      p->version ? p->version : "");
}
