#!/usr/bin/env python3
"""Compares `kiln generate` with the pictures that diffusers made.

  check_flux.py KILN FOLDER [--device cpu] [--cases square,wide] [--layouts] [--precision f32]

FOLDER is what tiny_dit.py (a generator of tiny random-weight pipelines of the real diffusers classes)
wrote for flux-dev or flux-schnell: a diffusers folder with golden/cases.json, and layouts/ with the
same weights in other files. For each case the largest difference of the 8-bit picture, of the last
latents and of the text states is printed; more than one level fails.
"""
import argparse, json, subprocess, sys, tempfile
from pathlib import Path

import numpy as np
from PIL import Image


def compare(name, got, want):
    a, b = np.load(got), np.load(want)
    a = a.reshape(b.shape) if a.size == b.size else a
    if a.shape != b.shape:
        return f"{name} shapes {a.shape} {b.shape}"
    return f"{name} {np.abs(a - b).max() / max(np.abs(b).max(), 1e-9):.1e}"


def pack(latent):  # [B, C, h, w] to the tokens that diffusers' loop holds
    b, c, h, w = latent.shape
    return latent.reshape(b, c, h // 2, 2, w // 2, 2).transpose(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)


def run(args, model, case, golden):
    with tempfile.TemporaryDirectory() as tmp:
        out = Path(tmp)
        images = case.get("images", 1)
        line = [args.kiln, "generate", *model, "-p", case["prompt"], "-W", case["width"], "-H", case["height"],
                "--steps", case["steps"], "-s", case["seed"], "--guidance", case.get("guidance", 3.5),
                "--t5-tokens", case["max_sequence_length"], "--precision", args.precision, "--device", args.device,
                "-b", images, "--noise", golden / "noise.npy", "--dump", out / "dump", "-o", out / "out.png", "-q"]
        if "negative" in case:
            line += ["-n", case["negative"], "--cfg-scale", case["cfg"]]
        if images == 1:  # the seed alone must do
            line = [x for i, x in enumerate(line) if x != "--noise" and line[i - 1] != "--noise"]
        done = subprocess.run([str(x) for x in line], capture_output=True, text=True)
        if done.returncode:
            return False, done.stderr.strip()
        notes, worst = [], 0
        for k in range(images):
            want = golden / (f"image-{k}.png" if images > 1 else "image.png")
            got = out / (f"out-{k}.png" if images > 1 else "out.png")
            a, b = (np.asarray(Image.open(p)).astype(int) for p in (got, want))
            worst = max(worst, np.abs(a - b).max() if a.shape == b.shape else 999)
        latent = pack(np.load(out / "dump/latent.final.npy"))
        want = np.load(golden / "latent.npy")
        notes.append(f"latent {np.abs(latent - want).max():.1e}")
        if (golden / "text.embeds.npy").exists():
            notes.append(compare("t5", out / "dump/text.t5xxl.npy", golden / "text.embeds.npy") if images == 1 else "")
            notes.append(compare("pooled", out / "dump/text.clip_l.pooled.npy", golden / "text.pooled.npy") if images == 1 else "")
        return worst <= 1, f"picture {worst}, " + ", ".join(x for x in notes if x)


def models(folder, layouts):
    """(name, arguments of kiln, golden folder, case or None for all)"""
    yield "folder", ["-m", folder], None
    top = folder / "layouts"
    if not layouts or not top.exists():
        return
    split = top / "split"
    text = lambda: ["--clip-l", split / "text_encoders/clip_l.safetensors", "--t5xxl",
                    split / "text_encoders/t5xxl.safetensors", "--vae", split / "vae/ae.safetensors"]
    if split.exists():
        yield "split", ["--diffusion-model", split / "diffusion_models/flux1-tiny.safetensors", *text()], None
    for name, what in json.loads((top / "layouts.json").read_text())["files"].items():
        if "golden" not in what:
            continue
        if name.startswith("checkpoint"):
            model = ["-m", top / name]
        else:
            model = ["-m", folder, "--diffusion-model", top / name]
        yield name, model, top / what["golden"]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("kiln")
    ap.add_argument("folder", type=Path)
    ap.add_argument("--device", default="cpu")
    ap.add_argument("--precision", default="f32")
    ap.add_argument("--cases")
    ap.add_argument("--layouts", action="store_true")
    args = ap.parse_args()
    cases = json.loads((args.folder / "golden/cases.json").read_text())["cases"]
    if args.cases:
        cases = [c for c in cases if c["id"] in args.cases.split(",")]
    failed = 0
    for name, model, golden in models(args.folder, args.layouts):
        for case in cases[:1] if golden else cases:
            where = golden or args.folder / "golden" / case["id"]
            ok, text = run(args, model, case, where)
            failed += not ok
            print("ok  " if ok else "FAIL", name, case["id"], text, flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
