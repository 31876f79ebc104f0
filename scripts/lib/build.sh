# Configures and builds a preset. Configuring again is skipped when the build folder is up to date:
# ninja itself re-runs CMake when a CMakeLists.txt changed.

# Paths relative to the root, so that a compiler cache filled by one clone serves every other.
export CCACHE_BASEDIR="$HADAL_ROOT" CCACHE_NOHASHDIR=true

# build_preset PRESET [TARGET...]
build_preset() {
  local preset=$1
  shift
  if [ ! -f "$HADAL_ROOT/build/$preset/build.ninja" ]; then
    (cd "$HADAL_ROOT" && cmake --preset "$preset" >"/tmp/hadal-configure-$preset.$$.log" 2>&1) || {
      cat "/tmp/hadal-configure-$preset.$$.log"
      die "cmake --preset $preset failed"
    }
    rm -f "/tmp/hadal-configure-$preset.$$.log"
  fi
  ninja -C "$HADAL_ROOT/build/$preset" -j "$(build_jobs)" "$@"
}

# test_preset PRESET [CTEST ARGUMENT...]: a test a core; those that measure times run alone (RUN_SERIAL).
test_preset() {
  local preset=$1
  shift
  (cd "$HADAL_ROOT" && ctest --preset "$preset" --parallel "$(build_jobs)" "$@")
}
