#!/usr/bin/env bash
# Serves hadal-mini from a device and compares its answers to 200 questions over HTTP with the recorded ones: alone and
# 32 at once, cold and cached. Needs the executable and python3; nothing is built or installed. A machine without
# hadal's libraries takes what scripts/pack-binary.sh made.
#
#   scripts/test-gpu-serve.sh [--out FILE.json] [--binary build/cuda/hadal] [--device cuda] [--tp 1] [--cases 200]
#     [--same 198] [--phases alone,parallel] [--flags "--rank-processes --fp8-activations"]
#
# Exit: 0 all right, 1 answers differ or the server failed, 77 no such device.
set -eu
HADAL_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
command_line="scripts/test-gpu-serve.sh $*"
out="" binary=$HADAL_ROOT/build/cuda/hadal device=cuda tp=1 cases=200 same="" phases=alone,parallel flags=""
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=$2 ;;
    --binary) binary=$2 ;;
    --device) device=$2 ;;
    --tp) tp=$2 ;;
    --cases) cases=$2 ;;
    --same) same=$2 ;;
    --phases) phases=$2 ;;
    --flags) flags=$2 ;;
    *) sed -n 's/^#   \(scripts.*\)/usage: \1/p' "$0" >&2; exit 64 ;;
  esac
  [ $# -ge 2 ] || { echo "test-gpu-serve: $1 needs a value" >&2; exit 64; }
  shift 2
done
[ -x "$binary" ] || { echo "test-gpu-serve: --binary: no executable $binary" >&2; exit 64; }
libraries=$(dirname "$binary")/lib
[ ! -d "$libraries" ] || export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
# NCCL outside the loader's path: beside CUDA, or in a Python package.
if ldd "$binary" | grep -q 'libnccl.*not found'; then
  nccl=$(find /usr/local /usr/lib /opt -name 'libnccl.so.2' 2>/dev/null | head -n 1)
  [ -z "$nccl" ] || export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$(dirname "$nccl")
fi
missing=$(ldd "$binary" | grep 'not found' || true)
[ -z "$missing" ] || { echo "test-gpu-serve: $binary lacks libraries: $missing" >&2; exit 1; }
export HADAL_GPU_COMMIT=${HADAL_GPU_COMMIT:-$(git -C "$HADAL_ROOT" describe --always --dirty --abbrev=12 --exclude='*' 2>/dev/null || echo unknown)}  # an exported tree has no .git
exec python3 "$HADAL_ROOT/scripts/lib/run_gpu_serve.py" --binary "$binary" --root "$HADAL_ROOT" --device "$device" \
  --tp "$tp" --cases "$cases" --same "${same:-$((cases * 99 / 100))}" --phases "$phases" "--flags=$flags" \
  --out "$out" --command "$command_line"
