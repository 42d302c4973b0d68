// test_model_parts.c: which model files hold (40 kinds, by names of tensors of published files), the
// layouts and prefixes in which the parts of FLUX.1 come, what is missing, and tensors that stand
// beyond four gigabytes in a file.
#include "tests/check.h"

#include <stdlib.h>

#include "engine/vae.h"
#include "tests/tiny_model.h"
#include "tests/zip_file.h"

#ifndef _WIN32
#include <fcntl.h>
#include <unistd.h>
#endif

static struct { void *scope; char *dir; } world;

static char *at(const char *name) { return os_path_join(world.scope, world.dir, name); }

// ---- kinds --------------------------------------------------------------------------------------

// Some names and shapes of published files; large dimensions that say nothing are cut to 4.
typedef struct Sample { const char *name; int ndim; int64_t shape[5]; } Sample;
typedef struct KindCase { const char *title, *file; Sample tensors[5]; } KindCase;

static const KindCase kinds[] = {
    {"Stable Diffusion 1;", "sd15.safetensors",
     {{"model.diffusion_model.input_blocks.0.0.weight", 4, {320, 4, 3, 3}},
      {"model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", 2, {4, 768}},
      {"cond_stage_model.transformer.text_model.final_layer_norm.weight", 1, {768}},
      {"first_stage_model.decoder.conv_in.weight", 4, {4, 4, 3, 3}}}},
    {"Stable Diffusion 1;", "unet",
     {{"conv_in.weight", 4, {320, 4, 3, 3}},
      {"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", 2, {320, 768}}}},
    {"Stable Diffusion 2;", "v2-1.safetensors",
     {{"model.diffusion_model.input_blocks.0.0.weight", 4, {320, 4, 3, 3}},
      {"cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight", 2, {4, 1024}},
      {"first_stage_model.decoder.conv_in.weight", 4, {4, 4, 3, 3}}}},
    {"Stable Diffusion 2;", "unet",
     {{"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", 2, {320, 1024}}}},
    {"Stable Diffusion XL (SDXL);", "sd_xl_base.safetensors",
     {{"model.diffusion_model.input_blocks.0.0.weight", 4, {320, 4, 3, 3}},
      {"model.diffusion_model.label_emb.0.0.weight", 2, {4, 2816}},
      {"conditioner.embedders.0.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight", 2,
       {4, 768}},
      {"conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight", 2, {4, 1280}}}},
    {"Stable Diffusion XL (SDXL);", "unet",
     {{"add_embedding.linear_1.weight", 2, {4, 2816}}, {"conv_in.weight", 4, {320, 4, 3, 3}}}},
    {"Stable Diffusion XL refiner;", "sd_xl_refiner.safetensors",
     {{"model.diffusion_model.label_emb.0.0.weight", 2, {4, 2560}},
      {"conditioner.embedders.0.model.transformer.resblocks.0.attn.in_proj_weight", 2, {4, 1280}}}},
    {"Stable Diffusion XL refiner;", "unet", {{"add_embedding.linear_1.weight", 2, {4, 2560}}}},
    {"Stable Video Diffusion;", "svd.safetensors",
     {{"model.diffusion_model.label_emb.0.0.weight", 2, {4, 768}},
      {"model.diffusion_model.input_blocks.1.1.time_mixer.mix_factor", 1, {1}}}},
    {"Stable Diffusion 3;", "sd3_medium.safetensors",
     {{"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", 2, {4, 1536}},
      {"model.diffusion_model.pos_embed", 3, {1, 4, 1536}},
      {"first_stage_model.decoder.conv_in.weight", 4, {4, 16, 3, 3}}}},
    {"Stable Diffusion 3;", "transformer",
     {{"transformer_blocks.0.attn.add_q_proj.weight", 2, {4, 1536}},
      {"pos_embed.proj.weight", 4, {4, 16, 2, 2}}}},
    {"Stable Cascade;", "stage_c.safetensors",
     {{"clip_txt_mapper.weight", 2, {4, 1280}}, {"clip_txt_pooled_mapper.weight", 2, {4, 1280}}}},
    {"PixArt;", "transformer",
     {{"adaln_single.linear.weight", 2, {4, 1152}}, {"caption_projection.linear_1.weight", 2, {4, 4096}},
      {"transformer_blocks.0.attn2.to_q.weight", 2, {4, 1152}}}},
    {"PixArt;", "PixArt-XL.pth.safetensors",
     {{"t_block.1.weight", 2, {4, 1152}}, {"y_embedder.y_proj.fc1.weight", 2, {4, 4096}},
      {"blocks.0.cross_attn.q_linear.weight", 2, {4, 1152}}}},
    {"AuraFlow;", "aura_flow.safetensors",
     {{"double_layers.0.attn.w1q.weight", 2, {4, 3072}}, {"cond_seq_linear.weight", 2, {4, 2048}}}},
    {"AuraFlow;", "transformer", {{"joint_transformer_blocks.0.attn.to_q.weight", 2, {4, 3072}}}},
    {"Hunyuan-DiT;", "transformer",
     {{"blocks.0.attn2.to_q.weight", 2, {4, 1408}}, {"text_embedder.linear_1.weight", 2, {4, 2048}}}},
    {"Hunyuan-DiT;", "hydit.safetensors", {{"blocks.0.default_modulation.1.weight", 2, {4, 1408}}}},
    {"Hunyuan Video;", "hyvideo.safetensors",
     {{"double_blocks.0.img_attn_qkv.weight", 2, {4, 3072}},
      {"txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.weight", 2, {4, 3072}}}},
    {"Qwen-Image;", "qwen_image.safetensors",
     {{"transformer_blocks.0.img_mod.1.weight", 2, {4, 3072}}, {"img_in.weight", 2, {3072, 64}}}},
    {"Z-Image;", "z_image.safetensors",
     {{"noise_refiner.0.attention.qkv.weight", 2, {4, 3840}},
      {"layers.0.adaLN_modulation.0.weight", 2, {4, 256}}}},
    {"Z-Image;", "transformer", {{"noise_refiner.0.attention.to_q.weight", 2, {4, 3840}}}},
    {"Lumina 2;", "lumina_2.safetensors",
     {{"noise_refiner.0.attention.qkv.weight", 2, {4, 2304}},
      {"layers.0.adaLN_modulation.1.weight", 2, {4, 1024}}}},
    {"Wan;", "wan2.1.safetensors",
     {{"head.modulation", 3, {1, 2, 1536}}, {"patch_embedding.weight", 5, {4, 16, 1, 2, 2}},
      {"blocks.0.cross_attn.k.weight", 2, {4, 1536}}}},
    {"Wan;", "transformer",
     {{"condition_embedder.text_embedder.linear_1.weight", 2, {4, 4096}},
      {"patch_embedding.weight", 5, {4, 16, 1, 2, 2}},
      {"blocks.0.attn2.to_q.weight", 2, {4, 5120}}}},
    {"LTX Video;", "ltx.safetensors",
     {{"model.diffusion_model.patchify_proj.weight", 2, {4, 128}},
      {"model.diffusion_model.adaln_single.linear.weight", 2, {4, 4}}}},
    {"Sana;", "transformer",
     {{"caption_norm.weight", 1, {2240}}, {"patch_embed.proj.weight", 4, {4, 32, 1, 1}}}},
    {"FLUX.2;", "flux2-dev.safetensors",
     {{"single_stream_modulation.lin.weight", 2, {4, 6144}},
      {"double_blocks.0.img_attn.qkv.weight", 2, {4, 6144}},
      {"single_blocks.0.linear1.weight", 2, {4, 6144}}}},
    {"Chroma;", "chroma.safetensors",
     {{"distilled_guidance_layer.in_proj.weight", 2, {4, 64}},
      {"double_blocks.0.img_attn.qkv.weight", 2, {4, 3072}},
      {"single_blocks.0.linear1.weight", 2, {4, 3072}}}},
    {"FLUX.1 Fill;", "flux1-fill-dev.safetensors",
     {{"img_in.weight", 2, {3072, 384}}, {"double_blocks.0.img_attn.qkv.weight", 2, {4, 3072}},
      {"single_blocks.0.linear1.weight", 2, {4, 3072}}}},
    {"FLUX.1 Canny or Depth;", "transformer",
     {{"x_embedder.weight", 2, {3072, 128}}, {"transformer_blocks.0.attn.add_q_proj.weight", 2, {4, 3072}},
      {"single_transformer_blocks.0.proj_mlp.weight", 2, {4, 3072}}}},
    {"FLUX.1 Redux;", "flux1-redux-dev.safetensors",
     {{"redux_up.weight", 2, {12288, 4}}, {"redux_down.weight", 2, {4, 4}}}},
    {"bitsandbytes (NF4 or FP4); take", "flux1-dev-bnb-nf4.safetensors",
     {{"double_blocks.0.img_attn.qkv.weight", 2, {1024, 1}}, {"single_blocks.0.linear1.weight", 2, {1024, 1}},
      {"double_blocks.0.img_attn.qkv.weight.quant_state.bitsandbytes__nf4", 1, {80}}}},
    {"SVDQuant (Nunchaku); take", "svdq-int4-flux.1-dev.safetensors",
     {{"transformer_blocks.0.qkv_proj.qweight", 2, {16, 16}},
      {"transformer_blocks.0.qkv_proj.smooth_factor", 1, {16}}}},
    {"a LoRA;", "kohya.safetensors",
     {{"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", 2, {16, 3072}},
      {"lora_unet_double_blocks_0_img_attn_proj.lora_up.weight", 2, {4, 16}}, {"lora_unet_x.alpha", 0, {0}}}},
    {"a LoRA;", "peft.safetensors",
     {{"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", 2, {16, 3072}},
      {"transformer.single_transformer_blocks.0.attn.to_q.lora_B.weight", 2, {4, 16}}}},
    {"a LoRA;", "loha.safetensors",
     {{"lora_unet_x.hada_w1_a", 2, {4, 4}}, {"lora_unet_x.hada_w1_b", 2, {4, 4}}}},
    {"a ControlNet;", "control_v11p.safetensors",
     {{"control_model.input_hint_block.0.weight", 4, {16, 3, 3, 3}}}},
    {"a ControlNet;", "controlnet",
     {{"controlnet_cond_embedding.conv_in.weight", 4, {16, 3, 3, 3}},
      {"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", 2, {320, 768}}}},
    {"a ControlNet;", "flux-controlnet",
     {{"controlnet_blocks.0.weight", 2, {4, 3072}},
      {"transformer_blocks.0.attn.add_q_proj.weight", 2, {4, 3072}},
      {"single_transformer_blocks.0.proj_mlp.weight", 2, {4, 3072}},
      {"controlnet_x_embedder.weight", 2, {4, 64}}}},
    {"an IP-Adapter;", "ip-adapter.safetensors",
     {{"ip_adapter.1.to_k_ip.weight", 2, {4, 768}}, {"image_proj.proj.weight", 2, {4, 1024}}}},
    {"a T2I-Adapter;", "t2i-adapter", {{"adapter.body.0.resnets.0.block1.weight", 4, {4, 4, 3, 3}}}},
    {"an autoencoder; give it with --vae", "taef1.safetensors",
     {{"decoder.layers.0.weight", 4, {64, 16, 3, 3}}, {"encoder.layers.0.weight", 4, {64, 3, 3, 3}}}},
    {"a motion module", "mm_sd.safetensors",
     {{"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight", 1, {320}}}},
    {"a textual-inversion embedding;", "easynegative.safetensors", {{"emb_params", 2, {8, 768}}}},
    {"a textual-inversion embedding;", "xl-embedding.safetensors",
     {{"clip_g", 2, {8, 1280}}, {"clip_l", 2, {8, 768}}}},
    {"CLIP-G", "clip_g.safetensors",
     {{"text_model.embeddings.token_embedding.weight", 2, {4, 1280}},
      {"text_model.encoder.layers.0.self_attn.q_proj.weight", 2, {4, 1280}}}},
    {"CLIP-G", "open_clip.safetensors",
     {{"token_embedding.weight", 2, {4, 1280}},
      {"transformer.resblocks.0.attn.in_proj_weight", 2, {4, 1280}}}},
    {"CLIP-H", "text_encoder",
     {{"text_model.embeddings.token_embedding.weight", 2, {4, 1024}},
      {"text_model.encoder.layers.0.self_attn.q_proj.weight", 2, {4, 1024}}}},
    {"a CLIP image encoder;", "clip_vision.safetensors",
     {{"vision_model.encoder.layers.0.self_attn.q_proj.weight", 2, {4, 1280}},
      {"visual_projection.weight", 2, {4, 1280}}}},
    {"a UMT5 text encoder;", "umt5_xxl.safetensors",
     {{"encoder.block.0.layer.0.SelfAttention.q.weight", 2, {4, 4096}},
      {"encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight", 2, {32, 64}}}},
    {"a language model;", "model.safetensors",
     {{"model.embed_tokens.weight", 2, {4, 3584}}, {"model.layers.0.self_attn.q_proj.weight", 2, {4, 3584}}}},
    {"a language model;", "llama.gguf",
     {{"token_embd.weight", 2, {4, 4096}}, {"blk.0.attn_norm.weight", 1, {4096}}}},
    {"a video autoencoder;", "wan_2.1_vae.safetensors",
     {{"decoder.middle.0.residual.0.gamma", 4, {384, 1, 1, 1}}}},
    {"an upscaler;", "4x-UltraSharp.safetensors",
     {{"model.0.weight", 4, {64, 3, 3, 3}}, {"model.1.sub.0.RDB1.conv1.0.weight", 4, {32, 64, 3, 3}}}},
    {"a CLIP text encoder; give it with --clip-l", "clip_l.safetensors",
     {{"text_model.embeddings.token_embedding.weight", 2, {4, 768}},
      {"text_model.encoder.layers.0.self_attn.q_proj.weight", 2, {4, 768}}}},
    {"a T5 encoder; give it with --t5xxl", "t5xxl_fp16.safetensors",
     {{"encoder.block.0.layer.0.SelfAttention.q.weight", 2, {4, 4096}}, {"shared.weight", 2, {4, 4096}}}},
    {"an autoencoder; give it with --vae", "ae.safetensors",
     {{"decoder.conv_in.weight", 4, {512, 16, 3, 3}},
      {"decoder.mid.block_1.conv1.weight", 4, {4, 512, 3, 3}}}},
    {"Nano-Sora;", "nano.safetensors",
     {{"y_embedder.embedding_table.weight", 2, {11, 4}}, {"x_embedder.proj.weight", 4, {4, 3, 2, 2}}}},
    {"tensors of no known model (a first)", "unknown.safetensors", {{"a", 1, {4}}, {"b", 1, {4}}}},
};

static int count_samples(const KindCase *k) {
    int n = 0;
    while (n < (int)COUNT_OF(k->tensors) && k->tensors[n].name) n++;
    return n;
}

static void write_samples(const char *path, const KindCase *k) {
    WeightTensor t[COUNT_OF(k->tensors)] = {0};
    int n = count_samples(k);
    for (int i = 0; i < n; i++) {
        const Sample *s = &k->tensors[i];
        t[i] = (WeightTensor){.name = s->name, .dtype = DT_F8_E4M3, .ndim = s->ndim, .bytes = 1};
        for (int d = 0; d < s->ndim; d++) t[i].bytes *= (uint64_t)(t[i].shape[d] = s->shape[d]);
    }
    tiny_write(path, t, 0, n);
}

static void expect_refused(const ModelPaths *paths, const char *first, const char *part) {
    Error err = {0};
    if (model_parts_open(world.scope, paths, &err)) fail_msg("expected \"%s\", found no error", part);
    assert_int_equal(err.status, STATUS_FAILED);
    if (!strstr(err.text, part) || strncmp(err.text, first, strlen(first)))
        fail_msg("expected \"%s\" in: %s", part, err.text);
    if (strlen(err.text) > 300 || strchr(err.text, '\n')) fail_msg("expected one short line: %s", err.text);
}

static void kinds_are_known_by_name(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT_OF(kinds); i++) {
        const KindCase *k = &kinds[i];
        char *path = at(mem_printf(world.scope, "%zu-%s", i, k->file));
        char *file = str_ends(path, ".safetensors") || str_ends(path, ".gguf")
                         ? path : os_path_join(world.scope, path, "diffusion_pytorch_model.safetensors");
        write_samples(file, k);
        expect_refused(&(ModelPaths){.model = path}, path, k->title);
        for (int part = 0; part < PART_COUNT; part++) {
            static const char *const hints[PART_COUNT] = {"", "--clip-l", "--t5xxl", "--vae"};
            static const char *const options[PART_COUNT] = {
                "--diffusion-model", "--clip-l", "--t5xxl", "--vae"};
            ModelPaths paths = {0};
            paths.part[part] = path;
            if (*hints[part] && strstr(k->title, hints[part])) continue; // it is that part
            expect_refused(&paths, options[part], k->title);
        }
    }
}

static void pipelines_are_known_by_name(void **state) {
    (void)state;
    static const struct { const char *class_name, *unet, *part; } folders[] = {
        {"StableDiffusionPipeline", NULL, "Stable Diffusion 1;"},
        {"StableDiffusionPipeline", "{\"cross_attention_dim\": 1024}", "Stable Diffusion 2;"},
        {"StableDiffusionXLPipeline", "{\"cross_attention_dim\": 2048}", "Stable Diffusion XL (SDXL);"},
        {"StableDiffusionXLImg2ImgPipeline", "{\"cross_attention_dim\": 1280}",
         "Stable Diffusion XL refiner;"},
        {"StableDiffusionXLImg2ImgPipeline", "{\"cross_attention_dim\": 2048}",
         "Stable Diffusion XL (SDXL);"},
        {"StableDiffusion3Pipeline", NULL, "Stable Diffusion 3;"},
        {"StableCascadeCombinedPipeline", NULL, "Stable Cascade;"},
        {"PixArtSigmaPipeline", NULL, "PixArt;"},
        {"AuraFlowPipeline", NULL, "AuraFlow;"},
        {"HunyuanDiTPipeline", NULL, "Hunyuan-DiT;"},
        {"QwenImagePipeline", NULL, "Qwen-Image;"},
        {"ZImagePipeline", NULL, "Z-Image;"},
        {"WanPipeline", NULL, "Wan;"},
        {"Flux2Pipeline", NULL, "FLUX.2;"},
        {"FluxFillPipeline", NULL, "FLUX.1 Fill;"},
        {"FluxControlNetPipeline", NULL, "a ControlNet;"},
        {"SomethingElsePipeline", NULL, "the pipeline \"SomethingElsePipeline\""},
        {"FluxPipeline", NULL, "found 4 missing"},
    };
    for (size_t i = 0; i < COUNT_OF(folders); i++) {
        char *name = mem_printf(world.scope, "pipeline-%zu", i), *path = at(name);
        char *index = mem_printf(world.scope, "{\"_class_name\": \"%s\"}", folders[i].class_name);
        scratch_write(world.scope, path, "model_index.json", index, strlen(index));
        if (folders[i].unet)
            scratch_write(world.scope, path, "unet/config.json", folders[i].unet, strlen(folders[i].unet));
        expect_refused(&(ModelPaths){.model = path}, path, folders[i].part);
    }
}

// ---- layouts of the parts -----------------------------------------------------------------------

typedef struct Change { // of the names of a part's tensors
    PartId id;
    const char *prefix, *drop; // put before a name, or taken from its beginning
    const char *extra[6];      // further tensors
    const char *from, *to;     // one tensor's name
} Change;

static bool opens(PartId id, const ModelPart *p, Error *err) {
    void *scratch = mem_new(NULL, 1);
    bool ok;
    if (id == PART_VAE) {
        Vae *vae = vae_open(scratch, p->weights, &p->config, err);
        ok = vae != NULL;
        vae_close(vae);
    } else {
        ok = id == PART_TRANSFORMER ? flux_open(scratch, p->weights, NULL, DT_COUNT, err) != NULL
             : id == PART_CLIP_L    ? clip_open(scratch, p->weights, NULL, err) != NULL
                                    : t5_open(scratch, p->weights, NULL, DT_COUNT, err) != NULL;
    }
    mem_free(scratch);
    return ok;
}

// A part file under changed names beside the other parts as they are.
static void expect_taken(const Change *c, TinyPart p) {
    Error err = {0};
    WeightTensor t[200] = {0};
    int n = 0;
    for (; n < p.n; n++) {
        t[n] = p.t[n];
        size_t drop = c->drop && !strncmp(t[n].name, c->drop, strlen(c->drop)) ? strlen(c->drop) : 0;
        const char *name = c->from && !strcmp(t[n].name, c->from) ? c->to : t[n].name + drop;
        t[n].name = mem_printf(world.scope, "%s%s", c->prefix ? c->prefix : "", name);
    }
    for (int i = 0; i < (int)COUNT_OF(c->extra) && c->extra[i]; i++)
        t[n++] = (WeightTensor){.name = c->extra[i], .dtype = DT_F32, .ndim = 1, .shape = {3}, .bytes = 12};
    char *path = at("changed.safetensors");
    tiny_write(path, t, 0, n);
    ModelPaths paths = {.part = {at("0.safetensors"), at("1.safetensors"),
                                 at("2.safetensors"), at("3.safetensors")}};
    paths.part[c->id] = path;
    ModelParts *parts = model_parts_open(world.scope, &paths, &err);
    CHECK(parts != NULL);
    CHECK(opens(c->id, &parts->part[c->id], &err));
    model_parts_close(parts);
    if (c->id != PART_TRANSFORMER) return;
    paths = (ModelPaths){.model = path, .part = {NULL, paths.part[1], paths.part[2], paths.part[3]}};
    parts = model_parts_open(world.scope, &paths, &err);
    CHECK(parts != NULL);
    model_parts_close(parts);
}

static void layouts_are_taken(void **state) {
    (void)state;
    TinyPart parts[PART_COUNT];
    for (int i = 0; i < PART_COUNT; i++) {
        parts[i] = tiny_part(world.scope, (PartId)i);
        tiny_write(at(mem_printf(world.scope, "%d.safetensors", i)), parts[i].t, 0, parts[i].n);
    }
    static const Change changes[] = {
        {.id = PART_TRANSFORMER},
        {.id = PART_TRANSFORMER, .prefix = "model."},
        {.id = PART_TRANSFORMER, .prefix = "transformer."},
        {.id = PART_TRANSFORMER, .prefix = "diffusion_model."},
        {.id = PART_TRANSFORMER, .prefix = "model.diffusion_model.",
         .extra = {"model.diffusion_model.scaled_fp8"}},
        {.id = PART_TRANSFORMER, .extra = {"scaled_fp8", "double_blocks.0.img_mod.lin.input_scale",
                                           "single_blocks.0.linear1.scale_input"}},
        {.id = PART_CLIP_L, .drop = "text_model."},
        {.id = PART_CLIP_L, .extra = {"text_model.embeddings.position_ids", "logit_scale",
                                    "text_projection.weight"}},
        {.id = PART_CLIP_L, .extra = {"text_projection", "vision_model.post_layernorm.weight",
                                    "visual_projection.weight"}},
        {.id = PART_CLIP_L, .prefix = "clip_l.transformer."},
        {.id = PART_CLIP_L, .prefix = "text_encoders.clip_l.transformer."},
        {.id = PART_T5, .from = "shared.weight", .to = "encoder.embed_tokens.weight"},
        {.id = PART_T5, .extra = {"encoder.embed_tokens.weight",
                               "decoder.final_layer_norm.weight", "lm_head.weight",
                                  "spiece_model", "logit_scale"}},
        {.id = PART_T5, .prefix = "t5xxl.transformer."},
        {.id = PART_VAE, .prefix = "vae."},
        {.id = PART_VAE, .prefix = "first_stage_model."},
        {.id = PART_VAE, .extra = {"loss.logvar", "model_ema.decay"}},
    };
    for (size_t i = 0; i < COUNT_OF(changes); i++) expect_taken(&changes[i], parts[changes[i].id]);
    static const KlNames names[] = {KL_DIFFUSERS_OLD, KL_ORIGINAL};
    for (size_t i = 0; i < COUNT_OF(names); i++)
        expect_taken(&(Change){.id = PART_VAE}, tiny_vae(world.scope, names[i]));
}

// Each tensor once missing, once of a wrong shape, and some that belong nowhere: all are listed, up
// to ten, and nothing is taken.
static void wrong_tensors_are_listed(void **state) {
    (void)state;
    for (int id = 0; id < PART_COUNT; id++) {
        TinyPart p = tiny_part(world.scope, (PartId)id);
        Error err = {0};
        char *path = at("wrong.safetensors");
        for (int i = 0; i < p.n; i += MAX(p.n / 7, 1)) {
            WeightTensor all[200], last = p.t[p.n - 1];
            memcpy(all, p.t, sizeof *all * (size_t)p.n);
            all[i] = last;
            tiny_write(path, all, 0, p.n - 1); // without tensor i (the last one stands in its place)
            Weights *w = weights_open(world.scope, path, &err);
            CHECK(w != NULL);
            const ModelPart part = {.weights = w};
            bool taken = opens((PartId)id, &part, &err);
            // What tells the kind or the sizes is asked for by name; all others are listed.
            if (i < p.n - 1 && (taken || !strstr(err.text, "expected")))
                fail_msg("without %s: %s", p.t[i].name, err.text);
            weights_close(w);
        }
        WeightTensor more[200];
        memcpy(more, p.t, sizeof *more * (size_t)p.n);
        for (int i = 0; i < 12; i++)
            more[p.n + i] = (WeightTensor){.name = mem_printf(world.scope, "bogus.%02d", i),
                                            .dtype = DT_F32, .bytes = 4};
        tiny_write(path, more, 0, p.n + 12);
        Weights *w = weights_open(world.scope, path, &err);
        CHECK(w != NULL);
        const ModelPart part = {.weights = w};
        assert_false(opens((PartId)id, &part, &err));
        assert_non_null(strstr(err.text, "12 unexpected"));
        assert_int_equal(err.items, 12);
        assert_non_null(strstr(err.item[9], "bogus.09"));
        weights_close(w);
    }
}

// ---- beyond four gigabytes ----------------------------------------------------------------------

#ifndef _WIN32
#define FAR_BYTES ((uint64_t)5 << 30)

// A file with a hole of FAR_BYTES between `head` and `tail`; false where the disk takes none.
static bool write_sparse(const char *path, const void *head, size_t head_bytes, const void *tail,
                         size_t tail_bytes) {
    int f = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (f < 0) return false;
    off_t end = (off_t)(head_bytes + FAR_BYTES);
    bool ok = pwrite(f, head, head_bytes, 0) == (ssize_t)head_bytes && ftruncate(f, end) == 0 &&
              pwrite(f, tail, tail_bytes, end) == (ssize_t)tail_bytes;
    close(f);
    return ok;
}

static void expect_far(const char *path, const char *format) {
    Error err = {0};
    Weights *w = weights_open(world.scope, path, &err);
    CHECK(w != NULL);
    assert_string_equal(weights_format(w), format);
    const WeightTensor *big = weights_find(w, "big"), *last = weights_find(w, "last");
    assert_true(big && last && big->bytes == FAR_BYTES && last->bytes == 8);
    float v[2] = {9, 9};
    CHECK(weights_read(w, big, FAR_BYTES - 8, v, 8, &err));
    assert_true(v[0] == 0 && v[1] == 0);
    CHECK(weights_read(w, last, 0, v, 8, &err));
    assert_true(v[0] == 1.5f && v[1] == -2);
    weights_close(w);
}

static void far_safetensors(void **state) {
    (void)state;
    static const float tail[2] = {1.5f, -2};
    char head[300] = {0};
    int n = snprintf(head + 8, sizeof head - 8,
                     "{\"big\":{\"dtype\":\"F32\",\"shape\":[1280,1048576],\"data_offsets\":[0,%llu]},"
                     "\"last\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[%llu,%llu]}}",
                     (unsigned long long)FAR_BYTES, (unsigned long long)FAR_BYTES,
                     (unsigned long long)FAR_BYTES + 8);
    uint64_t length = (uint64_t)n;
    memcpy(head, &length, 8);
    char *path = at("far-00001-of-00001.safetensors");
    if (!write_sparse(path, head, 8 + (size_t)n, tail, sizeof tail)) skip();
    expect_far(path, "safetensors");
    static const char index[] = "{\"weight_map\":{\"big\":\"far-00001-of-00001.safetensors\","
                                "\"last\":\"far-00001-of-00001.safetensors\"}}";
    expect_far(scratch_write(world.scope, world.dir, "far.safetensors.index.json", index, strlen(index)),
               "safetensors");
    os_remove(path, NULL);
}

static void far_gguf(void **state) {
    (void)state;
    static const float tail[2] = {1.5f, -2};
    uint8_t head[160] = "GGUF\3\0\0\0\2\0\0\0\0\0\0\0\0\0\0\0\0\0\0"; // version 3, two tensors
    size_t n = 24;
    static const struct { const char *name; uint64_t count, at; } tensors[] = {
        {"big", FAR_BYTES / 4, 0}, {"last", 2, FAR_BYTES}};
    for (size_t i = 0; i < COUNT_OF(tensors); i++) {
        head[n] = (uint8_t)strlen(tensors[i].name);
        memcpy(head + n + 8, tensors[i].name, head[n]);
        n += 8 + head[n];
        head[n] = 1; // dimension; type 0: f32
        memcpy(head + n + 4, &tensors[i].count, 8);
        memcpy(head + n + 16, &tensors[i].at, 8);
        n += 24;
    }
    n = (size_t)align_up(n, 32);
    char *path = at("far.gguf");
    if (!write_sparse(path, head, n, tail, sizeof tail)) skip();
    expect_far(path, "gguf");
    os_remove(path, NULL);
}

// {"big": storage 0, "last": storage 1}: sizes and offsets in 64 bits.
static void far_pytorch(void **state) {
    (void)state;
#define STORAGE(key, count) \
    "((X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" key "X\3\0\0\0cpu" count "tQK\0"
#define REBUILD "ctorch._utils\n_rebuild_tensor_v2\n"
    static const char pickle[] =
        "\x80\x02}(X\3\0\0\0big" REBUILD STORAGE("0", "\x8a\x08\0\0\0\x50\0\0\0\0")
        "\x8a\x08\0\0\0\x50\0\0\0\0\x85K\1\x85\x89}tRX\4\0\0\0last"
        REBUILD STORAGE("1", "K\2") "K\2\x85K\1\x85\x89}tRu.";
    static const float tail[2] = {1.5f, -2};
    ZipFile *z = MEM_NEW(world.scope, ZipFile);
    z->use64 = true;
    z->crc_flip = (uint32_t)crc32(0, (const Bytef *)pickle, sizeof pickle - 1); // makes it 0: left out
    zip_put(z, "m/data.pkl", pickle, sizeof pickle - 1);
    z->crc_flip = 0;
    z->claim = FAR_BYTES;
    zip_put(z, "m/data/0", NULL, 0);
    z->claim = 0;
    size_t head = (size_t)z->bytes.n;
    zip_put(z, "m/data/1", tail, sizeof tail);
    // What follows the hole stands FAR_BYTES further on.
    uint64_t place = head + FAR_BYTES;
    memcpy(z->directory.v + z->directory.n - 8, &place, 8);
    zip_end_at(z, FAR_BYTES);
    char *path = at("far.pt");
    if (!write_sparse(path, z->bytes.v, head, z->bytes.v + head, (size_t)z->bytes.n - head)) skip();
    expect_far(path, "pytorch");
    os_remove(path, NULL);
}
#endif

// ---- all ----------------------------------------------------------------------------------------

static int set_up(void **state) {
    (void)state;
    world.scope = mem_new(NULL, 1);
    world.dir = scratch_new(world.scope);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    scratch_remove(world.dir);
    mem_free(world.scope);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kinds_are_known_by_name), cmocka_unit_test(pipelines_are_known_by_name),
        cmocka_unit_test(layouts_are_taken), cmocka_unit_test(wrong_tensors_are_listed),
#ifndef _WIN32
        cmocka_unit_test(far_safetensors), cmocka_unit_test(far_gguf), cmocka_unit_test(far_pytorch),
#endif
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
