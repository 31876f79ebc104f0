// What this machine can do at best, measured: the ceilings that `bench` divides by.
#pragma once

#include <cstdint>
#include <string>

namespace hadal {

struct MachineRoof {
  double read_gb_per_s = 0;    ///< 1e9 bytes/s, all threads streaming from memory
  double f32_gflop_per_s = 0;  ///< 1e9 float32 operations/s, fused multiply-adds on all threads
};

/// Takes about a second. `num_threads` as the backend will use.
MachineRoof measure_roof(int32_t num_threads);

/// Threads of the machine.
int32_t hardware_threads();

/// The processor's name and its vector extensions, for reports.
std::string machine_name();

}  // namespace hadal
