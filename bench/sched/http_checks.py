#!/usr/bin/env python3
"""What hadal-mini must hold over HTTP, measured: fairness to decodes, what a warm prefix saves, and the host tier.

  bench/sched/http_checks.py                    with build/release/hadal; writes bench/results/DATE-http-checks.json

  decodes    32 streams run; then four prompts of 3,200 tokens arrive: the 99th percentile of the time between
             tokens rises to at most twice its quiet value
  prefix     the first token of a prompt of which 3,200 tokens are cached comes in at most 15 % of the cold time
  host-tier  every recorded case gets the same answer with the host tier on as off, cold and warm, from a pool
             so small that pages move to the host and come back

Ends within --minutes; exit status 1 when one does not hold. decodes and prefix want an otherwise idle machine.
Flags that are not its own go to `hadal serve`.
"""
import argparse
import json
import pathlib
import re
import statistics
import sys
import threading
import time

import http_bench
from http_bench import ROOT, Answer, Clock, Server, rank, together, tokens_of

import model_e2e

STREAMS, LONG_PROMPTS, LONG_TOKENS = 32, 4, 3200
STREAM_TOKENS_MAX = 3500
GAP_RATIO_MAX, WARM_SHARE_MAX = 2.0, 0.15
# All streams at their longest beside the long prompts: nothing is retracted.
ROOMY = ["--max-running-requests", "64", "--max-total-tokens", str(STREAMS * 3648 + LONG_PROMPTS * 3328),
         "--max-queue-wait-ms", "0"]
# The longest case and little more: the others' pages leave the device.
TIGHT = ["--max-running-requests", "8", "--max-total-tokens", "5120", "--max-queue-wait-ms", "0"]
HOST_TIER = ["--enable-hierarchical-cache", "--hicache-ratio", "12"]


def serve(options, flags):
    return Server(options.hadal, ["--model-path", options.model, "--served-model-name", "hadal-mini", *flags,
                                  *options.server_flags])


def gaps_between(answers, begin, end):
    """Times between tokens of which the later came in [begin, end)."""
    return [b - a for answer in answers for a, b in zip(answer.times, answer.times[1:]) if begin <= b < end]


def check_decodes(options, clock):
    with serve(options, ROOMY) as server:
        letter = http_bench.one_letter_token(server)
        leave, running = threading.Event(), []

        class Stream(Answer):
            def __init__(self, seed):
                running.append(self)
                super().__init__(server, letter, tokens_of(seed, 0, 64), STREAM_TOKENS_MAX,
                                 clock.left("decodes"), leave)

        def measure():
            while len(running) < STREAMS or any(len(s.times) < 8 for s in running):
                clock.left("the start of the streams")
                time.sleep(0.1)
            quiet_begin = time.monotonic()
            time.sleep(options.quiet_s)
            arrival = time.monotonic()
            clock.say(f"{STREAMS} streams ran quietly for {options.quiet_s:g} s; {LONG_PROMPTS} long prompts arrive")
            longs = together([lambda i=i: Answer(server, letter, tokens_of(7000 + i, 0, LONG_TOKENS), 1,
                                                 clock.left("the long prompts")) for i in range(LONG_PROMPTS)])
            end = max(a.times[0] for a in longs)
            time.sleep(0.2)
            still = sum(1 for s in running if s.times[-1] >= end)
            leave.set()
            return quiet_begin, arrival, end, still

        def measure_and_leave():
            try:
                return measure()
            finally:
                leave.set()

        *_, (quiet_begin, arrival, end, still) = together(
            [*(lambda i=i: Stream(i) for i in range(STREAMS)), measure_and_leave])
    if still < STREAMS:
        raise RuntimeError(f"only {still} of {STREAMS} streams outlasted the long prompts: lower --quiet-s")
    quiet, loaded = gaps_between(running, quiet_begin, arrival), gaps_between(running, arrival, end)
    result = {"quiet_p50_ms": 1e3 * rank(quiet, 0.5), "quiet_p99_ms": 1e3 * rank(quiet, 0.99),
              "loaded_p50_ms": 1e3 * rank(loaded, 0.5), "loaded_p99_ms": 1e3 * rank(loaded, 0.99),
              "quiet_gaps": len(quiet), "loaded_gaps": len(loaded), "long_prompts_s": end - arrival}
    result["p99_ratio"] = result["loaded_p99_ms"] / result["quiet_p99_ms"]
    clock.say(f"p99 between tokens: {result['quiet_p99_ms']:.1f} ms quiet, {result['loaded_p99_ms']:.1f} ms while the long "
              f"prompts ran ({end - arrival:.1f} s): {result['p99_ratio']:.2f} times, at most {GAP_RATIO_MAX:g}")
    return result["p99_ratio"] <= GAP_RATIO_MAX, result


def check_prefix(options, clock):
    cold, warm = [], []
    with serve(options, ROOMY) as server:
        letter = http_bench.one_letter_token(server)
        for i in range(options.repeats):
            head = tokens_of(8000 + i, 0, LONG_TOKENS)
            for times, seed in ((cold, 8100 + i), (warm, 8200 + i)):
                answer = Answer(server, letter, head + tokens_of(seed, 0, 16), 1, clock.left("prefix"))
                times.append(answer.ttft)
            if answer.cached < LONG_TOKENS:
                raise RuntimeError(f"{answer.cached} tokens came from the cache, expected {LONG_TOKENS}")
    result = {"cold_ms": 1e3 * statistics.median(cold), "warm_ms": 1e3 * statistics.median(warm)}
    result["share"] = result["warm_ms"] / result["cold_ms"]
    clock.say(f"first token: {result['cold_ms']:.1f} ms cold, {result['warm_ms']:.1f} ms after {LONG_TOKENS} cached tokens: "
              f"{100 * result['share']:.1f} %, at most {100 * WARM_SHARE_MAX:g} %")
    return result["share"] <= WARM_SHARE_MAX, result


def counter(server, name):
    return float(re.search(rf"^{name}{{.*}} (\S+)$", server.request("GET", "/metrics")[1], re.MULTILINE).group(1))


def check_host_tier(options, clock):
    lines = (pathlib.Path(options.model) / "eval" / "cases.jsonl").read_text().splitlines()
    cases = [json.loads(line) for line in lines[:: max(1, len(lines) // options.cases)]][:options.cases]
    runs, moved = {}, {}
    for tier, flags in (("off", TIGHT), ("on", TIGHT + HOST_TIER)):
        with serve(options, flags) as server:
            for state in ("cold", "warm"):
                clock.left(f"host-tier {tier}, {state}")
                clock.say(f"{len(cases)} cases with the host tier {tier}, {state}")
                runs[tier, state] = model_e2e.run_way(server, cases, f"host tier {tier}, {state}", 8, True)
            if tier == "on":
                moved = {name: counter(server, f"hadal_host_pages_{name}_total") for name in ("stored", "loaded")}
    problems = [problem for (tier, state), replies in runs.items()
                for problem in model_e2e.check_same("off, cold", runs["off", "cold"], f"{tier}, {state}", replies)]
    cached = {f"{tier}_{state}": model_e2e.cached_tokens(replies) for (tier, state), replies in runs.items()}
    if not moved["stored"] or not moved["loaded"]:
        problems.append(f"no page moved to the host and back ({moved}): nothing was tried")
    for problem in problems:
        print("FAILED:", problem)
    clock.say(f"{len(cases)} cases: pages stored on the host {moved['stored']:.0f}, brought back {moved['loaded']:.0f}; cached "
              f"prompt tokens warm: {cached['off_warm']} without the tier, {cached['on_warm']} with it")
    return not problems, {"cases": len(cases), "different_answers": len(problems), "host_pages": moved,
                          "cached_tokens": cached}


CHECKS = {"decodes": check_decodes, "prefix": check_prefix, "host-tier": check_host_tier}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hadal", default=str(ROOT / "build/release/hadal"))
    parser.add_argument("--model", default=str(ROOT / "models/hadal-mini"))
    parser.add_argument("--only", choices=CHECKS, action="append", help="may be repeated; default all")
    parser.add_argument("--minutes", type=float, default=20.0, help="the run ends with an error when it takes longer")
    parser.add_argument("--quiet-s", type=float, default=10.0, help="decodes: how long the streams run alone")
    parser.add_argument("--repeats", type=int, default=7, help="prefix: prompts, of which the median counts")
    parser.add_argument("--cases", type=int, default=200, help="host-tier: how many of the recorded cases")
    parser.add_argument("--result", type=pathlib.Path, help="default bench/results/DATE-http-checks.json; - = none")
    options, options.server_flags = parser.parse_known_args()
    load_before, clock = http_bench.load_average(), Clock(options.minutes)
    results, failed = {}, []
    for name in options.only or CHECKS:
        held, results[name] = CHECKS[name](options, clock)
        results[name]["holds"] = held
        print(f"{name}: {'holds' if held else 'DOES NOT HOLD'}", flush=True)
        failed += [] if held else [name]
    http_bench.write_result(options.result, "http-checks", {"load_average_1_min": load_before, "checks": results})
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
