"""Two nodes as network namespaces joined by a veth pair: links that break, crawl, stall or are strange.

Needs root. Every namespace and device has a name of its own and is removed at the end. While a
Network is open, this thread and those that it starts are in node 0's namespace, so the ordinary
clients reach both nodes.
"""

import ctypes
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

from concurrent.futures import ThreadPoolExecutor

from group import Outcome, check, end_of, free_port, is_alive, under_load

ADDRESS = {0: "10.213.7.1", 1: "10.213.7.2"}
CLONE_NEWNET = 0x40000000
TESTS = pathlib.Path(__file__).resolve().parent


def sh(*words, may_fail=False):
    return subprocess.run(words, check=not may_fail, capture_output=True, text=True)


def enter_namespace(file):
    """The calling thread only."""
    if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


class Network:
    """`with Network() as place`: namespaces with ADDRESS each, and a secret that both nodes know."""

    def __enter__(self):
        tag = f"{os.getpid() % 100000}"
        self.names = {node: f"hadal{tag}n{node}" for node in (0, 1)}
        self.devices = {node: f"hd{tag}v{node}" for node in (0, 1)}
        self.folder = tempfile.mkdtemp(prefix="hadal_net_")
        secret = os.path.join(self.folder, "secret")
        with open(secret, "w") as file:
            file.write("between namespaces\n")
        self.flags = ["--group-secret-file", secret]
        for name in self.names.values():
            sh("ip", "netns", "add", name)
        sh("ip", "link", "add", self.devices[0], "type", "veth", "peer", "name", self.devices[1])
        for node, name in self.names.items():
            device = self.devices[node]
            sh("ip", "link", "set", device, "netns", name)
            sh("ip", "-n", name, "addr", "add", f"{ADDRESS[node]}/24", "dev", device)
            sh("ip", "-n", name, "link", "set", device, "up")
            sh("ip", "-n", name, "link", "set", "lo", "up")
        self.outside = open("/proc/thread-self/ns/net")
        with open(f"/run/netns/{self.names[0]}") as inside:
            enter_namespace(inside)
        return self

    def __exit__(self, *_):
        enter_namespace(self.outside)
        self.outside.close()
        for name in self.names.values():
            sh("ip", "netns", "del", name, may_fail=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def host(self, node):
        return ADDRESS[node]

    def leader_host(self, _node):
        return ADDRESS[0]

    def command(self, node, words):
        """Only the network is another: /sys, with the control groups, stays."""
        return ["nsenter", f"--net=/run/netns/{self.names[node]}", *words]

    def set_link(self, node, state):
        sh("ip", "-n", self.names[node], "link", "set", self.devices[node], state)

    def tc(self, node, verb, *words, may_fail=False):
        sh("tc", "-n", self.names[node], "qdisc", verb, "dev", self.devices[node], "root", *words,
           may_fail=may_fail)  # fmt: skip


def link_down(run):
    """link down: both nodes end by silence"""
    with run.group() as group:
        streams = under_load(group)
        since = time.monotonic()
        run.place.set_link(1, "down")
        try:
            return end_of(group, streams, since, 6 * run.slower, (73,), "is lost: ")
        finally:
            run.place.set_link(1, "up")


def keeps_working(group, max_tokens):
    """An answer comes, and the group outlives the silence that would count as a loss."""
    start = time.monotonic()
    stream = group.stream("slow", max_tokens)
    stream.join(300)
    took = time.monotonic() - start
    check(stream.outcome == "done", f"the stream ended as {stream.outcome}: {stream.error}")
    time.sleep(6)
    check(all(n.process.poll() is None for n in group.nodes.values()), "the group ended\n" + group.log())
    os.kill(group.nodes[0].process.pid, signal.SIGTERM)
    codes = group.wait_ended(60)
    check(codes == {0: 0, 1: 0}, f"exit codes after SIGTERM: {codes}")
    return Outcome(f"{max_tokens} tokens in {took:.1f} s, drained with exit code 0",
                   seconds=round(took, 2), tokens=max_tokens, exit_codes=[0, 0])  # fmt: skip


def slow_link(run):
    """bandwidth cut to 1 Mbit/s by tbf: keeps working"""
    with run.group() as group:
        for node in (0, 1):
            run.place.tc(node, "add", "tbf", "rate", "1mbit", "burst", "32kbit", "latency", "400ms")
        try:
            return keeps_working(group, 200)
        finally:
            for node in (0, 1):
                run.place.tc(node, "del", may_fail=True)


def through_proxy(delay_ms, stall_ms, max_tokens, text):
    def test(run):
        port = free_port()
        group = run.group(nodes=[0])
        proxy = subprocess.Popen(
            run.place.command(1, [sys.executable, str(TESTS / "proxy.py"), str(port),
                                  f"{ADDRESS[0]}:{group.port}", "--delay-ms", str(delay_ms),
                                  "--stall-ms", str(stall_ms), "--seed", str(run.seed)]),
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            check(proxy.stdout.readline().strip() == "ready", "the proxy did not start")
            group.start_node(1, leader=f"127.0.0.1:{port}")
            with group:
                return keeps_working(group, max_tokens)
        finally:
            proxy.kill()
            proxy.wait()
            group.kill()

    test.__doc__ = text + " by a seeded proxy: keeps working"
    return test


class MemoryGroup:
    """A control group for node 1, of either version."""

    def __init__(self):
        root = "/sys/fs/cgroup"
        self.is_v2 = os.path.exists(root + "/cgroup.controllers")
        self.path = f"{root}{'' if self.is_v2 else '/memory'}/hadal_test_{os.getpid()}"
        os.mkdir(self.path)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for _ in range(100):
            try:
                os.rmdir(self.path)
                return
            except OSError:
                time.sleep(0.05)

    def inside(self, words=()):
        """A prefix: the command that follows runs in the group."""
        return ["sh", "-c", f'echo $$ > {self.path}/cgroup.procs && exec "$@"', "sh", *words]

    def limit_to_use_plus(self, extra_bytes):
        use, limit = (("memory.current", "memory.max") if self.is_v2
                      else ("memory.usage_in_bytes", "memory.limit_in_bytes"))  # fmt: skip
        used = int(pathlib.Path(self.path, use).read_text())
        pathlib.Path(self.path, limit).write_text(str(used + extra_bytes))


def set_oom_score(pid, score):
    pathlib.Path(f"/proc/{pid}/oom_score_adj").write_text(str(score))


def out_of_memory(run):
    """out of memory: the kernel kills rank 3"""
    with MemoryGroup() as memory:
        group = run.group(nodes=[0])
        group.start_node(1, prefix=memory.inside())
        with group:
            streams = under_load(group)
            # The kernel's first choice; the hog is its second.
            set_oom_score(group.pid_of(3), 1000)
            memory.limit_to_use_plus(24 << 20)
            since = time.monotonic()
            hog = subprocess.Popen(
                memory.inside([sys.executable, "-c", "b = bytearray(256 << 20); b[::4096] = b'x' * (len(b) // 4096)"]))
            set_oom_score(hog.pid, 300)
            try:
                cause = "was killed by signal 9: the kernel killed it for want of memory"
                return end_of(group, streams, since, 3 * run.slower, {0: (71,), 1: (137,)},
                              "rank 3 on node 1 " + cause)  # fmt: skip
            finally:
                hog.kill()
                hog.wait()


def refused_node(group, node, code, line):
    check(group.nodes[node].wait(60) == code, f"{line}: exit {group.nodes[node].wait(0)}\n{group.log()}")
    found = group.nodes[node].grep(line)
    check(found, f"no line '{line}'\n{group.log()}")
    check(group.nodes[0].process.poll() is None, "node 0 must go on waiting")
    return found[0]


def refused(prepare, code, line, text):
    """Node 1 is refused, node 0 waits on, and the right node 1 still gets in."""

    def test(run):
        with tempfile.TemporaryDirectory() as folder:
            good, bad = prepare(run, folder)
            group = run.group(nodes=[0], flags_of={0: good[1], 1: bad[1]})
            try:
                group.start_node(1, binary=bad[0])
                start = time.monotonic()
                why = refused_node(group, 1, code, line)
                group.flags_of[1] = good[1]
                group.start_node(1, binary=good[0])
                group.wait_ready(60)
                stream = group.stream("x", 20)
                stream.join(30)
                check(stream.outcome == "done", f"{stream.outcome} {stream.error}")
                took = time.monotonic() - start
                return Outcome(f"exit code {code}, then the right node joins", exit_codes=[code],
                               line=why[-160:], seconds=round(took, 2))  # fmt: skip
            finally:
                group.kill()

    test.__doc__ = text
    return test


def other_secret(run, folder):
    path = os.path.join(folder, "other")
    pathlib.Path(path).write_text("another secret\n")
    return (run.binary, []), (run.binary, ["--group-secret-file", path])


def other_model(run, folder):
    """The same checkpoint but for one setting in config.json."""
    check(run.model, "needs --model")
    model = pathlib.Path(run.model).resolve()
    other = pathlib.Path(folder, "model")
    other.mkdir()
    for file in model.iterdir():
        (other / file.name).symlink_to(file)
    settings = json.loads((model / "config.json").read_text())
    settings["rms_norm_eps"] = 2e-6
    (other / "config.json").unlink()
    (other / "config.json").write_text(json.dumps(settings))
    return ((run.binary, ["--model-path", str(model), "--served-model-name", "null"]),
            (run.binary, ["--model-path", str(other), "--served-model-name", "null"]))  # fmt: skip


def other_version(run, folder):
    """The same executable with another commit in it."""
    shown = subprocess.run([run.binary, "--version"], capture_output=True, text=True, check=True).stdout
    commit = shown.split("(")[1].split(",")[0].strip().encode()
    data = pathlib.Path(run.binary).read_bytes()
    check(len(commit) >= 7 and data.count(commit) > 0, f"no commit in the executable: {shown}")
    other = pathlib.Path(folder, "hadal")
    other.write_bytes(data.replace(commit, bytes(reversed(commit))))
    other.chmod(0o755)
    return (run.binary, []), (str(other), [])


def strangers(run):
    """garbage, half frames and a port scanner on the control port: neither join nor keep others out"""
    source = random.Random(run.seed)
    group = run.group(nodes=[0])
    held = []
    try:
        end = time.monotonic() + 30
        while len(held) < 100:
            check(time.monotonic() < end, "the control port does not open\n" + group.log())
            try:
                held.append(socket.create_connection((ADDRESS[0], group.port), timeout=5))
            except OSError:
                time.sleep(0.05)
        for i, one in enumerate(held):  # a third says nothing at all
            try:
                if i % 3 == 1:
                    one.sendall(source.randbytes(source.randint(1, 4096)))
                elif i % 3 == 2:  # a head with a length, and no body
                    one.sendall(b"HADL"[: source.randint(1, 4)] + source.randbytes(source.randint(0, 7)))
            except OSError:
                pass  # dropped already
        group.start_node(1)
        start = time.monotonic()
        group.wait_ready(60)
        took = time.monotonic() - start
        stream = group.stream("x", 20)
        stream.join(30)
        check(stream.outcome == "done", f"{stream.outcome} {stream.error}")
        return Outcome(f"formed {took:.1f} s after the worker came", seconds=round(took, 2), strangers=len(held))
    finally:
        [one.close() for one in held]
        group.kill()


def all_addresses(run):
    """node 0 with --dist-init-addr 0.0.0.0: joins and answers"""
    group = run.group(nodes=[])
    try:
        group.start_node(0, leader=f"0.0.0.0:{group.port}")
        group.start_node(1)
        group.wait_ready(60)
        stream = group.stream("x", 20)
        stream.join(30)
        check(stream.outcome == "done", f"{stream.outcome} {stream.error}")
        return "answers"
    finally:
        group.kill()


def recorded_answers(run):
    """hadal-mini over both nodes: the recorded answers"""
    check(run.model, "needs --model")
    sys.path.insert(0, str(TESTS.parent / "model_e2e"))
    from hadal_process import Server
    from model_e2e import body_of, expected_answer, given_answer

    class Client(Server):
        def __init__(self, address):
            self._address = address

    lines = (pathlib.Path(run.model) / "eval" / "cases.jsonl").read_text().splitlines()
    cases = [json.loads(line) for line in lines]
    cases = cases[:: max(1, len(cases) // run.cases)][: run.cases]
    flags = ["--model-path", run.model, "--served-model-name", "hadal-mini", "--cpu-threads", "1"]
    with run.group(flags=flags, start_timeout_s=300) as group:
        client = Client(group.address)
        start = time.monotonic()
        with ThreadPoolExecutor(32) as pool:
            replies = list(pool.map(lambda case: client.chat(body_of(case)), cases))
        took = time.monotonic() - start
        right = sum(given_answer(r) == expected_answer(c) for r, c in zip(replies, cases))
        os.kill(group.nodes[0].process.pid, signal.SIGTERM)
        codes = group.wait_ended(60)
    check(right + max(1, len(cases) // 100) >= len(cases), f"{right} of {len(cases)} as recorded")
    check(codes == {0: 0, 1: 0}, f"exit codes after SIGTERM: {codes}")
    check(not any(is_alive(pid) for pid in group.all_pids()), "processes left behind")
    return Outcome(f"{right} of {len(cases)} as recorded, {took:.0f} s", right=right, cases=len(cases),
                   seconds=round(took, 1))  # fmt: skip


NETWORK_TESTS = [
    link_down,
    slow_link,
    through_proxy(50, 0, 60, "50 ms delay"),
    through_proxy(1, 2500, 300, "stalls of up to 2.5 s"),
    out_of_memory,
    refused(other_secret, 77, "the group secret is not the same", "wrong secret"),
    refused(other_model, 78, "config.json", "wrong model"),
    refused(other_version, 78, "hadal version", "version skew"),
    strangers,
    all_addresses,
    recorded_answers,
]
