#!/usr/bin/env bash
# In the build stage: installs what a build needs, builds PRESET (release or cuda) and leaves the stripped
# executable as /out/hadal.
set -eu
HADAL_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$HADAL_ROOT/scripts/lib/common.sh"
. "$HADAL_ROOT/scripts/lib/install.sh"
. "$HADAL_ROOT/scripts/lib/build.sh"
preset=$1
ensure_packages "${HADAL_BUILD_PACKAGES[@]}"
build_preset "$preset" hadal
mkdir -p /out
strip -o /out/hadal "$HADAL_ROOT/build/$preset/hadal"
