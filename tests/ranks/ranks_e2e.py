"""Groups of rank processes over loopback: they answer as one, and they end as one.

`--random N --seed S` breaks N groups under load at random instead.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time

from group import Group, Stream, is_alive

NULL = ["--runner", "null:2000", "--max-running-requests", "16", "--max-total-tokens", "262144"]


class Failure(Exception):
    pass


def check(condition, text):
    if not condition:
        raise Failure(text)


def end_of(group, streams, since, limit_s, codes, cause, own_events=True):
    """All that must hold after a fault; how long it took, as text."""
    ended = group.wait_ended(limit_s + 20)
    for node, code in ended.items():
        check(code is not None, f"node {node} still runs")
        check(code in codes, f"node {node} ended with {code}, expected one of {codes}")
        took = group.nodes[node].ended_at - since
        check(took < limit_s, f"node {node} took {took:.2f} s, limit {limit_s}")
    for node in group.nodes.values():
        found = node.grep("The group ends: ") + node.grep("The group stops: ")
        check(len(found) == 1, f"expected one line that says why, got {found}")
        check(cause in found[0], f"expected '{cause}' in: {found[0]}")
    for stream in streams:
        stream.join(5)
        wanted = ("error",) if own_events else ("error", "cut")
        check(stream.outcome in wanted, f"a stream ended as {stream.outcome}: {stream.error}")
    left = [pid for pid in group.all_pids() if is_alive(pid)]
    check(not left, f"processes left behind: {left}")
    slowest = max(node.ended_at for node in group.nodes.values()) - since
    return f"{slowest:.2f} s, exit codes {sorted(set(ended.values()))}"


def under_load(group, count=4):
    streams = [group.stream(f"prompt {i}", seed=i) for i in range(count)]
    for stream in streams:
        check(stream.started.wait(60), "a stream did not start")
    return streams


def test_answers(run):
    """Two nodes answer as one process does; a worker's SIGTERM drains the group."""
    with Group(run.binary, NULL, nnodes=1, tp=1) as alone:
        wanted = [alone.stream(f"p{i}", 40, i) for i in range(6)]
        [stream.join(60) for stream in wanted]
    with Group(run.binary, NULL) as group:
        got = [group.stream(f"p{i}", 40, i) for i in range(6)]
        [stream.join(60) for stream in got]
        for one, other in zip(wanted, got):
            check(one.outcome == other.outcome == "done", f"{one.error} {other.error}")
            check(one.text == other.text, "another answer than one process")
        for path in ("/livez", "/readyz", "/startupz", "/metrics"):
            for node in (0, 1):
                status = group.get(group.admin_ports[node], path)
                check(status == 200, f"node {node} {path}: {status}")
        check(group.get(group.health_ports[1], "/health") == 200, "a worker's /health")
        check(group.get(group.health_ports[1], "/v1/models") == 404, "a worker serves no models")
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
        with Group(run.binary, NULL) as group:
            streams = under_load(group)
            since = time.monotonic()
            os.kill(group.pid_of(rank), signal.SIGKILL)
            unready = time.monotonic()
            while group.get(group.admin_ports[1], "/readyz") == 200:
                check(time.monotonic() - since < 1 * run.slower, "/readyz is still 200")
            unready = time.monotonic() - since
            cause = f"rank {rank} on node {rank // 2} was killed by signal 9"
            text = end_of(group, streams, since, 3 * run.slower, (137, 71), cause, rank != 0)
            return f"{text}, unready after {unready:.2f} s"

    test.__doc__ = f"kill -9 of rank {rank}"
    return test


def stop_rank(rank):
    def test(run):
        with Group(run.binary, NULL) as group:
            streams = under_load(group)
            since = time.monotonic()
            os.kill(group.pid_of(rank), signal.SIGSTOP)
            return end_of(group, streams, since, 6 * run.slower, (72,), "rank", rank != 0)

    test.__doc__ = f"SIGSTOP of rank {rank}"
    return test


def signal_supervisor(node, number, name, limit_s, codes):
    def test(run):
        with Group(run.binary, NULL) as group:
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
                return f"{took:.2f} s, exit code {other.process.returncode}"
            other = group.nodes[1 - node]
            code = other.wait(limit_s * run.slower + 20)
            took = other.ended_at - since
            check(took < limit_s * run.slower, f"took {took:.2f} s")
            check(code in codes, f"exit code {code}")
            check(len(other.grep(f"node {node} is lost")) == 1, "no line names the node")
            for stream in streams:
                stream.join(5)
                wanted = ("error",) if node == 1 else ("error", "cut")
                check(stream.outcome in wanted, f"a stream ended as {stream.outcome}")
            time.sleep(0.2)
            left = [pid for pid in group.all_pids() if is_alive(pid)]
            check(not left, f"processes left behind: {left}")
            return f"{took:.2f} s, exit code {code}"

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
            group = Group(run.binary, NULL, flags_of=flags_of)
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
    with Group(run.binary, NULL, worker_first=True) as group:
        stream = group.stream("x", 10)
        stream.join(30)
        check(stream.outcome == "done", f"{stream.outcome} {stream.error}")
    return "answers"


def test_replay(run):
    """Recorded plans give the same tokens again."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "plans")
        with Group(run.binary, NULL, flags_of={0: ["--record-plans", path]}) as group:
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


def random_fault(run, source):
    """One group, broken at a random moment in a random way."""
    with Group(run.binary, NULL) as group:
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
        return f"{signal.Signals(number).name} of rank {rank}: {text}"


SHORT = [
    test_answers,
    test_join_errors,
    test_worker_first,
    test_replay,
    kill_rank(3),
    kill_rank(0),
    stop_rank(1),
    signal_supervisor(1, signal.SIGKILL, "kill -9", 3, (73,)),
]
LONG = [
    *[kill_rank(rank) for rank in (1, 2)],
    *[stop_rank(rank) for rank in (0, 2, 3)],
    signal_supervisor(0, signal.SIGKILL, "kill -9", 3, (73,)),
    signal_supervisor(1, signal.SIGSTOP, "SIGSTOP", 6, (72, 73)),
]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--slower", type=float, default=1, help="factor on every time limit")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--random", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="")
    run = parser.parse_args()
    num_failed = 0
    if run.random:
        source = random.Random(run.seed)
        tests = [lambda r: random_fault(r, source) for _ in range(run.random)]
        for test in tests:
            test.__doc__ = random_fault.__doc__
    else:
        tests = SHORT + (LONG if run.long else [])
    for test in tests:
        if run.only not in test.__doc__:
            continue
        start = time.monotonic()
        try:
            text = test(run)
        except (Failure, RuntimeError) as error:
            num_failed += 1
            text = f"FAILED: {error}"
        print(f"{test.__doc__}: {text} [{time.monotonic() - start:.1f} s]", flush=True)
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
