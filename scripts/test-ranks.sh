#!/usr/bin/env bash
# The long tests of several ranks, of which CTest runs a sample: all 200 cases of hadal-mini in exact mode at
# TP 1, 2 and 4, a process a rank, on one node and on two. Takes about a quarter of an hour on 2 idle cores.
set -eu
HADAL_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$HADAL_ROOT/scripts/lib/common.sh"
. "$HADAL_ROOT/scripts/lib/build.sh"

stage "build" 600 build_preset release rank_model_test
stage "200 cases at TP 1, 2 and 4" 2400 \
  "$HADAL_ROOT/build/release/tests/rank_model/rank_model_test" "[all_cases]"
print_stages
