#!/usr/bin/env python3
"""Makes tests/golden/vae.safetensors: what diffusers' autoencoders make of small inputs.

Needs torch, diffusers, safetensors, numpy. Weights and inputs are not stored: both sides compute
them from the tensors' names (`numbers` below; tests/test_vae.c has the same), so that the file
stays small. Stored per case: config (JSON), decoded [1, 3, H, W], and moments [1, 2 C, h, w] or,
for tiny autoencoders, latents.

    python tools/ref/make_vae_golden.py tests/golden/vae.safetensors
"""
import json
import sys

import numpy as np
import torch
from torch import nn
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.numpy import save_file


def numbers(name, count, low, high):
    """Uniform numbers from a name: FNV-1a of it, then SplitMix64 of that plus the index."""
    h = 0xCBF29CE484222325
    for b in name.encode():
        h = (h ^ b) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    with np.errstate(over="ignore"):
        z = np.uint64(h) + (np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    u = (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
    return np.float32(low) + u * np.float32(high - low)


def fill(module):
    """Matrices and convolutions by fan-in, norms' weights about 1, biases small."""
    for name, p in module.state_dict().items():
        n = p.numel()
        if p.ndim >= 2:
            bound = float(np.float32(np.sqrt(3.0 / (n / p.shape[0]))))
            v = numbers(name, n, -bound, bound)
        elif name.endswith("weight"):
            v = numbers(name, n, 0.5, 1.5)
        else:
            v = numbers(name, n, -0.25, 0.25)
        p.copy_(torch.from_numpy(v).reshape(p.shape))
    return module.eval()


KL = {
    # name: (height, width of the latents, configuration)
    "flux": (5, 7, dict(block_out_channels=[32, 32, 32, 64], layers_per_block=2, latent_channels=16,
                        use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.3611,
                        shift_factor=0.1159)),
    "sd": (9, 6, dict(block_out_channels=[16, 32, 48], layers_per_block=1, latent_channels=4,
                      norm_num_groups=8, scaling_factor=0.18215)),
    "wide": (6, 5, dict(block_out_channels=[16, 320], layers_per_block=1, latent_channels=3,
                        norm_num_groups=16, use_quant_conv=False, scaling_factor=1.5305,
                        shift_factor=0.0609)),
    "plain": (12, 16, dict(block_out_channels=[12, 20], layers_per_block=1, latent_channels=8,
                           norm_num_groups=4, mid_block_add_attention=False, scaling_factor=0.5)),
    "level": (8, 11, dict(block_out_channels=[24], layers_per_block=2, latent_channels=4,
                          norm_num_groups=6, use_post_quant_conv=False, scaling_factor=0.13025)),
}
TINY = dict(num_encoder_blocks=[1, 2, 1], num_decoder_blocks=[2, 1, 1],
            encoder_block_out_channels=[16, 16, 16], decoder_block_out_channels=[16, 16, 16],
            latent_channels=4)


class Block(nn.Module):
    """A block of TAEF2: with a normalised 1x1 branch in front."""

    def __init__(self, n, pool):
        super().__init__()
        c = lambda: nn.Conv2d(n, n, 3, padding=1)
        self.conv = nn.Sequential(c(), nn.ReLU(), c(), nn.ReLU(), c())
        self.pool = None
        if pool:
            self.pool = nn.Sequential(nn.Conv2d(n, 4 * n, 1, bias=False), nn.GroupNorm(4, 4 * n),
                                      nn.ReLU(), nn.Conv2d(4 * n, n, 1, bias=False))

    def forward(self, x):
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class Bound(nn.Module):
    def forward(self, x):
        return 3 * torch.tanh(x / 3)


def original(n=16, channels=6):
    """Halves in the original layout, numbered from the outside in."""
    conv = lambda i, o, **k: nn.Conv2d(i, o, 3, padding=1, **k)
    encoder = nn.Sequential(conv(3, n), Block(n, False), conv(n, n, stride=2, bias=False),
                            Block(n, True), conv(n, channels))
    decoder = nn.Sequential(Bound(), conv(channels, n), nn.ReLU(), Block(n, True),
                            nn.Upsample(scale_factor=2), conv(n, n, bias=False), Block(n, False),
                            conv(n, 3))
    return fill(encoder), fill(decoder)


@torch.no_grad()
def main():
    out, meta = {}, {}
    put = lambda name, t: out.__setitem__(name, np.ascontiguousarray(t.float().numpy()))
    inputs = lambda name, shape, low, high: torch.from_numpy(
        numbers(name, int(np.prod(shape)), low, high)).reshape(shape)
    for case, (h, w, cfg) in KL.items():
        n = len(cfg["block_out_channels"])
        vae = AutoencoderKL(down_block_types=["DownEncoderBlock2D"] * n,
                            up_block_types=["UpDecoderBlock2D"] * n, **cfg)
        fill(vae)
        f = 2 ** (n - 1)
        z = inputs(case + ".latents", (1, cfg["latent_channels"], h, w), -2, 2)
        z = z / cfg["scaling_factor"] + cfg.get("shift_factor", 0)
        put(case + ".decoded", vae.decode(z).sample)
        picture = inputs(case + ".picture", (1, 3, h * f, w * f), -1, 1)
        put(case + ".moments", vae.encode(picture).latent_dist.parameters)
        meta[case] = json.dumps({**vae.config, "_class_name": "AutoencoderKL", "h": h, "w": w, "f": f})
    tiny = fill(AutoencoderTiny(**TINY))
    put("tiny.decoded", tiny.decode(inputs("tiny.latents", (1, 4, 7, 5), -4, 4)).sample)
    put("tiny.latents", tiny.encode(inputs("tiny.picture", (1, 3, 28, 20), -1, 1)).latents)
    encoder, decoder = original()
    put("pool.decoded", decoder(inputs("pool.latents", (1, 6, 7, 5), -4, 4)) * 2 - 1)
    put("pool.latents", encoder((inputs("pool.picture", (1, 3, 14, 10), -1, 1) + 1) / 2))
    save_file(out, sys.argv[1], metadata=meta)


if __name__ == "__main__":
    main()
