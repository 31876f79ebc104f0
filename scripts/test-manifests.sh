#!/usr/bin/env bash
# Validates k8s/ against the schemas of Kubernetes and of the custom resources, and gives the manifests' command
# lines to hadal: scripts/test-manifests.sh [HADAL]. Makes build/manifest-venv from PyPI.
set -eu
HADAL_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$HADAL_ROOT/scripts/lib/common.sh"
venv="$HADAL_ROOT/build/manifest-venv"
pins=(kubernetes-validate==1.37.0 jsonschema==4.26.0 PyYAML==6.0.4)
if [ "$(cat "$venv/pins" 2>/dev/null)" != "${pins[*]}" ]; then
  mkdir -p "$HADAL_ROOT/build"
  python3 -m venv "$venv" || die "python3 -m venv failed: install python3-venv"
  "$venv/bin/pip" --disable-pip-version-check -q install "${pins[@]}" || die "cannot install ${pins[*]} from PyPI"
  printf '%s' "${pins[*]}" >"$venv/pins"
fi
exec "$venv/bin/python" "$HADAL_ROOT/tests/k8s/validate.py" "$@"
