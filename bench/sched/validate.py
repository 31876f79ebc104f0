#!/usr/bin/env python3
"""Does the simulator tell the truth? Replays one trace against hadal-mini over HTTP and in `hadal simulate`.

  bench/sched/validate.py                       with build/release/hadal; writes bench/results/DATE-sched-validation.json

Measures a table of step times on the running server (decode at several batches and contexts, prefill at
several sizes and prefixes), replays the `long-document` workload scaled to hadal-mini's context, simulates
the same trace with that table and pool, and compares TTFT and TPOT at p50 and p99 and the hit rate. Exit
status 1 when one differs by more than --tolerance (15 %). Wants an otherwise idle machine.
"""
import argparse
import datetime
import json
import math
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests/model_e2e"))
from hadal_process import Server  # noqa: E402

MASK = (1 << 64) - 1
FIRST_TOKEN, NUM_TOKENS = 300, 1600  # ordinary tokens of hadal-mini's 2,048


def mix(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def tokens_of(seed, begin, count):
    """A segment of a trace (src/sim/trace.cpp) in hadal-mini's vocabulary; equal segments stay equal."""
    return [FIRST_TOKEN + (mix((seed + i * 0xD1B54A32D192ED03) & MASK) >> 32) % NUM_TOKENS
            for i in range(begin, begin + count)]


def post(server, path, body):
    connection = server.connect()
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    text = response.read()
    connection.close()
    if response.status != 200:
        raise RuntimeError(f"{path}: HTTP {response.status}: {text[:300]}")
    return json.loads(text) if text.startswith(b"{") else text


class Answer:
    """One streamed completion: when each chunk came, and what usage says."""

    letter = None  # a token that is a whole character: every answer is made of it, so that no chunk waits for text

    def __init__(self, server, prompt, max_tokens):
        body = json.dumps({"model": "hadal-mini", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0,
                           "ignore_eos": True, "logit_bias": {str(self.letter): 100},
                           "stream": True, "stream_options": {"include_usage": True}})
        connection = server.connect()
        self.times, self.usage = [], None
        self.start = time.monotonic()
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"HTTP {response.status}: {response.read()[:300]}")
        while line := response.readline():
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("choices") and event["choices"][0].get("text"):
                self.times.append(time.monotonic())
            if event.get("usage"):
                self.usage = event["usage"]
        connection.close()
        if self.usage is None or len(self.times) < self.usage["completion_tokens"]:
            raise RuntimeError(f"{len(self.times)} chunks, usage {self.usage}: expected one chunk a token")

    @property
    def ttft(self):
        return self.times[0] - self.start

    @property
    def tpot(self):
        count = self.usage["completion_tokens"]
        return (self.times[-1] - self.times[0]) / (count - 1) if count > 1 else 0.0

    @property
    def cached(self):
        return (self.usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)


def together(jobs):
    """Runs callables in threads; their results in order, the first failure raised."""
    results = [None] * len(jobs)

    def run(i):
        try:
            results[i] = jobs[i]()
        except Exception as error:  # handed to the caller below
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


class Meter:
    def __init__(self, server, repeats):
        self.server, self.repeats, self.next_seed = server, repeats, 10**9

    def fresh(self, count):
        self.next_seed += 1
        return tokens_of(self.next_seed, 0, count)

    def decode_ms(self, batch, context, steps):
        gaps = []
        for _ in range(self.repeats):
            answers = together([lambda p=self.fresh(context - steps // 2): Answer(self.server, p, steps)
                                for _ in range(batch)])
            begin = max(a.times[0] for a in answers)
            end = min(a.times[-1] for a in answers)
            for a in answers:
                inside = [t for t in a.times if begin <= t <= end]
                if len(inside) > 2:
                    gaps.append((inside[-1] - inside[0]) / (len(inside) - 1))
        if not gaps:
            raise RuntimeError(f"no step in which {batch} streams of {context} tokens decode together")
        return 1e3 * statistics.median(gaps)

    def prefill_ms(self, tokens, prefix):
        times = []
        for _ in range(self.repeats + 1):
            head = self.fresh(prefix)
            if prefix:
                Answer(self.server, head, 1)
            times.append(Answer(self.server, head + self.fresh(tokens), 1).ttft)
        return 1e3 * statistics.median(times)

    def table(self, steps):
        """The table, and what a request costs beside its steps (ms)."""
        decode = [{"batch": b, "context": c, "step_ms": self.decode_ms(b, c, steps)}
                  for b in (1, 2, 4, 8, 16) for c in (256, 1280)]
        one_row = next(d["step_ms"] for d in decode if d["batch"] == 1 and d["context"] == 256)
        overhead = max(0.0, self.prefill_ms(1, 256) - one_row)
        prefill = [{"tokens": t, "prefix": p, "step_ms": max(0.01, self.prefill_ms(t, p) - overhead)}
                   for t in (16, 128, 512, 1536) for p in (0, 1024)]
        return {"name": "hadal-mini", "mixing": "add", "decode": decode, "prefill": prefill}, overhead


def replay(server, trace):
    begin = time.monotonic() + 0.5

    def job(request):
        prompt = [t for segment in request["prompt"] for t in tokens_of(*segment)]
        time.sleep(max(0.0, begin + request["arrival_s"] - time.monotonic()))
        return Answer(server, prompt, request["output"][1])

    return together([lambda r=r: job(r) for r in trace])


def rank(values, share):
    values = sorted(values)
    return values[max(1, math.ceil(share * len(values))) - 1]


def summary(ttft, tpot, hit_rate):
    return {"ttft_p50_ms": 1e3 * rank(ttft, 0.5), "ttft_p99_ms": 1e3 * rank(ttft, 0.99),
            "tpot_p50_ms": 1e3 * rank(tpot, 0.5), "tpot_p99_ms": 1e3 * rank(tpot, 0.99), "hit_rate": hit_rate}


def run_simulate(hadal, arguments):
    ran = subprocess.run([hadal, "simulate", *map(str, arguments)], stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
    if ran.returncode != 0:
        raise RuntimeError(ran.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hadal", default=str(ROOT / "build/release/hadal"))
    parser.add_argument("--simulator", help="executable of `hadal simulate` when it is another")
    parser.add_argument("--model", default=str(ROOT / "models/hadal-mini"))
    parser.add_argument("--duration", type=float, default=120.0)
    parser.add_argument("--request-rate", type=float, default=2.0)
    parser.add_argument("--kv-tokens", type=int, default=24_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tolerance", type=float, default=0.15)
    parser.add_argument("--result", type=pathlib.Path, help="default bench/results/DATE-sched-validation.json; - = none")
    options = parser.parse_args()
    flags = ["--max-total-tokens", str(options.kv_tokens), "--max-running-requests", "16", "--max-queue-wait-ms", "0"]
    load_before = pathlib.Path("/proc/loadavg").read_text().split()[0]
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        trace_file, table_file, requests_file = (folder / n for n in ("trace.jsonl", "table.json", "requests.jsonl"))
        run_simulate(options.simulator or options.hadal, ["long-document", "--length-scale", 0.08, "--duration", options.duration,
                                     "--request-rate", options.request_rate, "--write-trace", trace_file])
        trace = [json.loads(line) for line in trace_file.read_text().splitlines()]
        with Server(options.hadal, ["--model-path", options.model, "--served-model-name", "hadal-mini", *flags]) as server:
            Answer.letter = post(server, "/tokenize", {"model": "hadal-mini", "prompt": "a"})["tokens"][-1]
            table, overhead_ms = Meter(server, options.repeats).table(steps=48)
            post(server, "/flush_cache", {})
            answers = replay(server, trace)
        table_file.write_text(json.dumps(table))
        run_simulate(options.simulator or options.hadal, [trace_file, "--step-table", table_file, "--context-length", 4096,
                                     "--host-step-us", 0, "--write-requests", requests_file, *flags])
        simulated = [json.loads(line) for line in requests_file.read_text().splitlines()]
    if not all(request["finished"] for request in simulated):
        raise RuntimeError("the simulator refused a request that the server took")
    measured = summary([a.ttft for a in answers], [a.tpot for a in answers if a.usage["completion_tokens"] > 1],
                       sum(a.cached for a in answers) / sum(a.usage["prompt_tokens"] for a in answers))
    expected = summary([r["ttft_s"] + 1e-3 * overhead_ms for r in simulated],
                       [r["tpot_s"] for r in simulated if r["output_tokens"] > 1],
                       sum(r["cached_tokens"] for r in simulated) / sum(r["prompt_tokens"] for r in simulated))
    worst = 0.0
    print(f"{len(answers)} requests; a request costs {overhead_ms:.2f} ms beside its steps")
    for name, value in measured.items():
        off = expected[name] / value - 1 if value else float("inf")
        worst = max(worst, abs(off))
        print(f"{name:12s} measured {value:9.3f}   simulated {expected[name]:9.3f}   {100 * off:+6.1f} %")
    git = lambda *words: subprocess.run(["git", "-C", str(ROOT), *words], stdout=subprocess.PIPE, text=True).stdout.strip()
    machine = re.search(r"model name\s*:\s*(.*)", pathlib.Path("/proc/cpuinfo").read_text())
    result = options.result or ROOT / "bench/results" / f"{datetime.date.today().isoformat()}-sched-validation.json"
    if result != pathlib.Path("-"):
        result.write_text(json.dumps(
            {"command": " ".join(["bench/sched/validate.py", *sys.argv[1:]]),
             "commit": git("rev-parse", "--short=12", "HEAD") + ("-dirty" if git("status", "--porcelain") else ""),
             "machine": machine.group(1).strip() if machine else "unknown processor",
             "load_average_1_min": float(load_before), "tolerance": options.tolerance, "requests": len(answers),
             "request_overhead_ms": overhead_ms, "step_table": table, "measured": measured,
             "simulated": expected, "largest_difference": worst}, indent=1) + "\n")
    return 0 if worst <= options.tolerance else 1


if __name__ == "__main__":
    sys.exit(main())
