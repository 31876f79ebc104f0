#!/usr/bin/env python3
"""Writes golden.json: a small trained vocabulary, variants of how it splits text, and the ids that Hugging
Face's `tokenizers` (and, for the Kimi variant, tiktoken) gives for strings of every class. Run by hand when
a class or variant is added: needs `tokenizers` 0.23.3 and `tiktoken`."""
import base64
import json
import pathlib
import random
import struct

import make_vectors as mv
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

DEEPSEEK = [r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+",
            "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
            " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"]
KIMI = (r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
        r"\s*[\r\n]+|\s+(?!\S)|\s+")
GPT4 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
        r"\s+(?!\S)|\s+")
V2 = ["[\r\n]", "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-Ֆ]+", "\\s?[!-/:-~！-／：-～‘-‟　-。]+", "\\s+$",
      "[一-龥ࠀ-一가-퟿]+"]
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def sequence(*stages):
    return {"type": "Sequence", "pretokenizers": [*stages, BYTES]}


VARIANTS = {
    "deepseek_v3": sequence(*map(split, DEEPSEEK)),
    "deepseek_v2": sequence(*map(split, V2), {"type": "Digits", "individual_digits": True}),
    "kimi": sequence(split(KIMI)),
    "gpt4": sequence(split(GPT4)),
    "gpt2": dict(BYTES, use_regex=True),
    "digits_together": sequence({"type": "Digits", "individual_digits": False}),
    "no_split": dict(BYTES),
    "literal": sequence(split("a.", kind="String"), split("[ ]?\\d++|(?<=x)y|(?<!e)\\. ", "MergedWithNext")),
    "empty_matches": sequence(split("x*|(?=9)")),
    "removed": sequence(split(r"\s+", "Removed")),
    "removed_inverted": sequence(split(r"[\p{L}\p{^N}]", "Removed", True)),
    "previous": sequence(split(r"\p{P}", "MergedWithPrevious")),
    "previous_inverted": sequence(split(r"[^\S\n]", "MergedWithPrevious", True)),
    "next": sequence(split(r"[\s\P{L}]", "MergedWithNext")),
    "next_inverted": sequence(split(r"\p{Lu}", "MergedWithNext", True)),
    "contiguous": sequence(split(r"\p{S}|\x{61}|\u0062", "Contiguous")),
    "contiguous_inverted": sequence(split(r"(?>\w|.)?$".replace(r"\w", r"\p{L}"), "Contiguous", True)),
}
ADDED = [("<｜begin▁of▁sentence｜>", True, False, {}), ("<｜User｜>", False, True, {}), ("<think>", False, False, {}),
         ("</think>", False, True, {}), ("<think>\n", False, False, {}), ("<｜", False, True, {}),
         ("<|left|>", False, False, {"lstrip": True}), ("<|right|>", False, True, {"rstrip": True})]


def clip(text, limit=72):
    if isinstance(text, bytes):
        return text[:limit]
    return text[:limit].encode()[:limit].decode(errors="ignore").encode()


def pack(ids):
    return base64.b64encode(struct.pack("<%dH" % len(ids), *ids)).decode()


def train(rng):
    corpus = [make(rng) for make in (mv.prose, mv.code, mv.cjk, mv.emoji, mv.digits, mv.scripts, mv.spaces, mv.runs) * 150]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=760, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, max_token_length=8))
    return json.loads(tokenizer.to_str())


def tiktoken_cases(spec, rng):
    """The vocabulary as a rank file (bytes first, then in order of merges), encoded by tiktoken itself."""
    import tiktoken
    alphabet = {c: b for b, c in byte_alphabet().items()}
    tokens = sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].get)
    ranks = {bytes(alphabet[c] for c in token): i for i, token in enumerate(tokens)}
    names = {len(ranks): "[BOS]", len(ranks) + 1: "[EOS]", len(ranks) + 4: "<|im_user|>", len(ranks) + 5: "<|im_end|>"}
    special = {names.get(i, "<|reserved_token_%d|>" % i): i for i in range(len(ranks), len(ranks) + 258)}
    encoding = tiktoken.Encoding("kimi", pat_str=KIMI, mergeable_ranks=ranks, special_tokens=special)
    cases = []
    for name, make in mv.CLASSES.items():
        for _ in range(10):
            text = clip(mv.added(rng, list(special)[:8]) if name == "added" else make(rng)).decode(errors="replace")
            cases.append([name, base64.b64encode(text.encode()).decode(), pack(encoding.encode(text, allowed_special="all")),
                          pack(encoding.encode(text, disallowed_special=()))])
    lines = "".join("%s %d\n" % (base64.b64encode(b).decode(), r) for b, r in ranks.items())
    config = {"bos_token": "[BOS]", "eos_token": "[EOS]", "tokenizer_class": "TikTokenTokenizer",
              "added_tokens_decoder": {str(i): {"content": n, "special": True} for i, n in names.items()}}
    return {"ranks": lines, "config": config, "cases": cases}


def byte_alphabet():
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in keep]
    return {**{b: chr(b) for b in keep}, **{b: chr(256 + i) for i, b in enumerate(rest)}}


def main():
    rng = random.Random(7)
    spec = train(rng)
    base = len(spec["model"]["vocab"])
    spec["added_tokens"] = [dict(id=base + i, content=c, special=s, normalized=n, single_word=False,
                                 lstrip=False, rstrip=False) | extra for i, (c, s, n, extra) in enumerate(ADDED)]
    cases = []
    for variant, pre_tokenizer in VARIANTS.items():
        full = dict(spec, pre_tokenizer=pre_tokenizer)
        tokenizer = Tokenizer.from_str(json.dumps(full))
        plain = Tokenizer.from_str(json.dumps(dict(full, added_tokens=[])))
        contents = [t["content"] for t in spec["added_tokens"]]
        for name, make in mv.CLASSES.items():
            for _ in range(32 if variant == "deepseek_v3" else 3):
                raw = clip(mv.added(rng, contents) if name == "added" else make(rng))
                text = raw.decode("utf-8", errors="replace")
                ids = tokenizer.encode(text, add_special_tokens=False).ids
                bare = plain.encode(text, add_special_tokens=False).ids
                cases.append([variant, name, base64.b64encode(raw).decode(), pack(ids), pack(bare) if bare != ids else ""])
    def dump(value):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    golden = {"tokenizer": spec, "variants": VARIANTS, "tiktoken": tiktoken_cases(spec, rng)}
    out = pathlib.Path(__file__).resolve().parent / "golden.json"
    out.write_text(dump(golden)[:-1] + ',\n"cases":[\n' + ",\n".join(map(dump, cases)) + "]}\n")
    print(len(cases), "cases", out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
