// Which CUDA kernels run on which GPU.
#include <hadal/backend/backend.h>

#include "catch.h"

namespace hadal::test {

namespace {

CudaDevice gpu(const char* name, int32_t capability) {
  CudaDevice device;
  device.name = name;
  device.compute_capability = capability;
  return device;
}

KernelFamily chosen(KernelFamily wanted, int32_t capability, bool has_sm90a) {
  const auto family = choose_kernel_family(wanted, gpu("GPU", capability), has_sm90a);
  REQUIRE(family);
  return family.value();
}

}  // namespace

TEST_CASE("kernel family: Hopper's own where it is and the build has it, portable elsewhere",
          "[ops]") {
  CHECK(chosen(KernelFamily::automatic, 90, true) == KernelFamily::sm90a);
  CHECK(chosen(KernelFamily::automatic, 90, false) == KernelFamily::sm80);
  CHECK(chosen(KernelFamily::automatic, 80, true) == KernelFamily::sm80);
  CHECK(chosen(KernelFamily::automatic, 100, true) == KernelFamily::sm80);
  CHECK(chosen(KernelFamily::sm80, 90, true) == KernelFamily::sm80);
  CHECK(chosen(KernelFamily::sm90a, 90, true) == KernelFamily::sm90a);
}

TEST_CASE("kernel family: what a GPU or a build cannot run is refused by name", "[ops]") {
  const auto old = choose_kernel_family(KernelFamily::sm90a, gpu("NVIDIA A800", 80), true);
  REQUIRE_FALSE(old);
  CHECK(old.error().code == ErrorCode::unsupported);
  CHECK(old.error().message ==
        "kernel family sm90a: expected a GPU of compute capability 9.0, got NVIDIA A800 (compute "
        "capability 8.0)");
  const auto none = choose_kernel_family(KernelFamily::sm90a, gpu("NVIDIA H200", 90), false);
  REQUIRE_FALSE(none);
  CHECK(none.error().message.find("this build has portable kernels alone") != std::string::npos);
}

}  // namespace hadal::test
