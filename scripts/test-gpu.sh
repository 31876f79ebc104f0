#!/usr/bin/env bash
# Builds the tests of ops, goldens, a rank's graphs and NCCL and runs every case on the GPU of this machine, each in a process of its
# own, so that one that aborts costs no other. Needs nvcc, cmake, ninja, the headers of Catch2 and nlohmann JSON,
# and python3; nothing is installed.
#
#   scripts/test-gpu.sh [--out FILE.json] [--filter SUBSTRING] [--sanitize memcheck|racecheck] [--archs "90a"]
#
# Exit: 0 all passed, 1 some failed, 77 no usable GPU.
set -eu
HADAL_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out="" filter="" sanitize="" archs="90a"
while [ $# -gt 0 ]; do
  case $1 in
    --out) out=$2 ;;
    --filter) filter=$2 ;;
    --sanitize) sanitize=$2 ;;
    --archs) archs=$2 ;;
    *) sed -n 's/^#   \(scripts.*\)/usage: \1/p' "$0" >&2; exit 64 ;;
  esac
  [ $# -ge 2 ] || { echo "test-gpu: $1 needs a value" >&2; exit 64; }
  shift 2
done
case $sanitize in "" | memcheck | racecheck) ;; *)
  echo "test-gpu: expected --sanitize memcheck or racecheck, got $sanitize" >&2; exit 64 ;;
esac
command -v nvcc >/dev/null || PATH=$PATH:/usr/local/cuda/bin
build=$HADAL_ROOT/build/gpu
mkdir -p "$HADAL_ROOT/build"
begin=$(date +%s)
# Only what these tests need: neither prometheus-cpp nor PCRE2 has to be there.
cmake -S "$HADAL_ROOT" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DHADAL_WERROR=OFF \
  -DHADAL_CUDA=ON -DHADAL_OPS_ONLY=ON -DHADAL_CUDA_ARCHS="$archs" >"$build.log" 2>&1 ||
  { cat "$build.log"; exit 1; }
targets=(ops_gpu_test golden_gpu_test rank_gpu_test)
programs=$build/tests/ops/ops_gpu_test:$build/tests/model/golden_gpu_test:$build/tests/gpu/rank_gpu_test
if [ -z "$sanitize" ] && grep -q '^build nccl_test:' "$build/build.ninja"; then  # where NCCL is
  targets+=(nccl_test)
  programs+=:$build/tests/gpu/nccl_test
fi
ninja -C "$build" "${targets[@]}" | tail -n 40
built=$(date +%s)
export HADAL_GPU_TESTS=$programs
export HADAL_GPU_OUT=$out HADAL_GPU_FILTER=$filter
export HADAL_GPU_SANITIZE=$sanitize HADAL_GPU_ARCHS=$archs HADAL_GPU_BUILD_S=$((built - begin))
export HADAL_GPU_COMMIT=${HADAL_GPU_COMMIT:-$(git -C "$HADAL_ROOT" describe --always --dirty --abbrev=12 --exclude='*' 2>/dev/null || echo unknown)}  # an exported tree has no .git
exec python3 "$HADAL_ROOT/scripts/lib/run_gpu_tests.py"
