#!/usr/bin/env python3
"""Makes tests/k8s/schemas/*.json from custom resource definitions: make_schemas.py CRD.yaml...

Keeps structure, drops descriptions, and closes every object that lists its properties, so that a
misspelt field is an error. Needs PyYAML.
"""
import json
import pathlib
import sys

import yaml

OUT = pathlib.Path(__file__).resolve().parent / "schemas"
KEPT = {"type", "properties", "items", "required", "enum", "format", "pattern", "minimum", "maximum",
        "minLength", "maxLength", "minItems", "maxItems", "anyOf", "oneOf", "allOf", "additionalProperties"}


def strict(node):
    if not isinstance(node, dict):
        return node
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    out = {}
    for key, value in node.items():
        if key not in KEPT:
            continue
        if key == "properties":
            out[key] = {name: strict(child) for name, child in value.items()}
        elif key in ("anyOf", "oneOf", "allOf"):
            out[key] = [strict(child) for child in value]
        elif key in ("items", "additionalProperties"):
            out[key] = strict(value)
        else:
            out[key] = value
    if out.get("format") in ("int32", "int64", "date-time", "byte"):
        del out["format"]
    if "properties" in out and "additionalProperties" not in out and not node.get(
            "x-kubernetes-preserve-unknown-fields"):
        out["additionalProperties"] = False
    return out


def main():
    OUT.mkdir(exist_ok=True)
    for path in map(pathlib.Path, sys.argv[1:]):
        crd = yaml.safe_load(path.read_text())
        version = next(v for v in crd["spec"]["versions"] if v["served"] and v["storage"])
        schema = strict(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        schema["required"] = sorted(set(schema.get("required", [])) | {"apiVersion", "kind", "metadata"})
        schema["properties"]["apiVersion"] = {"const": crd["spec"]["group"] + "/" + version["name"]}
        schema["properties"]["kind"] = {"const": crd["spec"]["names"]["kind"]}
        name = path.name.removesuffix(".yaml").removesuffix(".crd") + ".json"
        (OUT / name).write_text(json.dumps(schema, separators=(",", ":"), sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
