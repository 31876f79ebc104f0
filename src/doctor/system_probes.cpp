// The probes that are not files, over the ordinary system calls.
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <map>
#include <system_error>

#include <hadal/net/tcp.h>

#include "gpu_view.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/timex.h>
#include <unistd.h>

namespace hadal {
namespace {

Result<std::vector<std::string>> resolve_host(const std::string& host) {
  const auto addresses = resolve_all(host, 0);
  if (!addresses) {
    return addresses.error();
  }
  std::vector<std::string> texts;
  for (const TcpAddress& address : addresses.value()) {
    texts.push_back(address.host());
  }
  return texts;
}

/// A connected datagram socket sends nothing, but the kernel picks its route.
Result<std::string> source_address(const std::string& address) {
  const auto addresses = resolve_all(address, 9);
  if (!addresses) {
    return addresses.error();
  }
  const TcpAddress& to = addresses.value().front();
  const FileDescriptor socket(::socket(to.family(), SOCK_DGRAM | SOCK_CLOEXEC, 0));
  TcpAddress own;
  own.size = sizeof own.storage;
  if (::connect(socket.get(), to.data(), to.size) != 0 ||
      ::getsockname(socket.get(), own.data(), &own.size) != 0) {
    return Error{ErrorCode::unavailable, std::system_category().message(errno)};
  }
  return own.host();
}

std::vector<NetworkInterface> interfaces() {
  ifaddrs* list = nullptr;
  std::map<std::string, NetworkInterface> found;
  if (::getifaddrs(&list) != 0) {
    return {};
  }
  for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
    NetworkInterface& interface = found[entry->ifa_name];
    interface.name = entry->ifa_name;
    interface.is_up = (entry->ifa_flags & IFF_UP) != 0;
    if (entry->ifa_addr == nullptr) {
      continue;
    }
    TcpAddress address;
    address.size = entry->ifa_addr->sa_family == AF_INET    ? sizeof(sockaddr_in)
                   : entry->ifa_addr->sa_family == AF_INET6 ? sizeof(sockaddr_in6)
                                                            : 0;
    if (address.size > 0) {
      std::memcpy(&address.storage, entry->ifa_addr, address.size);
      interface.addresses.push_back(address.host());
    }
  }
  ::freeifaddrs(list);
  std::vector<NetworkInterface> result;
  for (auto& [name, interface] : found) {
    result.push_back(std::move(interface));
  }
  return result;
}

Status try_listen(const Endpoint& endpoint) {
  const auto socket = listen_on(endpoint.host, endpoint.port);
  if (!socket) {
    return socket.error();
  }
  return ok_status();
}

int64_t limit_value(rlim_t value) {
  return value == RLIM_INFINITY ? -1 : static_cast<int64_t>(value);
}

int64_t memlock_bytes() {
  rlimit limit{};
  return ::getrlimit(RLIMIT_MEMLOCK, &limit) == 0 ? limit_value(limit.rlim_cur) : -1;
}

int64_t open_files() {
  rlimit limit{};
  return ::getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit_value(limit.rlim_max) : -1;
}

std::optional<DoctorProbes::Space> space(const std::filesystem::path& path) {
  struct statvfs info {};

  if (::statvfs(path.c_str(), &info) != 0) {
    return std::nullopt;
  }
  const auto block = static_cast<int64_t>(info.f_frsize);
  return DoctorProbes::Space{static_cast<int64_t>(info.f_blocks) * block,
                             static_cast<int64_t>(info.f_bavail) * block};
}

int64_t wall_clock_us() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::microseconds>(now).count();
}

std::optional<bool> clock_is_synchronised() {
  timex state{};
  const int result = ::adjtimex(&state);
  if (result < 0) {
    return std::nullopt;
  }
  return result != TIME_ERROR && (state.status & STA_UNSYNC) == 0;
}

}  // namespace

DoctorProbes system_probes() {
  DoctorProbes probes;
  probes.resolve = resolve_host;
  probes.source_address = source_address;
  probes.interfaces = interfaces;
  probes.try_listen = try_listen;
  probes.memlock_bytes = memlock_bytes;
  probes.open_files = open_files;
  probes.space = space;
  probes.wall_clock_us = wall_clock_us;
  probes.clock_is_synchronised = clock_is_synchronised;
  probes.gpus = read_gpus;
  return probes;
}

}  // namespace hadal
