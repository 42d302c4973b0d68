#!/usr/bin/env python3
"""Makes tests/golden/samplers.safetensors: what ComfyUI's own samplers make of flows, for
tests/test_sampler.c.

    samplers.py PREFIX --reference-dir COMFYUI --steps 5,10,20
    python tools/ref/make_sampler_golden.py PREFIX [OUT_FILE]

samplers.py (a generator of reference results) runs the samplers of a checkout of ComfyUI (commit
a125cd84 here) in float64 on the analytic denoiser of a Gaussian mixture, with shift 3 and the noise
given. Its elements do not depend on each other, so the first WIDTH of each tensor are kept.

offset, noise0 [WIDTH], noises [DRAWS, WIDTH]
sigmas.SCHEDULE.STEPS    float32, as given to the samplers
final.SCHEDULE.STEPS     [3, WIDTH]: of euler, euler_ancestral and dpmpp_2m
asked.SAMPLER.STEPS      [STEPS, WIDTH]: x at each call of the model, schedule "simple"
"""
import sys

import numpy as np
from safetensors.numpy import load_file, save_file

SAMPLERS = ("euler", "euler_ancestral", "dpmpp_2m")
STEPS, WIDTH, DRAWS = (5, 10, 20), 32, 19


def main():
    ref = load_file(sys.argv[1] + ".safetensors")
    path = sys.argv[2] if len(sys.argv) > 2 else "tests/golden/samplers.safetensors"
    out = {name: ref[name].reshape(-1)[:WIDTH] for name in ("offset", "noise0")}
    out["noises"] = ref["noises"].reshape(len(ref["noises"]), -1)[:DRAWS, :WIDTH]
    for key in ref:
        kind, *rest = key.split("/")
        if kind == "sigmas" and rest[0] == "flow":
            _, schedule, steps = rest
            out[f"sigmas.{schedule}.{steps}"] = ref[key]
            finals = [ref[f"x/flow/{s}/{schedule}/{steps}"] for s in SAMPLERS]
            out[f"final.{schedule}.{steps}"] = np.stack([x.reshape(-1)[:WIDTH] for x in finals])
    for sampler in SAMPLERS:
        for steps in STEPS:
            x = ref[f"calls_x/flow/{sampler}/simple/{steps}"]
            out[f"asked.{sampler}.{steps}"] = x.reshape(len(x), -1)[:, :WIDTH]
    out = {k: np.ascontiguousarray(v, np.float32) for k, v in out.items()}
    save_file(out, path)
    print(f"{path}: {len(out)} tensors")


if __name__ == "__main__":
    main()
