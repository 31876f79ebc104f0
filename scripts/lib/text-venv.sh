#!/usr/bin/env bash
# Makes build/text-venv with the pinned Hugging Face `tokenizers` that the text tests compare with.
set -eu
HADAL_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
. "$HADAL_ROOT/scripts/lib/common.sh"
venv="$HADAL_ROOT/build/text-venv"
version=0.23.3
if [ "$("$venv/bin/python" -c 'import tokenizers; print(tokenizers.__version__)' 2>/dev/null)" != "$version" ]; then
  mkdir -p "$HADAL_ROOT/build"
  python3 -m venv "$venv" || die "python3 -m venv failed: install python3-venv"
  "$venv/bin/pip" --disable-pip-version-check -q install --no-deps "tokenizers==$version" ||
    die "cannot install tokenizers $version from PyPI"
fi
