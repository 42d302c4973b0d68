#!/usr/bin/env python3
"""Makes tests/golden/sampling.safetensors: numbers of diffusers, PyTorch and float64 for
tests/test_schedule.c, test_sampler.c and test_guidance.c.

    python tools/ref/make_sampling_golden.py [OUT_FILE]

sigmas.MODEL.TOKENS.STEPS    scheduler.sigmas of diffusers' FlowMatchEulerDiscreteScheduler, set up
                             as FluxPipeline does: sigmas linspace(1, 1/n, n), mu of TOKENS
embedded.MODEL.TOKENS.STEPS  what the transformer embeds: timestep / 1000 * 1000, float32
kept.STEPS.PERCENT           [number of steps dropped, first sigma] of FluxImg2ImgPipeline's
                             get_timesteps at strength PERCENT / 100 (dev, 4096 tokens)
mix                          scheduler.scale_noise of mix.picture and mix.noise at the middle sigma
euler.*                      five scheduler.step calls on euler.x with the velocities euler.v

toy.*   the analytic denoiser of a Gaussian mixture (see `denoised`), solved in float64 from the
        formulas of the samplers in terms of sigma; latents after each step [steps, 64]
        toy.euler_ancestral injects toy.noises[n] at its n-th draw

cfg.KIND.STEPS               scales of each step, scale 5
quantile.v, quantile.N.Q     torch.quantile(v[:N].abs().sort, Q / 1000) in float64
threshold.*                  guided velocities after dynamic thresholding, 2 pictures, float64
"""
import sys

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.pipelines.flux.pipeline_flux_img2img import FluxImg2ImgPipeline
from safetensors.numpy import save_file

MODELS = {
    "dev": dict(shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15,
                base_image_seq_len=256, max_image_seq_len=4096),
    "schnell": dict(shift=1.0, use_dynamic_shifting=False, base_shift=0.5, max_shift=1.15,
                    base_image_seq_len=256, max_image_seq_len=4096),
    "fixed": dict(shift=3.0),
}
CASES = [("dev", t, n) for t in (16, 256, 1536, 4096, 9216) for n in (1, 4, 20, 28)] + [
    ("schnell", 4096, n) for n in (1, 2, 4, 7)] + [("fixed", 4096, n) for n in (1, 10, 28)]
MEANS, STDS, WEIGHTS = [-1.1, 0.2, 1.4], [0.35, 0.2, 0.5], [0.5, 0.3, 0.2]


def scheduler_of(model, tokens, steps):
    s = FlowMatchEulerDiscreteScheduler(**MODELS[model])
    c = s.config
    mu = calculate_shift(tokens, c.base_image_seq_len, c.max_image_seq_len, c.base_shift,
                         c.max_shift)
    s.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    return s


def schedules(out):
    for model, tokens, steps in CASES:
        s = scheduler_of(model, tokens, steps)
        key = f"{model}.{tokens}.{steps}"
        out["sigmas." + key] = s.sigmas.numpy()
        out["embedded." + key] = (s.timesteps / 1000 * 1000).numpy()
    for steps in (4, 20, 28):
        for percent in (1, 5, 25, 30, 60, 75, 99, 100):
            s = scheduler_of("dev", 4096, steps)
            fake = type("Fake", (), {"scheduler": s})()
            left, count = FluxImg2ImgPipeline.get_timesteps(fake, steps, percent / 100, "cpu")
            first = s.sigmas[s.begin_index] if len(left) else torch.tensor(0.0)
            out[f"kept.{steps}.{percent}"] = np.array([steps - count, first], np.float32)


def steps_of_diffusers(out, g):
    s = scheduler_of("dev", 1024, 5)
    picture, noise, x = (torch.randn(64, generator=g) for _ in range(3))
    v = torch.randn(5, 64, generator=g)
    s.set_begin_index(2)
    mixed = s.scale_noise(picture[None], s.timesteps[2:3], noise[None])[0]
    out |= {"mix": mixed.numpy(), "mix.picture": picture.numpy(), "mix.noise": noise.numpy(),
            "mix.sigmas": s.sigmas.numpy(), "euler.v": v.numpy(), "euler.x": x.numpy()}
    s = scheduler_of("dev", 1024, 5)
    for i, t in enumerate(s.timesteps):
        x = s.step(v[i], t, x).prev_sample
    out["euler.out"] = x.numpy()


def denoised(x, sigma, offset):
    """E[x0 | x] for x = (1 - sigma) x0 + sigma n, x0 an offset plus a mixture of Gaussians."""
    m, s, w = (np.array(v)[:, None] for v in (MEANS, STDS, WEIGHTS))
    a = 1 - sigma
    var = a * a * s * s + sigma * sigma
    e = x - a * (offset + m)
    log_r = np.log(w) - e * e / (2 * var) - 0.5 * np.log(var)
    r = np.exp(log_r - log_r.max(0))
    return offset + (r / r.sum(0) * (m + a * s * s / var * e)).sum(0)


def euler(d, x, now, to, **_):
    return x + (x - d) / now * (to - now)


def euler_ancestral(d, x, now, to, draw, **_):
    if to == 0:
        return d
    down = to * (1 + (to / now - 1))
    scale = (1 - to) / (1 - down)
    renoise = np.sqrt(to ** 2 - down ** 2 * (1 - to) ** 2 / (1 - down) ** 2)
    x = down / now * x + (1 - down / now) * d
    return scale * x + renoise * draw()


def dpmpp_2m(d, x, now, to, past, **_):
    if not past or to == 0:
        return to / now * x + (1 - to / now) * d
    (old, before) = past[-1]
    h, h_last = -np.log(to) + np.log(now), -np.log(now) + np.log(before)
    r = h_last / h
    mixed = (1 + 1 / (2 * r)) * d - 1 / (2 * r) * old
    return np.exp(-h) * x - np.expm1(-h) * mixed


def toy(out, g):
    offset, noise0 = 0.3 * torch.randn(64, generator=g), torch.randn(64, generator=g)
    noises = torch.randn(20, 64, generator=g)
    out |= {"toy.offset": offset.numpy(), "toy.noise0": noise0.numpy(),
            "toy.noises": noises.numpy()}
    for model, tokens, steps in (("dev", 4096, 5), ("dev", 4096, 20), ("schnell", 0, 4)):
        sigmas = scheduler_of(model, tokens, steps).sigmas.double().numpy()
        for solve in (euler, euler_ancestral, dpmpp_2m):
            x, past, trace, used = noise0.double().numpy() * sigmas[0], [], [], iter(noises)
            for now, to in zip(sigmas[:-1], sigmas[1:]):
                d = denoised(x, now, offset.double().numpy())
                x = solve(d, x, now, to, past=past, draw=lambda: next(used).double().numpy())
                past.append((d, now))
                trace.append(x)
            out[f"toy.{solve.__name__}.{model}.{tokens}.{steps}"] = np.float32(trace)


def guidance(out, g):
    kinds = {"constant": lambda u: np.ones_like(u), "triangle": lambda u: 1 - abs(2 * u - 1),
             "cosine": lambda u: (1 - np.cos(2 * np.pi * u)) / 2}
    for name, weight in kinds.items():
        for n in (1, 2, 5, 28):
            w = weight((np.arange(n) + 0.5) / n)
            out[f"cfg.{name}.{n}"] = np.float32(1 + (5 - 1) * w / w.mean())
    v = torch.randn(1000, generator=g)
    out["quantile.v"] = v.numpy()
    for n in (1, 2, 3, 10, 999, 1000):
        for q in (0, 500, 900, 995, 1000):
            value = torch.quantile(v[:n].abs().double(), q / 1000)
            out[f"quantile.{n}.{q}"] = np.float32([value])
    x, cond, uncond = (torch.randn(2, 300, generator=g) for _ in range(3))
    cond[1] *= 3
    sigma, scale, q = 0.625, 6.0, 0.995
    guided = (uncond + scale * (cond - uncond)).double()
    clean, clean_cond = x.double() - sigma * guided, x.double() - sigma * cond.double()
    q_g = torch.quantile(clean.abs(), q, dim=1, keepdim=True)
    q_c = torch.quantile(clean_cond.abs(), q, dim=1, keepdim=True)
    thresholded = clean.clamp(-q_g, q_g) * q_c / q_g
    out |= {"threshold.x": x.numpy(), "threshold.cond": cond.numpy(),
            "threshold.uncond": uncond.numpy(),
            "threshold.v": ((x.double() - thresholded) / sigma).float().numpy()}


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else "tests/golden/sampling.safetensors"
    out, g = {}, torch.Generator("cpu").manual_seed(7)
    schedules(out)
    steps_of_diffusers(out, g)
    toy(out, g)
    guidance(out, g)
    save_file({k: np.ascontiguousarray(v) for k, v in out.items()}, path)
    print(f"{path}: {len(out)} tensors")


if __name__ == "__main__":
    main()
