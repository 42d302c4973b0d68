"""Writes tests/golden/tokens.gz: generated strings and the ids that transformers and SentencePiece
give them.

    python tools/ref/make_token_golden.py TOKENIZERS tests/golden/tokens.gz [SEED [COUNT]]

TOKENIZERS holds the folders `clip` and `t5` as the models publish them. Packages: transformers
5.23.0, tokenizers 0.23.3, sentencepiece 0.2.3.

The file (gzip; little endian): "tokens1\\n"; u32 strings; per string u32 repeats, u32 bytes, the
text that is repeated; then for CLIP, T5 (tokenizer.json) and SentencePiece (spiece.model and the
end token): u32 count, the first 64 ids as u16, and, where there are more, u64 FNV-1a of all as i32.
Ids are whole (start and end included, not cut). That cutting and padding them is what transformers
does with `truncation` and `padding` is checked here.
"""
import gzip
import random
import struct
import sys
import unicodedata

import sentencepiece
from transformers import CLIPTokenizer, T5TokenizerFast
from transformers.utils import logging

KEEP = 64
WORDS = """a an the photo of portrait painting oil watercolor digital art cinematic lighting highly
detailed 8k uhd dslr soft film grain Fujifilm XT3 cat dog astronaut riding horse Mars sunset over
mountains in style Van Gogh Picasso anime girl with blue eyes hair wearing dress standing field
flowers robot cyberpunk city neon lights rain street night bokeh f/1.8 35mm masterpiece, best
quality, ultra-detailed, (intricate:1.3) [blurry] trending on artstation don't it's they're we've
I'm you'll he'd rock'n'roll e-mail C++ http://example.com/a?b=c&d=%20 $1,234.56 50% #1 @user
ca\u00f1on na\u00efve \u00fcber stra\u00dfe \u0130stanbul \u01c5 \u1e9e \ufb01nal \u212b \u2126 co\u00f6perate""".split()
SPECIAL = ["<|startoftext|>", "<|endoftext|>", "<|STARTOFTEXT|>", "<|EndOfText|>", "</s>", "<pad>",
           "<unk>", "<extra_id_0>", "<extra_id_99>", "<extra_id_100>", "<|startoftext", "</S>",
           "\uff1c/s\uff1e", "\uff1cunk\uff1e", "<\uff5cendoftext\uff5c>", "<|endoftext|>!", "\u2581",
           "\u2581\u2581", "</w>", "a\u2581b"]
BLOCKS = [(0x20, 0x7f), (0xa0, 0x17f), (0x180, 0x24f), (0x250, 0x2ff), (0x300, 0x36f),
          (0x370, 0x3ff), (0x400, 0x52f), (0x530, 0x58f), (0x590, 0x5ff), (0x600, 0x6ff),
          (0x700, 0x8ff), (0x900, 0x97f), (0x980, 0xdff), (0xe00, 0xeff), (0xf00, 0xfff),
          (0x1000, 0x109f), (0x10a0, 0x10ff), (0x1100, 0x11ff), (0x1200, 0x139f),
          (0x13a0, 0x16ff), (0x1700, 0x18af), (0x1c80, 0x1cbf), (0x1d00, 0x1dff),
          (0x1e00, 0x1fff), (0x2000, 0x206f), (0x2070, 0x209f), (0x20a0, 0x20ff),
          (0x2100, 0x218f), (0x2190, 0x23ff), (0x2460, 0x24ff), (0x2500, 0x27ff),
          (0x2c00, 0x2dff), (0x2e80, 0x2fff), (0x3000, 0x30ff), (0x3100, 0x33ff),
          (0x3400, 0x4dbf), (0x4e00, 0x9fff), (0xa000, 0xabff), (0xac00, 0xd7ff),
          (0xe000, 0xf8ff), (0xf900, 0xfaff), (0xfb00, 0xfdff), (0xfe00, 0xffff),
          (0x10000, 0x10fff), (0x11000, 0x11fff), (0x12000, 0x1bfff), (0x1d000, 0x1dfff),
          (0x1e000, 0x1efff), (0x1f000, 0x1faff), (0x20000, 0x323af), (0xe0000, 0xe01ef),
          (0x0, 0x10ffff)]
SPACES = " \t\n\r\v\f\x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u2000\u2003\u200a\u200b\u2028\u2029" \
         "\u202f\u205f\u2060\u3000\ufeff"
EMOJI = ["\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f44d\U0001f3fd",
         "\U0001f1e9\U0001f1ea", "\u2764\ufe0f", "\u2764\ufe0f\u200d\U0001f525", "1\ufe0f\u20e3",
         "\U0001f3f4\U000e0067\U000e0062\U000e007f", "\u00a9\ufe0f", "\u2122\u200d\u00ae",
         "\U0001f9d1\u200d\U0001f680", "\u263a", "\U0001f1e6"]
MARKS = [chr(c) for c in range(0x300, 0x370)] + [chr(c) for c in range(0x1ab0, 0x1ace)] + \
        list("\u0591\u05b0\u05bc\u064b\u0651\u0670\u093c\u094d\u0e33\u0e48\u0f71\u0f72\u0f74\u3099"
             "\u309a\u20d0\ufe0f\u200d\u200c\u0600\u0903\u1a17")


class Strings:
    def __init__(self, seed, clip, t5):
        self.r = random.Random(seed)
        self.pieces = [p.replace("</w>", " ") for p in clip.get_vocab()]
        self.pieces += [p.replace("\u2581", " ") for p in t5.get_vocab()]
        self.pieces.sort()
        self.compatible = [chr(c) for c in range(0x110000) if not 0xd800 <= c < 0xe000
                           and unicodedata.normalize("NFKC", chr(c)) != chr(c)]
        self.composed = [c for c in self.compatible if unicodedata.decomposition(c)[:1] != "<"]
        self.composed += [chr(c) for c in range(0xc0, 0x2000)
                          if unicodedata.normalize("NFD", chr(c)) != chr(c)]

    def code(self):
        while True:
            c = self.r.randint(*self.r.choice(BLOCKS))
            if not 0xd800 <= c < 0xe000:
                return chr(c)

    def many(self, make, most):
        return "".join(make() for _ in range(self.r.randint(0, most)))

    def words(self):
        r = self.r
        parts = [r.choice(WORDS) for _ in range(r.randint(1, 24))]
        parts = [r.choice([p, p, p, p.upper(), p.title()]) for p in parts]
        return r.choice([" ", " ", " ", "  ", ", ", "\n", ""]).join(parts) + r.choice(["", ".", "!!!"])

    def block(self):
        low, high = self.r.choice(BLOCKS)
        def make():
            c = self.r.randint(low, high)
            return " " if self.r.random() < 0.12 or 0xd800 <= c < 0xe000 else chr(c)
        return self.many(make, 30)

    def marks(self):
        r = self.r
        return self.many(lambda: (r.choice("aeiouAEIOUcnsyzqK\u03b1\u0438\u0915\u0e01\ufb01\u00aa ")
                                  if r.random() < 0.5 else self.code())
                         + self.many(lambda: r.choice(MARKS), 4), 10)

    def compat(self):
        r = self.r
        def make():
            c = r.choice(r.choice([self.compatible, self.composed]))
            form = r.choice(["NFC", "NFD", "NFKD", None])
            return unicodedata.normalize(form, c) if form else c + self.many(
                lambda: r.choice(MARKS), 2)
        return self.many(make, 16)

    def jamo(self):
        r = self.r
        return self.many(lambda: chr(r.choice([r.randint(0x1100, 0x1112), r.randint(0x1161, 0x1175),
                                               r.randint(0x11a7, 0x11c2), r.randint(0xac00, 0xd7a3),
                                               r.randint(0x1100, 0x11ff), 0x20])), 20)

    def joined(self):
        return self.many(lambda: self.r.choice(self.pieces), 14)

    def letters(self):  # few letters: many cuts of the same or nearly the same score
        r = self.r
        some = r.sample("abcdefghijklmnopqrstuvwxyz '-.,0123456789", r.randint(1, 5))
        return self.many(lambda: r.choice(some), 60)

    def special(self):
        r = self.r
        return self.many(lambda: r.choice([r.choice(SPECIAL), r.choice(SPECIAL), r.choice(WORDS),
                                           r.choice(SPACES), self.code()]), 10)

    def spaces(self):
        r = self.r
        return self.many(lambda: r.choice([r.choice(SPACES), r.choice(WORDS)]), 16)

    def emoji(self):
        r = self.r
        return self.many(lambda: r.choice([r.choice(EMOJI), r.choice(EMOJI), " ", r.choice(WORDS),
                                           r.choice(MARKS)]), 12)

    def controls(self):
        r = self.r
        return self.many(lambda: r.choice([chr(r.randint(0, 31)), chr(r.randint(127, 160)),
                                           r.choice(WORDS), "\r\n", "\0"]), 14)

    def any(self):
        return self.many(self.code, 40)

    def one(self):
        return self.r.choice([self.words, self.words, self.words, self.block, self.block,
                              self.block, self.marks, self.compat, self.jamo, self.joined,
                              self.letters, self.special, self.spaces, self.emoji, self.controls,
                              self.any])()

    def make(self, count):
        """(repeats, text): short ones, every hundredth a few hundred times, some very long."""
        fixed = ["", " ", "\0", "a", "A", "'", "'s", "\u2581", "<|endoftext|>", "</s>",
                 "a photo of a cat", "\ufeff", "\r\n", "\u0301", "\u1100\u1161\u11a8"]
        out = [(1, s) for s in fixed]
        out += [(20000, "a"), (20000, "a "), (5000, "\u65e5\u672c"), (8000, "\u0301\u0316"),
                (4000, "\U0001f468\u200d"), (100000, " "), (3000, "<|endoftext|>"), (20000, "'"),
                (9000, "ab"), (9000, "\u1112\u1161\u11ab"), (20000, "1"), (7000, "\u2603")]
        while len(out) < count:
            out.append((self.r.randint(50, 300) if len(out) % 100 == 0 else 1, self.one()))
        return out[:count]


def fnv(data):
    h = 0xcbf29ce484222325
    for b in data:
        h = (h ^ b) * 0x100000001b3 & 0xffffffffffffffff
    return h


def cut(ids, start, end, pad, most):
    room = most - start - 1
    kept = ids[:start] + ids[start:-1][:room] + [end]
    return kept + [pad] * (most - len(kept))


def main():
    logging.set_verbosity_error()
    folder, path = sys.argv[1:3]
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    count = int(sys.argv[4]) if len(sys.argv) > 4 else 10000
    clip = CLIPTokenizer.from_pretrained(folder + "/clip")
    t5 = T5TokenizerFast.from_pretrained(folder + "/t5")
    spiece = sentencepiece.SentencePieceProcessor(model_file=folder + "/t5/spiece.model")
    records = Strings(seed, clip, t5).make(count)
    data, total = b"tokens1\n" + struct.pack("<I", len(records)), 0
    for repeats, unit in records:
        text = unit * repeats
        lists = [clip(text).input_ids, t5(text).input_ids, spiece.encode(text) + [1]]
        for tok, ids, start, most in ((clip, lists[0], 1, 77), (t5, lists[1], 0, 256)):
            got = tok(text, max_length=most, padding="max_length", truncation=True).input_ids
            assert got == cut(ids, start, tok.eos_token_id, tok.pad_token_id, most)
        raw = unit.encode()
        data += struct.pack("<II", repeats, len(raw)) + raw
        for ids in lists:
            total += len(ids)
            data += struct.pack("<I", len(ids))
            data += struct.pack(f"<{len(ids[:KEEP])}H", *ids[:KEEP])
            if len(ids) > KEEP:
                data += struct.pack("<Q", fnv(struct.pack(f"<{len(ids)}i", *ids)))
    packed = gzip.compress(data, 9, mtime=0)
    open(path, "wb").write(packed)
    print(f"{len(records)} strings, {total} ids, {len(data)} bytes, {len(packed)} compressed")


main()
