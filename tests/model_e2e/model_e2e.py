"""hadal-mini over HTTP against the answers that transformers gave, in four ways of asking.

    model_e2e.py --binary build/dev/hadal --model models/hadal-mini [--cases 200] [--tolerated 1]

Each way must give the recorded answer on all but `--tolerated` cases, and all ways the same answer
as each other, token counts included.
"""

import argparse
import concurrent.futures
import json
import pathlib
import re
import sys
import time

from hadal_process import Server

ANSWER_TOKENS_MAX = 768
CONTEXT_TOKENS = 4096
END = "<｜end▁of▁sentence｜>"
CALL = re.compile(
    r"<｜tool▁call▁begin｜>function<｜tool▁sep｜>(.*?)\n```json\n(.*?)\n```<｜tool▁call▁end｜>", re.DOTALL)
CALLS = re.compile(r"<｜tool▁calls▁begin｜>.*<｜tool▁calls▁end｜>", re.DOTALL)
THINK_OPEN = "<think>\n"


def expected_answer(case):
    """What a client should see of the recorded text: content, and the calls in it."""
    text = case["text"]
    if text.endswith(END):
        text = text[: -len(END)]
    calls = [(name, json.loads(arguments)) for name, arguments in CALL.findall(text)]
    return CALLS.sub("", text).strip(), calls


def given_answer(reply):
    message = reply["choices"][0]["message"]
    content = message.get("content") or ""
    if content.startswith(THINK_OPEN):  # put back by the server; the prompt had opened it
        content = content[len(THINK_OPEN):]
    calls = [(call["function"]["name"], json.loads(call["function"]["arguments"]))
             for call in message.get("tool_calls") or []]
    return content.strip(), calls


def body_of(case):
    room = CONTEXT_TOKENS - len(case["prompt_ids"])
    body = {"model": "hadal-mini", "messages": case["messages"], "temperature": 0,
            "max_tokens": min(ANSWER_TOKENS_MAX, room)}
    if case.get("tools"):
        body["tools"] = case["tools"]
    return body


def run_way(server, cases, name, parallel, streamed):
    """Replies in order of the cases."""
    began = time.time()
    ask = server.chat_streamed if streamed else server.chat
    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
        replies = list(pool.map(lambda case: ask(body_of(case)), cases))
    tokens = sum(reply["usage"]["completion_tokens"] for reply in replies)
    seconds = time.time() - began
    print(f"{name}: {len(cases)} cases, {tokens} tokens, {seconds:.1f} s", flush=True)
    return replies


def check_way(name, cases, replies, tolerated):
    """Problems, as text."""
    problems, different = [], 0
    for index, (case, reply) in enumerate(zip(cases, replies)):
        prompt_tokens = reply["usage"]["prompt_tokens"]
        if prompt_tokens != len(case["prompt_ids"]):
            problems.append(f"{name}: case {index}: {prompt_tokens} prompt tokens, "
                            f"expected {len(case['prompt_ids'])}")
        if given_answer(reply) != expected_answer(case):
            different += 1
            print(f"{name}: case {index} ({case['family']}) differs\n"
                  f"  expected {expected_answer(case)!r}\n  got      {given_answer(reply)!r}")
    if different > tolerated:
        problems.append(f"{name}: {different} of {len(cases)} answers differ from transformers', "
                        f"at most {tolerated} may")
    return problems


def check_same(first_name, first, name, replies):
    problems = []
    for index, (a, b) in enumerate(zip(first, replies)):
        same = (given_answer(a) == given_answer(b)
                and a["usage"]["completion_tokens"] == b["usage"]["completion_tokens"]
                and a["choices"][0]["finish_reason"] == b["choices"][0]["finish_reason"])
        if not same:
            problems.append(f"case {index}: {name} and {first_name} differ")
    return problems


def cached_tokens(replies):
    return sum((reply["usage"].get("prompt_tokens_details") or {}).get("cached_tokens", 0)
               for reply in replies)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--prompt-tokens-max", type=int, default=1 << 30)
    parser.add_argument("--answer-tokens-max", type=int, default=ANSWER_TOKENS_MAX)
    parser.add_argument("--tolerated", type=int, default=1)
    parser.add_argument("--flag", action="append", default=[], help="one more word for the server")
    args = parser.parse_args()

    lines = (pathlib.Path(args.model) / "eval" / "cases.jsonl").read_text().splitlines()
    cases = [json.loads(line) for line in lines]
    cases = [case for case in cases if len(case["prompt_ids"]) <= args.prompt_tokens_max
             and len(case["answer_ids"]) <= args.answer_tokens_max]
    cases = cases[:: max(1, len(cases) // args.cases)][: args.cases]
    # A slow machine's backlog of closed-loop questions is no overload here.
    flags = ["--model-path", args.model, "--served-model-name", "hadal-mini", "--max-queue-wait-ms", "0",
             *args.flag]
    runs = {}
    with Server(args.binary, flags + ["--disable-radix-cache"]) as server:
        runs["alone, cold, unstreamed"] = run_way(server, cases, "alone, cold, unstreamed", 1, False)
        runs["32 at once, cold, streamed"] = run_way(
            server, cases, "32 at once, cold, streamed", 32, True)
        cold = cached_tokens([reply for replies in runs.values() for reply in replies])
        code = server.stop()
    with Server(args.binary, flags) as server:
        run_way(server, cases, "filling the cache", 32, False)
        runs["32 at once, cached, unstreamed"] = run_way(
            server, cases, "32 at once, cached, unstreamed", 32, False)
        runs["alone, cached, streamed"] = run_way(server, cases, "alone, cached, streamed", 1, True)
        warm = cached_tokens(runs["alone, cached, streamed"])
        code = code or server.stop()

    problems = []
    first_name = next(iter(runs))
    for name, replies in runs.items():
        problems += check_way(name, cases, replies, args.tolerated)
        problems += check_same(first_name, runs[first_name], name, replies)
    total = sum(len(case["prompt_ids"]) for case in cases)
    print(f"cached prompt tokens: {cold} cold, {warm} of {total} cached")
    if cold != 0:
        problems.append(f"{cold} cached tokens reported with the radix cache off")
    if warm < total - len(cases):
        problems.append(f"only {warm} of {total} prompt tokens came from the cache")
    if code != 0:
        problems.append(f"a server ended with exit code {code}")
    for problem in problems:
        print("FAILED:", problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
