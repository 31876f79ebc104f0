# Shared by the scripts: messages, stages with a time budget, and the number of build jobs.
# Sourced by bash with `set -eu`; HADAL_ROOT is the repository root.

say() { printf '%s\n' "$*"; }

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# One compiler of the HTTP layer needs about 1.5 GiB, so memory limits the jobs as well as cores do.
build_jobs() {
  local cores mem_gib by_memory
  cores=$(nproc)
  mem_gib=$(awk '/^MemAvailable:/ { print int($2 / 1048576) }' /proc/meminfo)
  by_memory=$((mem_gib * 2 / 3))
  [ "$by_memory" -ge 1 ] || by_memory=1
  echo "${HADAL_JOBS:-$((cores < by_memory ? cores : by_memory))}"
}

HADAL_STAGES=()

# stage NAME BUDGET_SECONDS COMMAND...: runs the command and remembers how long it took.
# A stage over its budget is reported, not failed: a slow machine is not a wrong program.
stage() {
  local name=$1 budget=$2 start seconds rc=0
  shift 2
  say "== $name (budget $((budget / 60)) min)"
  start=$(date +%s)
  "$@" || rc=$?
  seconds=$(($(date +%s) - start))
  HADAL_STAGES+=("$(printf '%-28s %5d s of %5d s%s' "$name" "$seconds" "$budget" \
    "$([ "$seconds" -gt "$budget" ] && echo '  OVER BUDGET')$([ "$rc" -ne 0 ] && echo '  FAILED')")")
  if [ "$rc" -ne 0 ]; then
    print_stages
    die "stage '$name' failed with status $rc"
  fi
}

print_stages() {
  local line
  say ""
  for line in "${HADAL_STAGES[@]}"; do
    say "  $line"
  done
}
