"""Nano-Sora in plain PyTorch: the yardstick that Kiln's own is compared with.

A DiT (Peebles and Xie, "Scalable Diffusion Models with Transformers", 2023) with adaLN-Zero,
conditioned on timestep and class; parameter names as in facebookresearch/DiT. Trained with
rectified flow (Liu et al. 2022): x_t = (1 - t) noise + t image, v = image - noise.
"""
import json
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

CIFAR_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FEATURES = 256  # width of the sinusoidal timestep features
IMAGE = 32


class PatchEmbed(nn.Module):
    def __init__(self, patch, dim):
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)

    def forward(self, x):  # [B, 3, H, W] -> [B, T, D], tokens row by row
        return self.proj(x).flatten(2).transpose(1, 2)


def timestep_features(t, width=FEATURES, max_period=10000.0):
    """t [B] in 0..1 -> [B, width]: cosines of 1000 t at falling frequencies, then sines."""
    half = width // 2
    freq = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float64) / half)
    angle = 1000.0 * t.double()[:, None] * freq
    return torch.cat([angle.cos(), angle.sin()], 1).to(t.dtype)


class TimestepEmbedder(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FEATURES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t):
        return self.mlp(timestep_features(t))


class LabelEmbedder(nn.Module):
    def __init__(self, classes, dim):  # one more row: no class
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, dim)

    def forward(self, y):
        return self.embedding_table(y)


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d))


class Mlp(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def norm(x):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def modulate(x, shift, scale):
    return x * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.attn = Attention(dim, heads)
        self.mlp = Mlp(dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x, c):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c).chunk(6, 1)
        x = x + gate1[:, None] * self.attn(modulate(norm(x), shift1, scale1))
        return x + gate2[:, None] * self.mlp(modulate(norm(x), shift2, scale2))


class FinalLayer(nn.Module):
    def __init__(self, patch, dim):
        super().__init__()
        self.linear = nn.Linear(dim, 3 * patch * patch)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x, c):
        shift, scale = self.adaLN_modulation(c).chunk(2, 1)
        return self.linear(modulate(norm(x), shift, scale))


class Nano(nn.Module):
    def __init__(self, patch=4, dim=192, depth=6, heads=6, classes=CIFAR_CLASSES):
        super().__init__()
        self.patch, self.dim, self.depth, self.heads, self.classes = patch, dim, depth, heads, classes
        tokens = (IMAGE // patch) ** 2
        self.x_embedder = PatchEmbed(patch, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, dim))
        self.t_embedder = TimestepEmbedder(dim)
        self.y_embedder = LabelEmbedder(len(classes), dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.final_layer = FinalLayer(patch, dim)

    def config(self):
        return {"patch": self.patch, "dim": self.dim, "depth": self.depth, "heads": self.heads,
                "classes": self.classes}

    def metadata(self):
        return {"kiln.config": json.dumps(self.config())}

    def forward(self, x, t, y):
        """x [B, 3, 32, 32], t [B] in 0..1, y [B] classes -> velocity [B, 3, 32, 32]."""
        b, p, side = x.shape[0], self.patch, IMAGE // self.patch
        h = self.x_embedder(x) + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder(y)
        for block in self.blocks:
            h = block(h, c)
        h = self.final_layer(h, c)  # [B, T, p p 3]: a token's pixels row by row, colours innermost
        h = h.view(b, side, side, p, p, 3).permute(0, 5, 1, 3, 2, 4)
        return h.reshape(b, 3, IMAGE, IMAGE)


def init_as_dit(model, generator=None):
    """The published initialisation: Xavier for linear layers, normals of 0.02, zeros for adaLN."""
    for m in model.modules():
        if isinstance(m, nn.Linear):
            nn.init.xavier_uniform_(m.weight, generator=generator)
            nn.init.zeros_(m.bias)
    proj = model.x_embedder.proj
    nn.init.xavier_uniform_(proj.weight.data.view(model.dim, -1), generator=generator)
    nn.init.zeros_(proj.bias)
    for w in (model.pos_embed, model.y_embedder.embedding_table.weight,
              model.t_embedder.mlp[0].weight, model.t_embedder.mlp[2].weight):
        nn.init.normal_(w, std=0.02, generator=generator)
    zero = [b.adaLN_modulation[1] for b in model.blocks]
    zero += [model.final_layer.adaLN_modulation[1], model.final_layer.linear]
    for m in zero:
        nn.init.zeros_(m.weight)
        nn.init.zeros_(m.bias)
    return model


def init_random(model, generator):
    """Every weight non-trivial (adaLN's zeros too), so that no gradient vanishes."""
    with torch.no_grad():
        for name, w in model.named_parameters():
            if name in ("pos_embed", "y_embedder.embedding_table.weight"):
                std = 0.3
            elif w.dim() == 1:
                std = 0.1
            else:
                std = w[0].numel() ** -0.5
            w.copy_(torch.randn(w.shape, generator=generator) * std)
    return model


def flow_loss(model, image, noise, t, y):
    """-> (loss, predicted velocity)."""
    tt = t[:, None, None, None]
    v = model((1 - tt) * noise + tt * image, t, y)
    return F.mse_loss(v, image - noise), v


@torch.no_grad()
def sample(model, noise, y, steps, cfg_scale):
    """Euler from t = 0 to 1 with classifier-free guidance; yields the latent after each step."""
    x, none = noise, torch.full_like(y, len(model.classes))
    for i in range(steps):
        t = torch.full((x.shape[0],), i / steps, dtype=x.dtype)
        v = model(x, t, y)
        if cfg_scale != 1:
            v0 = model(x, t, none)
            v = v0 + cfg_scale * (v - v0)
        x = x + v / steps
        yield x
