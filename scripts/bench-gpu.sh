#!/usr/bin/env bash
# Measures forward steps on the GPU of this machine: the R1 rank of TP16 alone, V2-Lite (BF16, FP8) and Moonlight whole,
# all with dummy weights at true size. One JSON report for each model in DIR, with a table beside it, and the GPU's
# clocks while it ran. Needs nvcc, cmake, ninja and the headers of nlohmann JSON and CLI11; nothing is installed. With --binary nothing
# is built: PATH is a `hadal` or `hadal_step` that runs here.
#
#   scripts/bench-gpu.sh --out DIR [--binary PATH] [--archs "90a"]
#                        [--models "deepseek-r1 deepseek-v2-lite deepseek-v2-lite-fp8 moonlight-16b-a3b"]
#                        [--seconds 2] [--flags "MORE FLAGS"]
#
# Exit: 0 all measured, 1 some failed, 64 usage.
set -eu
HADAL_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out="" binary="" archs="90a" models="deepseek-r1 deepseek-v2-lite deepseek-v2-lite-fp8 moonlight-16b-a3b" seconds=2 flags=""
while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || { echo "bench-gpu: $1 needs a value" >&2; exit 64; }
  case $1 in
    --out) out=$2 ;;
    --binary) binary=$2 ;;
    --archs) archs=$2 ;;
    --models) models=$2 ;;
    --seconds) seconds=$2 ;;
    --flags) flags=$2 ;;
    *) sed -n 's/^#   \(scripts.*\)/usage: \1/p' "$0" >&2; exit 64 ;;
  esac
  shift 2
done
[ -n "$out" ] || { echo "bench-gpu: --out DIR is required" >&2; exit 64; }
mkdir -p "$out"
command -v nvcc >/dev/null || PATH=$PATH:/usr/local/cuda/bin
if [ -z "$binary" ]; then
  build=$HADAL_ROOT/build/gpu
  mkdir -p "$HADAL_ROOT/build"
  cmake -S "$HADAL_ROOT" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DHADAL_WERROR=OFF \
    -DHADAL_CUDA=ON -DHADAL_OPS_ONLY=ON -DHADAL_CUDA_ARCHS="$archs" >"$build.log" 2>&1 ||
    { cat "$build.log"; exit 1; }
  begin=$(date +%s)
  ninja -C "$build" hadal_step >"$build.log" 2>&1 || { tail -n 60 "$build.log"; exit 1; }
  echo "built in $(($(date +%s) - begin)) s"
  binary=$build/hadal_step
fi
words="" # of a `hadal` that has all commands
[ "$(basename "$binary")" = hadal_step ] || words="bench step"

clocks=$out/clocks.csv
watch=""
if command -v nvidia-smi >/dev/null; then
  nvidia-smi --query-gpu=timestamp,name,clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_throttle_reasons.active \
    --format=csv,nounits -lms 500 >"$clocks" 2>/dev/null &
  watch=$!
  trap 'kill "$watch" 2>/dev/null || true' EXIT
fi

failed=0
measure() { # NAME FLAGS...
  local name=$1
  shift
  echo "== $name: $*"
  # shellcheck disable=SC2086  # words and flags are lists
  if ! "$binary" $words --device cuda --load-format dummy --bench-seconds "$seconds" \
    --bench-output "$out/$name.json" "$@" $flags >/dev/null 2>"$out/$name.txt"; then
    echo "FAILED: $name"
    failed=1
  fi
  cat "$out/$name.txt"
}

configs=$HADAL_ROOT/configs/models
for model in $models; do
  case $model in
    deepseek-r1)
      measure r1-tp16-decode --model-path "$configs/$model" --tp 16 --as-rank 0 --comm loopback \
        --batch 1,8,32,128,256 --context 4096
      measure r1-tp16-prefill --model-path "$configs/$model" --tp 16 --as-rank 0 --comm loopback --prefill 8192
      ;;
    *)
      measure "$model-decode" --model-path "$configs/$model" --batch 1,8,64 --context 1152
      measure "$model-prefill" --model-path "$configs/$model" --prefill 1024,8192
      ;;
  esac
done
exit "$failed"
