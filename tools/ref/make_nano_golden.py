#!/usr/bin/env python3
"""Makes tests/golden/nano_*.safetensors with PyTorch. Run from the repository root:

    python tools/ref/make_nano_golden.py [OUT_FOLDER]

For each of two small shapes (patch 4, width 32, 2 heads; patch 2, width 48, 3 heads; both 2 deep):

nano_pN.safetensors      a model file as Kiln loads it: random f32 weights, `kiln.config` metadata
nano_pN_ref.safetensors  all computed in float64 from the f32 numbers stored, then rounded to f32:
    image, noise [3, 3, 32, 32], t [3], labels [3] i32 (10: no class)     one batch
    features [3, 256]   timestep features;   x_t, v [3, 3, 32, 32]        input and output
    loss [1]; grad.NAME                                                   every gradient
    train.image, train.noise [4, 3, 3, 32, 32], train.t [4, 3], train.labels [4, 3] i32
    train.losses [10] f64: AdamW from the stored weights, step k on batch k % 4, loss before the
        step; lr 3e-4, betas 0.9 and 0.999, eps 1e-8, no weight decay. train.losses_f32: the same
        run in float32, to show how far rounding alone moves them
    train.final.NAME: three weights after the tenth step
    sample.noise [2, 3, 32, 32], sample.labels [2] i32, sample.first, sample.final: the latent
        after the first and the last Euler step; metadata `sample`: steps and cfg_scale
"""
import json
import os
import sys

import torch
from safetensors.torch import save_file

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from nano_torch import Nano, flow_loss, init_random, sample, timestep_features


def ten_steps(model, data, dtype):
    opt = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0)
    losses = []
    for k in range(10):
        i = k % 4
        loss, _ = flow_loss(model, data["train.image"][i].to(dtype), data["train.noise"][i].to(dtype),
                            data["train.t"][i].to(dtype), data["train.labels"][i].long())
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.detach())
    return torch.stack(losses).double()


def pictures(shape, g):
    """Values of 8-bit pictures scaled to -1..1."""
    return torch.randint(0, 256, shape, generator=g).float() / 127.5 - 1


def copy_of(model, dtype):
    twin = Nano(model.patch, model.dim, model.depth, model.heads, model.classes)
    twin.load_state_dict(model.state_dict())
    return twin.to(dtype)


def make(folder, patch, dim, depth, heads, seed, steps, cfg_scale):
    g = torch.Generator().manual_seed(seed)
    model = init_random(Nano(patch, dim, depth, heads), g)
    weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
    base = os.path.join(folder, f"nano_p{patch}")
    save_file(weights, base + ".safetensors", model.metadata())

    d = {
        "image": pictures((3, 3, 32, 32), g), "noise": torch.randn(3, 3, 32, 32, generator=g),
        "t": torch.tensor([0.0, 0.37, 0.93]), "labels": torch.tensor([3, 10, 7], dtype=torch.int32),
        "train.image": pictures((4, 3, 3, 32, 32), g),
        "train.noise": torch.randn(4, 3, 3, 32, 32, generator=g),
        "train.t": torch.rand(4, 3, generator=g),
        "train.labels": torch.randint(0, 11, (4, 3), generator=g).int(),
        "sample.noise": torch.randn(2, 3, 32, 32, generator=g),
        "sample.labels": torch.tensor([1, 8], dtype=torch.int32),
    }
    m = copy_of(model, torch.float64)
    image, noise, t = d["image"].double(), d["noise"].double(), d["t"].double()
    loss, v = flow_loss(m, image, noise, t, d["labels"].long())
    loss.backward()
    tt = t[:, None, None, None]
    d["features"] = timestep_features(t)
    d["x_t"], d["v"], d["loss"] = (1 - tt) * noise + tt * image, v.detach(), loss.detach()[None]
    for name, w in m.named_parameters():
        assert w.grad.abs().max() > 1e-5, f"{name}: its gradient tests nothing"
        d["grad." + name] = w.grad
    latents = list(sample(m, d["sample.noise"].double(), d["sample.labels"].long(), steps, cfg_scale))
    d["sample.first"], d["sample.final"] = latents[0], latents[-1]
    assert latents[-1].abs().max() < 20
    f32 = list(sample(model, d["sample.noise"], d["sample.labels"].long(), steps, cfg_scale))[-1]
    print(f"p{patch}: loss {loss.item():.6f}, largest latent {latents[-1].abs().max():.2f}, "
          f"float32 differs by {(f32 - latents[-1]).abs().max():.2e}")

    m = copy_of(model, torch.float64)
    losses = ten_steps(m, d, torch.float64)
    losses32 = ten_steps(copy_of(model, torch.float32), d, torch.float32)
    print("  losses", [round(x, 4) for x in losses.tolist()],
          f"float32 differs by {(losses - losses32).abs().max():.2e}")
    out = {k: x.detach().float() if x.dtype == torch.float64 else x for k, x in d.items()}
    out["train.losses"], out["train.losses_f32"] = losses, losses32
    after = m.state_dict()
    for name in ("x_embedder.proj.weight", "blocks.0.attn.qkv.bias", "final_layer.linear.weight"):
        out["train.final." + name] = after[name].float()
    out = {k: x.contiguous() for k, x in out.items()}
    save_file(out, base + "_ref.safetensors", {
        "made_by": "tools/ref/make_nano_golden.py, PyTorch " + torch.__version__.split("+")[0],
        "sample": json.dumps({"steps": steps, "cfg_scale": cfg_scale}),
    })


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else "tests/golden"
    make(folder, patch=4, dim=32, depth=2, heads=2, seed=11, steps=50, cfg_scale=3.0)
    make(folder, patch=2, dim=48, depth=2, heads=3, seed=12, steps=12, cfg_scale=1.5)


if __name__ == "__main__":
    main()
