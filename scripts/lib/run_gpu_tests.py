"""Runs the cases of the GPU tests one process each and writes the results; called by scripts/test-gpu.sh."""
import json
import os
import re
import subprocess
import sys
import time

SKIPPED = 77
SANITIZER_ERROR = 99
LIMIT_S = 300
TOO_LARGE = "linear: model shapes"  # for a sanitizer; the same kernels run in smaller cases


def output_of(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.stdout.strip() if done.returncode == 0 else ""
    except (OSError, subprocess.TimeoutExpired):
        return ""


def case_names(program):
    """Catch2 v2 has a flag for bare names (its exit status is their number); v3 a quiet listing."""
    listed = subprocess.run([program, "--list-test-names-only"], capture_output=True, text=True)
    if "Unrecognised" in listed.stdout + listed.stderr or "error" in listed.stderr.lower():
        listed = subprocess.run([program, "--list-tests", "--verbosity", "quiet"], capture_output=True, text=True)
    return [line.strip() for line in listed.stdout.splitlines() if line.strip()]


def run_case(program, name, tool):
    spec = re.sub(r"([,\[\\])", r"\\\1", name)
    command = [program, spec]
    if tool:
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", str(SANITIZER_ERROR)] + command
    begin = time.monotonic()
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              errors="replace", timeout=LIMIT_S)
        status, text = done.returncode, done.stdout
    except subprocess.TimeoutExpired as late:
        status, text = 124, (late.stdout or b"").decode(errors="replace") + f"\nstopped after {LIMIT_S} s"
    ran = re.search(r"All tests passed|assertions:|\bskipped:", text) is not None
    if status == 0 and not ran:
        status, text = 1, text + "\nno case ran"
    return status, time.monotonic() - begin, text


def main():
    cases = [(p, name) for p in os.environ["HADAL_GPU_TESTS"].split(":") for name in case_names(p)]
    tool = os.environ["HADAL_GPU_SANITIZE"]
    gpu = output_of("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    compiler = output_of("nvcc", "--version").splitlines()
    results = []
    for program, name in cases:
        if os.environ["HADAL_GPU_FILTER"] not in name or (tool and TOO_LARGE in name):
            continue
        status, seconds, text = run_case(program, name, tool)
        if status == SKIPPED:
            print(text)
            return SKIPPED
        passed = status == 0
        bounds = [float(x) for x in re.findall(r"worst uses ([0-9.e+]+) of its bound", text)]
        results.append({"case": name, "passed": passed, "status": status, "seconds": round(seconds, 2),
                        "worst_of_bound": max(bounds, default=None)})
        measured = [line for line in text.splitlines() if line.startswith("golden ")]
        if measured:
            results[-1]["measured"] = measured
            print("\n".join(measured), flush=True)
        print(f"{'pass' if passed else 'FAIL'} {seconds:7.2f} s  {name}", flush=True)
        if not passed:
            results[-1]["output"] = text[-4000:]
            print(text[-4000:], flush=True)
    failed = [r["case"] for r in results if not r["passed"]]
    report = {"tool": "scripts/test-gpu.sh", "commit": os.environ["HADAL_GPU_COMMIT"], "gpu": gpu,
              "nvcc": compiler[-1] if compiler else "", "archs": os.environ["HADAL_GPU_ARCHS"], "sanitizer": tool,
              "build_s": int(os.environ["HADAL_GPU_BUILD_S"]), "cases": len(results), "failed": failed,
              "results": results}
    if os.environ["HADAL_GPU_OUT"]:
        with open(os.environ["HADAL_GPU_OUT"], "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
            file.write("\n")
    print(f"{len(results) - len(failed)} of {len(results)} cases passed on {gpu or 'an unknown GPU'}")
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
