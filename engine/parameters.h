// parameters.h: the settings of a picture as text, in the form of the A1111 web UI, so that other
// tools read them back from a PNG's `parameters` (and a JPEG's comment).
#ifndef KILN_ENGINE_PARAMETERS_H
#define KILN_ENGINE_PARAMETERS_H

#include "backend/base.h"

typedef struct Parameters {
    const char *prompt;  // or the class; NULL: empty
    const char *negative; // NULL: none
    const char *sampler; // "euler"
    const char *model;   // path: its name without folder and ending is shown
    int steps, width, height;
    double cfg_scale;
    double guidance;     // the distilled scale; 0: none
    bool seeded;         // false: the noise was given
    uint64_t seed;
    bool torch_rng;
    const char *more;    // made by parameters_add; NULL: nothing
    const char *version; // of Kiln; NULL: left out
} Parameters;

// One more setting, behind the model's name: "Denoising strength: 0.75". A value with a comma, colon
// or line break is put in quotes, as A1111 does. The text hangs on `parent`.
void parameters_add(void *parent, Parameters *p, const char *name, const char *format, ...)
    PRINTF_LIKE(4, 5);
// The name under which a model file is shown: without folder and ending ("out/cats/model.safetensors"
// is "cats"). Below parent.
char *parameters_model(void *parent, const char *path);

// "cat\nSteps: 50, Sampler: Euler, CFG scale: 3, Seed: 1, Size: 32x32, Model: nano-cifar10, ..."
char *parameters_text(void *parent, const Parameters *p);

#endif
