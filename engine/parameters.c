// parameters.c: see parameters.h.
#include "engine/parameters.h"

#include "backend/os.h"
#include "engine/sampler.h"

#include <inttypes.h>

char *parameters_model(void *parent, const char *path) {
    static const char *const endings[] = {".safetensors", ".gguf"};
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') n--; // a folder's
    char *name = mem_strdup(parent, os_base_name(mem_strndup(parent, path, n)));
    if (!strcmp(name, "model.safetensors")) {
        char *dir = os_dir_name(NULL, path);
        if (strcmp(dir, ".")) name = mem_strdup(parent, os_base_name(dir));
        mem_free(dir);
    }
    for (size_t i = 0; i < COUNT_OF(endings); i++)
        if (str_ends(name, endings[i])) name[strlen(name) - strlen(endings[i])] = 0;
    return name;
}

// A1111 quotes such values as JSON strings.
static char *quoted(void *parent, const char *value) {
    if (!strpbrk(value, ",:\n")) return mem_strdup(parent, value);
    char *out = mem_new(parent, 2 * strlen(value) + 3), *to = out;
    *to++ = '"';
    for (; *value; value++) {
        if (strchr("\"\\\n", *value)) *to++ = '\\';
        *to++ = *value == '\n' ? 'n' : *value;
    }
    *to++ = '"';
    return out;
}

void parameters_add(void *parent, Parameters *p, const char *name, const char *format, ...) {
    char value[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(value, sizeof value, format, args);
    va_end(args);
    p->more = mem_printf(parent, "%s, %s: %s", p->more ? p->more : "", name, quoted(parent, value));
}

char *parameters_text(void *parent, const Parameters *p) {
    char seed[48] = "", guidance[64] = "";
    const Sampler *sampler = sampler_find(p->sampler);
    void *scope = mem_new(NULL, 1);
    char *model = quoted(scope, parameters_model(scope, p->model));
    if (p->seeded) snprintf(seed, sizeof seed, "Seed: %" PRIu64 ", ", p->seed);
    if (p->guidance > 0)
        snprintf(guidance, sizeof guidance, "Distilled CFG Scale: %.15g, ", p->guidance);
    bool negative = p->negative && *p->negative;
    char *text = mem_printf(
        parent,
        "%s\n%s%s%sSteps: %d, Sampler: %s, CFG scale: %.15g, %s%sSize: %dx%d, Model: %s%s%s%s%s",
        p->prompt ? p->prompt : "", negative ? "Negative prompt: " : "",
        negative ? p->negative : "", negative ? "\n" : "", p->steps,
        sampler ? sampler->title : p->sampler, p->cfg_scale, guidance, seed, p->width, p->height,
        model, p->more ? p->more : "", p->torch_rng ? ", RNG: CPU" : "",
        p->version ? ", Version: Kiln " : "", p->version ? p->version : "");
    mem_free(scope);
    return text;
}
