#!/usr/bin/env bash
# Runs one fuzz target for a number of seconds: scripts/fuzz.sh fuzz_safetensors [SECONDS].
# New inputs go to build/fuzz/corpus/NAME; a crashing one to build/fuzz/NAME-crash-*.
set -eu
HADAL_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
name=$1
seconds=${2:-60}
work="$HADAL_ROOT/build/fuzz/corpus/$name"
seeds="$HADAL_ROOT/tests/fuzz/corpus/${name#fuzz_}"
mkdir -p "$work"
dictionary=()
[ -f "$HADAL_ROOT/tests/fuzz/${name#fuzz_}.dict" ] &&
  dictionary=("-dict=$HADAL_ROOT/tests/fuzz/${name#fuzz_}.dict")
ulimit -s 1024  # a deep recursion shows as a crash, not as luck
exec "$HADAL_ROOT/build/fuzz/tests/fuzz/$name" -max_total_time="$seconds" -timeout=5 \
  -rss_limit_mb=1024 -max_len=65536 -print_final_stats=0 ${dictionary[@]+"${dictionary[@]}"} \
  -artifact_prefix="$HADAL_ROOT/build/fuzz/$name-" "$work" "$seeds"
