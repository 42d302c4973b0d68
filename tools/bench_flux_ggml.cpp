// bench_flux_ggml.cpp: one step of FLUX.1's transformer in stable-diffusion.cpp (ggml), for
// tools/bench_flux.py, which builds and runs it. Not part of Kiln's build.
//
//     bench_flux_ggml FILE THREADS TOKENS SIDE AMX FLASH
//
// FILE: a transformer in the original layout (safetensors or GGUF). TOKENS: of the text. SIDE: of
// the square picture's latents. AMX: 1 puts the matrices into ggml's AMX buffer type where it takes
// their type, as llama.cpp does (stable-diffusion.cpp itself never does). FLASH: 1 for its flash
// attention. Each line read from the standard input runs a step; its seconds are printed.
#include "flux.hpp"
#include "model.h"

#include "ggml-backend.h"

#include <cstdio>

static ggml_backend_buffer_type_t amx_buffers() {
    ggml_backend_dev_t dev = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(dev);
    auto list = (ggml_backend_dev_get_extra_bufts_t)ggml_backend_reg_get_proc_address(
        reg, "ggml_backend_dev_get_extra_bufts");
    for (ggml_backend_buffer_type_t *b = list ? list(dev) : nullptr; b && *b; b++)
        if (!strcmp(ggml_backend_buft_name(*b), "AMX")) return *b;
    return nullptr;
}

static int place_in(ggml_backend_buffer_type_t type, const std::map<std::string, ggml_tensor *> &all) {
    int placed = 0;
    for (auto &[name, t] : all) {
        bool takes = t->type == GGML_TYPE_Q8_0 || t->type == GGML_TYPE_Q4_0 || t->type == GGML_TYPE_F16;
        if (ggml_n_dims(t) != 2 || !takes || t->ne[0] % 32 || t->ne[1] % 32) continue;
        ggml_backend_buffer_t buffer =
            ggml_backend_buft_alloc_buffer(type, ggml_backend_buft_get_alloc_size(type, t));
        ggml_backend_buffer_set_usage(buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        ggml_backend_tensor_alloc(buffer, t, ggml_backend_buffer_get_base(buffer));
        placed++;
    }
    return placed;
}

int main(int argc, char **argv) {
    if (argc != 7) return fprintf(stderr, "FILE THREADS TOKENS SIDE AMX FLASH\n"), 2;
    int threads = atoi(argv[2]), tokens = atoi(argv[3]), side = atoi(argv[4]);
    const std::string prefix = "model.diffusion_model";
    ggml_backend_t backend = ggml_backend_cpu_init();
    ModelLoader loader;
    if (!loader.init_from_file_and_convert_name(argv[1], prefix + ".")) return 1;
    auto &storage = loader.get_tensor_storage_map();
    Flux::FluxRunner flux(backend, false, storage, prefix, VERSION_FLUX, false);
    flux.set_flash_attention_enabled(atoi(argv[6]));
    std::map<std::string, ggml_tensor *> tensors;
    flux.get_param_tensors(tensors, prefix);
    int placed = 0;
    if (atoi(argv[5])) {
        ggml_backend_buffer_type_t type = amx_buffers();
        if (type) placed = place_in(type, tensors);
    }
    flux.alloc_params_buffer();
    if (!loader.load_tensors(tensors, {}, threads)) return 1;
    auto filled = [](std::vector<int64_t> shape) {
        sd::Tensor<float> t(shape);
        uint32_t seed = 1;
        for (int64_t i = 0; i < t.numel(); i++) {
            seed = seed * 1664525u + 1013904223u;
            t.data()[i] = (float)(seed >> 8) / (1 << 23) - 1;
        }
        return t;
    };
    auto x = filled({side, side, 16, 1}), text = filled({4096, tokens, 1}), pooled = filled({768, 1});
    auto t = sd::Tensor<float>::from_vector({0.5f}), g = sd::Tensor<float>::from_vector({3.5f});
    printf("ready %d matrices in AMX buffers\n", placed);
    fflush(stdout);
    for (char line[64]; fgets(line, sizeof line, stdin);) {
        int64_t start = ggml_time_us();
        auto out = flux.compute(threads, x, t, text, {}, pooled, g);
        double seconds = (double)(ggml_time_us() - start) * 1e-6;
        if (out.empty() || !std::isfinite(out.data()[0])) return fprintf(stderr, "no finite result\n"), 1;
        printf("%.6f\n", seconds);
        fflush(stdout);
    }
    return 0;
}
