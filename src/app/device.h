// `--device`: whether the ranks of this node compute on its CPUs or on its GPUs.
#pragma once

#include <string>

#include "config.h"

namespace hadal {

/// Decides what `--device auto` means here and checks that each rank of this node has a usable GPU.
/// Takes no device memory. Errors name the flag: invalid_argument, or unsupported when there is no
/// such device.
Status resolve_device(Config& config);

/// One line for people: the CPU, or each GPU of this node's ranks with its memory and the family of
/// its kernels.
std::string device_text(const Config& config);

/// What plan_model_memory wants to know: on CPUs the memory that the kernel would give out now, of
/// all nodes as if they were like this one; on GPUs the least that is free on one.
Result<int64_t> free_memory_bytes(const Config& config);

}  // namespace hadal
