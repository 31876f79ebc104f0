"""What the benchmarks of hadal-mini over HTTP share: timed streams, prompts, progress, and a result's file."""
import datetime
import json
import math
import pathlib
import re
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests/model_e2e"), str(ROOT / "scripts/lib")]
from hadal_process import Server  # noqa: E402,F401 (for those who import this file)
from portable_paths import portable  # noqa: E402

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


class Clock:
    """Says what is being done and when, and ends a run that takes longer than it may."""

    def __init__(self, minutes):
        self.begin = time.monotonic()
        self.end = self.begin + 60 * minutes
        self.minutes = minutes

    def say(self, text):
        print(f"[{time.monotonic() - self.begin:4.0f} s] {text}", file=sys.stderr, flush=True)

    def left(self, what):
        """Seconds left; an error that names `what` when there are none."""
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"{what}: not done within {self.minutes:g} minutes (--minutes)")
        return left


def post(server, path, body):
    status, text = server.request("POST", path, body)
    if status != 200:
        raise RuntimeError(f"{path}: HTTP {status}: {text[:300]}")
    return json.loads(text) if text.startswith("{") else text


def one_letter_token(server):
    """A token that is a whole character: answers made of it wait for no further text."""
    return post(server, "/tokenize", {"model": "hadal-mini", "prompt": "a"})["tokens"][-1]


class Answer:
    """One streamed completion of exactly `max_tokens` tokens `letter`: when each came, and what usage says. It
    leaves before its end once `leave` (threading.Event) is set."""

    def __init__(self, server, letter, prompt, max_tokens, timeout_s=600, leave=None):
        body = json.dumps({"model": "hadal-mini", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0,
                           "ignore_eos": True, "logit_bias": {str(letter): 100},
                           "stream": True, "stream_options": {"include_usage": True}})
        connection = server.connect(timeout_s)
        self.times, self.usage = [], None
        self.start = time.monotonic()
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"HTTP {response.status}: {response.read()[:300]}")
        while (line := response.readline()) and not (leave and leave.is_set()):
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if event.get("choices") and event["choices"][0].get("text"):
                self.times.append(time.monotonic())
            if event.get("usage"):
                self.usage = event["usage"]
        connection.close()
        if leave and leave.is_set():
            return
        if self.usage is None or len(self.times) < self.usage["completion_tokens"]:
            raise RuntimeError(f"{len(self.times)} chunks, usage {self.usage}: expected one chunk a token")

    @property
    def ttft(self):
        return self.times[0] - self.start

    @property
    def gaps(self):
        return [b - a for a, b in zip(self.times, self.times[1:])]

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

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def rank(values, share):
    """The quantile `share` as a value that occurs."""
    values = sorted(values)
    return values[max(1, math.ceil(share * len(values))) - 1]


def load_average():
    return float(pathlib.Path("/proc/loadavg").read_text().split()[0])


def write_result(path, name, fields):
    """The JSON of a run, with its command, commit and machine; `path` None = bench/results/DATE-NAME.json, - = none."""
    path = path or ROOT / "bench/results" / f"{datetime.date.today().isoformat()}-{name}.json"
    if path == pathlib.Path("-"):
        return
    git = lambda *words: subprocess.run(["git", "-C", str(ROOT), *words], stdout=subprocess.PIPE, text=True).stdout.strip()
    machine = re.search(r"model name\s*:\s*(.*)", pathlib.Path("/proc/cpuinfo").read_text())
    path.write_text(json.dumps(
        {"command": " ".join([f"bench/sched/{pathlib.Path(sys.argv[0]).name}", *portable(sys.argv[1:], ROOT)]),
         "commit": git("rev-parse", "--short=12", "HEAD") + ("-dirty" if git("status", "--porcelain") else ""),
         "machine": machine.group(1).strip() if machine else "unknown processor", **fields}, indent=1) + "\n")
