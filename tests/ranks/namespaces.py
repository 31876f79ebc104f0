"""Two nodes as network namespaces joined by a veth pair: links that break, crawl or are strange.

Needs root. Every namespace and device has a name of its own and is removed at the end.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

from group import READY, Node, is_alive
from ranks_e2e import NULL, Failure, check

ADDRESS = {0: "10.213.7.1", 1: "10.213.7.2"}
PORT = 20000


def sh(*words, may_fail=False):
    return subprocess.run(words, check=not may_fail, capture_output=True, text=True)


class Network:
    """`with Network() as network`: namespaces with ADDRESS each."""

    def __enter__(self):
        tag = f"{os.getpid() % 100000}"
        self.names = {node: f"hadal{tag}n{node}" for node in (0, 1)}
        self.devices = {node: f"hd{tag}v{node}" for node in (0, 1)}
        for name in self.names.values():
            sh("ip", "netns", "add", name)
        sh("ip", "link", "add", self.devices[0], "type", "veth", "peer", "name", self.devices[1])
        for node, name in self.names.items():
            device = self.devices[node]
            sh("ip", "link", "set", device, "netns", name)
            self.inside(node, "ip", "addr", "add", f"{ADDRESS[node]}/24", "dev", device)
            self.inside(node, "ip", "link", "set", device, "up")
            self.inside(node, "ip", "link", "set", "lo", "up")
        return self

    def __exit__(self, *_):
        for name in self.names.values():
            sh("ip", "netns", "del", name, may_fail=True)

    def inside(self, node, *words):
        return sh("ip", "netns", "exec", self.names[node], *words)

    def command(self, node, *words):
        return ["ip", "netns", "exec", self.names[node], *words]


class NetGroup:
    """Two supervisors, one in each namespace; clients run in node 0's."""

    def __init__(self, run, network, folder, flags=()):
        self.network = network
        secret = os.path.join(folder, "secret")
        with open(secret, "w") as file:
            file.write("between namespaces\n")
        self.nodes = {
            node: Node(
                network.command(
                    node, run.binary, "serve", "--host", "127.0.0.1", "--port", "0",
                    "--tp", "4", "--nnodes", "2", "--node-rank", str(node),
                    "--dist-init-addr", f"{ADDRESS[0]}:{PORT}", "--group-secret-file", secret,
                    *NULL, *flags,
                )
            )
            for node in (0, 1)
        }  # fmt: skip

    def wait_ready(self):
        end = time.monotonic() + 60
        while time.monotonic() < end:
            for line in list(self.nodes[0].lines):
                found = READY.search(line)
                if found:
                    [node.find_ranks() for node in self.nodes.values()]
                    return int(found.group(2))
            time.sleep(0.02)
        raise Failure("the group did not start: " + str(self.nodes[0].lines[-5:]))

    def kill(self):
        for node in self.nodes.values():
            node.kill()

    def client(self, port, max_tokens):
        """curl inside node 0's namespace."""
        body = (
            f'{{"model": "null", "prompt": "x", "max_tokens": {max_tokens}, "seed": 3,'
            ' "stream": true, "ignore_eos": true}'
        )
        return subprocess.Popen(
            self.network.command(
                0, "curl", "-sN", f"http://127.0.0.1:{port}/v1/completions",
                "-H", "Content-Type: application/json", "-d", body,
            ),
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip


def with_group(run, action):
    with Network() as network, tempfile.TemporaryDirectory() as folder:
        group = NetGroup(run, network, folder)
        try:
            return action(group, group.wait_ready())
        finally:
            group.kill()


def link_down(group, port):
    """link down: both nodes end by silence"""
    client = group.client(port, 1000000)
    time.sleep(1)
    since = time.monotonic()
    group.network.inside(1, "ip", "link", "set", group.network.devices[1], "down")
    for number, node in group.nodes.items():
        code = node.wait(30)
        took = node.ended_at - since
        check(code == 73, f"node {number}: exit code {code}")
        check(took < 6, f"node {number}: {took:.2f} s")
        check(len(node.grep("is lost: ")) == 1, "one line that names the node")
    text, _ = client.communicate(timeout=10)
    check('"error"' in text, "the client got no error event: " + text[-200:])
    left = [p for node in group.nodes.values() for p in node.ranks.values() if is_alive(p)]
    check(not left, f"left behind: {left}")
    return f"{max(node.ended_at for node in group.nodes.values()) - since:.2f} s, exit code 73"


def slow_link(group, port):
    """bandwidth cut to 1 Mbit/s by tbf: keeps working"""
    for node in (0, 1):
        group.network.inside(
            node, "tc", "qdisc", "add", "dev", group.network.devices[node], "root", "tbf",
            "rate", "1mbit", "burst", "32kbit", "latency", "400ms",
        )  # fmt: skip
    start = time.monotonic()
    text, _ = group.client(port, 200).communicate(timeout=120)
    check("[DONE]" in text, "no answer: " + text[-200:])
    time.sleep(6)  # longer than the silence that would count as a loss
    check(all(node.process.poll() is None for node in group.nodes.values()), "the group ended")
    return f"200 tokens in {time.monotonic() - start - 6:.1f} s"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    run = parser.parse_args()
    run.binary = os.path.abspath(run.binary)
    num_failed = 0
    for action in (link_down, slow_link):
        start = time.monotonic()
        try:
            text = with_group(run, action)
        except (Failure, subprocess.SubprocessError) as error:
            num_failed += 1
            text = f"FAILED: {error}"
        print(f"{action.__doc__}: {text} [{time.monotonic() - start:.1f} s]", flush=True)
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
