// GPUs through the driver's management library.
#pragma once

#include <hadal/doctor/probes.h>

namespace hadal {

/// Loads NVML, asks, unloads. Takes up to a second on a cold driver.
GpuView read_gpus();

}  // namespace hadal
