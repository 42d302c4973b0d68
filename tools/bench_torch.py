#!/usr/bin/env python3
"""Nano-Sora in PyTorch: seconds per training step and seconds to sample, for comparison with
`kiln bench`. Needs torch (pip install torch in a virtual environment). Prints one JSON object:

    step_seconds    median over --steps training steps (forward, backward, AdamW, EMA), f32
    sample_seconds  80 pictures, 50 Euler steps, guidance on; the pictures with and without class
                    in one batch per step

    bench_torch.py [--dim 192 --depth 6 --heads 6 --patch 4 --batch 64 --threads 2] [--no-sample]
"""
import argparse
import copy
import json
import os
import statistics
import sys
import time

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "ref"))
from nano_torch import Nano, flow_loss, init_as_dit


def training(model, batch, steps, compiled):
    ema = copy.deepcopy(model).requires_grad_(False)
    opt = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0)
    run = torch.compile(model) if compiled else model
    g = torch.Generator().manual_seed(0)
    times = []
    for _ in range(steps + 2):
        image = torch.rand(batch, 3, 32, 32, generator=g) * 2 - 1
        y = torch.randint(0, 11, (batch,), generator=g)
        start = time.perf_counter()
        noise, t = torch.randn(batch, 3, 32, 32, generator=g), torch.rand(batch, generator=g)
        loss, _ = flow_loss(run, image, noise, t, y)
        opt.zero_grad(set_to_none=True)
        loss.backward()
        opt.step()
        torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1e-3)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


@torch.no_grad()
def sampling(model, count, steps, cfg_scale):
    x = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = torch.arange(count) * 10 // count
    both = torch.cat([y, torch.full_like(y, 10)])
    start = time.perf_counter()
    for i in range(steps):
        t = torch.full((2 * count,), i / steps)
        v, v0 = model(torch.cat([x, x]), t, both).chunk(2)
        x = x + (v0 + cfg_scale * (v - v0)) / steps
    return time.perf_counter() - start


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, value in (("dim", 192), ("depth", 6), ("heads", 6), ("patch", 4), ("batch", 64),
                        ("threads", os.cpu_count()), ("steps", 7), ("pictures", 80),
                        ("sample-steps", 50)):
        p.add_argument(f"--{name}", type=int, default=value)
    p.add_argument("--compile", action="store_true", help="also through torch.compile")
    p.add_argument("--no-sample", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    model = init_as_dit(Nano(a.patch, a.dim, a.depth, a.heads))
    out = {"torch": torch.__version__, "threads": a.threads, "patch": a.patch, "dim": a.dim,
           "depth": a.depth, "heads": a.heads, "batch": a.batch,
           "parameters": sum(w.numel() for w in model.parameters()),
           "step_seconds": training(model, a.batch, a.steps, False)}
    if a.compile:
        out["step_seconds_compiled"] = training(model, a.batch, a.steps, True)
    if not a.no_sample:
        out["pictures"], out["sample_steps"] = a.pictures, a.sample_steps
        out["sample_seconds"] = sampling(model, a.pictures, a.sample_steps, 3.0)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
