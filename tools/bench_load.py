#!/usr/bin/env python3
"""Loading weights, held to the disk: makes FLUX-shaped files of weights, then reads each in turn with
dd and with `kiln bench --load`, from a cold page cache (root may drop it), and prints the medians, the
ratio of the rates, and the host's peak memory beside the file's size.

    tools/bench_load.py build/kiln [--dir /tmp] [--gb 1.5] [--rounds 5] [--device cpu] [--keep]

Needs Python 3.8 and dd, nothing else."""
import argparse, json, os, statistics, struct, subprocess, sys, time

WIDTH, HIDDEN = 3072, 12288
SINGLE = [("linear1.weight", (3 * WIDTH + HIDDEN, WIDTH)), ("linear1.bias", (3 * WIDTH + HIDDEN,)),
          ("linear2.weight", (WIDTH, WIDTH + HIDDEN)), ("linear2.bias", (WIDTH,)),
          ("norm.query_norm.scale", (128,)), ("norm.key_norm.scale", (128,))]


def tensors(limit, size_of):
    """Names and shapes of single blocks of FLUX.1, as many as make `limit` bytes."""
    total, block, out = 0, 0, []
    while total < limit:
        for name, shape in SINGLE:
            out.append((f"single_blocks.{block}.{name}", shape))
            total += size_of(shape)
        block += 1
    return sorted(out)


def count(shape):
    n = 1
    for d in shape:
        n *= d
    return n


def fill(f, total, noise):
    """Bytes that no disk compresses; exponents stay small: every byte pair is a finite bf16."""
    while total > 0:
        part = noise[: min(total, len(noise))]
        f.write(part)
        total -= len(part)


def make_noise():
    raw = bytearray(os.urandom(16 << 20))
    raw[1::2] = bytes(0x3c | (b & 0x80) for b in raw[1::2])
    return bytes(raw)


def write_safetensors(path, limit, noise):
    size = lambda shape: 2 * count(shape)
    header, at = {}, 0
    for name, shape in tensors(limit, size):
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size(shape)]}
        at += size(shape)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        fill(f, at, noise)


def write_gguf(path, limit, noise):
    """Q8_0 matrices, F32 vectors."""
    size = lambda shape: count(shape) // 32 * 34 if len(shape) > 1 else 4 * count(shape)
    string = lambda s: struct.pack("<Q", len(s)) + s.encode()
    list_, infos, at = tensors(limit, size), b"", 0
    for name, shape in list_:
        infos += string(name) + struct.pack("<I", len(shape))
        infos += b"".join(struct.pack("<Q", d) for d in reversed(shape))
        infos += struct.pack("<IQ", 8 if len(shape) > 1 else 0, at)
        at += size(shape) + -size(shape) % 32
    head = b"GGUF" + struct.pack("<IQQ", 3, len(list_), 1)
    head += string("general.architecture") + struct.pack("<I", 8) + string("flux") + infos
    head += b"\0" * (-len(head) % 32)
    with open(path, "wb") as f:
        f.write(head)
        fill(f, at, noise)


def drop_caches():
    try:
        os.sync()
        with open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("3\n")
        return True
    except OSError:
        return False


def disk_rate(path):
    start = time.monotonic()
    subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=16M"], check=True, stderr=subprocess.DEVNULL)
    return os.path.getsize(path) / (time.monotonic() - start)


def run(kiln, path, *more):
    """The object that kiln prints, and the peak of its resident memory in bytes."""
    p = subprocess.Popen([kiln, "bench", "--load", path, "--json", *more], stdout=subprocess.PIPE)
    text = p.stdout.read()
    _, status, usage = os.wait4(p.pid, 0)
    if status:
        sys.exit(f"kiln failed on {path}")
    return json.loads(text), usage.ru_maxrss * 1024


def measure(a, path, label, base, *more):
    rates, loads, over = [], [], []
    for _ in range(a.rounds):
        drop_caches()
        rates.append(disk_rate(path))
        drop_caches()
        out, rss = run(a.kiln, path, "--device", a.device, *more)
        seconds = out["seconds_per_pass"] if out["moved_bytes_per_pass"] else out["seconds"]
        moved = out["moved_bytes_per_pass"] or out["resident_bytes"]
        share = moved / (out["resident_bytes"] + out["streamed_bytes"])
        loads.append(out["stored_bytes"] * share / seconds)
        over.append(rss)
    disk, load = statistics.median(rates), statistics.median(loads)
    size, peak, dev = os.path.getsize(path), max(over), out["device_peak_bytes"]
    print(f"{label:34} disk {disk / 1e9:5.2f} GB/s, load {load / 1e9:5.2f} GB/s, ratio {load / disk:4.2f}; "
          f"file {size >> 20} MiB, device {dev >> 20} MiB, peak of the process {peak >> 20} MiB "
          f"({(peak - base) / size:4.2f} of the file, {(peak - base - dev) / size:+5.3f} beside the device)",
          flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("kiln")
    p.add_argument("--dir", default="/tmp")
    p.add_argument("--gb", type=float, default=1.5)
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--device", default="cpu")
    p.add_argument("--keep", action="store_true", help="leave the files for another run")
    a = p.parse_args()
    if not drop_caches():
        print("not root: the page cache stays warm, so the disk is not measured")
    noise, limit = make_noise(), int(a.gb * 1e9)
    small, st, gguf = (os.path.join(a.dir, "kiln-bench-load" + end)
                       for end in ("-small.safetensors", ".safetensors", ".gguf"))
    write_safetensors(small, 1, noise[:1 << 20])
    for path, write in ((st, write_safetensors), (gguf, write_gguf)):
        if not (a.keep and os.path.exists(path)):
            write(path, limit, noise)
    # What the program takes without a model: of a file with a single block, less that block.
    out, rss = run(a.kiln, small, "--device", a.device)
    base = rss - out["device_peak_bytes"]
    print(f"{a.device}: the program without a model {base >> 20} MiB")
    measure(a, st, "safetensors bf16", base)
    measure(a, gguf, "gguf q8_0", base)
    measure(a, st, "safetensors bf16 as f32", base, "--weights", "f32")
    measure(a, gguf, "gguf q8_0 as bf16", base, "--weights", "bf16")
    for to in ("fp8", "q8_0", "q4_k"):
        measure(a, st, f"safetensors bf16 as {to}", base, "--weights", to)
    measure(a, st, "safetensors bf16, --vram 900M", base, "--vram", "900M")
    for path in [small] + ([] if a.keep else [st, gguf]):
        os.remove(path)


main()
