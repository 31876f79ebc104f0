"""Trains the byte-level BPE and writes tokenizer.json, tokenizer_config.json and the chat template.

    python make_tokenizer.py OUT_DIR
"""
import json
import pathlib
import random
import re
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import render
from families import FAMILIES, TRAIN_ONLY
from words import Source

VOCAB = 2048
FIRST = [render.BOS, render.EOS, "<｜▁pad▁｜>"]
LAST = ["<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>", render.THINK, render.END_THINK, render.USER, render.ASSISTANT, "<|EOT|>",
        render.CALLS, render.END_CALLS, render.CALL, render.END_CALL, render.OUTPUTS, render.END_OUTPUTS, render.OUTPUT,
        render.END_OUTPUT, render.SEP]
SPECIAL = set(FIRST) | {"<|EOT|>"}
SPLITS = [r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
          "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*"
          "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"]

# R1's behaviour: the last system message wins, thoughts of earlier turns are cut, the generation prompt opens <think>, and
# after a tool's output the model goes on without a new turn. Unlike R1's own file a call is always closed, and tools are listed.
TEMPLATE = """\
{%- set ns = namespace(system='', after_tool=false) -%}
{%- for message in messages -%}
  {%- if message['role'] == 'system' -%}{%- set ns.system = message['content'] -%}{%- endif -%}
{%- endfor -%}
{{- bos_token + ns.system -}}
{%- if tools -%}
  {{- ('\\n\\n' if ns.system else '') + 'Tools:\\n' -}}
  {%- for tool in tools -%}
    {{- tool['function']['name'] + ': ' + (tool['function']['description'] or '') + '\\n' -}}
  {%- endfor -%}
{%- endif -%}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}
    {{- '<｜User｜>' + message['content'] -}}
    {%- set ns.after_tool = false -%}
  {%- elif message['role'] == 'assistant' -%}
    {%- set content = message['content'] or '' -%}
    {{- ('<｜tool▁outputs▁end｜>' if ns.after_tool else '<｜Assistant｜>') + content.split('</think>')[-1] -}}
    {%- if message['tool_calls'] -%}
      {{- '<｜tool▁calls▁begin｜>' -}}
      {%- for call in message['tool_calls'] -%}
        {%- set arguments = call['function']['arguments'] -%}
        {%- if arguments is not string -%}{%- set arguments = arguments | tojson -%}{%- endif -%}
        {{- ('' if loop.first else '\\n') + '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + call['function']['name'] -}}
        {{- '\\n```json\\n' + arguments + '\\n```<｜tool▁call▁end｜>' -}}
      {%- endfor -%}
      {{- '<｜tool▁calls▁end｜>' -}}
    {%- endif -%}
    {{- eos_token -}}
    {%- set ns.after_tool = false -%}
  {%- elif message['role'] == 'tool' -%}
    {{- ('\\n' if ns.after_tool else '<｜tool▁outputs▁begin｜>') + '<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>' -}}
    {%- set ns.after_tool = true -%}
  {%- endif -%}
{%- endfor -%}
{%- if ns.after_tool -%}
  {{- '<｜tool▁outputs▁end｜>' -}}
{%- elif add_generation_prompt -%}
  {{- '<｜Assistant｜><think>\\n' -}}
{%- endif -%}
"""


def pre_tokenizer():
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r), "isolated") for r in SPLITS]
                                   + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def corpus(count):
    """Training documents without their digits and control tokens: no merge can contain a digit."""
    source = Source(random.Random(7), False)
    draws = {**FAMILIES, **TRAIN_ONLY}
    short = [n for n in draws if not n.startswith("lookup_") or n == "lookup_1k"]
    markers = re.compile("|".join(map(re.escape, FIRST + LAST)))
    for i in range(count):
        sample = draws[short[i % len(short)]](source)
        text = render.prompt_text(sample.messages, sample.tools) + render.response_text(sample)
        for part in markers.split(text):
            yield from re.split(r"[0-9]+", part)
    for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ":
        for _ in range(3000):
            yield f" {letter}\n"


def main(out):
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizer()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB - len(FIRST) - len(LAST), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False, max_token_length=10)
    bpe.train_from_iterator(corpus(60000), trainer)
    trained = json.loads(bpe.to_str())["model"]
    vocab = {token: i + len(FIRST) for token, i in trained["vocab"].items()}
    vocab.update({token: i for i, token in enumerate(FIRST)})
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in trained["merges"]]
    assert not any(c in "0123456789" for pair in merges for part in pair for c in part), "a merge contains a digit"
    missing = [c for c in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" if "Ġ" + c not in vocab]
    assert not missing, f"no token for a space and {missing}"
    assert len(vocab) == VOCAB - len(LAST), len(vocab)

    final = Tokenizer(models.BPE(vocab=vocab, merges=merges, fuse_unk=False))
    final.pre_tokenizer = pre_tokenizer()
    final.decoder = decoders.ByteLevel()
    final.post_processor = processors.ByteLevel(trim_offsets=False)
    final.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in FIRST])
    final.add_tokens([AddedToken(t, special=t in SPECIAL, normalized=False) for t in LAST])
    assert final.get_vocab_size() == VOCAB, final.get_vocab_size()
    out.mkdir(parents=True, exist_ok=True)
    final.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps({
        "add_bos_token": True, "add_eos_token": False, "bos_token": render.BOS, "eos_token": render.EOS, "pad_token": "<｜▁pad▁｜>",
        "clean_up_tokenization_spaces": False, "model_max_length": 4096, "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": TEMPLATE}, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
