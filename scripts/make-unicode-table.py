#!/usr/bin/env python3
"""Writes src/text/tokenizer_unicode_table.inc: the characters that Hugging Face's `tokenizers` (Oniguruma)
classifies otherwise than Unicode 14 (PCRE2 10.42), each with a stand-in of its category and UTF-8 length.
Needs Python 3.11 (its unicodedata is Unicode 14) and the `tokenizers` package. Run by hand when either moves."""
import pathlib
import sys
import unicodedata

from tokenizers import Regex, pre_tokenizers

THREE = dict(Lu=0x1E00, Ll=0x1E01, Lm=0x1D2C, Lo=0x0E01, Mn=0x0E31, Mc=0x0903, Nd=0x0966, No=0x2460,
             Pd=0x2010, Po=0x2020, Sm=0x2200, So=0x2300, Cf=0x2060, Cn=0x2FE0)
FOUR = dict(Lu=0x10400, Ll=0x10428, Lm=0x10780, Lo=0x10000, Mn=0x10A01, Mc=0x11000, Nd=0x104A0,
            No=0x10107, Pd=0x10EAD, Po=0x10100, Sm=0x1D6C1, So=0x1D000, Cf=0x110BD, Cn=0x1FFFD)
SCRIPT = {"Han": 0x20000, "Hiragana": 0x1B001, "Katakana": 0x1B000}

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
TEXT = "".join(map(chr, CODE_POINTS))


def members(pattern):
    split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    return {ord(c) for piece, _ in split.pre_tokenize_str(TEXT) for c in piece}


def main():
    assert unicodedata.unidata_version == "14.0.0", unicodedata.unidata_version
    stand_in = {0x180E: 0x2060}  # PCRE2's \s takes MONGOLIAN VOWEL SEPARATOR, a Cf, for a space
    scripts = {s: members(r"\p{%s}+" % s) for s in SCRIPT}
    for category in FOUR:
        for c in members(r"\p{%s}+" % category):
            if unicodedata.category(chr(c)) != category:
                length = len(chr(c).encode())
                stand_in[c] = {3: THREE, 4: FOUR}[length][category]
                for script, all_of in scripts.items():
                    if c in all_of:
                        assert length == 4 and category == "Lo", hex(c)
                        stand_in[c] = SCRIPT[script]
    for c in set(THREE.values()) | set(FOUR.values()) | set(SCRIPT.values()):
        assert c not in stand_in, hex(c)
    lines, run = [], []
    for c in sorted(stand_in) + [None]:
        if run and (c != run[-1] + 1 or stand_in[c] != stand_in[run[0]]):
            lines.append("{0x%04X, 0x%04X, 0x%04X},\n" % (run[0], run[-1], stand_in[run[0]]))
            run = []
        run.append(c)
    root = pathlib.Path(__file__).resolve().parent.parent
    out = root / "src/text/tokenizer_unicode_table.inc"
    out.write_text("// Made by scripts/make-unicode-table.py: first, last, stand-in.\n" + "".join(lines))
    print(len(lines), "ranges", len(stand_in), "characters", file=sys.stderr)


if __name__ == "__main__":
    main()
