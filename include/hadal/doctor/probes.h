// What doctor asks of the machine, as values that a test can plant: a root for /sys, /proc and
// /dev, and one function for each thing that is not a file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <hadal/base/result.h>

namespace hadal {

struct Endpoint {
  std::string what;  ///< "--port", for messages
  std::string host;
  uint16_t port = 0;
};

struct NetworkInterface {
  std::string name;
  std::vector<std::string> addresses;  ///< numeric, IPv4 and IPv6
  bool is_up = false;
};

struct Gpu {
  std::string name;
  int64_t memory_bytes = 0;
};

/// What the NVIDIA driver tells.
struct GpuView {
  std::string library_error;   ///< not empty: NVML could not be loaded or started
  std::string driver_version;  ///< "580.95.05"
  std::vector<Gpu> gpus;

  /// Pairs of GPUs that cannot read each other's memory, and why ("chipset not supported").
  struct BrokenPair {
    int32_t first = 0;
    int32_t second = 0;
    std::string reason;
  };

  std::vector<BrokenPair> without_peer_access;
};

struct DoctorProbes {
  std::filesystem::path root = "/";

  /// Numeric addresses of a host name.
  std::function<Result<std::vector<std::string>>(const std::string& host)> resolve;
  /// The numeric local address that packets to `address` would leave from.
  std::function<Result<std::string>(const std::string& address)> source_address;
  std::function<std::vector<NetworkInterface>()> interfaces;
  /// Binds and lets go again.
  std::function<Status(const Endpoint& endpoint)> try_listen;
  /// The soft limit; -1 = unlimited.
  std::function<int64_t()> memlock_bytes;
  /// The hard limit, to which serve raises its own; -1 = unlimited.
  std::function<int64_t()> open_files;

  /// Size and free bytes of the file system at a path; nullopt = no such path.
  struct Space {
    int64_t size_bytes = 0;
    int64_t free_bytes = 0;
  };

  std::function<std::optional<Space>(const std::filesystem::path& path)> space;
  /// Microseconds since 1970.
  std::function<int64_t()> wall_clock_us;
  /// Whether the kernel's clock is disciplined (NTP, PTP); nullopt = not told.
  std::function<std::optional<bool>()> clock_is_synchronised;
  std::function<GpuView()> gpus;
};

/// This machine.
DoctorProbes system_probes();

}  // namespace hadal
