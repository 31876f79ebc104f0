#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test. Arguments pass to ctest (-R radix, -L tidy).
# Takes at most 20 minutes from a fresh clone on 2 cores.
set -eu
HADAL_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$HADAL_ROOT/scripts/lib/common.sh"
. "$HADAL_ROOT/scripts/lib/install.sh"
. "$HADAL_ROOT/scripts/lib/build.sh"

stage "install" 180 ensure_packages "${HADAL_BUILD_PACKAGES[@]}" "${HADAL_TEST_PACKAGES[@]}"
stage "build (dev)" 720 build_preset dev
stage "test (dev)" 300 test_preset dev "$@"
print_stages
say "All tests passed."
