#!/usr/bin/env python3
"""Prints the numbers that tests/test_optim.c holds: torch.amp.GradScaler's scale after each of a list
of good and bad steps, and torch.optim.AdamW in float64 with a warm-up of three steps."""
import torch

bad_steps = [0, 0, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0]
p = torch.nn.Parameter(torch.zeros(1))
sgd = torch.optim.SGD([p], lr=0.0)


def scales(scaler, steps):
    for bad in steps:
        sgd.zero_grad()
        scaler.scale(p.sum() * (float("inf") if bad else 1.0)).backward()
        scaler.step(sgd)
        scaler.update()
        yield scaler.get_scale()


print(list(scales(torch.amp.GradScaler("cpu", init_scale=65536.0, growth_interval=3), bad_steps)))
print(list(scales(torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1), [0, 0])))

w = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64, requires_grad=True)
adamw = torch.optim.AdamW([w], lr=3e-2, weight_decay=0.1)
gradients = [[0.5, -1.0, 0.25, 2.0], [0.125, 1.0, -0.5, -2.0], [-1.0, 0.0, 0.75, 1.0], [0.25, 0.5, 0.5, 0.5]]
for k, g in enumerate(gradients):
    w.grad = torch.tensor(g, dtype=torch.float64)
    adamw.param_groups[0]["lr"] = 3e-2 * min(1, (k + 1) / 3)
    adamw.step()
    print([round(x, 9) for x in w.tolist()])
