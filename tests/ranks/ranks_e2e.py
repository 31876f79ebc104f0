"""Groups of rank processes: they answer as one, and they end as one.

`--random N --seed S` breaks N groups under load at random instead; `--namespaces` puts the two nodes
into network namespaces and breaks the link too (root only); `--output FILE` writes what came out of
each as JSON.
"""

import argparse
import datetime
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from group import Failure, Group, Loopback, Outcome, check, end_of, is_alive, under_load

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts" / "lib"))
from portable_paths import portable  # noqa: E402

NULL = ["--runner", "null:2000", "--max-running-requests", "16", "--max-total-tokens", "262144"]


def check_rank_metrics(group):
    """A worker's page has a series for each of its ranks, which have answered steps."""
    time.sleep(0.6)  # the page is renewed twice a second
    text = group.fetch(1, group.admin_ports[1], "/metrics")[1]
    for rank in (2, 3):
        for name, low in (("ready", 1), ("steps_total", 40), ("resident_bytes", 1 << 20), ("silent_seconds", 0)):
            found = re.search(rf'^hadal_rank_{name}{{.*node="1",rank="{rank}"}} (\S+)$', text, re.MULTILINE)
            check(found and float(found.group(1)) >= low, f"rank {rank}: {name}: {found and found.group(0)}")


def test_answers(run):
    """Two nodes answer as one process does; a worker's SIGTERM drains the group."""
    with run.group(nnodes=1, tp=1) as alone:
        wanted = [alone.stream(f"p{i}", 40, i) for i in range(6)]
        [stream.join(60) for stream in wanted]
    with run.group() as group:
        got = [group.stream(f"p{i}", 40, i) for i in range(6)]
        [stream.join(60) for stream in got]
        for one, other in zip(wanted, got):
            check(one.outcome == other.outcome == "done", f"{one.error} {other.error}")
            check(one.text == other.text, "another answer than one process")
        for path in ("/livez", "/readyz", "/startupz", "/metrics"):
            for node in (0, 1):
                status = group.get(node, group.admin_ports[node], path)
                check(status == 200, f"node {node} {path}: {status}")
        check_rank_metrics(group)
        check(group.get(1, group.health_ports[1], "/health") == 200, "a worker's /health")
        check(group.get(1, group.health_ports[1], "/v1/models") == 404, "a worker serves no models")
        running = group.stream("drains", 300)
        check(running.started.wait(30), "no token")
        os.kill(group.nodes[1].process.pid, signal.SIGTERM)
        codes = group.wait_ended(60)
        running.join(10)
        check(running.outcome == "done", f"a drained stream ended as {running.outcome}")
        check(codes == {0: 0, 1: 0}, f"exit codes after SIGTERM: {codes}")
    return "6 answers equal, drained with exit code 0"


def kill_rank(rank):
    def test(run):
        with run.group() as group:
            streams = under_load(group)
            since = time.monotonic()
            os.kill(group.pid_of(rank), signal.SIGKILL)
            unready = time.monotonic()
            while group.get(1, group.admin_ports[1], "/readyz") == 200:
                check(time.monotonic() - since < 1 * run.slower, "/readyz is still 200")
            unready = time.monotonic() - since
            cause = f"rank {rank} on node {rank // 2} was killed by signal 9"
            codes = {node: (137,) if node == rank // 2 else (71,) for node in (0, 1)}
            found = end_of(group, streams, since, 3 * run.slower, codes, cause, rank != 0)
            found.numbers["unready_after_s"] = round(unready, 2)
            return Outcome(f"{found}, unready after {unready:.2f} s", **found.numbers)

    test.__doc__ = f"kill -9 of rank {rank}"
    return test


def stop_rank(rank):
    def test(run):
        with run.group() as group:
            streams = under_load(group)
            since = time.monotonic()
            os.kill(group.pid_of(rank), signal.SIGSTOP)
            return end_of(group, streams, since, 6 * run.slower, (72,), "rank", rank != 0)

    test.__doc__ = f"SIGSTOP of rank {rank}"
    return test


def signal_supervisor(node, number, name, limit_s, codes):
    def test(run):
        with run.group() as group:
            streams = under_load(group)
            since = time.monotonic()
            os.kill(group.nodes[node].process.pid, number)
            if number == signal.SIGSTOP:  # it cannot end by itself; everything else must
                other = group.nodes[1 - node]
                check(other.wait(limit_s * run.slower + 20) is not None, "the other node runs")
                took = other.ended_at - since
                check(took < limit_s * run.slower, f"took {took:.2f} s")
                check(other.process.returncode in codes, f"code {other.process.returncode}")
                deadline = since + limit_s * run.slower
                ranks = [pid for n in group.nodes.values() for pid in n.ranks.values()]
                while any(is_alive(pid) for pid in ranks):
                    check(time.monotonic() < deadline, "ranks are left")
                    time.sleep(0.05)
                return Outcome(f"{took:.2f} s, exit code {other.process.returncode}",
                               seconds=round(took, 2), exit_codes=[other.process.returncode])  # fmt: skip
            other = group.nodes[1 - node]
            code = other.wait(limit_s * run.slower + 20)
            took = other.ended_at - since
            check(took < limit_s * run.slower, f"took {took:.2f} s")
            check(code in codes, f"exit code {code}")
            check(len(other.grep(f"The group ends: node {node} is lost")) == 1, "no line names the node")
            for stream in streams:
                stream.join(5)
                wanted = ("error",) if node == 1 else ("error", "cut")
                check(stream.outcome in wanted, f"a stream ended as {stream.outcome}")
            time.sleep(0.2)
            left = [pid for pid in group.all_pids() if is_alive(pid)]
            check(not left, f"processes left behind: {left}")
            return Outcome(f"{took:.2f} s, exit code {code}", seconds=round(took, 2),
                           exit_codes=[code], line=other.grep(f"node {node} is lost")[0][-120:])  # fmt: skip

    test.__doc__ = f"{name} of node {node}'s supervisor"
    return test


def test_join_errors(run):
    """Wrong secret, other flags and a missing secret are told apart by exit code and line."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (("a", "one\n"), ("b", "two\n"), ("empty", "")):
            with open(os.path.join(folder, name), "w") as file:
                file.write(text)
        path = lambda name: ["--group-secret-file", os.path.join(folder, name)]
        cases = [
            ({0: path("a"), 1: path("b")}, 77, "the group secret is not the same"),
            ({1: ["--context-length", "4096"]}, 78, "--context-length: '0' here, '4096' there"),
            ({1: path("empty")}, 64, "it is empty"),
            ({1: path("none")}, 64, "No such file"),
        ]
        for flags_of, code, line in cases:
            group = run.group(flags_of=flags_of)
            try:
                check(group.nodes[1].wait(30) == code, f"{line}: exit {group.nodes[1].wait(0)}")
                check(group.nodes[1].grep(line), f"no line '{line}'\n{group.log()}")
                deadline = time.monotonic() + 10 * run.slower
                while not group.nodes[0].grep("Waiting for the group") and time.monotonic() < deadline:
                    time.sleep(0.05)
                check(group.nodes[0].process.poll() is None, "node 0 must go on waiting")
                group.nodes[0].process.terminate()
                check(group.nodes[0].wait(30) == 0, "node 0 stops with 0")
            finally:
                group.kill()
    return f"{len(cases)} cases"


def test_worker_first(run):
    """A worker that starts first waits for node 0."""
    with run.group(worker_first=True) as group:
        stream = group.stream("x", 10)
        stream.join(30)
        check(stream.outcome == "done", f"{stream.outcome} {stream.error}")
    return "answers"


def test_replay(run):
    """Recorded plans give the same tokens again."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "plans")
        with run.group(flags_of={0: ["--record-plans", path]}) as group:
            streams = [group.stream(f"p{i}", 60, i) for i in range(5)]
            [stream.join(60) for stream in streams]
            os.kill(group.nodes[0].process.pid, signal.SIGTERM)
            check(group.wait_ended(30) == {0: 0, 1: 0}, "drained")
        replay = subprocess.run(
            [run.binary, "replay", path, *NULL], capture_output=True, text=True, timeout=120
        )
        check(replay.returncode == 0, replay.stdout + replay.stderr)
        check("the same tokens" in replay.stdout, replay.stdout)
        return replay.stdout.strip()


def planted(kind, rank, code, limit_s, cause):
    """A fault inside the null runner of one rank; its time counts from the last token."""

    def test(run):
        fault = [f"{NULL[1]},{kind}@{rank}:400"]
        with run.group(flags_of={node: ["--runner", *fault] for node in (0, 1)}) as group:
            streams = under_load(group)
            for stream in streams:
                stream.join(60 * run.slower)
            last = [stream.last_at for stream in streams if stream.last_at is not None]
            check(last, "no stream had a token")
            return end_of(group, streams, max(last), limit_s * run.slower, (code,), cause, rank != 0)

    test.__doc__ = {"hang": f"a step hangs in rank {rank}", "token": f"rank {rank} samples other ids"}[kind]
    return test


def random_fault(run, source):
    """One group, broken at a random moment in a random way."""
    with run.group() as group:
        streams = under_load(group, source.randint(1, 8))
        time.sleep(source.random() * 0.5)
        rank = source.randrange(4)
        number = source.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV])
        since = time.monotonic()
        os.kill(group.pid_of(rank), number)
        limit_s = (6 if number == signal.SIGSTOP else 3) * run.slower
        text = end_of(
            group, streams, since, limit_s, (71, 72, 134, 137, 139, 1), "rank", rank != 0
        )
        name = signal.Signals(number).name
        return Outcome(f"{name} of rank {rank}: {text}", fault=f"{name} of rank {rank}", **text.numbers)


SHORT = [
    test_answers,
    test_join_errors,
    test_worker_first,
    test_replay,
    kill_rank(3),
    kill_rank(0),
    stop_rank(1),
    signal_supervisor(1, signal.SIGKILL, "kill -9", 3, (73,)),
    planted("hang", 2, 72, 6, "no answer from rank 2"),
    planted("token", 3, 74, 3, "rank 3 disagrees with rank 0"),
]
LONG = [
    *[kill_rank(rank) for rank in (1, 2)],
    *[stop_rank(rank) for rank in (0, 2, 3)],
    signal_supervisor(0, signal.SIGKILL, "kill -9", 3, (73,)),
    signal_supervisor(1, signal.SIGSTOP, "SIGSTOP", 6, (72, 73)),
    planted("hang", 0, 72, 6, "no answer from rank 0"),
    planted("token", 1, 74, 3, "rank 1 disagrees with rank 0"),
]


class Run:
    """The command line, and where groups are started."""

    def __init__(self, args):
        self.__dict__.update(vars(args))
        self.binary = os.path.abspath(args.binary)
        self.place = Loopback()

    def group(self, flags=None, **more):
        return Group(self.binary, NULL if flags is None else flags, place=self.place, **more)


def run_one(run, test):
    """The row of one test."""
    start = time.monotonic()
    row = {"test": test.__doc__, "passed": True}
    try:
        found = test(run)
        row.update(getattr(found, "numbers", {}), text=str(found))
    except (Failure, RuntimeError, OSError, subprocess.SubprocessError) as error:
        row.update(passed=False, text=f"FAILED: {error}")
    print(f"{test.__doc__}: {row['text']} [{time.monotonic() - start:.1f} s]", flush=True)
    return row


def write_report(run, rows):
    version = subprocess.run([run.binary, "--version"], capture_output=True, text=True, check=True)
    report = {
        "version": version.stdout.strip(),
        "command": " ".join(["tests/ranks/ranks_e2e.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "passed": sum(row["passed"] for row in rows),
        "of": len(rows),
        "results": rows,
    }
    with open(run.output, "w") as file:
        json.dump(portable(report, ROOT), file, indent=1)
        file.write("\n")


def random_tests(run):
    source = random.Random(run.seed)

    def test(again):
        return random_fault(again, source)

    test.__doc__ = random_fault.__doc__
    return [test] * run.random


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--slower", type=float, default=1, help="factor on every time limit")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--random", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--namespaces", action="store_true", help="nodes in network namespaces")
    parser.add_argument("--model", default="", help="hadal-mini, for the tests that need a model")
    parser.add_argument("--cases", type=int, default=200, help="of the model, to answer")
    parser.add_argument("--output", default="", help="a JSON file for the results")
    run = Run(parser.parse_args())
    if run.random:
        tests = random_tests(run)
    else:
        tests = SHORT + (LONG if run.long else [])
    if run.namespaces:
        from namespaces import NETWORK_TESTS, Network

        tests = tests if run.random else tests + NETWORK_TESTS
        with Network() as run.place:
            rows = [run_one(run, test) for test in tests if run.only in test.__doc__]
    else:
        rows = [run_one(run, test) for test in tests if run.only in test.__doc__]
    if not rows:
        parser.error(f"--only {run.only}: no test says so")
    if run.output:
        write_report(run, rows)
    return 0 if all(row["passed"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
