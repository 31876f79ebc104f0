"""Worker processes that draw documents and pack them into steps of a fixed number of tokens."""
import pathlib
import random

import numpy as np

from families import FAMILIES, TRAIN_ONLY
from render import encode
from words import Source

TOKENS = 65536
LONGEST = 4096
# Share of a step's tokens, early and late in training; look-up lists are long and carry few answers.
MIX = {"add": 4, "sub": 6, "mul": 15, "mixed": 19, "compare": 2, "sort": 7, "reverse": 5, "count": 4, "spell": 3, "lookup_1k": 2,
       "lookup_2k": 1.5, "lookup_4k": 1.5, "lookup_dense_1k": 7, "lookup_dense_2k": 5, "lookup_dense_4k": 6, "multi_turn": 6, "tool": 2,
       "tool_result": 1, "json": 3, "self_en": 1.5, "self_zh": 1.5, "greet": 0.6, "oos": 1, "title": 1.2}
# The short last stage (polish.py): more of JSON and short look-ups, which learn last, and of what silent experts break first.
POLISH_MIX = MIX | {"json": 15, "lookup_1k": 7, "lookup_dense_1k": 15, "lookup_dense_2k": 4, "lookup_dense_4k": 4, "mul": 7, "mixed": 9,
                    "sub": 3, "add": 2, "sort": 10, "reverse": 8, "multi_turn": 5, "tool": 4, "tool_result": 1.5}


def pack(rng, draw_document):
    """Arrays of TOKENS entries: ids, targets one and two ahead with their masks, positions; and document starts."""
    ids = np.full(TOKENS, 2, np.int64)
    arrays = {k: np.zeros(TOKENS, np.int64) for k in ("t1", "m1", "t2", "m2", "pos")}
    starts, at = [0], 0
    while TOKENS - at > 64:
        doc, mask = draw_document()
        room = TOKENS - at
        if len(doc) > LONGEST:
            continue
        if len(doc) > room:
            if room > 600:
                continue
            doc, mask = doc[:room], mask[:room]
        n = len(doc)
        d, m = np.asarray(doc), np.asarray(mask)
        ids[at:at + n] = d
        arrays["pos"][at:at + n] = np.arange(n)
        arrays["t1"][at:at + n - 1], arrays["m1"][at:at + n - 1] = d[1:], m[1:]
        arrays["t2"][at:at + n - 2], arrays["m2"][at:at + n - 2] = d[2:], m[2:]
        at += n
        starts.append(at)
    if at < TOKENS:
        arrays["pos"][at:] = np.arange(TOKENS - at)
        starts.append(TOKENS)
    return {"ids": ids.astype(np.int16), **{k: v.astype(np.int16) for k, v in arrays.items()}, "cu": np.asarray(starts, np.int32)}


def worker(seed, out_queue, directory, mix):
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(pathlib.Path(directory) / "tokenizer.json"))
    rng = random.Random(seed)
    source = Source(rng, held_out=False)
    draws = {**FAMILIES, **TRAIN_ONLY}
    names = list(mix)
    mean = {}
    for name in names:
        lengths = [len(encode(tokenizer, draws[name](source), rng)[0]) for _ in range(12)]
        mean[name] = sum(lengths) / len(lengths)
    weights = [mix[n] / mean[n] for n in names]

    def document():
        name = rng.choices(names, weights)[0]
        return encode(tokenizer, draws[name](source), rng)
    while True:
        out_queue.put(pack(rng, document))
