#!/usr/bin/env bash
# Runs the steps of docker/Dockerfile's cpu stage in a debootstrap chroot and starts hadal there as the image
# would: as user 10001, through the entrypoint. Needs root. Takes a hadal executable (default: builds release).
set -eu
HADAL_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$HADAL_ROOT/scripts/lib/common.sh"
. "$HADAL_ROOT/scripts/lib/install.sh"
. "$HADAL_ROOT/scripts/lib/build.sh"

binary=${1:-}
if [ -z "$binary" ]; then
  build_preset release hadal
  binary="$HADAL_ROOT/build/release/hadal"
fi
ensure_packages debootstrap
root=$(mktemp -d "${TMPDIR:-/tmp}/hadal-image-XXXXXX")
chmod 755 "$root"  # the image's user has to get in
server=
cleanup() {
  [ -z "$server" ] || kill "$server" 2>/dev/null || true
  umount "$root/proc" 2>/dev/null || true
  rm -rf --one-file-system "$root"
}
trap cleanup EXIT

say "== debootstrap"
debootstrap --variant=minbase bookworm "$root" "${HADAL_DEBIAN_MIRROR:-http://deb.debian.org/debian}" >/dev/null
before=$(du -sm "$root" | cut -f1)
cp /etc/resolv.conf "$root/etc/resolv.conf"
[ ! -f /etc/apt/apt.conf.d/proxy ] || cp /etc/apt/apt.conf.d/proxy "$root/etc/apt/apt.conf.d/"
mount -t proc proc "$root/proc"

say "== the runtime stage"
install -m 755 "$HADAL_ROOT/docker/runtime.sh" "$root/tmp/runtime.sh"
chroot "$root" /tmp/runtime.sh >/dev/null
strip -o "$root/usr/local/bin/hadal" "$binary"
install -m 755 "$HADAL_ROOT/docker/entrypoint.sh" "$root/usr/local/bin/hadal-entrypoint"
say "   size: $(du -smx "$root" | cut -f1) MB, of which the base $before MB, hadal $(du -sm "$root/usr/local/bin/hadal" | cut -f1) MB"

enter() { chroot --userspec=10001:10001 "$root" /usr/local/bin/hadal-entrypoint "$@"; }

say "== the entrypoint"
enter --version | grep -q '^hadal ' || die "--version does not answer"
enter doctor --port 0 >/dev/null || die "doctor finds fault with the chroot"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
# Not through enter: the shell of a function in the background would get the signal.
chroot --userspec=10001:10001 "$root" /usr/local/bin/hadal-entrypoint python3 -m sglang.launch_server --runner null:500 --host 127.0.0.1 --port "$port" \
  --trust-remote-code --enable-metrics >"$root/tmp/serve.log" 2>&1 &
server=$!
for _ in $(seq 100); do
  curl -sf "http://127.0.0.1:$port/health" >/dev/null && break
  kill -0 "$server" 2>/dev/null || { cat "$root/tmp/serve.log"; die "hadal ended"; }
  sleep 0.2
done
curl -sf "http://127.0.0.1:$port/v1/completions" -H 'Content-Type: application/json' \
  -d '{"model": "null", "prompt": "hello", "max_tokens": 4}' | grep -q '"completion_tokens": *4' ||
  die "no completion of 4 tokens"
owner=$(stat -c %u "/proc/$server")
[ "$owner" = 10001 ] || die "runs as user $owner, expected 10001"
kill -TERM "$server"
wait "$server" || die "SIGTERM: exit code $?, expected 0"
server=
say "The image's steps work."
