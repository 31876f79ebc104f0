"""A group of `hadal serve` processes on this machine: start, talk, break, and see how it ends."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time

READY = re.compile(r"on http://([0-9.]+):([0-9]+)\. Try:")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def children_of(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def rank_of(pid):
    """The rank that a process was started as; None when it is no rank (any more)."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().decode().split("\0")
    except OSError:
        return None
    return int(words[words.index("--rank") + 1]) if "--rank" in words else None


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Failure(Exception):
    pass


def check(condition, text):
    if not condition:
        raise Failure(text)


class Outcome:
    """What a test found: a line of text, and numbers for the JSON."""

    def __init__(self, text, **numbers):
        self.text = text
        self.numbers = numbers

    def __str__(self):
        return self.text


class Node:
    """One supervisor with its log."""

    def __init__(self, command, env=None):
        self.lines = []
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=env
        )
        self.ended_at = None
        self.ranks = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._waiter = threading.Thread(target=self._wait, daemon=True)
        self._waiter.start()

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def _wait(self):
        self.process.wait()
        self.ended_at = time.monotonic()

    def find_ranks(self):
        self.ranks = {}
        for pid in children_of(self.process.pid):
            rank = rank_of(pid)
            if rank is not None:
                self.ranks[rank] = pid
        return self.ranks

    def wait(self, timeout_s):
        self._waiter.join(timeout_s)
        self._reader.join(5)
        return self.process.poll()

    def kill(self):
        for pid in [*self.ranks.values(), self.process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass

    def grep(self, text):
        return [line for line in self.lines if text in line]


class Stream(threading.Thread):
    """A streamed answer; how it ended is in `outcome`: done, error, or cut."""

    def __init__(self, address, body):
        super().__init__(daemon=True)
        self.address = address
        self.body = dict(body, stream=True)
        self.outcome = None
        self.error = None
        self.text = ""
        self.ended_at = None
        self.last_at = None  # when the last event came
        self.num_events = 0
        self.started = threading.Event()
        self.start()

    def run(self):
        try:
            connection = http.client.HTTPConnection(*self.address, timeout=120)
            connection.request(
                "POST",
                "/v1/completions",
                json.dumps(self.body),
                {"Content-Type": "application/json"},
            )
            response = connection.getresponse()
            if response.status != 200:
                self.outcome, self.error = "error", response.read().decode()
            else:
                self._read(response)
        except OSError as error:
            self.outcome = self.outcome or "cut"
            self.error = str(error)
        except http.client.HTTPException as error:
            self.outcome = self.outcome or "cut"
            self.error = str(error)
        self.ended_at = time.monotonic()
        self.started.set()

    def _read(self, response):
        num_terminal = 0
        for line in response:
            line = line.decode().strip()
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                self.outcome = self.outcome or "done"
                continue
            event = json.loads(line[6:])
            self.num_events += 1
            if "error" in event:
                self.outcome, self.error = "error", json.dumps(event["error"])
                num_terminal += 1
                continue
            for choice in event.get("choices", []):
                self.text += choice.get("text") or ""
                self.last_at = time.monotonic()
                num_terminal += 1 if choice.get("finish_reason") else 0
            self.started.set()
        if num_terminal > 1:
            self.outcome = f"{num_terminal} terminal events"
        self.outcome = self.outcome or "cut"


class Loopback:
    """Where a group runs: all nodes on 127.0.0.1. namespaces.py has another place."""

    flags = []

    def host(self, _node):
        return "127.0.0.1"

    def leader_host(self, _node):
        return "127.0.0.1"

    def command(self, _node, words):
        return words


class Group:
    """`with Group(binary, flags) as group`: ranks over nodes, ready to answer."""

    def __init__(self, binary, flags, nnodes=2, tp=4, start_timeout_s=120, worker_first=False,
                 flags_of=None, place=None, nodes=None):  # fmt: skip
        self.binary = binary
        self.place = place or Loopback()
        self.port = free_port()
        self.health_ports = {}
        self.admin_ports = {}
        self.nodes = {}
        self.address = None
        self.nnodes, self.tp, self.flags = nnodes, tp, flags
        self.flags_of = flags_of or {}
        self.start_timeout_s = start_timeout_s
        order = list(range(nnodes) if nodes is None else nodes)
        if worker_first:
            order.reverse()
        for node in order:
            self.start_node(node)
            if worker_first:
                time.sleep(0.5)

    def start_node(self, node, prefix=(), binary=None, leader=None):
        """`leader`: the HOST:PORT under which this node looks for node 0, its own when None."""
        self.health_ports[node] = 0 if node == 0 else free_port()
        self.admin_ports[node] = free_port()
        command = [
            *prefix, binary or self.binary, "serve", "--host", self.place.host(node),
            "--port", str(self.health_ports[node]),
            "--admin-port", str(self.admin_ports[node]),
            "--tp", str(self.tp), "--nnodes", str(self.nnodes), "--node-rank", str(node),
            "--dist-init-addr", leader or f"{self.place.leader_host(node)}:{self.port}",
            "--rank-processes", *self.place.flags, *self.flags, *self.flags_of.get(node, []),
        ]  # fmt: skip
        self.nodes[node] = Node(self.place.command(node, command))

    def __enter__(self):
        try:
            self.wait_ready(self.start_timeout_s)
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_):
        self.kill()

    def wait_ready(self, timeout_s):
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            for line in list(self.nodes[0].lines):
                found = READY.search(line)
                if found:
                    self.address = (found.group(1), int(found.group(2)))
                    for node in self.nodes.values():
                        node.find_ranks()
                    return
            if any(node.process.poll() is not None for node in self.nodes.values()):
                time.sleep(0.2)
                break
            time.sleep(0.02)
        raise RuntimeError("the group did not start:\n" + self.log())

    def kill(self):
        for node in self.nodes.values():
            if not node.ranks:
                node.find_ranks()
            node.kill()

    def log(self):
        return "\n".join(
            f"  node {i}: {line}" for i, node in self.nodes.items() for line in node.lines[-25:]
        )

    def pid_of(self, rank):
        for node in self.nodes.values():
            if rank in node.ranks:
                return node.ranks[rank]
        raise KeyError(rank)

    def all_pids(self):
        return [
            pid for node in self.nodes.values() for pid in [node.process.pid, *node.ranks.values()]
        ]

    def wait_ended(self, timeout_s):
        """Exit codes by node; None for one that still runs."""
        end = time.monotonic() + timeout_s
        return {
            i: node.wait(max(0.01, end - time.monotonic())) for i, node in self.nodes.items()
        }

    def get(self, node, port, path):
        """Status; 0 when nobody answers."""
        return self.fetch(node, port, path)[0]

    def fetch(self, node, port, path):
        """Status and text."""
        try:
            connection = http.client.HTTPConnection(self.place.host(node), port, timeout=1)
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except (OSError, http.client.HTTPException):
            return 0, ""

    def stream(self, prompt, max_tokens=30000, seed=1):
        return Stream(
            self.address,
            {"model": "null", "prompt": prompt, "max_tokens": max_tokens, "seed": seed,
             "ignore_eos": True},
        )  # fmt: skip


def end_of(group, streams, since, limit_s, codes, cause, own_events=True):
    """All that must hold after a fault, and how long it took. `codes` are those of the whole group,
    or by node."""
    ended = group.wait_ended(limit_s + 20)
    for node, code in ended.items():
        wanted = codes.get(node) if isinstance(codes, dict) else codes
        check(code is not None, f"node {node} still runs")
        check(code in wanted, f"node {node} ended with {code}, expected one of {wanted}")
        took = group.nodes[node].ended_at - since
        check(took < limit_s, f"node {node} took {took:.2f} s, limit {limit_s}")
    line = ""
    for node in group.nodes.values():
        found = node.grep("The group ends: ") + node.grep("The group stops: ")
        check(len(found) == 1, f"expected one line that says why, got {found}")
        check(cause in found[0], f"expected '{cause}' in: {found[0]}")
        line = found[0].split("The group ends: ")[-1]
    for stream in streams:
        stream.join(5)
        wanted = ("error",) if own_events else ("error", "cut")
        check(stream.outcome in wanted, f"a stream ended as {stream.outcome}: {stream.error}")
    left = [pid for pid in group.all_pids() if is_alive(pid)]
    check(not left, f"processes left behind: {left}")
    slowest = max(node.ended_at for node in group.nodes.values()) - since
    return Outcome(
        f"{slowest:.2f} s, exit codes {sorted(set(ended.values()))}",
        seconds=round(slowest, 2), limit_s=limit_s, exit_codes=[ended[n] for n in sorted(ended)],
        line=line, streams_ended=len(streams),
    )  # fmt: skip


def under_load(group, count=4):
    streams = [group.stream(f"prompt {i}", seed=i) for i in range(count)]
    for stream in streams:
        check(stream.started.wait(60), "a stream did not start")
        check(stream.last_at is not None, f"a stream has no token: {stream.outcome} {stream.error}")
    return streams
