#!/usr/bin/env python3
"""Strings of every class, with the ids and the decoded text that Hugging Face's `tokenizers` gives.

usage: make_vectors.py TOKENIZER_JSON OUT PER_CLASS

The same seed gives the same strings. OUT: the line "hadal-vectors 1", then for each string five
records (class, bytes, ids with added tokens, ids without, decoded text), each a little-endian u32 length
and that many bytes (ids: u32 each). "Without" comes from a copy of the tokenizer that has no added tokens.
"""
import json
import random
import struct
import sys
import unicodedata

from tokenizers import Tokenizer

SCRIPT_RANGES = [
    (0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x24F), (0x370, 0x3FF), (0x400, 0x52F), (0x531, 0x58F), (0x590, 0x5F4),
    (0x600, 0x6FF), (0x700, 0x74F), (0x780, 0x7BF), (0x900, 0x97F), (0x980, 0x9FF), (0xA00, 0xA7F), (0xA80, 0xAFF),
    (0xB00, 0xB7F), (0xB80, 0xBFF), (0xC00, 0xC7F), (0xC80, 0xCFF), (0xD00, 0xD7F), (0xD80, 0xDFF), (0xE00, 0xE5B),
    (0xE80, 0xEDF), (0xF00, 0xFFF), (0x1000, 0x109F), (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1200, 0x137F),
    (0x13A0, 0x13FF), (0x1400, 0x167F), (0x16A0, 0x16FF), (0x1780, 0x17FF), (0x1800, 0x18AF), (0x1E00, 0x1EFF),
    (0x2C00, 0x2C5F), (0x3041, 0x309F), (0x30A0, 0x30FF), (0x3105, 0x312F), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
    (0xA000, 0xA4CF), (0x10000, 0x100FF), (0x10330, 0x1034F), (0x10400, 0x1044F), (0x12000, 0x123FF),
    (0x13000, 0x1342F), (0x20000, 0x2A6DF), (0x31350, 0x323AF), (0x1E900, 0x1E95F), (0x11000, 0x1107F),
    (0x16D40, 0x16D79), (0x10D40, 0x10D8F), (0x1C89, 0x1C8A), (0x105C0, 0x105F3), (0x113B0, 0x113E2),
]
EMOJI = ["😀", "👩‍👩‍👧‍👦", "👨🏽‍🚀", "🏳️‍🌈", "🇩🇪", "🇯🇵", "❤️", "☺", "✌🏿", "1️⃣", "#️⃣", "🫠", "🫨", "🩷", "🐦‍🔥", "👁️‍🗨️",
         "🧑‍💻", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "\u200d", "\ufe0f", "🏻", "🪿", "🫩"]
SPACES = [" ", "  ", "    ", "\t", "\n", "\r\n", "\r", "\n\n", "\u00a0", "\u3000", "\u2003", "\u2028", "\u2029", "\u0085",
          "\x0b", "\x0c", "\u200b", "\u180e", "\ufeff", "\x1c", "\x1f", "\u1680", "\u202f", "\u205f"]
WORDS = ("the of and to in is that it was for on are with as his they be at one have this from or had by hot but some what "
         "there we can out other were all your when up use word how said an each she which do their time if will way about "
         "many then them would write like so these her long make thing see him two has look more day could go come did my "
         "I'm don't can't we'll they've it's she'd O'Neill DON'T I'LL e.g. i.e. Mr. $5.00 3.14 50% C++ GPT-4 co-op naïve "
         "résumé über straße Ελλάδα привет мир مرحبا שלום नमस्ते สวัสดี 你好 世界 こんにちは 안녕하세요").split()
CODE = ["def f(x):\n    return x ** 2\n", "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}\n", "#include <vector>\n",
        "SELECT * FROM t WHERE a='b';", "if(x!=null&&y>=0){return;}", "</div>\n  <p class=\"x\">", "0xDEADBEEF", "lambda: _",
        "std::vector<std::pair<int,int>>", "// comment\n", "/* c */", "\"\\n\\t\"", "git commit -m 'x'", "a->b", "x?.y ?? z",
        "fn main() { println!(\"{}\", 1); }", "\\frac{a}{b}", "$$\\sum_{i=0}^n$$", "```python\n", "~/.bashrc", "{{ bos_token }}",
        "import os, sys\r\n", "@decorator\n", "http://a.b/c?d=e&f=%20#g", "x:=1", "!!important", "<<<<<<< HEAD", "=======\n"]


def chars_of(rng, categories, cache={}):
    if categories not in cache:
        cache[categories] = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF
                             and unicodedata.category(chr(c))[0] in categories]
    return rng.choice(cache[categories])


def in_range(rng, low, high):
    return chr(rng.randint(low, high))


def script_word(rng):
    low, high = rng.choice(SCRIPT_RANGES)
    return "".join(in_range(rng, low, high) for _ in range(rng.randint(1, 8)))


def scripts(rng):
    return rng.choice([" ", "", ", ", "\n"]).join(script_word(rng) for _ in range(rng.randint(1, 10)))


def emoji(rng):
    return "".join(rng.choice(EMOJI) + rng.choice(["", "", " ", "a", "!"]) for _ in range(rng.randint(1, 12)))


def code(rng):
    return "".join(rng.choice(CODE) + rng.choice(["", " ", "\n", "\n    "]) for _ in range(rng.randint(1, 8)))


def prose(rng):
    words = [rng.choice(WORDS) for _ in range(rng.randint(1, 40))]
    return rng.choice(["", " "]) + " ".join(words).capitalize() + rng.choice([".", "?", "!\n", "…", ""])


def spaces(rng):
    parts = [rng.choice(SPACES) * rng.choice([1, 1, 1, 2, 3, 7]) for _ in range(rng.randint(1, 10))]
    return "".join(p + rng.choice(["", "", "x", "9", ".", "字", "é"]) for p in parts)


def digits(rng):
    kinds = ["0123456789", "٠١٢٣٤٥٦٧٨٩", "०१२३", "①②③", "Ⅷ½¾²", "𝟘𝟙𝟚", "〇〡〢"]
    out = ""
    for _ in range(rng.randint(1, 8)):
        kind = kinds[0] if rng.random() < 0.6 else rng.choice(kinds)
        out += "".join(rng.choice(kind) for _ in range(rng.randint(1, 9))) + rng.choice(["", ".", ",", " ", "a", "-", "年", "%"])
    return out


def cjk(rng):
    parts = [lambda: in_range(rng, 0x4E00, 0x9FFF), lambda: in_range(rng, 0x3041, 0x30FF), lambda: in_range(rng, 0xAC00, 0xD7A3),
             lambda: rng.choice("，。！？、；：“”《》（）【】—…·　～"), lambda: in_range(rng, 0x3400, 0x4DBF),
             lambda: rng.choice(["GPT", "a", "2025", " ", "\n", "々", "〆", "ｶﾞ", "Ａ"]), lambda: in_range(rng, 0x20000, 0x2A6D0),
             lambda: rng.choice("的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生")]
    weights = [6, 3, 2, 2, 1, 2, 1, 8]
    return "".join(rng.choices(parts, weights)[0]() for _ in range(rng.randint(1, 40)))


def combining(rng):
    out = ""
    for _ in range(rng.randint(1, 12)):
        out += rng.choice(["a", "e", "क", "ก", " ", "", "1", ".", "字", "\n"])
        out += "".join(chars_of(rng, "M") for _ in range(rng.choice([0, 1, 1, 2, 6])))
    return out


def any_unicode(rng):
    return "".join(chr(rng.choice([*range(0x20, 0x7F)])) if rng.random() < 0.2 else
                   chr(rng.choice([rng.randint(0, 0xD7FF), rng.randint(0xE000, 0xFFFF), rng.randint(0x10000, 0x10FFFF)]))
                   for _ in range(rng.randint(1, 24)))


def assigned_unicode(rng):
    return "".join(chars_of(rng, rng.choice(["L", "N", "P", "S", "Z", "M", "C"])) for _ in range(rng.randint(1, 24)))


def punctuation(rng):
    ascii_marks = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
    pick = [lambda: rng.choice(ascii_marks), lambda: chars_of(rng, "P"), lambda: chars_of(rng, "S"),
            lambda: rng.choice(["abc", "X", "ſ", "K", "9", " ", "\n", "'s", "'LL", "'ſ", "é"])]
    return "".join(rng.choices(pick, [8, 2, 2, 4])[0]() for _ in range(rng.randint(1, 30)))


def runs(rng):
    unit = rng.choice([" ", "\n", "a", "A", "ab", "0", "的", "あ", "😀", ".", "=", "-", "\u0301", "\u200d", "\t", "é", "ก",
                       " \n", "\r\n", "💩💩", "x ", ". ", "\x00", "\u00a0", "１"])
    return rng.choice(["", "x", " "]) + unit * rng.choice([30, 49, 64, 100, 257, 700]) + rng.choice(["", "y", "\n", " "])


def added(rng, contents):
    out = ""
    for _ in range(rng.randint(1, 8)):
        token = rng.choice(contents)
        cut = rng.random()
        if cut < 0.15:
            token = token[:rng.randint(0, len(token))]
        elif cut < 0.25:
            token = token + token[rng.randint(0, len(token)):]
        out += token + rng.choice(["", " ", "hi", "\n\n", "你好", "<", "<｜", "|>"])
    return out


def ill_formed(rng):
    out = bytearray()
    for _ in range(rng.randint(1, 12)):
        kind = rng.random()
        if kind < 0.4:
            out += bytes(rng.randrange(256) for _ in range(rng.randint(1, 6)))
        elif kind < 0.6:
            out += rng.choice(["é", "字", "😀", "a"]).encode()[:rng.randint(1, 4)]
        elif kind < 0.7:
            out += rng.choice([b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xe0\x9f\xbf", b"\xf8\x88\x80\x80\x80", b"\xff"])
        else:
            out += prose(rng)[:8].encode()
    return bytes(out)


def mixed(rng):
    kinds = [scripts, emoji, code, prose, spaces, digits, cjk, combining, any_unicode, punctuation]
    return "".join(rng.choice(kinds)(rng)[:20] for _ in range(rng.randint(2, 6)))


CLASSES = dict(scripts=scripts, emoji=emoji, code=code, prose=prose, spaces=spaces, digits=digits, cjk=cjk, combining=combining,
               any_unicode=any_unicode, assigned_unicode=assigned_unicode, punctuation=punctuation, runs=runs, mixed=mixed,
               ill_formed=ill_formed, added=None)


def every_code_point():
    """All of Unicode in stretches: neighbours of one category, then each between letters and between digits."""
    cps = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
    for i in range(0, len(cps), 512):
        yield "".join(cps[i:i + 512])
    known = [c for c in cps if unicodedata.category(c) not in ("Co",) and not 0x3400 <= ord(c) <= 0x2F800]
    for i in range(0, len(known), 256):
        yield "".join("a" + c + " " + c + "." for c in known[i:i + 256])


def long_runs():
    for unit in ["a", "0", " ", "\n", "😀", "的", ".", "\u0301", "ab ", "\u200d"]:
        yield (unit * 20000)[:20000] + "z"


def main():
    path, out_path, per_class = sys.argv[1], sys.argv[2], int(sys.argv[3])
    with open(path, encoding="utf-8") as f:
        spec = json.load(f)
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    plain = Tokenizer.from_str(json.dumps(dict(spec, added_tokens=[])))
    contents = [t["content"] for t in spec["added_tokens"]]
    contents = (contents * 20)[:400] if len(contents) < 400 else contents[:40] + contents[-40:]
    rng = random.Random(20250210)
    cases = []
    for name, make in CLASSES.items():
        for _ in range(per_class):
            cases.append((name, added(rng, contents) if name == "added" else make(rng)))
    if per_class >= 1000:
        cases += [("every_code_point", s) for s in every_code_point()]
        cases += [("long_runs", s) for s in long_runs()]
    with open(out_path, "wb") as out:
        out.write(b"hadal-vectors 1\n")
        for name, text in cases:
            raw = text if isinstance(text, bytes) else text.encode()
            text = raw.decode("utf-8", errors="replace")
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            bare = plain.encode(text, add_special_tokens=False).ids
            decoded = tokenizer.decode(ids, skip_special_tokens=True).encode()
            for record in (name.encode(), raw, struct.pack("<%dI" % len(ids), *ids), struct.pack("<%dI" % len(bare), *bare),
                           decoded):
                out.write(struct.pack("<I", len(record)) + record)
    print(len(cases), "strings", file=sys.stderr)


if __name__ == "__main__":
    main()
