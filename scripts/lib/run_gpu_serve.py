"""Asks a server its recorded questions and writes what came of it; called by scripts/test-gpu-serve.sh."""
import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import time

from portable_paths import portable

NO_DEVICE = 77
START_TIMEOUT_S = 300


def output_of(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.stdout.strip() if done.returncode == 0 else ""
    except (OSError, subprocess.TimeoutExpired):
        return ""


def percentile(values, part):
    values = sorted(values)
    return round(values[min(len(values) - 1, int(part * len(values)))], 4) if values else None


def ask(server, case, body_of):
    """The reply put together from a stream, and what it took."""
    began = time.monotonic()
    reply = server.chat_streamed(body_of(case))
    reply["seconds"] = time.monotonic() - began
    return reply


def run_phase(e2e, server, cases, name, parallel):
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
        replies = list(pool.map(lambda case: ask(server, case, e2e.body_of), cases))
    seconds = time.monotonic() - began
    differing = []
    for index, (case, reply) in enumerate(zip(cases, replies)):
        expected, got = e2e.expected_answer(case), e2e.given_answer(reply)
        if got != expected:
            differing.append({"case": index, "family": case["family"], "expected": repr(expected), "got": repr(got)})
    tokens = sum(reply["usage"]["completion_tokens"] for reply in replies)
    phase = {
        "phase": name,
        "at_once": parallel,
        "cases": len(cases),
        "same": len(cases) - len(differing),
        "seconds": round(seconds, 3),
        "prompt_tokens": sum(reply["usage"]["prompt_tokens"] for reply in replies),
        "cached_tokens": e2e.cached_tokens(replies),
        "completion_tokens": tokens,
        "completion_tokens_per_s": round(tokens / seconds, 1),
        "request_s_p50": percentile([reply["seconds"] for reply in replies], 0.5),
        "request_s_p99": percentile([reply["seconds"] for reply in replies], 0.99),
        "differing": differing,
    }
    print(f"{name}: {phase['same']} of {len(cases)} as recorded, {tokens} tokens in {seconds:.1f} s = "
          f"{phase['completion_tokens_per_s']} tokens/s, {phase['cached_tokens']} cached prompt tokens", flush=True)
    return phase, [e2e.given_answer(reply) for reply in replies]


def run_phases(e2e, server, cases, wanted):
    """Every way of asking: a cold cache first, then the same questions again."""
    phases, answers = [], {}
    for kind, parallel in (("alone", 1), ("parallel", 32)):
        if kind not in wanted:
            continue
        status, text = server.request("POST", "/flush_cache")
        if status != 200:
            raise RuntimeError(f"/flush_cache: status {status}: {text}")
        for warmth in ("cold", "cached"):
            name = f"{kind}, {warmth}"
            phase, answers[name] = run_phase(e2e, server, cases, name, parallel)
            phases.append(phase)
    return phases, answers


def problems_of(phases, answers, same_min):
    problems = [f"{phase['phase']}: {phase['same']} of {phase['cases']} answers as recorded, expected {same_min}"
                for phase in phases if phase["same"] < same_min]
    for phase in phases:
        if phase["phase"].endswith("cached") and phase["cached_tokens"] < 0.8 * phase["prompt_tokens"]:
            problems.append(f"{phase['phase']}: only {phase['cached_tokens']} of {phase['prompt_tokens']} prompt "
                            "tokens came from the cache")
    return problems


def count_unequal(answers):
    """Cases whose answer depends on the way of asking."""
    return sum(len({repr(answer) for answer in of_case}) > 1 for of_case in zip(*answers.values()))


def main():
    parser = argparse.ArgumentParser()
    for flag in ("binary", "root", "device", "phases", "flags", "out", "command"):
        parser.add_argument("--" + flag, required=True)
    for flag in ("tp", "cases", "same"):
        parser.add_argument("--" + flag, required=True, type=int)
    args = parser.parse_args()
    root = pathlib.Path(args.root)
    sys.path.insert(0, str(root / "tests" / "model_e2e"))
    import hadal_process
    import model_e2e as e2e

    model = root / "models" / "hadal-mini"
    flags = ["--model-path", str(model), "--served-model-name", "hadal-mini", "--device", args.device,
             "--tp-size", str(args.tp), "--random-seed", "1", *args.flags.split()]
    checked = subprocess.run([args.binary, "check", *flags], capture_output=True, text=True)
    print(checked.stdout + checked.stderr, flush=True)
    if checked.returncode == 64 and "no usable CUDA device" in checked.stderr:
        return NO_DEVICE
    lines = (model / "eval" / "cases.jsonl").read_text(encoding="utf-8").splitlines()
    cases = [json.loads(line) for line in lines]
    cases = cases[:: max(1, len(cases) // args.cases)][: args.cases]
    report = {"tool": "scripts/test-gpu-serve.sh", "command": args.command, "commit": os.environ["HADAL_GPU_COMMIT"],
              "version": output_of(args.binary, "--version"), "flags": flags,
              "gpus": output_of("nvidia-smi", "--query-gpu=name,driver_version,memory.total",
                                "--format=csv,noheader").splitlines(),
              "check": checked.stdout.splitlines()}
    problems = []
    began = time.monotonic()
    try:
        with hadal_process.Server(args.binary, flags, START_TIMEOUT_S) as server:
            report["start_s"] = round(time.monotonic() - began, 3)
            print(f"started in {report['start_s']} s", flush=True)
            phases, answers = run_phases(e2e, server, cases, args.phases.split(","))
            report["phases"] = phases
            report["unequal_between_phases"] = count_unequal(answers)
            problems += problems_of(phases, answers, args.same)
            exit_code = server.stop()
            if exit_code != 0:
                problems.append(f"the server ended with exit code {exit_code}")
            report["log"] = [line.rstrip("\n") for line in server.lines[:40]]
            report["device"] = next((found.group(1) for line in server.lines
                                     if (found := re.search(r"Device: (.*)", line))), "")
    except (RuntimeError, OSError, ValueError) as error:
        problems.append(f"{type(error).__name__}: {error}")
    report["problems"] = problems
    report["passed"] = not problems
    if args.out:
        pathlib.Path(args.out).write_text(json.dumps(portable(report, root), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for problem in problems:
        print("FAILED:", problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
