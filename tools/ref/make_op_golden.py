#!/usr/bin/env python3
"""Makes tests/golden/ops.safetensors with PyTorch: outputs and gradients of single ops.

    python tools/ref/make_op_golden.py [OUT_FILE]

Everything is computed in float64 from the float32 inputs stored, then rounded to float32. Names
are OP.CASE.OPERAND with the operands' names and layouts of backend/ops/OP.h; dy is the gradient
that arrives, dNAME the one that leaves. What a case sets beside its tensors (eps, causal ...)
stands in the file's metadata as JSON under OP.CASE.

    norm.layer, layer_affine, layer_mod, layer_mean (mean 100 times the deviation), rms, rms_affine
    attn.self, causal, causal_longer (S > T), gqa, mask (one row wholly masked), scale
    gemm.plain, bias, gelu_bias, gate_residual; act.NAME (x -4..4, y, dy, dx)
    embed.plain (ids repeat; none out of range); adamw.five, adamw.decay: five steps
    conv.patchify: a convolution of stride = kernel size, NCHW and OIHW, as patch embedding uses
"""
import json
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

G = torch.Generator().manual_seed(2024)
tensors, notes = {}, {}


def rand(*shape):
    return torch.randn(*shape, generator=G)


def record(case, inputs, call, out="y", extra=None, skip=(), **settings):
    """inputs: float32 by name; call(f64 inputs) -> output, or (output, {name: more})."""
    leaf = {k: v.double().requires_grad_() for k, v in inputs.items()}
    y = call(leaf)
    more = {}
    if isinstance(y, tuple):
        y, more = y
    dy = rand(*y.shape)
    y.backward(dy.double())
    save = dict(inputs)
    save[out], save["dy"] = y, dy
    save.update(more)
    for k, v in leaf.items():
        if k not in skip:
            assert v.grad is not None, (case, k)
            save["d" + k] = v.grad
    for k, v in save.items():
        v = v.detach()
        assert torch.isfinite(v).all() or k in ("mask", "lse"), (case, k)
        tensors[f"{case}.{k}"] = v.float().contiguous() if v.is_floating_point() else v
    if settings:
        notes[case] = json.dumps(settings)


def norm_case(case, kind, eps, names, x):
    b, m, c = x.shape
    shapes = {"weight": (c,), "bias": (c,), "scale": (b, 1, c), "shift": (b, 1, c)}
    inputs = {"x": x} | {n: rand(*shapes[n]) * 0.5 for n in names}

    def call(t):
        x = t["x"]
        if kind == "layer":
            xc = x - x.mean(-1, keepdim=True)
        else:
            xc = x
        rstd = (xc.pow(2).mean(-1, keepdim=True) + eps).rsqrt()
        y = xc * rstd
        if kind == "layer":
            assert torch.allclose(y, F.layer_norm(x, (c,), eps=eps), atol=1e-9)
        y = y * t["weight"] if "weight" in t else y
        y = y + t["bias"] if "bias" in t else y
        y = y * (1 + t["scale"]) + t["shift"] if "scale" in t else y
        return y, {"rstd": rstd}
    record(f"norm.{case}", inputs, call, kind=kind, eps=eps)


def attention(q, k, v, scale, mask=None, causal=False):
    """[B, T, H, D], [B, S, Hk, D] -> y, lse [B, H, T]; a wholly masked row gives zeros and -inf."""
    q, k, v = (a.transpose(1, 2) for a in (q, k, v))
    k, v = (a.repeat_interleave(q.shape[1] // k.shape[1], 1) for a in (k, v))
    s = scale * q @ k.transpose(2, 3)
    if mask is not None:
        s = s + mask
    if causal:
        t, n = s.shape[-2:]
        s = s.masked_fill(torch.arange(n) > torch.arange(t)[:, None] + n - t, -torch.inf)
    dead = (s == -torch.inf).all(-1, keepdim=True)
    p = torch.where(dead, 0.0, s.masked_fill(dead, 0.0).softmax(-1))
    return (p @ v).transpose(1, 2), torch.logsumexp(s, -1)


def attn_case(case, b, t, s, h, hk, d, scale=0.0, causal=False, mask=None):
    inputs = {"q": rand(b, t, h, d), "k": rand(b, s, hk, d), "v": rand(b, s, hk, d)}
    if mask is not None:
        inputs["mask"] = mask

    def call(x):
        y, lse = attention(x["q"], x["k"], x["v"], scale or d ** -0.5, mask, causal)
        return y, {"lse": lse}
    record(f"attn.{case}", inputs, call, skip=("mask",), scale=scale, causal=int(causal))


def adamw_case(case, decay):
    p = torch.nn.Parameter(rand(37).double())
    tensors[f"adamw.{case}.p"] = p.detach().float()
    p.data = p.data.float().double()
    opt = torch.optim.AdamW([p], lr=3e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=decay)
    grads, after = rand(5, 37), []
    grads[2, 5], grads[:, 6] = 0.0, 0.0
    for g in grads:
        p.grad = g.double()
        opt.step()
        after.append(p.detach().clone())
    state = opt.state[p]
    tensors[f"adamw.{case}.g"] = grads
    tensors[f"adamw.{case}.p_after"] = torch.stack(after).float()
    tensors[f"adamw.{case}.m_after"] = state["exp_avg"].float()
    tensors[f"adamw.{case}.v_after"] = state["exp_avg_sq"].float()
    notes[f"adamw.{case}"] = json.dumps(
        {"lr": 3e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": decay, "steps": 5})


def main():
    norm_case("layer", "layer", 1e-6, (), rand(2, 5, 37))
    norm_case("layer_affine", "layer", 1e-5, ("weight", "bias"), rand(2, 3, 130))
    norm_case("layer_mod", "layer", 1e-6, ("scale", "shift"), rand(2, 7, 48))
    norm_case("layer_mean", "layer", 1e-6, (), rand(1, 4, 65) + 100)
    norm_case("rms", "rms", 1e-6, (), rand(2, 3, 40))
    norm_case("rms_affine", "rms", 1e-5, ("weight",), rand(1, 6, 67))

    attn_case("self", 2, 9, 9, 2, 2, 16)
    attn_case("causal", 1, 11, 11, 3, 3, 8, causal=True)
    attn_case("causal_longer", 1, 5, 9, 2, 2, 12, causal=True)
    attn_case("gqa", 2, 7, 10, 4, 2, 20)
    mask = rand(2, 1, 6, 13)
    mask[0, 0, 2, :] = -torch.inf
    mask[1, 0, 4, 3:] = -torch.inf
    attn_case("mask", 2, 6, 13, 2, 2, 24, mask=mask)
    attn_case("scale", 1, 3, 70, 1, 1, 40, scale=0.3)

    def linear(t):
        y = t["x"] @ t["w"].T
        return y + t["bias"] if "bias" in t else y
    record("gemm.plain", {"x": rand(7, 33), "w": rand(19, 33)}, linear)
    with_bias = {"x": rand(5, 20), "w": rand(12, 20) * 0.2, "bias": rand(12)}
    record("gemm.bias", with_bias, linear)
    record("gemm.gelu_bias", with_bias, lambda t: F.gelu(linear(t), approximate="tanh"), act="gelu")
    record("gemm.gate_residual", {"x": rand(6, 10), "w": rand(8, 10), "bias": rand(8),
                                  "gate": rand(1, 8), "residual": rand(6, 8)},
           lambda t: t["residual"] + t["gate"] * linear(t))

    acts = {"silu": F.silu, "gelu": lambda x: F.gelu(x, approximate="tanh"), "gelu_erf": F.gelu,
            "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "relu": F.relu,
            "tanh": torch.tanh, "sigmoid": torch.sigmoid}
    x = torch.cat([torch.linspace(-4, 4, 40), torch.tensor([-30.0, -12.0, 12.0, 30.0])])
    for name, f in acts.items():
        record(f"act.{name}", {"x": x}, lambda t, f=f: f(t["x"]))

    ids = torch.tensor([3, 0, 3, 10, 7, 3, 0], dtype=torch.int32)
    tensors["embed.plain.ids"] = ids
    record("embed.plain", {"table": rand(11, 21)}, lambda t: F.embedding(ids.long(), t["table"]))
    adamw_case("five", 0.0)
    adamw_case("decay", 0.1)
    record("conv.patchify", {"x": rand(2, 3, 8, 8), "w": rand(10, 3, 4, 4), "bias": rand(10)},
           lambda t: F.conv2d(t["x"], t["w"], t["bias"], stride=4), stride=4)

    notes["made_by"] = "tools/ref/make_op_golden.py, PyTorch " + torch.__version__.split("+")[0]
    out = sys.argv[1] if len(sys.argv) > 1 else "tests/golden/ops.safetensors"
    save_file({k: v.clone().contiguous() for k, v in tensors.items()}, out, notes)
    print(out, len(tensors), "tensors")


if __name__ == "__main__":
    main()
