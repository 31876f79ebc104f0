#!/bin/sh
# In the runtime stage, as root: the shared libraries that hadal links, and the user that it runs as.
# Debian 12 and Ubuntu 24.04 name one of them differently.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
ssl=libssl3
apt-cache show libssl3t64 >/dev/null 2>&1 && ssl=libssl3t64
apt-get install -q -y --no-install-recommends ca-certificates libpcre2-8-0 \
  "$(apt-cache search --names-only '^libprometheus-cpp-core1' | cut -d' ' -f1 | head -1)" "$ssl" libstdc++6
rm -rf /var/lib/apt/lists/*
grep -q '^hadal:' /etc/group || groupadd --gid 10001 hadal
id hadal >/dev/null 2>&1 || useradd --uid 10001 --gid 10001 --home-dir /nonexistent --shell /usr/sbin/nologin hadal
mkdir -p /etc/hadal /models
