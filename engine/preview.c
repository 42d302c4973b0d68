// preview.c: see preview.h. Compile without floating-point contraction.
#include "engine/preview.h"

// A linear fit of decoded pictures to FLUX.1's latents, as published with ComfyUI
// (comfy/latent_formats.py) and stable-diffusion.cpp; measured numbers, rounded to 4 digits.
static const float flux1[16][3] = {
    {-0.0346f, 0.0244f, 0.0681f},   {0.0034f, 0.0210f, 0.0687f},   {0.0275f, -0.0668f, -0.0433f},
    {-0.0174f, 0.0160f, 0.0617f},   {0.0859f, 0.0721f, 0.0329f},   {0.0004f, 0.0383f, 0.0115f},
    {0.0405f, 0.0861f, 0.0915f},    {-0.0236f, -0.0185f, -0.0259f}, {-0.0245f, 0.0250f, 0.1180f},
    {0.1008f, 0.0755f, -0.0421f},   {-0.0515f, 0.0201f, 0.0011f},  {0.0428f, -0.0012f, -0.0036f},
    {0.0817f, 0.0765f, 0.0749f},    {-0.1264f, -0.0522f, -0.1103f}, {-0.0280f, -0.0881f, -0.0499f},
    {-0.1262f, -0.0982f, -0.0778f},
};

static const PreviewTable tables[] = {
    {"FLUX.1", 16, flux1, {-0.0329f, -0.0718f, -0.0851f}},
};

const PreviewTable *preview_table(int channels) {
    for (size_t i = 0; i < COUNT_OF(tables); i++)
        if (tables[i].channels == channels) return &tables[i];
    return NULL;
}

// -1..1 to 0..255; NaN to 0.
static uint8_t level(float v) {
    float scaled = (v + 1) * 127.5f + 0.5f;
    return scaled >= 255 ? 255 : scaled > 0 ? (uint8_t)scaled : 0;
}

Image *preview_image(void *parent, const PreviewTable *t, const float *latent, int width,
                     int height, Error *err) {
    Image *image = image_new(parent, width, height, err);
    if (!image) return NULL;
    size_t points = (size_t)width * (size_t)height;
    for (size_t i = 0; i < points; i++) {
        float rgb[3] = {t->bias[0], t->bias[1], t->bias[2]};
        for (int k = 0; k < t->channels; k++)
            for (int c = 0; c < 3; c++) rgb[c] += t->weight[k][c] * latent[(size_t)k * points + i];
        for (int c = 0; c < 3; c++) image->rgb[i * 3 + (size_t)c] = level(rgb[c]);
    }
    return image;
}
