#!/usr/bin/env python3
"""Compares the settings of `kiln generate` with what they should make, computed by the parts of
diffusers (flux_loop.py), and where diffusers has the same setting with its own pipelines too.

  check_flux_options.py KILN FOLDER [--device cpu] [--only NAME,...]

FOLDER: a tiny FLUX pipeline as a diffusers folder (as for check_flux.py). A picture that differs by more
than one level, or a latent by more than 2e-3, fails. --distill is tried with a T5-Base made here, of random
weights.
"""
import argparse, subprocess, sys, tempfile, warnings
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from diffusers import FluxImg2ImgPipeline, FluxPipeline
from PIL import Image
from safetensors.torch import save_file

import flux_loop


def options(case, folder):
    out = ["-p", case["prompt"], "-W", case["width"], "-H", case["height"], "--steps", case["steps"], "-s", case["seed"],
           "--t5-tokens", case["tokens"], "-b", case.get("count", 1)]
    names = {"negative": "-n", "cfg": "--cfg-scale", "guidance": "--guidance", "threshold": "--threshold",
             "shift": "--shift", "sampler": "--sampler", "cfg_schedule": "--cfg-schedule", "strength": "--strength"}
    for key, option in names.items():
        if key in case:
            out += [option, case[key]]
    if "interval" in case:
        out += ["--cfg-interval", "%g:%g" % case["interval"]]
    if "init" in case:
        Image.fromarray(case["init"]).save(folder / "init.png")
        out += ["--init-img", folder / "init.png"]
    return out


def kiln(args, model, case, folder):
    line = [args.kiln, "generate", *model, *options(case, folder), "--precision", "f32", "--device", args.device,
            "--dump", folder / "dump", "-o", folder / "o%d.png"]
    done = subprocess.run([str(x) for x in line], capture_output=True, text=True)
    if done.returncode:
        return None, None, done.stderr.strip()
    images = [np.asarray(Image.open(folder / f"o{k}.png")) for k in range(case.get("count", 1))]
    return np.stack(images), np.load(folder / "dump/latent.final.npy"), done.stderr


def diffusers_picture(folder, case):
    """By diffusers' own pipelines; None where they have not all the settings."""
    if {"threshold", "shift", "interval", "cfg_schedule", "states", "sampler"} & set(case) or case.get("cfg", 2) < 1:
        return None  # (a scale below 1 turns guidance off there)
    kind = FluxImg2ImgPipeline if "init" in case else FluxPipeline
    pipe = kind.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    more = {"image": Image.fromarray(case["init"]), "strength": case["strength"]} if "init" in case else {}
    if "negative" in case:
        more |= {"negative_prompt": case["negative"], "true_cfg_scale": case["cfg"]}
    out = []
    for k in range(case.get("count", 1)):
        out.append(pipe(prompt=case["prompt"], width=case["width"], height=case["height"], num_inference_steps=case["steps"],
                        guidance_scale=case.get("guidance", 3.5), max_sequence_length=case["tokens"], output_type="np",
                        generator=torch.Generator("cpu").manual_seed(case["seed"] + k), **more).images[0])
    return (np.stack(out) * 255).round().astype(np.uint8)


def cases():
    base = dict(prompt="a red fox, morning light", width=80, height=48, steps=6, seed=11, tokens=40, guidance=3.5)
    cfg = base | dict(negative="blurry, low quality", cfg=3.0)
    y, x = np.mgrid[0:48, 0:80]
    init = np.stack([x * 3, y * 5, (x * y) % 256], -1).astype(np.uint8)
    wide = np.stack([np.mgrid[0:112, 0:176][1], np.mgrid[0:112, 0:176][0] * 2, np.full((112, 176), 90)], -1).astype(np.uint8)
    yield "plain", base
    yield "one token of T5", base | dict(tokens=1)
    yield "most tokens", base | dict(tokens=512, prompt="word " * 600)
    yield "no guidance", base | dict(guidance=0)
    yield "much guidance", base | dict(guidance=100)
    yield "batch", base | dict(count=3)
    yield "cfg", cfg
    yield "cfg batch", cfg | dict(count=2)
    yield "cfg below one", cfg | dict(cfg=0.5)
    for name in ("triangle", "cosine"):
        yield f"cfg {name}", cfg | dict(cfg_schedule=name)
    yield "cfg interval", cfg | dict(interval=(0.2, 0.6))
    yield "cfg interval triangle", cfg | dict(interval=(0.2, 0.9), cfg_schedule="triangle")
    yield "threshold", cfg | dict(threshold=0.995, cfg=6)
    yield "threshold low", cfg | dict(threshold=0.7, cfg=8)
    for shift in (0.4, 1, 3, 7.5):
        yield f"shift {shift}", base | dict(shift=shift)
    for sampler in ("euler_ancestral", "dpmpp_2m"):
        yield sampler, base | dict(sampler=sampler)
        yield f"{sampler} batch", base | dict(sampler=sampler, count=2)
        yield f"{sampler} cfg", cfg | dict(sampler=sampler, cfg=4, cfg_schedule="cosine")
    for strength in (0.1, 0.25, 0.6, 0.75, 1.0):
        yield f"img2img {strength}", base | dict(init=init, strength=strength, steps=11)
    yield "img2img cfg", cfg | dict(init=init, strength=0.5)
    yield "img2img batch", base | dict(init=init, strength=0.7, count=2)
    yield "img2img ancestral", base | dict(init=init, strength=0.7, sampler="euler_ancestral")
    yield "img2img dpmpp_2m shift", base | dict(init=init, strength=0.7, sampler="dpmpp_2m", shift=2)
    yield "img2img large", base | dict(init=wide, strength=0.8, width=176, height=112)


def report(name, got, latent, text, want):
    if got is None:
        return False, text
    worst = np.abs(got.astype(int) - want["image"].astype(int)).max() if got.shape == want["image"].shape else 999
    off = np.abs(latent - want["latent"]).max()
    note = f"picture {worst}, latent {off:.1e}"
    if "own" in want:
        own = np.abs(got.astype(int) - want["own"].astype(int)).max()
        note += f", diffusers' own pipeline {own}"
        worst = max(worst, own)
    return worst <= 1 and off < 2e-3, note


def distill(args, pipe, top):
    """T5-Base with and without the projection, in transformers' names."""
    torch.manual_seed(5)
    width = pipe.transformer.config.joint_attention_dim
    base = width - 8  # narrower than what the transformer wants
    config = transformers.T5Config(vocab_size=32128, d_model=base, d_kv=16, d_ff=48, num_layers=3, num_heads=4,
                                   feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False)
    encoder = transformers.T5EncoderModel(config).eval()
    with torch.no_grad():
        for name, p in encoder.named_parameters():
            p.copy_(torch.randn(p.shape) * (1.0 if "shared" in name or "embed" in name else 0.2 if p.ndim > 1 else 0.1) +
                    (1 if p.ndim == 1 else 0))
    w0, w3 = torch.randn(width, base) * base ** -0.5, torch.randn(width, width) * (2 / width) ** 0.5
    case = dict(prompt="a fox in fresh snow", width=48, height=80, steps=4, seed=3, tokens=24)
    for name in ("distill", "distill cfg", "distill padded"):
        projected = "padded" not in name
        one = case | (dict(negative="fog", cfg=2.5) if "cfg" in name else {})
        file = top / (name.replace(" ", "-") + ".safetensors")
        sd = {k: v.clone().contiguous() for k, v in encoder.state_dict().items() if k != "encoder.embed_tokens.weight"}
        if projected:
            sd |= {"final_projection.0.weight": w0, "final_projection.3.weight": w3}
        save_file(sd, file)
        one["states"] = {t: flux_loop.distilled(encoder, pipe.tokenizer_2, w0 if projected else None, w3, t, one["tokens"], width)
                         for t in (one["prompt"], one.get("negative", ""))}
        want = flux_loop.picture(pipe, one)
        got, latent, text = kiln(args, ["-m", args.folder, "--distill", file], one, top)
        ok, note = report(name, got, latent, text, want)
        if not projected:
            warned = "padded" in text or "zeros" in text
            note += f", warning {'given' if warned else 'MISSING'}"
        yield name, ok, note


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("kiln")
    ap.add_argument("folder", type=Path)
    ap.add_argument("--device", default="cpu")
    ap.add_argument("--only")
    args = ap.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for library in (transformers, diffusers.utils):
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()
    pipe = FluxPipeline.from_pretrained(args.folder, torch_dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    only = args.only.split(",") if args.only else None
    failed = 0
    with tempfile.TemporaryDirectory() as tmp:
        top = Path(tmp)
        for name, case in cases():
            if only and name not in only:
                continue
            want = flux_loop.picture(pipe, case)
            own = diffusers_picture(args.folder, case)
            if own is not None:
                want["own"] = own
            ok, note = report(name, *kiln(args, ["-m", args.folder], case, top), want)
            failed += not ok
            print("ok  " if ok else "FAIL", name, note, flush=True)
        if not only or "distill" in only:
            for name, ok, note in distill(args, pipe, top):
                failed += not ok
                print("ok  " if ok else "FAIL", name, note, flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
