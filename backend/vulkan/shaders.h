// shaders.h: the SPIR-V modules that the build made of shaders/variants.txt, embedded.
#ifndef KILN_VULKAN_SHADERS_H
#define KILN_VULKAN_SHADERS_H

#include <stddef.h>
#include <stdint.h>

typedef struct KilnShader {
    const char *name; // as in variants.txt
    const uint32_t *words;
    size_t word_count;
} KilnShader;
extern const KilnShader kiln_shaders[];
extern const unsigned kiln_shader_count;

#endif
