#!/usr/bin/env python3
"""Makes tests/golden/flux_tiny: a tiny FLUX.1-dev whose weights are a formula, and pictures of it made
by diffusers, for tests/test_cli_flux.c.

    python tools/ref/make_flux_tiny.py [OUT_FOLDER]

*.json          configurations, in the folders of a diffusers pipeline
tensors.txt     one line per tensor, numbered from 0:  PART NAME EXPONENT OFFSET SHAPE...
                element i of tensor t is OFFSET + k 2^EXPONENT, k = hash(t, i) mod 255 - 127 (see `values`):
                exact in bf16, f16 and q8_0 where OFFSET is 0. Tensors of one dimension are f32.
                then the original names:  = PART NAME T...   the tensors T stacked ("~": its halves swapped)
cases.json      settings as arguments of `kiln generate`; "golden:X" is file X of this folder
ID[-k].png      the pictures
"""
import json, re, sys, warnings
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image

import flux_loop

CLIP = dict(hidden_size=24, intermediate_size=96, projection_dim=24, num_attention_heads=12, num_hidden_layers=1,
            vocab_size=49408, max_position_embeddings=77, hidden_act="quick_gelu", layer_norm_eps=1e-5,
            bos_token_id=0, eos_token_id=2, pad_token_id=1)
T5 = dict(d_model=32, d_ff=64, d_kv=16, num_heads=2, num_layers=1, vocab_size=32128, feed_forward_proj="gated-gelu",
          is_encoder_decoder=False, use_cache=False, tie_word_embeddings=False)
BASE = T5 | dict(d_model=24, d_kv=8, num_heads=3, d_ff=48)
FLUX = dict(patch_size=1, in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=32, num_attention_heads=2,
            joint_attention_dim=32, pooled_projection_dim=24, guidance_embeds=True, axes_dims_rope=(4, 14, 14))
VAE = dict(in_channels=3, out_channels=3, latent_channels=16, block_out_channels=[32, 32, 32, 64], layers_per_block=1,
           norm_num_groups=32, act_fn="silu", sample_size=1024, scaling_factor=0.3611, shift_factor=0.1159,
           down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
           use_quant_conv=False, use_post_quant_conv=False, force_upcast=True, mid_block_add_attention=True)
SCHEDULER = dict(num_train_timesteps=1000, shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15,
                 base_image_seq_len=256, max_image_seq_len=4096)
BRANCH = ("to_v", "to_out.0", "to_add_out", "add_v_proj", "v_proj", "out_proj", "SelfAttention.v", "SelfAttention.o", "net.2",
          "fc2", "wo", "proj_out", "conv2", "linear_2", "relative_attention_bias")
LOGITS = ("to_q", "to_k", "add_q_proj", "add_k_proj", "q_proj", "k_proj", "SelfAttention.q", "SelfAttention.k")
FINE = {"vae.decoder.conv_out.weight": -1, "transformer.proj_out.weight": -2}  # pictures use the range of 8 bits


def values(t, count):
    """k of elements 0 .. count - 1 of tensor t."""
    x = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(t * 0x85EBCA77 & 0xffffffff)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(16)
    return (x % np.uint32(255)).astype(np.int64) - 127


def spread(part, name, p, t5_dim):
    """(exponent, offset): what makes every part of the model count, and activations of order one."""
    module, leaf = name.rsplit(".", 1)
    if leaf == "bias":
        return -10, 0
    if p.ndim == 1:
        return -9, 2 if "norm_q" in name or "norm_k" in name or "norm_added" in name else 1
    gain = 1.7 if module.endswith(BRANCH) else 1.4 if module.endswith(LOGITS) else 1
    std = 0.8 * gain if any(x in name for x in ("embedding", "shared", "relative")) else gain * p[0].numel() ** -0.5
    if module.endswith("SelfAttention.q"):
        std *= t5_dim ** -0.5
    return int(round(np.log2(std / 73.6))) + FINE.get(f"{part}.{name}", 0), 0


@torch.no_grad()
def fill(part, model, lines, skip=()):
    """Sets the parameters and adds their lines; returns {name in the file: number}."""
    numbers = {}
    for name, p in model.named_parameters():
        if name in skip:
            continue
        t = len(lines)
        exponent, offset = spread(part, name, p, getattr(model.config, "d_kv", 1))
        k = values(t, p.numel()).astype(np.float64)
        p.copy_(torch.from_numpy((offset + k * 2.0 ** exponent).astype(np.float32)).reshape(p.shape))
        if part == "text_encoder" and not name.startswith("text_model."):
            name = "text_model." + name
        lines.append(f"{part} {name} {exponent} {offset} {' '.join(map(str, p.shape))}")
        numbers[name] = t
    return numbers


def linear(part, name, shape, std, lines):
    t = len(lines)
    exponent = int(round(np.log2(std / 73.6)))
    lines.append(f"{part} {name} {exponent} 0 {shape[0]} {shape[1]}")
    return torch.from_numpy((values(t, shape[0] * shape[1]) * 2.0 ** exponent).astype(np.float32)).reshape(shape)


def original_transformer():
    """Original name -> diffusers names, one block of each kind."""
    m = {"img_in": ["x_embedder"], "txt_in": ["context_embedder"], "final_layer.linear": ["proj_out"],
         "final_layer.adaLN_modulation.1": ["~norm_out.linear"]}
    for a, b in (("time_in", "timestep"), ("guidance_in", "guidance"), ("vector_in", "text")):
        for c, d in (("in_layer", "linear_1"), ("out_layer", "linear_2")):
            m[f"{a}.{c}"] = [f"time_text_embed.{b}_embedder.{d}"]
    a, b = "double_blocks.0.", "transformer_blocks.0."
    for s, norm, ff, qkv, out, qk in (("img", "norm1", "ff", "to_%s", "to_out.0", "norm_%s"),
                                      ("txt", "norm1_context", "ff_context", "add_%s_proj", "to_add_out", "norm_added_%s")):
        m |= {f"{a}{s}_mod.lin": [f"{b}{norm}.linear"], f"{a}{s}_attn.qkv": [f"{b}attn." + qkv % x for x in "qkv"],
              f"{a}{s}_attn.proj": [f"{b}attn.{out}"], f"{a}{s}_mlp.0": [f"{b}{ff}.net.0.proj"],
              f"{a}{s}_mlp.2": [f"{b}{ff}.net.2"], f"{a}{s}_attn.norm.query_norm": [f"{b}attn." + qk % "q"],
              f"{a}{s}_attn.norm.key_norm": [f"{b}attn." + qk % "k"]}
    a, b = "single_blocks.0.", "single_transformer_blocks.0."
    return m | {a + "modulation.lin": [b + "norm.linear"], a + "linear2": [b + "proj_out"],
                a + "linear1": [b + x for x in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")],
                a + "norm.query_norm": [b + "attn.norm_q"], a + "norm.key_norm": [b + "attn.norm_k"]}


def original_vae(name):
    for pattern, to in ((r"mid_block\.resnets\.0", "mid.block_1"), (r"mid_block\.resnets\.1", "mid.block_2"),
                        (r"mid_block\.attentions\.0", "mid.attn_1"), (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
                        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
                        (r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}"),
                        (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample"),
                        ("conv_shortcut", "nin_shortcut"), ("conv_norm_out", "norm_out"), (r"attn_1\.group_norm", "attn_1.norm"),
                        (r"attn_1\.to_([qkv])", r"attn_1.\1"), (r"attn_1\.to_out\.0", "attn_1.proj_out")):
        name = re.sub(pattern, to, name)
    return name


def original_lines(model, numbers, vae_numbers, lines):
    used = []
    for name, parts in original_transformer().items():
        for leaf in ("weight", "bias"):
            swap, names = parts[0][0] == "~", [f"{p.lstrip('~')}.{leaf}" for p in parts]
            if names[0] in numbers:
                used += names
                full = f"{name}.scale" if name.endswith("_norm") else f"{name}.{leaf}"
                lines.append(f"= transformer {full} " + " ".join(("~" if swap else "") + str(numbers[n]) for n in names))
    assert sorted(used) == sorted(model.state_dict())  # each once
    lines += [f"= vae {original_vae(n)} {t}" for n, t in vae_numbers.items()]


def build(out):
    lines = []
    clip = transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP)).eval()
    t5 = transformers.T5EncoderModel(transformers.T5Config(**T5)).eval()
    base = transformers.T5EncoderModel(transformers.T5Config(**BASE)).eval()
    flux = diffusers.FluxTransformer2DModel(**FLUX).eval()
    vae = diffusers.AutoencoderKL(**VAE).eval()
    fill("text_encoder", clip, lines)
    fill("text_encoder_2", t5, lines, ("encoder.embed_tokens.weight",))
    numbers = fill("transformer", flux, lines)
    vae_numbers = fill("vae", vae, lines)
    fill("distill", base, lines, ("encoder.embed_tokens.weight",))
    w0 = linear("distill", "final_projection.0.weight", (32, 24), 24 ** -0.5, lines)
    w3 = linear("distill", "final_projection.3.weight", (32, 32), 16 ** -0.5, lines)
    original_lines(flux, numbers, vae_numbers, lines)
    (out / "tensors.txt").write_text("\n".join(lines) + "\n")
    data = Path(__file__).resolve().parents[2] / "../shared/reference-data/tokenizers"
    pipe = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**SCHEDULER), vae=vae, text_encoder=clip, text_encoder_2=t5,
        transformer=flux, tokenizer=transformers.CLIPTokenizer.from_pretrained(data / "clip"),
        tokenizer_2=transformers.T5TokenizerFast.from_pretrained(data / "t5"))
    pipe.set_progress_bar_config(disable=True)
    for part, config in (("text_encoder", CLIP), ("text_encoder_2", T5), ("transformer", FLUX), ("vae", VAE)):
        (out / part).mkdir(exist_ok=True)
        (out / part / "config.json").write_text(json.dumps(config) + "\n")
    (out / "scheduler").mkdir(exist_ok=True)
    (out / "scheduler/scheduler_config.json").write_text(
        json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler"} | SCHEDULER) + "\n")
    (out / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}) + "\n")
    return pipe, base, w0, w3


def cases():
    one = dict(prompt="a red fox, \u00e9t\u00e9 \U0001f98a", width=80, height=48, steps=3, seed=11, tokens=24, guidance=3.5)
    cfg = one | dict(negative="blurry: low quality", cfg=3.0, width=32, height=80, seed=4294967295)
    yield "wide", one
    yield "cfg", cfg
    yield "ancestral", cfg | dict(width=48, height=48, steps=5, sampler="euler_ancestral", cfg_schedule="cosine",
                                  interval=(0.1, 0.9), threshold=0.9, cfg=6.0, shift=2.5)
    yield "second", one | dict(width=48, height=32, steps=6, sampler="dpmpp_2m", guidance=1.5, tokens=77)
    yield "image", one | dict(init="wide.png", strength=0.6, steps=5, seed=5)
    yield "pair", one | dict(width=48, height=32, count=2)
    yield "weights", cfg | dict(prompt="a (red fox:1.6), [dim] BREAK ((fog))", negative="(ice:-0.5) BREAK", width=32, height=48)
    yield "distill", one | dict(width=32, height=48, steps=2, distill=True, prompt="fog")


PHRASES = {"a (red fox:1.6), [dim] BREAK ((fog))": [("a ", 1.0), ("red fox", 1.6), (", ", 1.0), ("dim", 1 / 1.1), None,
                                                   ("fog", 1.1 * 1.1)],
           "(ice:-0.5) BREAK": [("ice", -0.5), None]}  # as A1111's parse_prompt_attention reads them


def arguments(case):
    out = ["-p", case["prompt"], "-W", case["width"], "-H", case["height"], "--steps", case["steps"], "-s", case["seed"],
           "--t5-tokens", case["tokens"], "--guidance", case["guidance"], "-b", case.get("count", 1)]
    for key, option in (("negative", "-n"), ("cfg", "--cfg-scale"), ("cfg_schedule", "--cfg-schedule"), ("threshold", "--threshold"),
                        ("shift", "--shift"), ("sampler", "--sampler"), ("strength", "--strength")):
        if key in case:
            out += [option, case[key]]
    if "interval" in case:
        out += ["--cfg-interval", "%g:%g" % case["interval"]]
    if "init" in case:
        out += ["--init-img", "golden:" + case["init"]]
    return [str(x) for x in out] + ["--prompt-weights"] * (case["prompt"] in PHRASES)


def by_diffusers(pipe, case):
    """The same picture by diffusers' own loop, where it has the settings."""
    if {"sampler", "states", "shift", "count"} & set(case):
        return None
    kind = diffusers.FluxImg2ImgPipeline if "init" in case else diffusers.FluxPipeline
    own = kind(**pipe.components)
    own.set_progress_bar_config(disable=True)
    more = {"image": Image.fromarray(case["init"]), "strength": case["strength"]} if "init" in case else {}
    if "negative" in case:
        more |= {"negative_prompt": case["negative"], "true_cfg_scale": case["cfg"]}
    picture = own(prompt=case["prompt"], width=case["width"], height=case["height"], num_inference_steps=case["steps"],
                  guidance_scale=case["guidance"], max_sequence_length=case["tokens"], output_type="np",
                  generator=torch.Generator("cpu").manual_seed(case["seed"]), **more).images
    return (picture * 255).round().astype(np.uint8)


def main():
    out = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parents[2] / "tests/golden/flux_tiny")
    out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for library in (transformers, diffusers.utils):
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()
    pipe, base, w0, w3 = build(out)
    listed = []
    for name, case in cases():
        listed.append({"id": name, "count": case.get("count", 1), "distill": case.get("distill", False),
                       "arguments": arguments(case)})
        if "init" in case:
            case["init"] = np.asarray(Image.open(out / case["init"]))
        if "distill" in case:
            case["states"] = {t: flux_loop.distilled(base, pipe.tokenizer_2, w0, w3, t, case["tokens"], 32)
                              for t in (case["prompt"], "")}
        if case["prompt"] in PHRASES:
            texts = {t: flux_loop.weighted(pipe, PHRASES[t], case["tokens"]) for t in (case["prompt"], case["negative"])}
            case |= {"states": {t: x[0] for t, x in texts.items()}, "pooled": {t: x[1] for t, x in texts.items()}}
        got = flux_loop.picture(pipe, case)
        own = by_diffusers(pipe, case)
        for k, image in enumerate(got["image"]):
            if own is not None:
                assert np.abs(image.astype(int) - own[k]).max() <= 1, name
            Image.fromarray(image).save(out / (f"{name}-{k}.png" if len(got["image"]) > 1 else f"{name}.png"), optimize=True)
            print(name, image.shape, f"mean {image.mean():.1f}, spread {image.std():.1f},",
                  f"at the ends {np.isin(image, (0, 255)).mean():.3f}, latent {np.abs(got['latent']).max():.1f}",
                  "= diffusers" if own is not None else "")
    (out / "cases.json").write_text(json.dumps({"cases": listed}, indent=1) + "\n")


if __name__ == "__main__":
    main()
