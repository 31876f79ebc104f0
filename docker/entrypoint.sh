#!/bin/sh
# What a container is given as its arguments:
#   --model-path ...                               -> hadal serve --model-path ...
#   python3 -m sglang.launch_server --model-path   -> the same, so that SGLang manifests keep their words
#   serve|check|doctor|... ...                     -> hadal with that command
#   anything else                                  -> run as it is
# exec: hadal gets the signals.
set -eu
case "${1:---help}" in
  python | python3)
    if [ "${2:-}" = -m ] && [ "${3:-}" = sglang.launch_server ]; then
      shift 3
      exec hadal serve "$@"
    fi
    exec "$@" ;;
  --help | -h | --version) exec hadal "${1:---help}" ;;
  -*) exec hadal serve "$@" ;;
esac
if command -v "$1" >/dev/null 2>&1; then
  exec "$@"
fi
exec hadal "$@"
