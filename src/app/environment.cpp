// The only file that calls getenv.
#include "environment.h"

#include <array>
#include <cstdlib>

#include <unistd.h>

namespace hadal {

Environment read_environment() {
  Environment environment;
  for (const char* name : {"LWS_LEADER_ADDRESS",
                           "LWS_GROUP_SIZE",
                           "LWS_WORKER_INDEX",
                           "HF_HOME",
                           "HOME",
                           "HADAL_KERNEL_FAMILY",
                           "NCCL_SOCKET_IFNAME",
                           "NCCL_IB_HCA",
                           "NCCL_IB_GID_INDEX",
                           "NCCL_IB_DISABLE",
                           "NCCL_P2P_DISABLE"}) {
    if (const char* value = std::getenv(name)) {  // NOLINT(concurrency-mt-unsafe): before threads
      environment.variables.emplace(name, value);
    }
  }
  std::array<char, 256> hostname{};
  if (gethostname(hostname.data(), hostname.size() - 1) == 0) {
    environment.hostname = hostname.data();
  }
  return environment;
}

}  // namespace hadal
