#!/usr/bin/env python3
"""Validates every manifest of k8s/ and that a typo in each kind would be found.

Built-in kinds against kubernetes-validate's schemas of the article's Kubernetes version, custom
ones against tests/k8s/schemas. Beside schemas: rules of LWS's webhook, names that must meet
(secrets, config maps, ports), and that hadal takes the manifests' own arguments, when given its
path: validate.py [HADAL].
"""
import copy
import json
import pathlib
import re
import shlex
import subprocess
import sys

import jsonschema
import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCHEMAS = pathlib.Path(__file__).resolve().parent / "schemas"
KUBERNETES = "1.30"
CUSTOM = {
    "ServiceMonitor": ["servicemonitor"],
    "PrometheusRule": ["prometheusrule"],
    "Queue": ["volcano-queue"],
    "PodGroup": ["volcano-podgroup"],
}
failures = []


def fail(where, what):
    failures.append(f"{where}: {what}")


def schemas_of(path, document):
    if document["kind"] == "LeaderWorkerSet":
        newest = ["leaderworkerset-v0.10.0"]
        return newest + (["leaderworkerset-v0.5.1"] if "drop-in" in str(path) else [])
    return CUSTOM.get(document["kind"])


def errors_of(path, document):
    """Messages; empty when the document is right."""
    if document["kind"] == "Kustomization":
        files = document["resources"] + [
            file for made in document.get("configMapGenerator", []) for file in made["files"]]
        missing = [name for name in files if not (path.parent / name).exists()]
        return [f"{name} does not exist" for name in missing]
    names = schemas_of(path, document)
    if names is None:
        try:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
        except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            return [str(error)]
        return []
    messages = []
    for name in names:
        schema = json.loads((SCHEMAS / f"{name}.json").read_text())
        for error in jsonschema.Draft7Validator(schema).iter_errors(document):
            place = "/".join(map(str, error.absolute_path))
            messages.append(f"{name}: {place}: {error.message[:200]}")
    return messages


def with_typo(document):
    """The document with its last key below spec (or the top) misspelt."""
    broken = copy.deepcopy(document)
    place = broken.get("spec", broken)
    key = list(place)[-1]
    place[key + "x"] = place.pop(key)
    return broken


def pod_specs(document):
    spec = document.get("spec", {})
    if document["kind"] == "LeaderWorkerSet":
        template = spec["leaderWorkerTemplate"]
        return [template["leaderTemplate"]["spec"], template["workerTemplate"]["spec"]]
    return [spec["template"]["spec"]] if "template" in spec else []


def check_pod(where, spec):
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    for container in spec["containers"]:
        mounts = {mount["name"] for mount in container.get("volumeMounts", [])}
        if mounts != volumes:
            fail(where, f"volumes {sorted(volumes)} but mounts {sorted(mounts)}")
        ports = {port.get("name") for port in container.get("ports", [])}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            get = container.get(probe, {}).get("httpGet")
            if get and isinstance(get["port"], str) and get["port"] not in ports:
                fail(where, f"{probe} asks port {get['port']}, which is not among {sorted(ports)}")


def check_lws(where, document):
    spec = document["spec"]
    update = spec["rolloutStrategy"]["rollingUpdateConfiguration"]
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", document["metadata"]["name"]):
        fail(where, "the name is no DNS-1035 label")
    if update["maxSurge"] == 0 and update["maxUnavailable"] == 0:
        fail(where, "maxSurge and maxUnavailable are both 0")
    if spec["startupPolicy"] != "LeaderCreated":
        fail(where, "LeaderReady would wait for ever")
    gpus = spec["leaderWorkerTemplate"]["size"] * int(
        pod_specs(document)[0]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    for pod in pod_specs(document):
        if f"--tp={gpus}" not in words_of(pod["containers"][0]) and \
                str(gpus) not in words_of(pod["containers"][0]):
            fail(where, f"--tp is not the group's {gpus} GPUs")


def words_of(container):
    """The command line, as the shell or the kubelet would split it."""
    if container["command"][:2] == ["sh", "-c"]:
        return shlex.split(container["args"][0])
    return container["command"] + container["args"]


def check_flags(where, hadal, container):
    """`hadal check` takes the same flags; without the model it must fail over the model alone."""
    values = {"$LWS_GROUP_SIZE": "2", "$LWS_WORKER_INDEX": "1", "$LWS_LEADER_ADDRESS:20000": "a.b:20000"}
    words = [values.get(word, word) for word in words_of(container)]
    at = words.index("serve")
    environment = {"LWS_GROUP_SIZE": "2", "LWS_WORKER_INDEX": "0", "LWS_LEADER_ADDRESS": "a.b"}
    done = subprocess.run([hadal, "check"] + words[at + 1:], capture_output=True, text=True,
                          env=environment, timeout=120)
    if done.returncode != 66 or "DeepSeek-R1" not in done.stdout:
        fail(where, f"hadal check exits {done.returncode}: {done.stdout[-300:]}{done.stderr[-300:]}")


def check_names(documents):
    """What one manifest names, another must make (or the README's command: the group secret)."""
    made = {(document["kind"], document["metadata"]["name"])
            for _, document in documents if document["kind"] != "Kustomization"}
    made.add(("Secret", "hadal-group"))
    for where, document in documents:
        for spec in pod_specs(document):
            for container in spec["containers"]:
                for source in container.get("envFrom", []):
                    name = ("ConfigMap", source["configMapRef"]["name"])
                    if name not in made:
                        fail(where, f"{name} is not made by any manifest")
            for volume in spec.get("volumes", []):
                if "secret" in volume and ("Secret", volume["secret"]["secretName"]) not in made:
                    fail(where, f"secret {volume['secret']['secretName']} is not made")
                if "persistentVolumeClaim" in volume and \
                        ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) not in made:
                    fail(where, "a claim is not made")
            if "priorityClassName" in spec and ("PriorityClass", spec["priorityClassName"]) not in made:
                fail(where, "the priority class is not made")
        if document["kind"] == "HorizontalPodAutoscaler":
            target = document["spec"]["scaleTargetRef"]
            if (target["kind"], target["name"]) not in made:
                fail(where, f"scales {target['name']}, which is not made")


def main():
    hadal = sys.argv[1] if len(sys.argv) > 1 else None
    documents = []
    kinds = set()
    for path in sorted((ROOT / "k8s").rglob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            where = f"{path.relative_to(ROOT)} {document['kind']}"
            documents.append((where, document))
            for message in errors_of(path, document):
                fail(where, message)
            if document["kind"] not in kinds and document["kind"] != "Kustomization":
                kinds.add(document["kind"])
                if not errors_of(path, with_typo(document)):
                    fail(where, "a misspelt field is not found")
            for spec in pod_specs(document):
                check_pod(where, spec)
                if hadal and document["kind"] == "LeaderWorkerSet":
                    check_flags(where, hadal, spec["containers"][0])
            if document["kind"] == "LeaderWorkerSet":
                check_lws(where, document)
    check_names(documents)
    for failure in failures:
        print(failure)
    print(f"{len(documents)} documents of {len(kinds)} kinds, {len(failures)} failures")
    return 1 if failures or len(kinds) < 10 else 0


if __name__ == "__main__":
    sys.exit(main())
