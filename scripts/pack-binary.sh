#!/usr/bin/env bash
# Copies a built executable and the shared libraries that a bare machine lacks into a folder, so that it runs there:
# the executable stripped, libraries in lib/ beside it. Those of the C and C++ runtime, CUDA's driver and NCCL are
# the other machine's own.
#
#   scripts/pack-binary.sh build/cuda/hadal FOLDER
set -eu
[ $# -eq 2 ] || { echo "usage: scripts/pack-binary.sh BINARY FOLDER" >&2; exit 64; }
binary=$1 folder=$2
mkdir -p "$folder/lib"
strip -o "$folder/$(basename "$binary")" "$binary"
ldd "$binary" | awk '$3 ~ /^\// { print $3 }' |
  grep -vE '/(ld-linux|lib(c|m|gcc_s|stdc\+\+|dl|pthread|rt|cuda|cudart|nccl|nvidia)[-.])' |
  while read -r library; do cp -L "$library" "$folder/lib/"; done
du -sh "$folder" | cut -f1
