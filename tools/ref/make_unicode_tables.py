"""Writes engine/data/unicode.gz: what the tokenizers must know of Unicode.

    python tools/ref/make_unicode_tables.py engine/data/unicode.gz

The truth is what the `tokenizers` package (0.23.3) does, not the newest Unicode: its parts follow
different versions. Letters, numbers, white space and lower case are asked of it, character by
character; decompositions and combining classes are Python's unicodedata, less what the package
does not know yet; grapheme properties are the `regex` package's. What is taken from elsewhere is
checked against the package here, so a new version of it cannot go unnoticed.

The file (gzip; little endian):
  3 run lists (class, combining class, grapheme property): u32 count, then per run u32 first code
    point, u8 value; the first run starts at 0, each reaches to the next;
  2 maps (lower case, full canonical decomposition): u32 count, then u32 from, u8 n, u32 to[n];
  1 list of compositions: u32 count, then u32 first, u32 second, u32 composed, sorted.
class: 1 letter, 2 number, 4 white space.  Grapheme properties: PROPERTY below, in order from 1.
"""
import gzip
import struct
import sys
import unicodedata

import regex
from tokenizers import Regex, normalizers, pre_tokenizers

PROPERTY = ["CR", "LF", "Control", "Extend", "ZWJ", "Regional_Indicator", "Prepend", "SpacingMark",
            "L", "V", "T", "LV", "LVT"]  # from 1; then Extended_Pictographic, as the last
POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
# Marks that the `regex` package knows and `tokenizers` does not yet: found with 2- and 3-byte
# characters behind U+00AA, which T5's character map swallows whole with what extends it. Longer
# ones never matter: clusters of 6 bytes are taken apart anyway.
NEWER = {0x5c8, 0x5c9, 0xb53, 0xb54, 0x1ade, 0x1adf, *range(0x1aec, 0x1af1)}
HANGUL = range(0xAC00, 0xAC00 + 11172)  # composed by arithmetic


def matching(pattern):
    remove = normalizers.Replace(Regex(pattern), "")
    return {c for c in POINTS if remove.normalize_str(chr(c)) == ""}


def runs(values):
    """values: {code point: value}; all others 0."""
    out, last = [(0, 0)], 0
    for c in range(0x110000):
        v = values.get(c, 0)
        if v != last:
            out.append((c, v))
            last = v
    if out[1:] and out[1][0] == 0:
        out = out[1:]
    return struct.pack("<I", len(out)) + b"".join(struct.pack("<IB", *r) for r in out)


def mapping(values):
    out = struct.pack("<I", len(values))
    for c, text in sorted(values.items()):
        out += struct.pack("<IB", c, len(text)) + b"".join(struct.pack("<I", ord(x)) for x in text)
    return out


def combining(nfd):
    """Canonical combining classes as the package sees them: unknown marks do not move."""
    values = {}
    for c in POINTS:
        own = unicodedata.combining(chr(c))
        moves = False
        for mark in "\u0334\u0316\u0301\u0345\u0359":
            if unicodedata.combining(mark) != own:
                for text in ("\u2603" + mark + chr(c), "\u2603" + chr(c) + mark):
                    moves = moves or nfd.normalize_str(text) != text
        if own and moves:
            values[c] = own
        elif own:
            print(f"combining class of {c:#x} taken as 0 (unicodedata: {own})")
    return values


def main():
    nfd, nfc, lower = normalizers.NFD(), normalizers.NFC(), normalizers.Lowercase()
    kind = {}
    space = matching(r"\s")
    split = pre_tokenizers.WhitespaceSplit()
    assert space == {c for c in POINTS if not split.pre_tokenize_str(chr(c))}
    for bit, members in ((1, matching(r"\p{L}")), (2, matching(r"\p{N}")), (4, space)):
        for c in members:
            kind[c] = kind.get(c, 0) | bit

    lowered = {c: lower.normalize_str(chr(c)) for c in POINTS}
    lowered = {c: t for c, t in lowered.items() if t != chr(c)}
    full = {c: nfd.normalize_str(chr(c)) for c in POINTS if c not in HANGUL}
    full = {c: t for c, t in full.items() if t != chr(c)}
    pairs = []
    for c in full:
        parts = unicodedata.decomposition(chr(c)).split()
        if len(parts) == 2 and nfc.normalize_str(chr(c)) == chr(c):
            a, b = (int(p, 16) for p in parts)
            assert nfc.normalize_str(chr(a) + chr(b)) == chr(c)
            pairs.append((a, b, c))
    classes = combining(nfd)

    grapheme = {}
    for c in POINTS:
        ch = chr(c)
        if c in NEWER:
            continue
        for i, name in enumerate(PROPERTY):
            if regex.match(rf"\p{{GCB={name}}}", ch):
                grapheme[c] = i + 1
        if c not in grapheme and regex.match(r"\p{Extended_Pictographic}", ch):
            grapheme[c] = len(PROPERTY) + 1

    data = runs(kind) + runs(classes) + runs(grapheme) + mapping(lowered) + mapping(full)
    data += struct.pack("<I", len(pairs)) + b"".join(struct.pack("<III", *p) for p in sorted(pairs))
    packed = gzip.compress(data, 9, mtime=0)
    open(sys.argv[1], "wb").write(packed)
    print(f"{len(data)} bytes, {len(packed)} compressed; {len(pairs)} pairs, {len(classes)} marks")


main()
