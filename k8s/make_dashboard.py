#!/usr/bin/env python3
"""Makes the Grafana dashboard k8s/production/dashboard.json from one list of panels.

    k8s/make_dashboard.py            writes the file
    k8s/make_dashboard.py --check    fails when the file is not what the list makes
"""
import json
import pathlib
import sys

FILE = pathlib.Path(__file__).resolve().parent / "production" / "dashboard.json"
POOL = 'pool=~"$pool"'
RATE = "$__rate_interval"


def rate(name, by="pool"):
    return f"sum by ({by}) (rate({name}{{{POOL}}}[{RATE}]))"


def gauge(name, by="pool"):
    return f"sum by ({by}) ({name}{{{POOL}}})"


def quantiles(histogram):
    return [(f"histogram_quantile({q}, {rate(histogram + '_bucket', 'le, pool')})", f"p{round(q * 100)} {{{{pool}}}}")
            for q in (0.5, 0.9, 0.99)]


def each(*names):
    """(query, legend) of counters as rates, named by what stands before `_total`."""
    return [(rate(f"hadal_{name}_total"), f"{name.replace('_', ' ')} {{{{pool}}}}") for name in names]


# title, unit of Grafana, description, [(query, legend)]
PANELS = [
    ("Requests running and waiting", "short", "Waiting requests are not yet in the batch.",
     [(gauge("hadal_requests_running"), "running {{pool}}"), (gauge("hadal_requests_queued"), "waiting {{pool}}")]),
    ("How requests end", "reqps", "Rejected ones were refused before they were queued.",
     each("requests_finished", "requests_failed", "requests_cancelled", "requests_rejected")),
    ("Tokens", "short", "Per second. Cached prompt tokens cost no computation.",
     each("generation_tokens", "prompt_tokens", "cached_tokens")),
    ("Time to first token", "s", "From submission to the first token.", quantiles("hadal_time_to_first_token_seconds")),
    ("Between tokens", "s", "From one token of a request to its next.", quantiles("hadal_inter_token_latency_seconds")),
    ("Whole request", "s", "From submission to the last token.", quantiles("hadal_request_latency_seconds")),
    ("Time in the queue", "s", "From submission to admission.", quantiles("hadal_queue_time_seconds")),
    ("Step", "s", "From the submission of a step to its result.", quantiles("hadal_step_seconds")),
    ("Steps by kind", "ops", "Decode steps replayed from a CUDA graph, run op by op, and steps with prompt tokens.",
     each("steps_replayed", "steps_plain_decode", "steps_plain_prefill")),
    ("Prompt tokens from the cache", "percentunit", "Share of prompt tokens that the radix cache held.",
     [(f"{rate('hadal_cached_tokens_total')} / {rate('hadal_prompt_tokens_total')}", "{{pool}}")]),
    ("KV pages", "short", "Of rank 0; every rank holds the same pages.",
     [(gauge("hadal_pages"), "all {{pool}}"), (gauge("hadal_pages_free"), "free {{pool}}"),
      (gauge("hadal_pages_cached"), "cached, not in use {{pool}}")]),
    ("KV held by running requests", "percentunit", "Near 1, requests wait for pages.",
     [(f"max by (pool) (hadal_token_usage{{{POOL}}})", "{{pool}}")]),
    ("Pages evicted, requests retracted", "ops", "A retracted request goes back to the queue and keeps its tokens.",
     each("evicted_pages", "retractions")),
    ("Age of the page evicted next", "s", "How long a prefix stays useful before it is forgotten.",
     [(f"min by (pool) (hadal_cache_oldest_page_age_seconds{{{POOL}}})", "{{pool}}")]),
    ("Host tier", "short", "Pages in host memory, and how many move each second.",
     [(gauge("hadal_host_pages_used"), "used {{pool}}"), (gauge("hadal_host_pages"), "all {{pool}}"),
      *each("host_pages_stored", "host_pages_loaded")]),
    ("Pods that answer", "short", "On their admin port.", [(f'sum by (pool, role) (up{{job="hadal-admin", {POOL}}})', "{{pool}} {{role}}")]),
    ("Ranks of workers: ready", "short", "1 once a rank has loaded.",
     [(f"min by (pool, node) (hadal_rank_ready{{{POOL}}})", "{{pool}} node {{node}}")]),
    ("Ranks of workers: silence", "s", "Time since the last sign of life; a group ends within 6 s of a hang.",
     [(f"max by (pool, node, rank) (hadal_rank_silent_seconds{{{POOL}}})", "{{pool}} node {{node}} rank {{rank}}")]),
    ("Ranks of workers: steps", "ops", "Answered by each rank.",
     [(rate("hadal_rank_steps_total", "pool, node, rank"), "{{pool}} node {{node}} rank {{rank}}")]),
    ("Ranks of workers: host memory", "bytes", "Of each rank's process.",
     [(f"max by (pool, node, rank) (hadal_rank_resident_bytes{{{POOL}}})", "{{pool}} node {{node}} rank {{rank}}")]),
]
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def panel(index, title, unit, description, queries):
    return {
        "id": index + 1, "type": "timeseries", "title": title, "description": description, "datasource": SOURCE,
        "gridPos": {"h": 8, "w": 8, "x": index % 3 * 8, "y": index // 3 * 8},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [{"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": query, "legendFormat": legend}
                    for i, (query, legend) in enumerate(queries)],
    }


def dashboard():
    return {
        "uid": "hadal", "title": "hadal", "tags": ["hadal"], "schemaVersion": 39, "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [
            {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"},
            {"name": "pool", "type": "query", "label": "Pool", "datasource": SOURCE, "multi": True, "includeAll": True,
             "allValue": ".*", "refresh": 2, "query": {"query": "label_values(hadal_pages, pool)", "refId": "pools"},
             "current": {"text": "All", "value": "$__all"}},
        ]},
        "panels": [panel(i, *entry) for i, entry in enumerate(PANELS)],
    }


def main():
    text = json.dumps(dashboard(), indent=1) + "\n"
    if sys.argv[1:] == ["--check"]:
        if FILE.read_text() != text:
            sys.exit(f"{FILE.name} is not what make_dashboard.py makes: run it")
        return
    FILE.write_text(text)


if __name__ == "__main__":
    main()
