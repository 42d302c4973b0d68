#!/usr/bin/env python3
"""Seconds per step of a FLUX.1-shaped transformer of reduced depth on the CPU: Kiln beside
PyTorch/diffusers and ggml (stable-diffusion.cpp), in alternating order in one run.

Set-up, once (a virtual environment with torch, diffusers, safetensors, gguf and numpy; ggml's source
comes with the package stable-diffusion-cpp-python):

    pip download --no-binary :all: --no-deps stable-diffusion-cpp-python -d /tmp/sd
    tar xf /tmp/sd/*.tar.gz -C /tmp/sd

then

    VENV/bin/python tools/bench_flux.py --kiln build/kiln --folder /tmp/bench-flux \\
        --ggml /tmp/sd/stable_diffusion_cpp_python-*/vendor/stable-diffusion.cpp

makes the model in --folder (2 double and 4 single blocks of width 3072, random weights, guidance;
bf16 safetensors and q8_0 GGUF in the original layout: 2.5 and 1.4 GB), builds ggml there with
GGML_NATIVE and GGML_LLAMAFILE, and runs --rounds rounds; in each round every engine runs in turn:

    kiln bf16, kiln q8_0     `kiln bench --model FILE --type bf16`, the step's median of three; its
                             schedule stage (20 steps' modulations), divided by --steps, is added,
                             because the other two compute the modulations within the step
    diffusers bf16           FluxTransformer2DModel in bf16, eager, under no_grad
    ggml bf16, ggml q8_0     as stable-diffusion.cpp computes a step, with its flash attention
    ggml q8_0 amx            the same with the matrices in ggml's AMX buffers (int8 tiles, the
                             activations quantised to 8 bits), which stable-diffusion.cpp never uses

With --parts instead of that: one text through two layers of T5-XXL's width and through CLIP-L, and a
picture of --size decoded by FLUX's autoencoder, each in f32 and bf16, Kiln beside transformers and
diffusers.

All engines have --threads threads, batch 1, --size pictures and 512 text tokens. An engine computes
only when its turn comes (the others wait on a pipe), so all see the same machine. Printed: medians
over the rounds, ranges, and for each other engine the median of the ratios Kiln / other of the same
round (below 1: Kiln is faster).
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

TEXT, WIDTH, MLP, HEAD, DOUBLES, SINGLES = 512, 3072, 12288, 128, 2, 4


# ---- the model ------------------------------------------------------------------------------------

def shapes():
    def linear(name, out, inner):
        return {name + ".weight": (out, inner), name + ".bias": (out,)}

    t = {}
    for name, inner in (("time_in", 256), ("vector_in", 768), ("guidance_in", 256)):
        t |= linear(name + ".in_layer", WIDTH, inner) | linear(name + ".out_layer", WIDTH, WIDTH)
    t |= linear("img_in", WIDTH, 64) | linear("txt_in", WIDTH, 4096)
    for i in range(DOUBLES):
        for s in ("img", "txt"):
            p = f"double_blocks.{i}.{s}_"
            t |= linear(p + "mod.lin", 6 * WIDTH, WIDTH) | linear(p + "attn.qkv", 3 * WIDTH, WIDTH)
            t |= linear(p + "attn.proj", WIDTH, WIDTH)
            t |= linear(p + "mlp.0", MLP, WIDTH) | linear(p + "mlp.2", WIDTH, MLP)
            t |= {p + f"attn.norm.{q}_norm.scale": (HEAD,) for q in ("query", "key")}
    for i in range(SINGLES):
        p = f"single_blocks.{i}."
        t |= linear(p + "modulation.lin", 3 * WIDTH, WIDTH)
        t |= linear(p + "linear1", 3 * WIDTH + MLP, WIDTH) | linear(p + "linear2", WIDTH, WIDTH + MLP)
        t |= {p + f"norm.{q}_norm.scale": (HEAD,) for q in ("query", "key")}
    t |= linear("final_layer.linear", 64, WIDTH)
    t |= linear("final_layer.adaLN_modulation.1", 2 * WIDTH, WIDTH)
    return t


def make(folder):
    """Writes both files, each tensor of its own random numbers of a trained model's size."""
    import gguf
    import numpy as np
    import torch
    from safetensors.torch import save_file

    bf16, q8 = (os.path.join(folder, n) for n in ("flux-2-4.bf16.safetensors", "flux-2-4.q8_0.gguf"))
    if os.path.exists(bf16) and os.path.exists(q8):
        return bf16, q8
    os.makedirs(folder, exist_ok=True)
    g = torch.Generator().manual_seed(1)
    tensors, writer = {}, gguf.GGUFWriter(q8 + ".new", "flux")
    for name, shape in shapes().items():
        size = 0.5 * shape[1] ** -0.5 if len(shape) == 2 else 0.02
        x = torch.randn(shape, generator=g) * size + (1.0 if name.endswith(".scale") else 0.0)
        tensors[name] = x.to(torch.bfloat16)
        x = tensors[name].float().numpy()
        if len(shape) == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(x, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, x.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(tensors, bf16 + ".new")
    os.rename(q8 + ".new", q8)
    os.rename(bf16 + ".new", bf16)
    return bf16, q8


# ---- other parts of a pipeline ------------------------------------------------------------------------

def part(name):
    """The module, its inputs for --size, and the names' prefix in its file."""
    import torch
    torch.manual_seed(3)
    if name == "t5":
        from transformers import T5Config, T5EncoderModel
        c = T5Config(d_model=4096, d_kv=64, d_ff=10240, num_layers=2, num_heads=64, vocab_size=32128,
                     feed_forward_proj="gated-gelu")
        return T5EncoderModel(c), lambda m, size: m(torch.zeros(1, TEXT, dtype=torch.long))[0]
    if name == "clip":
        from transformers import CLIPTextConfig, CLIPTextModel
        c = CLIPTextConfig(hidden_size=768, num_attention_heads=12, num_hidden_layers=12,
                           intermediate_size=3072, projection_dim=768)
        return CLIPTextModel(c), lambda m, size: m(torch.ones(1, 77, dtype=torch.long))[0]
    from diffusers import AutoencoderKL
    m = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16,
                      down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                      norm_num_groups=32, use_quant_conv=False, use_post_quant_conv=False,
                      scaling_factor=0.3611, shift_factor=0.1159)
    return m, lambda m, size: m.decode(
        torch.rand(1, 16, size // 8, size // 8).to(next(m.parameters()).dtype), return_dict=False)[0]


DTYPES = {"f32": "float32", "bf16": "bfloat16"}


def part_file(folder, name, kind):
    """Its weights in that type, as the other side has them."""
    import torch
    from safetensors.torch import save_file
    path = os.path.join(folder, f"{name}.{kind}.safetensors")
    if not os.path.exists(path):
        save_file({k: v.to(getattr(torch, DTYPES[kind])).contiguous().clone()
                   for k, v in part(name)[0].state_dict().items() if k != "encoder.embed_tokens.weight"},
                  path)
    return path


def part_worker(name, kind, threads, size):
    import torch
    torch.set_num_threads(threads)
    module, run = part(name)
    module = module.to(getattr(torch, DTYPES[kind])).eval()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        with torch.no_grad():
            run(module, size)
        print(f"{time.perf_counter() - start:.6f}", flush=True)


def parts(o, log):
    print(f"{'part':12} {'kiln s':>8} {'PyTorch s':>10}   kiln / PyTorch   share of kiln's peak")
    for name in ("t5", "clip", "vae"):
        for kind in DTYPES:
            path = part_file(o.folder, name, kind)
            worker = Worker([sys.executable, os.path.abspath(__file__), "--part-worker", f"{name},{kind}",
                             "--threads", str(o.threads), "--size", str(o.size)], log)
            own, other, share = [], [], []
            for _ in range(o.rounds):
                row = next(iter(kiln(o.kiln, path, o.threads, o.size, kind).values()))
                own.append(row["seconds"])
                share.append(row["share_of_peak"])
                other.append(worker.measure())
            worker.process.kill()
            print(f"{name + ' ' + kind:12} {statistics.median(own):8.3f} {statistics.median(other):10.3f}   "
                  f"{statistics.median(a / b for a, b in zip(own, other)):14.2f}   "
                  f"{statistics.median(share):20.2f}", flush=True)


# ---- the other engines: workers that run a step for every line they read ----------------------------

def diffusers_worker(path, threads, size):
    import torch
    from diffusers import FluxTransformer2DModel
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers
    from safetensors.torch import load_file

    torch.set_num_threads(threads)
    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=DOUBLES, num_single_layers=SINGLES,
                                       guidance_embeds=True)
    state = convert_flux_transformer_checkpoint_to_diffusers(load_file(path))
    model.load_state_dict(state, assign=True)
    model.eval()
    side, d = size // 16, torch.bfloat16
    ids = torch.zeros(side, side, 3)
    ids[..., 1] += torch.arange(side)[:, None]
    ids[..., 2] += torch.arange(side)[None, :]
    g = torch.Generator().manual_seed(2)
    inputs = dict(hidden_states=torch.randn(1, side * side, 64, generator=g).to(d),
                  encoder_hidden_states=torch.randn(1, TEXT, 4096, generator=g).to(d),
                  pooled_projections=torch.randn(1, 768, generator=g).to(d),
                  timestep=torch.tensor([0.5], dtype=d), guidance=torch.tensor([3.5]),
                  img_ids=ids.reshape(-1, 3), txt_ids=torch.zeros(TEXT, 3), return_dict=False)
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        with torch.no_grad():
            out = model(**inputs)[0]
        took = time.perf_counter() - start
        assert torch.isfinite(out).all()
        print(f"{took:.6f}", flush=True)


class Worker:
    def __init__(self, command, log):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=log, text=True)
        self.note = ""
        while not self.note.startswith("ready"):
            self.note = self.process.stdout.readline()
            if not self.note:
                raise SystemExit(f"{command[0]}: ended before it was ready; see the log")
        self.step()  # warms up

    def step(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def measure(self):
        first = self.step()
        return first if first > 5 else statistics.median((first, self.step(), self.step()))


def build_ggml(source, folder, log):
    build = os.path.join(folder, "ggml")
    here = os.path.dirname(os.path.abspath(__file__))
    # GCC 12 drops most of the stores of ggml's tile configuration: its AMX products then stop the
    # program with an illegal instruction.
    subprocess.run(["cmake", "-S", source, "-B", build, "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON",
                    "-DCMAKE_CXX_FLAGS=-fno-dse -fno-tree-dse",
                    "-DGGML_LLAMAFILE=ON", "-DSD_BUILD_EXAMPLES=OFF", "-DSD_WEBP=OFF", "-DSD_WEBM=OFF"],
                   check=True, stdout=log, stderr=log)
    subprocess.run(["cmake", "--build", build, "-j2", "--target", "stable-diffusion"], check=True,
                   stdout=log, stderr=log)
    program = os.path.join(folder, "bench_flux_ggml")
    libraries = [os.path.join(build, p) for p in
                 ("libstable-diffusion.a", "ggml/src/libggml.a", "ggml/src/libggml-cpu.a",
                  "ggml/src/libggml-base.a")]
    extra = [os.path.join(at, f) for at, _, files in os.walk(build) for f in files
             if f.endswith(".a") and os.path.join(at, f) not in libraries]
    includes = [f"-I{source}/{p}" for p in ("src", "include", "ggml/include", "thirdparty", "")]
    subprocess.run(["c++", "-std=c++17", "-O2", "-DGGML_MAX_NAME=128", *includes,
                    os.path.join(here, "bench_flux_ggml.cpp"), "-Wl,--start-group", *libraries, *extra,
                    "-Wl,--end-group", "-fopenmp", "-lpthread", "-ldl", "-o", program],
                   check=True, stdout=log, stderr=log)
    return program


# ---- Kiln -------------------------------------------------------------------------------------------

def kiln(program, path, threads, size, kind="bf16"):
    """`kiln bench --model`: its lines, by what they measured."""
    command = [program, "bench", "--model", path, "--type", kind, "-W", str(size), "-H", str(size),
               "--device", "cpu", "--threads", str(threads), "--json"]
    if kind == "bf16" and path.endswith(".safetensors"):
        command += ["--weights", "bf16"]  # the parts' files hold f32
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {row["size"].split(",")[0]: row for row in map(json.loads, out.splitlines())}


def kiln_step(program, path, threads, size, steps, stages):
    rows = kiln(program, path, threads, size)
    for name, row in rows.items():
        stages.setdefault(name, []).append((row["seconds"], row["share_of_peak"]))
    return rows["step"]["seconds"] + rows["schedule"]["seconds"] / steps


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--kiln", default="build/kiln")
    p.add_argument("--folder", default="/tmp/bench-flux", help="for the model and ggml's build")
    p.add_argument("--ggml-program", help="bench_flux_ggml, where it is built already")
    p.add_argument("--ggml", help="source of stable-diffusion.cpp; without it ggml is left out")
    p.add_argument("--no-diffusers", action="store_true")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--size", type=int, default=256, help="width and height of the picture")
    p.add_argument("--steps", type=int, default=20, help="that share one schedule stage")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--parts", action="store_true", help="text encoders and autoencoder instead")
    p.add_argument("--diffusers-worker", metavar="FILE", help=argparse.SUPPRESS)
    p.add_argument("--part-worker", metavar="NAME,TYPE", help=argparse.SUPPRESS)
    o = p.parse_args()
    if o.part_worker:
        return part_worker(*o.part_worker.split(","), o.threads, o.size)
    if o.diffusers_worker:
        return diffusers_worker(o.diffusers_worker, o.threads, o.size)
    os.makedirs(o.folder, exist_ok=True)
    log = open(os.path.join(o.folder, "log"), "w")
    if o.parts:
        return parts(o, log)
    bf16, q8 = make(o.folder)
    run, stages = {}, {"kiln bf16": {}, "kiln q8_0": {}}
    for name, path in (("kiln bf16", bf16), ("kiln q8_0", q8)):
        run[name] = lambda path=path, of=stages[name]: kiln_step(o.kiln, path, o.threads, o.size,
                                                                 o.steps, of)
    if not o.no_diffusers:
        own = [sys.executable, os.path.abspath(__file__), "--diffusers-worker", bf16, "--threads",
               str(o.threads), "--size", str(o.size)]
        run["diffusers bf16"] = Worker(own, log).measure
    if o.ggml or o.ggml_program:
        program = o.ggml_program or build_ggml(os.path.abspath(o.ggml), o.folder, log)
        for name, path, amx, flash in (("ggml bf16", bf16, 0, 1), ("ggml q8_0", q8, 0, 1),
                                       ("ggml q8_0 amx", q8, 1, 1)):
            worker = Worker([program, path, str(o.threads), str(TEXT), str(o.size // 8), str(amx),
                             str(flash)], log)
            if amx and worker.note.split()[1] == "0":
                print(f"{name}: left out, ggml has no AMX buffers here")
                continue
            run[name] = worker.measure
    took = {name: [] for name in run}
    for i in range(o.rounds):
        for name in run:
            took[name].append(run[name]())
        print(f"round {i + 1}:", ", ".join(f"{n} {took[n][-1]:.3f}" for n in run), file=sys.stderr)
    print(f"{'engine':22} {'s/step':>8} {'range':>15}   kiln bf16 / it   kiln q8_0 / it")
    for name, t in took.items():
        ratios = [statistics.median(a / b for a, b in zip(took[k], t)) for k in ("kiln bf16", "kiln q8_0")]
        print(f"{name:22} {statistics.median(t):8.3f} {min(t):7.3f}-{max(t):7.3f}   "
              f"{ratios[0]:14.2f}   {ratios[1]:14.2f}")
    for name, of in stages.items():
        for stage, values in of.items():
            seconds, share = (statistics.median(v[i] for v in values) for i in range(2))
            print(f"{name}, {stage}: {seconds:.4f} s, {share:.2f} of the measured peak")


if __name__ == "__main__":
    main()
