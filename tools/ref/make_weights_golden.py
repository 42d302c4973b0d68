#!/usr/bin/env python3
"""Makes tests/golden/weights/: weight files as other programs write them, and what they hold.

    python tools/ref/make_weights_golden.py [OUT_DIR]        (needs gguf, torch, safetensors, numpy)

    quant.safetensors  per block type: TYPE.blocks, random bytes (U8) with finite scales, TYPE.values,
                       what the gguf package decodes them to; for the types that it encodes: x (f32),
                       TYPE.encoded. fp8: TYPE.values of all 256 bytes, as PyTorch reads them
    tensors.gguf       written by the gguf package: several types, metadata of all kinds
    tensors.pt         written by torch.save: a state_dict in a training checkpoint; a transposed view,
                       a parameter, tied tensors, a slice, a single number, fp8
    expected.safetensors  gguf.NAME and pt.NAME: the tensors of both as f32
    hostile.pt         a pickle that would run a command, in an archive like PyTorch's
"""
import io
import os
import pickle
import sys
import zipfile
from collections import OrderedDict

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as T
from gguf import quants
from safetensors.numpy import save_file

OUT = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(__file__), "../../tests/golden/weights")
BLOCKS = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs"]
# Where the f16 scales of a block stand.
SCALES = {"q4_1": [0, 2], "q5_1": [0, 2], "q2_k": [80, 82], "q3_k": [108], "q4_k": [0, 2], "q5_k": [0, 2], "q6_k": [208]}
rng = np.random.default_rng(7)


def quant():
    t = {}
    x = (rng.standard_normal(1024) * 0.03).astype(np.float32)
    x[:32] = 0
    x[40] = 1.5
    x[64:96] = np.abs(x[64:96])
    x[96:128] = 0.25
    t["x"] = x
    for name in BLOCKS:
        q = T[name.upper()]
        n, size = gguf.GGML_QUANT_SIZES[q]
        blocks = rng.integers(0, 256, (1024 // n, size), dtype=np.uint8)
        for at in SCALES.get(name, [0]):
            scale = (rng.standard_normal(len(blocks)) * 0.01).astype(np.float16)
            scale[:2] = [6e-8, 65504 / 256]  # the smallest f16, and a large one
            blocks[:, at:at + 2] = scale.view(np.uint8).reshape(-1, 2)
        t[name + ".blocks"] = blocks.reshape(-1)
        t[name + ".values"] = quants.dequantize(blocks.reshape(-1), q).astype(np.float32)
        try:
            t[name + ".encoded"] = quants.quantize(x.reshape(-1, n), q).reshape(-1).view(np.uint8)
        except NotImplementedError:
            pass
    every = torch.arange(256, dtype=torch.int16).to(torch.uint8)
    t["fp8_e4m3.values"] = every.view(torch.float8_e4m3fn).float().numpy()
    t["fp8_e5m2.values"] = every.view(torch.float8_e5m2).float().numpy()
    save_file(t, f"{OUT}/quant.safetensors")


def gguf_file(expected):
    w = gguf.GGUFWriter(f"{OUT}/tensors.gguf", "flux")
    w.add_string("general.name", "a name with ümlauts")
    w.add_uint32("test.u32", 4000000000)
    w.add_int64("test.i64", -5)
    w.add_float32("test.f32", 0.5)
    w.add_float64("test.f64", 0.1)
    w.add_bool("test.bool", True)
    w.add_uint8("test.u8", 200)
    w.add_array("test.array", [1, 2, 3])
    w.add_array("test.texts", ["one", "two"])
    w.add_array("test.long", list(range(40)))
    for name, shape, q in [("vector", (70,), T.F32), ("half", (3, 5), T.F16), ("brain", (4, 6), T.BF16),
                           ("conv", (2, 3, 3, 3), T.F16), ("m.q8_0", (3, 64), T.Q8_0), ("m.q4_0", (2, 96), T.Q4_0),
                           ("m.q5_1", (2, 3, 32), T.Q5_1)]:
        x = rng.standard_normal(shape).astype(np.float32)
        data = x if q == T.F32 else x.astype(np.float16) if q == T.F16 else quants.quantize(x, q)
        w.add_tensor(name, data, raw_dtype=q)
        expected["gguf." + name] = np.ascontiguousarray(quants.dequantize(data, q).astype(np.float32).reshape(shape))
    k = rng.integers(0, 100, (2, 144 * 2), dtype=np.uint8)
    w.add_tensor("m.q4_k", k, raw_dtype=T.Q4_K)
    expected["gguf.m.q4_k"] = quants.dequantize(k, T.Q4_K).astype(np.float32)
    w.add_tensor("numbers", np.arange(5, dtype=np.int32))
    expected["gguf.numbers"] = np.arange(5, dtype=np.float32)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def pt_file(expected):
    g = torch.Generator().manual_seed(1)
    base = torch.randn(6, 4, generator=g)
    tied = torch.randn(3, 2, generator=g).bfloat16()
    d = OrderedDict()
    d["a.weight"] = base
    d["a.transposed"] = base.t()
    d["a.slice"] = base[1:4, 1:3]
    d["b.parameter"] = torch.nn.Parameter(torch.randn(5, generator=g).half())
    d["b.tied"] = tied
    d["b.tied_too"] = tied
    d["b.scalar"] = torch.tensor(2.5, dtype=torch.float64)
    d["b.channels_last"] = torch.randn(2, 3, 2, 2, generator=g).contiguous(memory_format=torch.channels_last)
    d["c.fp8"] = torch.randn(2, 4, generator=g).to(torch.float8_e4m3fn)
    d["c.ids"] = torch.arange(7)
    d["c.flags"] = torch.tensor([True, False, True])
    d["c.none"] = torch.zeros(0, 3)
    torch.save({"state_dict": d, "epoch": 3, "lr": 0.001, "shape": torch.Size([1, 2]), "names": ["x", None],
                "nested": {"more": {"y": 1}}}, f"{OUT}/tensors.pt")
    for name, t in d.items():
        expected["pt." + name] = t.detach().float().contiguous().numpy()


def hostile():
    class Run:
        def __reduce__(self):
            return (os.system, ("touch /tmp/kiln-was-here",))

    data = io.BytesIO()
    pickle.Pickler(data, protocol=2).dump({"weight": Run()})
    with zipfile.ZipFile(f"{OUT}/hostile.pt", "w", zipfile.ZIP_STORED) as z:
        z.writestr(zipfile.ZipInfo("archive/data.pkl"), data.getvalue())
        z.writestr(zipfile.ZipInfo("archive/version"), "3\n")


os.makedirs(OUT, exist_ok=True)
expected = {}
quant()
gguf_file(expected)
pt_file(expected)
hostile()
save_file(expected, f"{OUT}/expected.safetensors")
