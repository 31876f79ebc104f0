#!/usr/bin/env bash
# The long tables of a group's faults, as JSON under bench/results: tests/ranks with two network namespaces as the
# nodes (4 ranks), a link that is cut, slowed and stalled, and hadal-mini's 200 recorded answers over both; then
# 200 random faults under load. Needs root for the namespaces, a built dev tree, and about 40 minutes.
#
#   scripts/test-groups.sh [table|random]...     both by default
#   BINARY=... MODEL=... RANDOM_FAULTS=200 SEED=7 CASES=200 SLOWER=1 (a factor on time limits)
set -euo pipefail
cd "$(dirname "$0")/.."
binary=${BINARY:-build/dev/hadal}
[ -x "$binary" ] || { echo "build $binary first: ninja -C build/dev hadal"; exit 1; }
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(table random)
results="bench/results/$(date -u +%F)-$(nproc)-cores"
failed=0
for part in "${parts[@]}"; do
  case $part in
    table)
      python3 tests/ranks/ranks_e2e.py --binary "$binary" --slower "${SLOWER:-1}" --seed "${SEED:-7}" --long --namespaces \
        --model "${MODEL:-models/hadal-mini}" --cases "${CASES:-200}" --output "$results-group-faults.json" || failed=1 ;;
    random)
      python3 tests/ranks/ranks_e2e.py --binary "$binary" --slower "${SLOWER:-1}" --seed "${SEED:-7}" \
        --random "${RANDOM_FAULTS:-200}" --output "$results-group-random-faults.json" || failed=1 ;;
    *) echo "expected table or random, got $part"; exit 2 ;;
  esac
done
exit "$failed"
