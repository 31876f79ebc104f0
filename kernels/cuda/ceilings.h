// What the device reaches at best, for reports.
#pragma once

#include <hadal/backend/backend.h>

namespace hadal::cuda {

/// On the current device, whose index it is; uses `backend`'s memory and a stream of its own.
Result<DeviceCeilings> measure_device(Backend& backend, int32_t device_index);

}  // namespace hadal::cuda
