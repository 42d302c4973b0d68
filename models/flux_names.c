// flux_names.c: the layouts in which files hold FLUX.1's transformer.
#include "models/flux_impl.h"

// Diffusers keeps queries, keys and values apart, names text and image otherwise, and stores the
// final modulation as scale, then shift. The first rows: where fuse_qkv_projections has stacked them,
// and what was stacked is gone.
enum { FUSED_ROWS = 3 };
static const NameRow diffusers_rows[] = {
    {"double_blocks.#.img_attn.qkv.", {"transformer_blocks.#.attn.to_qkv."}},
    {"double_blocks.#.txt_attn.qkv.", {"transformer_blocks.#.attn.to_added_qkv."}},
    {"single_blocks.#.linear1.",
     {"single_transformer_blocks.#.attn.to_qkv.", "single_transformer_blocks.#.proj_mlp."}},
    {"img_in.", {"x_embedder."}},
    {"txt_in.", {"context_embedder."}},
    {"time_in.in_layer.", {"time_text_embed.timestep_embedder.linear_1."}},
    {"time_in.out_layer.", {"time_text_embed.timestep_embedder.linear_2."}},
    {"vector_in.in_layer.", {"time_text_embed.text_embedder.linear_1."}},
    {"vector_in.out_layer.", {"time_text_embed.text_embedder.linear_2."}},
    {"guidance_in.in_layer.", {"time_text_embed.guidance_embedder.linear_1."}},
    {"guidance_in.out_layer.", {"time_text_embed.guidance_embedder.linear_2."}},
    {"double_blocks.#.img_mod.lin.", {"transformer_blocks.#.norm1.linear."}},
    {"double_blocks.#.txt_mod.lin.", {"transformer_blocks.#.norm1_context.linear."}},
    {"double_blocks.#.img_attn.qkv.",
     {"transformer_blocks.#.attn.to_q.", "transformer_blocks.#.attn.to_k.",
      "transformer_blocks.#.attn.to_v."}},
    {"double_blocks.#.txt_attn.qkv.",
     {"transformer_blocks.#.attn.add_q_proj.", "transformer_blocks.#.attn.add_k_proj.",
      "transformer_blocks.#.attn.add_v_proj."}},
    {"double_blocks.#.img_attn.norm.query_norm.scale", {"transformer_blocks.#.attn.norm_q.weight"}},
    {"double_blocks.#.img_attn.norm.key_norm.scale", {"transformer_blocks.#.attn.norm_k.weight"}},
    {"double_blocks.#.txt_attn.norm.query_norm.scale",
     {"transformer_blocks.#.attn.norm_added_q.weight"}},
    {"double_blocks.#.txt_attn.norm.key_norm.scale",
     {"transformer_blocks.#.attn.norm_added_k.weight"}},
    {"double_blocks.#.img_attn.proj.", {"transformer_blocks.#.attn.to_out.0."}},
    {"double_blocks.#.txt_attn.proj.", {"transformer_blocks.#.attn.to_add_out."}},
    {"double_blocks.#.img_mlp.0.", {"transformer_blocks.#.ff.net.0.proj."}},
    {"double_blocks.#.img_mlp.2.", {"transformer_blocks.#.ff.net.2."}},
    {"double_blocks.#.txt_mlp.0.", {"transformer_blocks.#.ff_context.net.0.proj."}},
    {"double_blocks.#.txt_mlp.2.", {"transformer_blocks.#.ff_context.net.2."}},
    {"single_blocks.#.modulation.lin.", {"single_transformer_blocks.#.norm.linear."}},
    {"single_blocks.#.linear1.",
     {"single_transformer_blocks.#.attn.to_q.", "single_transformer_blocks.#.attn.to_k.",
      "single_transformer_blocks.#.attn.to_v.", "single_transformer_blocks.#.proj_mlp."}},
    {"single_blocks.#.linear2.", {"single_transformer_blocks.#.proj_out."}},
    {"single_blocks.#.norm.query_norm.scale", {"single_transformer_blocks.#.attn.norm_q.weight"}},
    {"single_blocks.#.norm.key_norm.scale", {"single_transformer_blocks.#.attn.norm_k.weight"}},
    {"final_layer.adaLN_modulation.1.", {"norm_out.linear.[1:2]", "norm_out.linear.[0:1]"}},
    {"final_layer.linear.", {"proj_out."}},
};

// Markers are tensors that no sibling has (FLUX.2, Chroma, HunyuanVideo, AuraFlow, SD3).
static const NameLayout layouts[] = {
    {"original", "double_blocks.0.img_mod.lin.weight", NULL, 0},
    {"diffusers", "single_transformer_blocks.0.proj_mlp.weight", diffusers_rows + FUSED_ROWS,
     COUNT_OF(diffusers_rows) - FUSED_ROWS},
};
static const NameLayout fused_layout = {"diffusers, fused", "", diffusers_rows, COUNT_OF(diffusers_rows)};

// diffusers' fuse_qkv_projections leaves the stacked projections beside those that it stacked.
const char *const flux_ignore[] = {"*.to_qkv.weight", "*.to_qkv.bias", "*.to_added_qkv.weight",
                                   "*.to_added_qkv.bias", NULL};
const char *const flux_keep[] = {"img_in.", "txt_in.", "time_in.", "vector_in.", "guidance_in.",
                                 "final_layer.", NULL};

const NameLayout *flux_layout(void *parent, const Weights *w, const char **prefix) {
    void *scratch = mem_new(NULL, 1);
    const char *front = "";
    const NameLayout *found = names_detect(scratch, w, layouts, COUNT_OF(layouts), &front);
    if (found == &layouts[1] &&
        !weights_find(w, mem_printf(scratch, "%stransformer_blocks.0.attn.to_q.weight", front)) &&
        weights_find(w, mem_printf(scratch, "%stransformer_blocks.0.attn.to_qkv.weight", front)))
        found = &fused_layout;
    if (found && prefix) *prefix = mem_strdup(parent, front);
    mem_free(scratch);
    return found;
}

bool flux_is(const Weights *w) { return flux_layout(NULL, w, NULL) != NULL; }
