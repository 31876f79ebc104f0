#!/usr/bin/env python3
"""What scheduling costs: sched_cost_bench, beside SGLang's radix cache and policy in Python, as one record.

  ninja -C build/release sched_cost_bench
  bench/sched/cost.py --sglang sglang-0.4.3-py3-none-any.whl

writes bench/results/DATE-CPU-sched-cost.json. With --sglang (a wheel or an unpacked one) SGLang's own
radix_cache.py and schedule_policy.py are timed on the same sizes, in this interpreter, which needs torch; the
modules that they import for types are replaced by empty ones. Without, or without torch, hadal stands alone and
the record says so. Needs an idle machine.
"""
import argparse
import datetime
import json
import pathlib
import random
import re
import subprocess
import sys
import time
import types

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
VOCABULARY = 129_280
PAGE = 64


def cpu_name():
    text = pathlib.Path("/proc/cpuinfo").read_text()
    found = re.search(r"model name\s*:\s*(.*)", text)
    return found.group(1).strip() if found else "unknown processor"


def quantiles_us(seconds):
    ordered = sorted(seconds)
    return {"p50": round(1e6 * ordered[len(ordered) // 2], 1), "p99": round(1e6 * ordered[int(0.99 * (len(ordered) - 1))], 1)}


def timed(times, work):
    begin = time.thread_time()
    out = work()
    times.append(time.thread_time() - begin)
    return out


def load_sglang(path):
    """RadixCache and SchedulePolicy, without the server around them."""
    sys.path.insert(0, str(path))

    def stub(name, *names):
        module = types.ModuleType(name)
        for each in names:
            setattr(module, each, type(each, (), {}))
        sys.modules[name] = module
        return module

    for name in ("sglang", "sglang.srt", "sglang.srt.mem_cache", "sglang.srt.managers"):
        package = stub(name)
        package.__path__ = [str(pathlib.Path(path) / name.replace(".", "/"))]
    if pathlib.Path(path).is_file():  # a wheel: let zipimport find what is in it
        for name in ("sglang", "sglang.srt", "sglang.srt.mem_cache", "sglang.srt.managers"):
            sys.modules[name].__path__ = [f"{path}/{name.replace('.', '/')}"]
    stub("sglang.srt.mem_cache.memory_pool", "BaseTokenToKVPool", "ReqToTokenPool")
    stub("sglang.srt.managers.schedule_batch", "Req", "ScheduleBatch")
    from sglang.srt.managers.schedule_policy import SchedulePolicy
    from sglang.srt.mem_cache.radix_cache import RadixCache
    return RadixCache, SchedulePolicy


class Waiting:
    def __init__(self, rid, tokens):
        self.rid, self.tokens, self.prefix_indices, self.last_node = rid, tokens, [], None

    def adjust_max_prefix_ids(self):
        return self.tokens


def measure_sglang(path, tree_tokens, repeats):
    import torch
    radix_cache, policy_class = load_sglang(path)
    rng = random.Random(1)
    cache = radix_cache(None, None)
    draw = lambda count: [rng.randrange(VOCABULARY) for _ in range(count)]
    insert = lambda tokens: cache.insert(tokens, torch.arange(len(tokens), dtype=torch.int32))
    documents = [draw(1024) for _ in range(200)]
    popular = lambda: documents[int(200 ** rng.random()) - 1]
    total = 0
    while total < tree_tokens:
        insert(popular() + draw(3072))
        total += 3072
    long_prompt = draw(131_072)
    insert(long_prompt)
    match, order, finish = [], [], []
    for _ in range(repeats):
        found, _ = timed(match, lambda: cache.match_prefix(long_prompt))
        assert len(found) == len(long_prompt)
    policy = policy_class("lpm", cache)
    waiting = [Waiting(i, popular() + draw(2572)) for i in range(64)]
    for _ in range(repeats):
        timed(order, lambda: policy.calc_priority(waiting))
    for _ in range(repeats):
        tokens = popular() + draw(3072)

        def end():
            insert(tokens)
            cache.evict(3072, lambda value: None)
        timed(finish, end)
    return {"version": "0.4.3 (radix_cache.py, schedule_policy.py)", "python": sys.version.split()[0],
            "tree_tokens": total, "match_131072_tokens_us": quantiles_us(match),
            "order_64_waiting_us": quantiles_us(order), "insert_and_evict_one_sequence_us": quantiles_us(finish)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=pathlib.Path, default=ROOT / "build/release/bench/sched/sched_cost_bench")
    parser.add_argument("--sglang", type=pathlib.Path, help="wheel of sglang 0.4.3, or the folder it was unpacked in")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--result", type=pathlib.Path)
    options = parser.parse_args()
    git = lambda *words: subprocess.run(["git", "-C", str(ROOT), *words], stdout=subprocess.PIPE, text=True, check=True).stdout
    record = {"command": " ".join(["bench/sched/cost.py", *sys.argv[1:]]),
              "commit": git("rev-parse", "--short=12", "HEAD").strip() + ("-dirty" if git("status", "--porcelain") else ""),
              "machine": cpu_name(), "date": datetime.date.today().isoformat(),
              "load_average_1_min": float(pathlib.Path("/proc/loadavg").read_text().split()[0])}
    record["hadal"] = json.loads(subprocess.run([str(options.bench)], stdout=subprocess.PIPE, text=True, check=True).stdout)
    traffic = {result["name"]: result for result in record["hadal"]["results"]}
    record["holds"] = {
        "plan_and_commit_p50_below_150_us": all(t["plan_and_commit_us"]["p50"] < 150 for t in traffic.values()),
        "plan_and_commit_p99_below_400_us": all(t["plan_and_commit_us"]["p99"] < 400 for t in traffic.values()),
        "match_131072_tokens_below_1_ms": record["hadal"]["match_131072_tokens_us"]["p50"] < 1000,
        "no_allocation_per_decoded_token": traffic["decode"]["allocations_per_token"] == 0}
    record["sglang"] = None
    if options.sglang:
        try:
            record["sglang"] = measure_sglang(options.sglang.resolve(), record["hadal"]["tree_pages"] * PAGE, options.repeats)
        except ImportError as error:
            record["sglang_note"] = f"hadal alone: {error}"
    else:
        record["sglang_note"] = "hadal alone: --sglang was not given"
    slug = re.sub(r"[^a-z0-9]+", "-", cpu_name().lower()).strip("-")[:24].strip("-")
    result = options.result or ROOT / "bench/results" / f"{record['date']}-{slug}-sched-cost.json"
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    print(f"written to {result}")
    return 0 if all(record["holds"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
