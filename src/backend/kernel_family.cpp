// Which family of CUDA kernels a GPU runs: arithmetic on its compute capability.
#include <hadal/backend/backend.h>

namespace hadal {

namespace {

constexpr int32_t kHopper = 90;

std::string describe(const CudaDevice& device) {
  return device.name + " (compute capability " + std::to_string(device.compute_capability / 10) +
         "." + std::to_string(device.compute_capability % 10) + ")";
}

}  // namespace

std::string_view to_string(KernelFamily family) {
  switch (family) {
    case KernelFamily::automatic:
      return "auto";
    case KernelFamily::sm80:
      return "sm80";
    case KernelFamily::sm90a:
      return "sm90a";
  }
  return "?";
}

Result<KernelFamily> choose_kernel_family(KernelFamily wanted,
                                          const CudaDevice& device,
                                          bool has_sm90a) {
  const bool is_hopper = device.compute_capability == kHopper;
  if (wanted == KernelFamily::automatic) {
    return is_hopper && has_sm90a ? KernelFamily::sm90a : KernelFamily::sm80;
  }
  if (wanted == KernelFamily::sm90a && !is_hopper) {
    return Error{
        ErrorCode::unsupported,
        "kernel family sm90a: expected a GPU of compute capability 9.0, got " + describe(device)};
  }
  if (wanted == KernelFamily::sm90a && !has_sm90a) {
    return Error{ErrorCode::unsupported,
                 "kernel family sm90a: this build has portable kernels alone (sm80), for " +
                     describe(device) + ", too"};
  }
  return wanted;
}

}  // namespace hadal
