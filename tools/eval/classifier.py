#!/usr/bin/env python3
"""Trains a small residual network on CIFAR-10: the independent judge of generated pictures.

    classifier.py DATA OUT.pt [--epochs N] [--width N] [--threads N]

DATA holds train/CLASS/*.jpg and test/CLASS/*.jpg. OUT gets the weights, the class names and the
accuracy on the test split. The network shares nothing with the generator. Needs torch, numpy and
pillow. Exit status 1 when the accuracy stays under 85 %.
"""
import argparse
import os
import sys
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image


def conv_bn(c_in, c_out, stride=1):
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out),
                         nn.ReLU(inplace=True))


class Residual(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.body = nn.Sequential(conv_bn(c, c), conv_bn(c, c))

    def forward(self, x):
        return x + self.body(x)


class Classifier(nn.Module):
    """Pictures [N, 3, 32, 32] in -1..1 -> logits [N, 10]; features() gives [N, 8 width]."""

    def __init__(self, width=32, classes=10):
        super().__init__()
        w = width
        self.stem = conv_bn(3, w)
        self.stage1 = nn.Sequential(conv_bn(w, 2 * w, 2), Residual(2 * w))
        self.stage2 = nn.Sequential(conv_bn(2 * w, 4 * w, 2), Residual(4 * w))
        self.stage3 = nn.Sequential(conv_bn(4 * w, 8 * w, 2), Residual(8 * w))
        self.head = nn.Linear(8 * w, classes)

    def features(self, x):
        return F.adaptive_max_pool2d(self.stage3(self.stage2(self.stage1(self.stem(x)))), 1).flatten(1)

    def forward(self, x):
        return self.head(self.features(x)) * 0.25


def load_split(folder):
    """Pictures [N, 3, 32, 32] uint8, labels [N], names of the classes (sorted)."""
    names = sorted(n for n in os.listdir(folder) if os.path.isdir(os.path.join(folder, n)))
    pictures, labels = [], []
    for label, name in enumerate(names):
        for file in sorted(os.listdir(os.path.join(folder, name))):
            with Image.open(os.path.join(folder, name, file)) as im:
                pictures.append(np.asarray(im.convert("RGB")))
            labels.append(label)
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    return x, torch.tensor(labels), names


def scaled(x):
    return x.float() / 127.5 - 1


def augment(x, g):
    """A shift of up to 4 pixels (zeros come in), a flip, and a square of 8 x 8 left out; per picture."""
    n = x.shape[0]
    padded = F.pad(x, (4, 4, 4, 4))
    dy, dx = torch.randint(0, 9, (2, n), generator=g)
    rows = dy[:, None] + torch.arange(32)
    cols = dx[:, None] + torch.arange(32)
    flip = torch.rand(n, generator=g) < 0.5
    cols = torch.where(flip[:, None], cols.flip(1), cols)
    x = padded[torch.arange(n)[:, None, None, None], torch.arange(3)[None, :, None, None],
               rows[:, None, :, None], cols[:, None, None, :]]
    y0, x0 = torch.randint(0, 25, (2, n), generator=g)
    r = torch.arange(32)
    hole = (((r >= y0[:, None]) & (r < y0[:, None] + 8))[:, :, None]
            & ((r >= x0[:, None]) & (r < x0[:, None] + 8))[:, None, :])
    return x.masked_fill(hole[:, None], 0)


@torch.no_grad()
def accuracy(model, x, y):
    model.eval()
    right = 0
    for i in range(0, len(x), 500):
        part = scaled(x[i:i + 500])
        right += ((model(part) + model(part.flip(3))).argmax(1) == y[i:i + 500]).sum().item()
    return right / len(x)


def load_classifier(path):
    saved = torch.load(path, weights_only=True)
    model = Classifier(saved["width"])
    model.load_state_dict(saved["weights"])
    return model.eval(), saved["classes"], saved["accuracy"]


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("data")
    p.add_argument("out")
    p.add_argument("--epochs", type=int, default=12)
    p.add_argument("--width", type=int, default=32)
    p.add_argument("--batch", type=int, default=256)
    p.add_argument("--lr", type=float, default=0.01)
    p.add_argument("--threads", type=int, default=0)
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    g = torch.Generator().manual_seed(a.seed)
    x, y, names = load_split(os.path.join(a.data, "train"))
    tx, ty, _ = load_split(os.path.join(a.data, "test"))
    model = Classifier(a.width).to(memory_format=torch.channels_last)
    steps = a.epochs * (len(x) // a.batch)
    opt = torch.optim.AdamW(model.parameters(), lr=a.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, a.lr, total_steps=steps, pct_start=0.25)
    # bf16 where the processor multiplies it in hardware.
    with open("/proc/cpuinfo") as f:
        bf16 = "amx_bf16" in f.read()
    start = time.time()
    for epoch in range(a.epochs):
        model.train()
        order = torch.randperm(len(x), generator=g)
        total = 0.0
        for i in range(0, len(x) - a.batch + 1, a.batch):
            pick = order[i:i + a.batch]
            picture = augment(scaled(x[pick]), g).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = model(picture)
            loss = F.cross_entropy(logits.float(), y[pick], label_smoothing=0.1)
            opt.zero_grad(set_to_none=True)
            loss.backward()
            opt.step()
            schedule.step()
            total += loss.item() * len(pick)
        right = accuracy(model, tx, ty)
        print(f"epoch {epoch + 1}: loss {total / len(x):.4f}, test accuracy {right:.4f}, "
              f"{time.time() - start:.0f} s", flush=True)
        torch.save({"width": a.width, "weights": model.state_dict(), "classes": names,
                    "accuracy": right}, a.out)
    return 0 if right >= 0.85 else 1


if __name__ == "__main__":
    sys.exit(main())
