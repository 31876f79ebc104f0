#!/usr/bin/env python3
"""Prometheus scrapes a group of two nodes under load, as k8s/production does: metrics_test.py HADAL.

Both pages pass `promtool check metrics`, the alerts pass `promtool check rules` and their unit tests, and every query of
the Grafana dashboard returns numbers from that run. Needs prometheus and promtool; exit 77 without.
"""
import http.client
import importlib.util
import json
import math
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "ranks"))
from group import Group, free_port  # noqa: E402

NO_PROMETHEUS = 77
SCRAPES = 12          # a rate needs two, quantiles some traffic
START_TIMEOUT_S = 60
NULL = ["--runner", "null:1000", "--max-running-requests", "4", "--max-queued-requests", "4", "--max-total-tokens", "65536"]


def promtool(*words):
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise SystemExit(f"promtool {' '.join(words)}: {done.stdout}{done.stderr}")


def rules_of(monitoring):
    """The groups of the PrometheusRule as a rules file: the last document's `groups:`, moved to the margin."""
    text = monitoring.split("kind: PrometheusRule")[1].split("  groups:\n")[1]
    return "groups:\n" + "\n".join(line.removeprefix("  ") for line in text.splitlines()) + "\n"


def check_alerts(folder):
    rules = rules_of((ROOT / "k8s/production/monitoring.yaml").read_text())
    (folder / "rules.yaml").write_text(rules)
    promtool("check", "rules", str(folder / "rules.yaml"))
    tests = (ROOT / "tests/k8s/alerts_test.yaml").read_text().replace("RULES", "rules.yaml")
    alerts, tested = set(re.findall(r"alert: (\w+)", rules)), set(re.findall(r"alertname: (\w+)\n\s+exp_alerts", tests))
    if alerts != tested:
        raise SystemExit(f"alerts without a test of firing, or the other way round: {sorted(alerts ^ tested)}")
    (folder / "alerts_test.yaml").write_text(tests)
    promtool("test", "rules", str(folder / "alerts_test.yaml"))
    return len(alerts)


def prometheus_config(group):
    targets = "".join(
        f"      - targets: ['127.0.0.1:{port}']\n"
        f"        labels: {{pool: 'h100', role: '{'worker' if node else 'leader'}', pod: 'h100-0-{node}'}}\n"
        for node, port in group.admin_ports.items())
    return ("global: {scrape_interval: 1s, scrape_timeout: 1s}\nscrape_configs:\n"
            f"  - job_name: hadal-admin\n    static_configs:\n{targets}")


def get(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, response.read().decode()


def query(port, text):
    """Values that the query returns now, by Prometheus's HTTP API."""
    text = text.replace("$__rate_interval", "20s").replace("$pool", ".*")
    _, body = get(port, "/api/v1/query?" + urllib.parse.urlencode({"query": text}))
    answer = json.loads(body)
    if answer["status"] != "success":
        raise SystemExit(f"{text}: {answer['error']}")
    return [float(result["value"][1]) for result in answer["data"]["result"]]


def make_traffic(group, round_):
    """Equal prompts (cached from the second on), more at once than the queue takes, and one that goes away."""
    streams = [group.stream("the same long prompt " * 40, 60, seed) for seed in range(12)]
    gone = http.client.HTTPConnection(*group.address, timeout=10)
    body = {"model": "null", "prompt": f"goes away {round_}", "max_tokens": 5000, "ignore_eos": True, "stream": True}
    gone.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    time.sleep(0.5)
    gone.close()
    for stream in streams:
        stream.join(60)
    return sum(stream.outcome == "done" for stream in streams)


def wait_for(what, condition):
    end = time.monotonic() + START_TIMEOUT_S
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not within {START_TIMEOUT_S} s")
        time.sleep(0.2)


def is_up(port):
    try:
        return get(port, "/-/ready")[0] == 200
    except OSError:
        return False


def check_dashboard(port):
    spec = importlib.util.spec_from_file_location("make_dashboard", ROOT / "k8s/make_dashboard.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    dashboard = json.loads(module.FILE.read_text())
    if dashboard != module.dashboard():
        raise SystemExit("k8s/production/dashboard.json is not what k8s/make_dashboard.py makes: run it")
    empty, count = [], 0
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            count += 1
            values = query(port, target["expr"])
            if not values or any(math.isnan(value) for value in values):
                empty.append(f"{panel['title']}: {target['expr']}: {values}")
    if empty:
        raise SystemExit("queries without numbers:\n" + "\n".join(empty))
    return count


def check_page(page):
    """SGLang's own names have a colon, which promtool does not like; nothing else may be wrong."""
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True, timeout=60)
    wrong = [line for line in (done.stdout + done.stderr).splitlines()
             if line and not re.fullmatch(r"sglang:\w+ metric names should not contain ':'", line)]
    if wrong:
        raise SystemExit("promtool check metrics:\n" + "\n".join(wrong))


def main():
    if not shutil.which("prometheus") or not shutil.which("promtool"):
        print("skipped: no prometheus (Debian's package has both programs)")
        sys.exit(NO_PROMETHEUS)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        num_alerts = check_alerts(folder)
        with Group(sys.argv[1], NULL) as group:
            (folder / "prometheus.yaml").write_text(prometheus_config(group))
            port = free_port()
            server = subprocess.Popen(
                ["prometheus", f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}",
                 f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"])
            try:
                wait_for("prometheus", lambda: is_up(port))
                answered = 0
                for round_ in range(SCRAPES):
                    answered += make_traffic(group, round_)
                    time.sleep(0.3)
                wait_for("two targets", lambda: query(port, "sum(up)") == [2.0])
                num_queries = check_dashboard(port)
                for admin in group.admin_ports.values():
                    status, page = get(admin, "/metrics")
                    if status != 200:
                        raise SystemExit(f"/metrics: {status}")
                    check_page(page)
            finally:
                server.kill()
                server.wait()
    if answered == 0:
        raise SystemExit("no request was answered")
    print(f"{num_alerts} alerts tested, {num_queries} queries with numbers, {answered} answers")


if __name__ == "__main__":
    main()
