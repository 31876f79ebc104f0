// Whether this build carries machine code for the current device.
#pragma once

#include <hadal/base/result.h>

namespace hadal::cuda {

/// unavailable with CUDA's words when a kernel of ours cannot be loaded on the current device.
Status probe_kernels();

}  // namespace hadal::cuda
