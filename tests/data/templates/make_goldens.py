#!/usr/bin/env python3
"""Writes template_goldens.json and construct_goldens.json: what Python's jinja2, set up as
transformers does, makes of the templates in this folder and of the constructs in constructs.txt.

The templates are rebuilt from the published behaviour of the checkpoints' own (same branches, same
whitespace rules); constructs.txt holds one template per block. Needs transformers and jinja2.
Usage: make_goldens.py   (writes next to itself; the seed is fixed)
"""
import json
import os
import random

from transformers.utils.chat_template_utils import _compile_jinja_template

HERE = os.path.dirname(os.path.abspath(__file__))
SPECIAL = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"}
TEXTS = [
    "Hello!",
    "",
    " ",
    "\n",
    "你是什么模型",
    "line one\nline two\n\n  indented\ttab",
    "a </think> b </think> c",
    "<think>\nsecret\n</think>\n\nThe answer is 42.",
    "<think></think>",
    "</think>",
    "<｜User｜>not a turn<｜Assistant｜>",
    "<|im_end|><|im_start|>",
    "{{ 7 * 7 }} {% raw %} {# no #}",
    "emoji \U0001F469\u200d\U0001F4BB and flags \U0001F1E9\U0001F1EA, accents e\u0301 é, Ω ß İ",
    "quotes ' \" \\ / and \u2028 separators \u00a0",
    "العربية עברית हिन्दी 日本語 한국어",
    "x" * 300,
    "```python\nprint('hi')\n```",
    "\x00\x01\x7f control",
]
ARGUMENTS = ['{"city": "Berlin"}', "{}", '{"q": "日本 \\"x\\"", "n": [1, 2.5, null]}']
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Wetter für eine Stadt <b>\"heute\"</b>",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer", "maximum": 1e16}},
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {}, "strict": True, "x": None}},
]


def assistant(rng):
    return {"role": "assistant", "content": rng.choice(TEXTS)}


def calls(rng, count, content):
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [
            {
                "id": f"functions.get_weather:{i}",
                "type": "function",
                "function": {"name": rng.choice(["get_weather", "now"]), "arguments": rng.choice(ARGUMENTS)},
            }
            for i in range(count)
        ],
    }


def conversation(rng):
    messages = []
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        messages.append({"role": "system", "content": rng.choice(TEXTS)})
    for turn in range(rng.randint(1, 4)):
        messages.append({"role": "user", "content": rng.choice(TEXTS)})
        if rng.random() < 0.25:
            count = rng.randint(1, 3)
            messages.append(calls(rng, count, rng.choice([None, None, "", "Let me look."])))
            for i in range(count):
                messages.append(
                    {"role": "tool", "tool_call_id": f"functions.get_weather:{i}", "content": rng.choice(TEXTS)}
                )
            if rng.random() < 0.7:
                messages.append(assistant(rng))
        elif rng.random() < 0.7:
            messages.append(assistant(rng))
    if rng.random() < 0.1:
        messages[-1]["name"] = "Zoë"
    return messages


def contexts():
    rng = random.Random(20250210)
    fixed = [
        [{"role": "user", "content": "你是什么模型"}],
        [{"role": "system", "content": "A"}, {"role": "system", "content": "B"}, {"role": "user", "content": "hi"}],
        [
            {"role": "user", "content": "1+1"},
            {"role": "assistant", "content": "<think>\neasy\n</think>\n\n2"},
            {"role": "user", "content": "and 2+2?"},
        ],
        [{"role": "user", "content": "w"}, calls(rng, 1, None), {"role": "tool", "content": "sunny", "tool_call_id": "1"}],
        [{"role": "user", "content": "w"}, calls(rng, 2, None), {"role": "tool", "content": "sunny", "tool_call_id": "1"},
         {"role": "tool", "content": "rain", "tool_call_id": "2"}, {"role": "assistant", "content": "done"},
         {"role": "user", "content": "again"}],
    ]
    for messages in fixed:
        for add in (True, False):
            yield {"messages": messages, "add_generation_prompt": add}
    for i in range(22):
        context = {"messages": conversation(rng)}
        if rng.random() < 0.9:
            context["add_generation_prompt"] = rng.random() < 0.6
        if rng.random() < 0.3:
            context["tools"] = TOOLS[: rng.randint(0, 2)]
        if rng.random() < 0.3:
            context["thinking"] = rng.random() < 0.5
        yield context


def render(template, context):
    try:
        return {"output": template.render(**context)}
    except Exception as error:  # what matters is that there is one
        return {"error": f"{type(error).__name__}: {error}"[:200]}


def dump(name, value):
    with open(os.path.join(HERE, name), "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=0)
        file.write("\n")


def main():
    names = sorted(n[:-6] for n in os.listdir(HERE) if n.endswith(".jinja"))
    all_contexts = list(contexts())
    cases = []
    for name in names:
        with open(os.path.join(HERE, name + ".jinja"), encoding="utf-8") as file:
            template = _compile_jinja_template(file.read())
        for index, context in enumerate(all_contexts):
            cases.append({"template": name, "context": index, **render(template, {**SPECIAL, **context})})
    dump("template_goldens.json", {"special": SPECIAL, "contexts": all_contexts, "cases": cases})

    constructs = []
    with open(os.path.join(HERE, "constructs_context.json"), encoding="utf-8") as file:
        context = json.load(file)
    with open(os.path.join(HERE, "constructs.txt"), encoding="utf-8") as file:
        blocks = file.read().split("\n====\n")
    for block in blocks:
        try:
            template = _compile_jinja_template(block)
        except Exception as error:
            constructs.append({"source": block, "error": f"{type(error).__name__}: {error}"[:200]})
            continue
        constructs.append({"source": block, **render(template, context)})
    dump("construct_goldens.json", {"context": context, "cases": constructs})
    print(len(cases), "template cases,", len(constructs), "constructs,",
          sum("error" in c for c in cases), "and", sum("error" in c for c in constructs), "of them errors")


if __name__ == "__main__":
    main()
