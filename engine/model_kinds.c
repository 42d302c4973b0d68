// model_kinds.c: which model files hold, known by names of tensors that only this kind has (facts of
// the published checkpoints, and of the diffusers and ComfyUI layouts). See model_parts.h.
#include "engine/model_parts.h"

#define TAKE_OTHER "take the model in GGUF, fp8, f16 or bf16"
#define OF_FLUX "this version runs FLUX.1 dev and schnell"

// A sentence part for people, and what to say where a FLUX.1 model is expected.
static const struct { const char *name, *title, *hint; } kinds[] = {
    {"flux", "FLUX.1", NULL},
    {"clip_l", "a CLIP text encoder", "give it with --clip-l"},
    {"t5", "a T5 encoder", "give it with --t5xxl"},
    {"vae", "an autoencoder", "give it with --vae"},
    {"nano", "Nano-Sora", NULL},
    {"flux-fill", "FLUX.1 Fill", OF_FLUX},
    {"flux-control", "FLUX.1 Canny or Depth", OF_FLUX},
    {"flux-redux", "FLUX.1 Redux", OF_FLUX},
    {"flux2", "FLUX.2", NULL},
    {"chroma", "Chroma", NULL},
    {"bitsandbytes", "weights packed by bitsandbytes (NF4 or FP4)", TAKE_OTHER},
    {"svdquant", "weights packed by SVDQuant (Nunchaku)", TAKE_OTHER},
    {"gptq", "weights packed by GPTQ or AWQ", TAKE_OTHER},
    {"quanto", "weights packed by Quanto", TAKE_OTHER},
    {"sd1", "Stable Diffusion 1", NULL},
    {"sd2", "Stable Diffusion 2", NULL},
    {"sdxl", "Stable Diffusion XL (SDXL)", NULL},
    {"sdxl-refiner", "Stable Diffusion XL refiner", NULL},
    {"svd", "Stable Video Diffusion", NULL},
    {"sd3", "Stable Diffusion 3", NULL},
    {"cascade", "Stable Cascade", NULL},
    {"pixart", "PixArt", NULL},
    {"auraflow", "AuraFlow", NULL},
    {"hunyuan-dit", "Hunyuan-DiT", NULL},
    {"hunyuan-video", "Hunyuan Video", NULL},
    {"hidream", "HiDream", NULL},
    {"lumina2", "Lumina 2", NULL},
    {"sana", "Sana", NULL},
    {"ltx-video", "LTX Video", NULL},
    {"mochi", "Mochi", NULL},
    {"cogvideox", "CogVideoX", NULL},
    {"wan", "Wan", NULL},
    {"z-image", "Z-Image", NULL},
    {"qwen-image", "Qwen-Image", NULL},
    {"kolors", "Kolors", NULL},
    {"controlnet", "a ControlNet", NULL},
    {"ip-adapter", "an IP-Adapter", NULL},
    {"t2i-adapter", "a T2I-Adapter", NULL},
    {"motion-module", "a motion module (AnimateDiff)", NULL},
    {"lora", "a LoRA", NULL},
    {"embedding", "a textual-inversion embedding", NULL},
    {"clip_g", "CLIP-G, the larger text encoder of SDXL and SD3", NULL},
    {"clip_h", "CLIP-H, the text encoder of Stable Diffusion 2", NULL},
    {"clip_vision", "a CLIP image encoder", NULL},
    {"umt5", "a UMT5 text encoder", NULL},
    {"llm", "a language model", NULL},
    {"video-vae", "a video autoencoder", NULL},
    {"upscaler", "an upscaler", NULL},
};

const char *architecture_title(const char *architecture) {
    for (size_t i = 0; i < COUNT_OF(kinds); i++)
        if (!strcmp(kinds[i].name, architecture)) return kinds[i].title;
    return architecture;
}

const char *architecture_hint(const char *architecture) {
    for (size_t i = 0; i < COUNT_OF(kinds); i++)
        if (!strcmp(kinds[i].name, architecture)) return kinds[i].hint;
    return NULL;
}

// A tensor that this kind has and kinds further down do not: the first row that fits. Names are
// tried behind every prefix below; "*TEXT" is any name with TEXT in it. `also`: a second tensor.
// `size`: of the first one's dimension `axis` (0: any).
typedef struct Marker {
    const char *kind, *name, *also;
    int axis;
    int64_t size;
} Marker;

#define ANY 0, 0
#define UNET_DIFFUSERS "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
#define UNET_ORIGINAL "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
#define CLIP_TOKENS "text_model.embeddings.token_embedding.weight"
#define CLIP_LAYER "text_model.encoder.layers.0.self_attn.q_proj.weight"
#define OPEN_CLIP "transformer.resblocks.0.attn.in_proj_weight"

static const Marker markers[] = {
    // Packed in ways that are not read, whatever the model.
    {"bitsandbytes", "*.quant_state.bitsandbytes__", NULL, ANY},
    {"svdquant", "*.smooth_factor", NULL, ANY},
    {"svdquant", "*.proj_down", "*.qweight", ANY},
    {"gptq", "*.qweight", NULL, ANY},
    {"quanto", "*.weight._data", NULL, ANY},
    // Additions to a model have tensors that the model itself has too.
    {"controlnet", "controlnet_blocks.0.weight", NULL, ANY},
    {"controlnet", "controlnet_cond_embedding.conv_in.weight", NULL, ANY},
    {"controlnet", "control_model.input_hint_block.0.weight", NULL, ANY},
    {"controlnet", "input_hint_block.0.weight", NULL, ANY},
    {"ip-adapter", "*to_k_ip.weight", NULL, ANY},
    {"motion-module", "*motion_modules.", NULL, ANY},
    {"t2i-adapter", "adapter.body.0.resnets.0.block1.weight", NULL, ANY},
    {"t2i-adapter", "body.0.block1.weight", "conv_in.weight", ANY},
    {"flux-redux", "redux_up.weight", NULL, ANY},
    // Of the FLUX.1 family.
    {"chroma", "distilled_guidance_layer.in_proj.weight", NULL, ANY},
    {"flux2", "single_stream_modulation.lin.weight", NULL, ANY},
    {"flux2", "single_stream_modulation.linear.weight", NULL, ANY},
    {"flux-fill", "img_in.weight", "double_blocks.0.img_attn.qkv.weight", 1, 384},
    {"flux-fill", "x_embedder.weight", "single_transformer_blocks.0.proj_mlp.weight", 1, 384},
    {"flux-control", "img_in.weight", "double_blocks.0.img_attn.qkv.weight", 1, 128},
    {"flux-control", "x_embedder.weight", "single_transformer_blocks.0.proj_mlp.weight", 1, 128},
    {"hunyuan-video", "txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.weight", NULL, ANY},
    {"hunyuan-video", "context_embedder.token_refiner.refiner_blocks.0.norm1.weight", NULL, ANY},
    {"flux", "double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight", ANY},
    {"flux", "transformer_blocks.0.attn.add_q_proj.weight", "single_transformer_blocks.0.proj_mlp.weight",
     ANY},
    {"flux", "transformer_blocks.0.attn.to_added_qkv.weight", "single_transformer_blocks.0.proj_mlp.weight",
     ANY},
    // Other transformers.
    {"hidream", "double_stream_blocks.0.block.adaLN_modulation.1.weight", NULL, ANY},
    {"sd3", "joint_blocks.0.x_block.attn.qkv.weight", NULL, ANY},
    {"sd3", "transformer_blocks.0.attn.add_q_proj.weight", "pos_embed.proj.weight", ANY},
    {"auraflow", "double_layers.0.attn.w1q.weight", NULL, ANY},
    {"auraflow", "joint_transformer_blocks.0.attn.to_q.weight", NULL, ANY},
    {"qwen-image", "transformer_blocks.0.img_mod.1.weight", NULL, ANY},
    {"z-image", "noise_refiner.0.attention.to_q.weight", NULL, ANY},
    {"z-image", "noise_refiner.0.attention.qkv.weight", "layers.0.adaLN_modulation.0.weight", ANY},
    {"lumina2", "noise_refiner.0.attention.qkv.weight", NULL, ANY},
    {"lumina2", "noise_refiner.0.attn.to_q.weight", NULL, ANY},
    {"wan", "head.modulation", "patch_embedding.weight", ANY},
    {"wan", "condition_embedder.text_embedder.linear_1.weight", "patch_embedding.weight", ANY},
    {"ltx-video", "patchify_proj.weight", NULL, ANY},
    {"ltx-video", "caption_projection.linear_1.weight", "proj_in.weight", ANY},
    {"mochi", "blocks.0.attn.qkv_x.weight", NULL, ANY},
    {"cogvideox", "patch_embed.text_proj.weight", NULL, ANY},
    {"hunyuan-dit", "blocks.0.attn2.to_q.weight", "text_embedder.linear_1.weight", ANY},
    {"hunyuan-dit", "blocks.0.default_modulation.1.weight", NULL, ANY},
    {"sana", "blocks.0.mlp.inverted_conv.conv.weight", NULL, ANY},
    {"sana", "caption_norm.weight", "patch_embed.proj.weight", ANY},
    {"pixart", "adaln_single.linear.weight", NULL, ANY},
    {"pixart", "t_block.1.weight", "y_embedder.y_proj.fc1.weight", ANY},
    // Stable Diffusion: whole checkpoints by their text encoders, the UNet alone by its widths.
    {"svd", "*time_mixer.mix_factor", NULL, ANY},
    {"kolors", "encoder_hid_proj.weight", UNET_DIFFUSERS, ANY},
    {"sdxl", "conditioner.embedders.1.model." OPEN_CLIP, NULL, ANY},
    {"sdxl-refiner", "conditioner.embedders.0.model." OPEN_CLIP, NULL, ANY},
    {"sd2", "cond_stage_model.model." OPEN_CLIP, NULL, ANY},
    {"sd1", "cond_stage_model.transformer.text_model.final_layer_norm.weight", NULL, ANY},
    {"sdxl-refiner", "add_embedding.linear_1.weight", NULL, 1, 2560},
    {"sdxl-refiner", "label_emb.0.0.weight", NULL, 1, 2560},
    {"sdxl", "add_embedding.linear_1.weight", NULL, ANY},
    {"sdxl", "label_emb.0.0.weight", NULL, ANY},
    {"cascade", "clip_txt_pooled_mapper.weight", NULL, ANY},
    {"cascade", "clip_mapper.weight", "effnet_mapper.0.weight", ANY},
    {"sd2", UNET_ORIGINAL, NULL, 1, 1024},
    {"sd2", UNET_DIFFUSERS, NULL, 1, 1024},
    {"sd1", "input_blocks.0.0.weight", NULL, ANY},
    {"sd1", UNET_DIFFUSERS, NULL, ANY},
    // Parts.
    {"nano", "y_embedder.embedding_table.weight", "x_embedder.proj.weight", ANY},
    {"video-vae", "decoder.middle.0.residual.0.gamma", NULL, ANY},
    {"video-vae", "decoder.conv_in.conv.weight", NULL, ANY},
    {"video-vae", "decoder.up_blocks.0.resnets.0.norm1.gamma", NULL, ANY},
    {"vae", "decoder.conv_in.weight", NULL, ANY},
    {"vae", "decoder.1.weight", NULL, ANY},
    {"vae", "decoder.layers.0.weight", NULL, ANY}, // TAESD, as diffusers, its authors and others name it
    {"vae", "taesd_decoder.1.weight", NULL, ANY},
    {"vae", "3.conv.0.weight", "1.weight", ANY},
    {"vae", "1.conv.0.weight", "0.weight", ANY},
    {"umt5", "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight", NULL, ANY},
    {"umt5", "blocks.0.pos_embedding.embedding.weight", "token_embedding.weight", ANY},
    {"t5", "encoder.block.0.layer.0.SelfAttention.q.weight", NULL, ANY},
    {"t5", "enc.blk.0.attn_q.weight", NULL, ANY},
    {"clip_g", CLIP_TOKENS, CLIP_LAYER, 1, 1280},
    {"clip_h", CLIP_TOKENS, CLIP_LAYER, 1, 1024},
    {"clip_l", CLIP_LAYER, NULL, ANY},
    {"clip_l", "encoder.layers.0.self_attn.q_proj.weight", "embeddings.token_embedding.weight", ANY},
    {"clip_g", "token_embedding.weight", OPEN_CLIP, 1, 1280},
    {"clip_h", "token_embedding.weight", OPEN_CLIP, 1, 1024},
    {"clip_vision", "vision_model.encoder.layers.0.self_attn.q_proj.weight", NULL, ANY},
    {"clip_vision", "visual." OPEN_CLIP, NULL, ANY},
    {"clip_vision", "v.blk.0.attn_q.weight", NULL, ANY},
    {"llm", "blk.0.attn_norm.weight", "token_embd.weight", ANY},
    {"llm", "layers.0.self_attn.q_proj.weight", "embed_tokens.weight", ANY},
    {"upscaler", "model.1.sub.0.RDB1.conv1.0.weight", NULL, ANY},
    {"upscaler", "body.0.rdb1.conv1.weight", "conv_first.weight", ANY},
    {"upscaler", "RRDB_trunk.0.RDB1.conv1.weight", NULL, ANY},
    {"lora", "*.lora_down.weight", NULL, ANY},
    {"lora", "*.lora_A.", NULL, ANY},
    {"lora", "*.lora.down.weight", NULL, ANY},
    {"lora", "*.processor.to_q_lora.", NULL, ANY},
    {"lora", "*.hada_w1_a", NULL, ANY},
    {"lora", "*.lokr_w1", NULL, ANY},
    {"lora", "*.oft_blocks", NULL, ANY},
    {"embedding", "emb_params", NULL, ANY},
    {"embedding", "*string_to_param.", NULL, ANY},
    {"embedding", "clip_l", "clip_g", ANY},
    {"embedding", "clip_l", "t5xxl", ANY},
};
static const char *const prefixes[] = {
    "", "model.diffusion_model.", "diffusion_model.", "transformer.", "model.", "vae.",
    "first_stage_model.", "text_encoders.clip_l.transformer.", "text_encoders.t5xxl.transformer.",
    "clip_l.transformer.", "t5xxl.transformer.", "clip_l.", "t5xxl.", "text_encoder.", "text_encoder_2.",
};

// The marker's tensor behind the prefix; NULL: none.
static const WeightTensor *find(const Weights *w, const char *prefix, const char *name) {
    if (*name == '*') {
        for (int i = 0; i < weights_count(w) && !*prefix; i++)
            if (strstr(weights_at(w, i)->name, name + 1)) return weights_at(w, i);
        return NULL;
    }
    char full[200];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    return weights_find(w, full);
}

static bool fits(const Weights *w, const char *prefix, const Marker *m) {
    const WeightTensor *t = find(w, prefix, m->name);
    if (!t || (m->also && !find(w, prefix, m->also))) return false;
    return !m->size || (t->ndim > m->axis && t->shape[m->axis] == m->size);
}

const char *weights_architecture(const Weights *w, const char **prefix) {
    for (size_t i = 0; i < COUNT_OF(markers); i++)
        for (size_t k = 0; k < COUNT_OF(prefixes); k++)
            if (fits(w, prefixes[k], &markers[i])) {
                if (prefix) *prefix = prefixes[k];
                return markers[i].kind;
            }
    return NULL;
}

// Pipelines of diffusers, by the beginning of their class names; longer ones first.
static const struct { const char *start, *kind; } classes[] = {
    {"StableDiffusionXLImg2Img", "sdxl-refiner"}, {"StableDiffusionXL", "sdxl"},
    {"StableDiffusion3", "sd3"}, {"StableDiffusion", "sd1"}, {"StableVideoDiffusion", "svd"},
    {"StableCascade", "cascade"}, {"LatentConsistency", "sd1"}, {"AnimateDiff", "motion-module"},
    {"FluxControlNet", "controlnet"}, {"FluxControl", "flux-control"}, {"FluxFill", "flux-fill"},
    {"FluxPriorRedux", "flux-redux"}, {"Flux2", "flux2"}, {"Flux", "flux"}, {"Chroma", "chroma"},
    {"PixArt", "pixart"}, {"AuraFlow", "auraflow"}, {"HunyuanDiT", "hunyuan-dit"},
    {"HunyuanVideo", "hunyuan-video"}, {"HiDream", "hidream"}, {"ZImage", "z-image"},
    {"QwenImage", "qwen-image"}, {"Lumina2", "lumina2"}, {"Sana", "sana"}, {"LTX", "ltx-video"},
    {"Mochi", "mochi"}, {"CogVideoX", "cogvideox"}, {"Wan", "wan"}, {"Kolors", "kolors"},
};

const char *pipeline_architecture(const char *class_name) {
    for (size_t i = 0; i < COUNT_OF(classes); i++)
        if (!strncmp(class_name, classes[i].start, strlen(classes[i].start))) return classes[i].kind;
    return NULL;
}
