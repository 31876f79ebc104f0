#!/usr/bin/env bash
# Installs what is missing, builds hadal, and serves the built-in model on 127.0.0.1:8000.
# Arguments pass to `hadal serve` and win over these defaults: scripts/serve.sh --port 9000.
# `hadal serve` prints its progress and, when it can answer, a curl line to try.
set -eu
HADAL_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$HADAL_ROOT/scripts/lib/common.sh"
. "$HADAL_ROOT/scripts/lib/install.sh"
. "$HADAL_ROOT/scripts/lib/build.sh"

missing=$(missing_packages "${HADAL_BUILD_PACKAGES[@]}")
[ -z "$missing" ] || say "[1/3] Installing build tools and libraries"
ensure_packages "${HADAL_BUILD_PACKAGES[@]}"
say "[2/3] Building hadal (minutes the first time, nothing to do the next)"
build_preset release hadal
defaults=(--host 127.0.0.1 --port 8000)
case " $* " in
  *" --model"* | *" --config"* | *" --runner"*) ;;
  *) defaults+=(--model-path "$HADAL_ROOT/models/hadal-mini" --served-model-name hadal-mini) ;;
esac
say "[3/3] Starting"
exec "$HADAL_ROOT/build/release/hadal" serve "${defaults[@]}" "$@"
