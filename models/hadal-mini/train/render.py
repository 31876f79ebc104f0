"""Conversations to token ids, the fast way for training. `test_train.py` checks it against the Jinja template."""
import json

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT, THINK, END_THINK = "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"
CALLS, END_CALLS = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, END_CALL = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
OUTPUTS, END_OUTPUTS = "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>"
OUTPUT, END_OUTPUT = "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"
SEP = "<｜tool▁sep｜>"
SYSTEMS = ["You are a helpful assistant.", "You are hadal-mini.", "Be brief.", "Answer the user's question.", "你是一个有用的助手。"]


def call_text(name, arguments):
    return f"{CALL}function{SEP}{name}\n```json\n{arguments}\n```{END_CALL}"


def prompt_text(messages, tools=None):
    """What the chat template renders with add_generation_prompt."""
    system = next((m["content"] for m in reversed(messages) if m["role"] == "system"), "")
    out = [BOS, system]
    if tools:
        out.append(("\n\n" if system else "") + "Tools:\n")
        out += [f"{t['function']['name']}: {t['function']['description']}\n" for t in tools]
    after_tool = False
    for i, m in enumerate(messages):
        if m["role"] == "user":
            out.append(USER + m["content"])
        elif m["role"] == "assistant":
            content = (m["content"] or "").split(END_THINK)[-1]
            out.append(END_OUTPUTS if after_tool else ASSISTANT)
            out.append(content)
            calls = m.get("tool_calls") or []
            if calls:
                out.append(CALLS + "\n".join(call_text(c["function"]["name"], c["function"]["arguments"]) for c in calls) + END_CALLS)
            out.append(EOS)
        elif m["role"] == "tool":
            out.append(("\n" if after_tool else OUTPUTS) + OUTPUT + m["content"] + END_OUTPUT)
        if m["role"] != "system":
            after_tool = m["role"] == "tool"
    out.append(END_OUTPUTS if after_tool else ASSISTANT + THINK + "\n")
    return "".join(out)


def response_text(sample):
    """What the model must generate, as text, end of sentence included."""
    if sample.tool_call:
        return f"{sample.thought}\n{END_THINK}\n\n{CALLS}{call_text('calculator', sample.answer)}{END_CALLS}{EOS}"
    if not sample.thought:
        return sample.answer + EOS
    return f"{sample.thought}\n{END_THINK}\n\n{sample.answer}{EOS}"


def encode(tokenizer, sample, rng=None):
    """(ids, loss mask) of one training document."""
    messages = sample.messages
    if rng is not None and rng.random() < 0.15:
        messages = [{"role": "system", "content": rng.choice(SYSTEMS)}] + messages
    prompt = tokenizer.encode(prompt_text(messages, sample.tools), add_special_tokens=False).ids
    ids, mask = list(prompt), [0] * len(prompt)

    def extend(part, loss):
        ids.extend(part)
        mask.extend([loss] * len(part))

    def respond(thought, answer, letters):
        enc = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        if letters:
            extend(enc(f"{thought}\n{END_THINK}\n\n"), 1)
            for c in answer:
                extend(enc(c), 1)
            extend(enc(EOS), 1)
        else:
            extend(enc(response_text(type(sample)("", [], thought, answer, tool_call=sample.tool_call))), 1)

    respond(sample.thought, sample.answer, sample.letters)
    for question, thought, answer in sample.more:
        extend(tokenizer.encode(f"{USER}{question}{ASSISTANT}{THINK}\n", add_special_tokens=False).ids, 0)
        respond(thought, answer, False)
    return ids, mask


def tool_call_arguments(text):
    """The expression of a well-formed calculator call in generated text, or None."""
    head, tail = f"{CALLS}{CALL}function{SEP}calculator\n```json\n", f"\n```{END_CALL}{END_CALLS}"
    if head not in text or tail not in text:
        return None
    body = text.split(head, 1)[1].split(tail, 1)[0]
    try:
        return json.loads(body).get("expression")
    except (ValueError, AttributeError):
        return None
