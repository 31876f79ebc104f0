#!/usr/bin/env bash
# The long table of a group's faults, written to tests/ranks/results.md (or the file given): the faults of
# tests/ranks/ranks_e2e.py --long, two network namespaces with a link that is cut, slowed and stalled, and 200
# random faults. Needs root for the namespaces, a built dev tree, and about 40 minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=${BINARY:-build/dev/hadal}
table=${1:-tests/ranks/results.md}
[ -x "$binary" ] || { echo "build $binary first: ninja -C build/dev hadal"; exit 1; }
failed=0
{
  echo "# Faults of a group of rank processes"
  echo
  echo "4 ranks on 2 nodes, null runner; $(nproc) cores, $(date -u +%F), $("$binary" --version)."
  echo
  echo '```'
  python3 tests/ranks/ranks_e2e.py --binary "$binary" --long || failed=1
  python3 tests/ranks/namespaces.py --binary "$binary" || failed=1
  python3 tests/ranks/ranks_e2e.py --binary "$binary" --random "${RANDOM_FAULTS:-200}" --seed 7 || failed=1
  echo '```'
} | tee "$table"
[ "$failed" = 0 ] && ! grep -q FAILED "$table"
