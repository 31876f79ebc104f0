# Installs build dependencies through apt, and only when one is missing.
# Debian 12 and Ubuntu 24.04 name some packages differently; the first name that apt knows is taken.

HADAL_BUILD_PACKAGES=(
  "g++-12" "cmake" "ninja-build" "ccache" "libboost1.81-dev|libboost1.83-dev" "nlohmann-json3-dev"
  "libcli11-dev" "libspdlog-dev" "libpcre2-dev" "prometheus-cpp-dev" "libssl-dev" "curl"
)
HADAL_TEST_PACKAGES=("catch2" "python3" "python3-venv")
# The package starts a service where there is an init system, so scripts/test.sh does not ask for it: without it one test skips.
HADAL_CI_PACKAGES=("prometheus")
HADAL_LINT_PACKAGES=("clang-format-14")
HADAL_FUZZ_PACKAGES=("clang-14" "libclang-rt-14-dev")

is_installed() {
  [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = "installed" ]
}

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo "$@"
  else
    die "need root to install packages: run as root, install sudo, or install by hand: $*"
  fi
}

# missing_packages NAME|ALTERNATIVE...: prints the entries of which no alternative is installed.
missing_packages() {
  local entry name found
  for entry in "$@"; do
    found=no
    for name in ${entry//|/ }; do
      if is_installed "$name"; then
        found=yes
        break
      fi
    done
    [ "$found" = yes ] || echo "$entry"
  done
}

# ensure_packages NAME|ALTERNATIVE...
ensure_packages() {
  local missing entry name chosen=()
  missing=$(missing_packages "$@")
  [ -n "$missing" ] || return 0
  command -v apt-get >/dev/null || die "missing packages, and this is not Debian or Ubuntu:" $missing
  say "Installing:" $missing
  as_root apt-get update -qq || die "apt-get update failed"
  for entry in $missing; do
    name=""
    for candidate in ${entry//|/ }; do
      if apt-cache show "$candidate" >/dev/null 2>&1; then
        name=$candidate
        break
      fi
    done
    [ -n "$name" ] || die "apt knows none of: ${entry//|/ }"
    chosen+=("$name")
  done
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    "${chosen[@]}" >/dev/null || die "apt-get install failed for: ${chosen[*]}"
}
