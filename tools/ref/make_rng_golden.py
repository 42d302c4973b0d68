#!/usr/bin/env python3
"""Makes tests/golden/rng_torch.safetensors: numbers of PyTorch's generators.

    python tools/ref/make_rng_golden.py [OUT_FILE]

cpu.seedS.nN             torch.randn(N, generator=torch.Generator("cpu").manual_seed(S))
cpu.seedS.rand.nN        torch.rand of the same
cpu.seedS.draws          torch.randn of 3, 5, 20, 1, 17, 2 in turn from one generator, joined
cuda.seedS.nN            torch.randn(N, device="cuda") after torch.cuda.manual_seed(S)
cuda.seedS.nN.second     the N numbers of the next call

The CUDA numbers are computed here, without a GPU, from the published description: PyTorch gives
thread i its own cuRAND Philox state, curand_init(seed, subsequence i, offset), that is the 128-bit
counter (offset / 4, i) under the key `seed`; one curand_normal4 makes four normals by Box-Muller,
(sin, cos) of a pair of words, and the thread stores number j at i + j * (threads in the grid). As
long as the grid has a thread per element (256 x multiprocessors x blocks per multiprocessor, over
200,000 on large cards) only the first of the four is used. Each call moves the offset on by 4.
cuRAND's single-precision formulas are evaluated in float64 here, so allow 2e-6.
"""
import math
import sys

import numpy as np
import torch
from safetensors.numpy import save_file

LENGTHS = (1, 15, 16, 17, 1000)
SEEDS = (0, 1, 42, 2**32 + 5)


def philox(counter, key):
    """Philox 4x32-10 (Salmon et al. 2011): four 32-bit words from a counter and a key."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def cuda_randn(seed, n, call=0):
    out = np.empty(n, np.float32)
    for i in range(n):
        words = philox((call, 0, i & 0xFFFFFFFF, i >> 32), (seed & 0xFFFFFFFF, seed >> 32))
        u = words[0] * 2.0**-32 + 2.0**-33
        angle = (words[1] * 2.0**-32 + 2.0**-33) * 2 * math.pi
        out[i] = math.sqrt(-2 * math.log(u)) * math.sin(angle)
    return out


def main():
    # The published test vectors of Philox 4x32-10.
    assert philox((0, 0, 0, 0), (0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = 0xFFFFFFFF
    assert philox((ones,) * 4, (ones, ones)) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]

    d = {}
    for seed in SEEDS:
        def new():
            return torch.Generator("cpu").manual_seed(seed)
        for n in LENGTHS:
            d[f"cpu.seed{seed}.n{n}"] = torch.randn(n, generator=new()).numpy()
            d[f"cuda.seed{seed}.n{n}"] = cuda_randn(seed, n)
        d[f"cpu.seed{seed}.rand.n33"] = torch.rand(33, generator=new()).numpy()
        g = new()
        draws = [torch.randn(n, generator=g) for n in (3, 5, 20, 1, 17, 2)]
        d[f"cpu.seed{seed}.draws"] = torch.cat(draws).numpy()
        d[f"cuda.seed{seed}.n17.second"] = cuda_randn(seed, 17, call=1)
    out = sys.argv[1] if len(sys.argv) > 1 else "tests/golden/rng_torch.safetensors"
    save_file(d, out, {"made_by": "tools/ref/make_rng_golden.py, PyTorch " + torch.__version__.split("+")[0]})
    print(out, len(d), "tensors")


if __name__ == "__main__":
    main()
