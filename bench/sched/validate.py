#!/usr/bin/env python3
"""Does the simulator tell the truth? Replays one trace against hadal-mini over HTTP and in `hadal simulate`.

  bench/sched/validate.py                       with build/release/hadal; writes bench/results/DATE-sched-validation.json

Measures a table of step times on the running server (decode at several batches and contexts, prefill at
several sizes and prefixes), lets the simulator choose the rate at which this machine would be busy for --load
of the time, replays the `long-document` workload scaled to hadal-mini's context at that rate, simulates the
same trace with that table and pool, and compares TTFT and TPOT at p50 and p99 and the hit rate. Ends within
--minutes. Exit status 1 when a number differs by more than --tolerance (15 %). Wants an otherwise idle machine.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import http_bench
from http_bench import ROOT, Answer, Clock, Server, post, rank, together, tokens_of

BATCHES, CONTEXTS = (1, 2, 4, 8, 16), (256, 1280)
PREFILL_TOKENS, PREFIXES = (16, 128, 512, 1536), (0, 1024)
DECODE_STEPS = 48
RATE_MAX = 50.0  # conversations a second
KV_TOKENS = 24_000  # 16 rows of the longest context


class Meter:
    """Step times of a running server. Prompts are computed once and then served from the radix cache, so that
    a decode step costs little more than itself to measure."""

    def __init__(self, server, letter, clock, repeats):
        self.server, self.letter, self.clock, self.repeats, self.next_seed = server, letter, clock, repeats, 10**9

    def fresh(self, count):
        self.next_seed += 1
        return tokens_of(self.next_seed, 0, count)

    def answer(self, prompt, max_tokens):
        return Answer(self.server, self.letter, prompt, max_tokens, self.clock.left("the step table"))

    def decode_ms(self, prompts):
        gaps = []
        for _ in range(self.repeats):
            answers = together([lambda p=p: self.answer(p, DECODE_STEPS) for p in prompts])
            begin = max(a.times[0] for a in answers)
            end = min(a.times[-1] for a in answers)
            for a in answers:
                inside = [t for t in a.times if begin <= t <= end]
                if len(inside) > 2:
                    gaps.append((inside[-1] - inside[0]) / (len(inside) - 1))
        if not gaps:
            raise RuntimeError(f"no step in which {len(prompts)} streams decode together")
        return 1e3 * statistics.median(gaps)

    def decode_cells(self, context):
        post(self.server, "/flush_cache", {})
        prompts = [self.fresh(context - DECODE_STEPS // 2) for _ in range(max(BATCHES))]
        for prompt in prompts:
            self.answer(prompt, 1)
        for batch in BATCHES:
            cell = {"batch": batch, "context": context, "step_ms": self.decode_ms(prompts[:batch])}
            self.clock.say(f"decode of {batch} rows at {context} tokens: {cell['step_ms']:.2f} ms")
            yield cell

    def prefill_ms(self, tokens, head):
        times = [self.answer(head + self.fresh(tokens), 1).ttft for _ in range(self.repeats + 1)]
        return 1e3 * statistics.median(times)

    def prefill_cells(self, prefix, overhead_ms):
        post(self.server, "/flush_cache", {})
        head = self.fresh(prefix)
        if head:
            self.answer(head, 1)
        for tokens in PREFILL_TOKENS:
            cell = {"tokens": tokens, "prefix": prefix,
                    "step_ms": max(0.01, self.prefill_ms(tokens, head) - overhead_ms)}
            self.clock.say(f"prefill of {tokens} tokens after {prefix}: {cell['step_ms']:.2f} ms")
            yield cell

    def table(self):
        """The table, and what a request costs beside its steps (ms)."""
        decode = [cell for context in CONTEXTS for cell in self.decode_cells(context)]
        one_row = next(d["step_ms"] for d in decode if d["batch"] == 1 and d["context"] == CONTEXTS[0])
        head = self.fresh(CONTEXTS[0])
        self.answer(head, 1)
        overhead = max(0.0, self.prefill_ms(1, head) - one_row)
        prefill = [cell for prefix in PREFIXES for cell in self.prefill_cells(prefix, overhead)]
        info = json.loads(self.server.request("GET", "/get_server_info")[1])
        return {"name": "hadal-mini", "mixing": "add", "absorbed_chunk_tokens": info["absorbed_chunk_tokens"],
                "decode": decode, "prefill": prefill}, overhead


class Simulator:
    def __init__(self, binary, folder, flags, duration_s):
        self.binary, self.folder, self.flags, self.duration_s = binary, folder, flags, duration_s
        self.table, self.trace = folder / "table.json", folder / "trace.jsonl"

    def run(self, what, arguments):
        """The report of one simulation, and its requests."""
        report, requests = self.folder / "report.json", self.folder / "requests.jsonl"
        words = [self.binary, "simulate", what, "--step-table", self.table, "--context-length", 4096, "--host-step-us", 0,
                 "--output", report, "--write-requests", requests, *arguments, *self.flags]
        ran = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             timeout=300)
        if ran.returncode != 0:
            raise RuntimeError(ran.stderr)
        return (json.loads(report.read_text())["report"],
                [json.loads(line) for line in requests.read_text().splitlines()])

    def make_trace(self, rate):
        """Writes the trace of a rate; the share of the time for which the device would be busy."""
        return self.run("long-document", ["--length-scale", 0.08, "--duration", self.duration_s, "--request-rate", rate,
                                          "--write-trace", self.trace])[0]["device_utilisation"]

    def choose_rate(self, load):
        """A rate at which the machine is busy for about `load` of the time."""
        rate = 1.0
        for _ in range(8):
            busy = max(self.make_trace(rate), 1e-3)
            if 0.85 * load <= busy <= load or (rate == RATE_MAX and busy <= load):
                break
            rate = min(RATE_MAX, rate * 0.93 * load / busy)
        return rate


def replay(server, letter, trace, clock):
    begin = time.monotonic() + 0.5
    done = []

    def job(request):
        prompt = [t for segment in request["prompt"] for t in tokens_of(*segment)]
        time.sleep(max(0.0, begin + request["arrival_s"] - time.monotonic()))
        answer = Answer(server, letter, prompt, request["output"][1], clock.left("the replay"))
        done.append(1)
        if len(done) % 25 == 0:
            clock.say(f"{len(done)} of {len(trace)} requests answered")
        return answer

    return together([lambda r=r: job(r) for r in trace])


def summary(ttft, tpot, hit_rate):
    return {"ttft_p50_ms": 1e3 * rank(ttft, 0.5), "ttft_p99_ms": 1e3 * rank(ttft, 0.99),
            "tpot_p50_ms": 1e3 * rank(tpot, 0.5), "tpot_p99_ms": 1e3 * rank(tpot, 0.99), "hit_rate": hit_rate}


def compare(measured, expected):
    """Prints both; the largest difference as a share of what was measured."""
    worst = 0.0
    for name, value in measured.items():
        off = expected[name] / value - 1 if value else float("inf")
        worst = max(worst, abs(off))
        print(f"{name:12s} measured {value:9.3f}   simulated {expected[name]:9.3f}   {100 * off:+6.1f} %")
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hadal", default=str(ROOT / "build/release/hadal"))
    parser.add_argument("--simulator", help="executable of `hadal simulate` when it is another")
    parser.add_argument("--model", default=str(ROOT / "models/hadal-mini"))
    parser.add_argument("--minutes", type=float, default=12.0, help="the run ends with an error when it takes longer")
    parser.add_argument("--duration", type=float, default=120.0, help="seconds of arrivals")
    parser.add_argument("--request-rate", type=float, help="conversations a second, instead of --load")
    parser.add_argument("--load", type=float, default=0.4, help="share of the time for which the machine is to be busy")
    parser.add_argument("--kv-tokens", type=int, default=KV_TOKENS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tolerance", type=float, default=0.15)
    parser.add_argument("--result", type=pathlib.Path, help="default bench/results/DATE-sched-validation.json; - = none")
    options = parser.parse_args()
    flags = ["--max-total-tokens", str(options.kv_tokens), "--max-running-requests", "16", "--max-queue-wait-ms", "0"]
    load_before, clock = http_bench.load_average(), Clock(options.minutes)
    with tempfile.TemporaryDirectory() as folder:
        simulator = Simulator(options.simulator or options.hadal, pathlib.Path(folder), flags, options.duration)
        with Server(options.hadal, ["--model-path", options.model, "--served-model-name", "hadal-mini", *flags]) as server:
            letter = http_bench.one_letter_token(server)
            table, overhead_ms = Meter(server, letter, clock, options.repeats).table()
            simulator.table.write_text(json.dumps(table))
            rate = options.request_rate or simulator.choose_rate(options.load)
            busy = simulator.make_trace(rate)
            trace = [json.loads(line) for line in simulator.trace.read_text().splitlines()]
            clock.say(f"replaying {len(trace)} requests over {options.duration:g} s: {rate:.2f} conversations a second, "
                      f"{100 * busy:.0f} % busy")
            post(server, "/flush_cache", {})
            answers = replay(server, letter, trace, clock)
        report, simulated = simulator.run(simulator.trace, [])
    if not all(request["finished"] for request in simulated):
        raise RuntimeError("the simulator refused a request that the server took")
    measured = summary([a.ttft for a in answers], [a.tpot for a in answers if a.usage["completion_tokens"] > 1],
                       sum(a.cached for a in answers) / sum(a.usage["prompt_tokens"] for a in answers))
    expected = summary([r["ttft_s"] + 1e-3 * overhead_ms for r in simulated],
                       [r["tpot_s"] for r in simulated if r["output_tokens"] > 1],
                       sum(r["cached_tokens"] for r in simulated) / sum(r["prompt_tokens"] for r in simulated))
    print(f"{len(answers)} requests; a request costs {overhead_ms:.2f} ms beside its steps")
    worst = compare(measured, expected)
    http_bench.write_result(options.result, "sched-validation", {
        "load_average_1_min": load_before, "tolerance": options.tolerance, "requests": len(answers),
        "request_rate": rate, "device_utilisation": report["device_utilisation"],
        "request_overhead_ms": overhead_ms, "step_table": table, "measured": measured,
        "simulated": expected, "largest_difference": worst})
    return 0 if worst <= options.tolerance else 1


if __name__ == "__main__":
    sys.exit(main())
