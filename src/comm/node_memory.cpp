// The barrier is one 32-bit word that all ranks sleep on: the phase, and a bit for failure, so that
// neither can be missed between a look and a sleep. Sleepers wake a few times a second to see
// whether those they wait for still live; a process that ends cannot say so itself.
#include "node_memory.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <thread>

#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace hadal {

namespace {

constexpr uint64_t kMagic = 0x6861'6461'6c6e'6f64;
constexpr uint32_t kFailedBit = 1U << 31U;
constexpr size_t kMessageBytes = 480;
constexpr int kLookMs = 20;  ///< between two looks at the ranks that are missing
constexpr int kSpins = 1000;
constexpr int32_t kMaxRanks = 1024;

static_assert(std::atomic<uint32_t>::is_always_lock_free);
static_assert(std::atomic<uint64_t>::is_always_lock_free);

void futex_wake_all(std::atomic<uint32_t>& word) {
  ::syscall(SYS_futex, &word, FUTEX_WAKE, INT32_MAX, nullptr, nullptr, 0);
}

void futex_wait(std::atomic<uint32_t>& word, uint32_t value, int timeout_ms) {
  const timespec timeout{timeout_ms / 1000, (timeout_ms % 1000) * 1'000'000L};
  ::syscall(SYS_futex, &word, FUTEX_WAIT, value, &timeout, nullptr, 0);
}

void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

size_t aligned(size_t bytes) {
  return (bytes + 4095) / 4096 * 4096;
}

}  // namespace

const char* to_string(CommOp op) {
  switch (op) {
    case CommOp::all_reduce:
      return "all_reduce";
    case CommOp::reduce_scatter:
      return "reduce_scatter";
    case CommOp::all_gather:
      return "all_gather";
    case CommOp::broadcast:
      return "broadcast";
  }
  return "an unknown collective";
}

std::string to_string(const RoundStamp& stamp) {
  return std::string(to_string(static_cast<CommOp>(stamp.op))) + " of " +
         std::to_string(stamp.bytes) + " bytes";
}

struct NodeMemory::Header {
  uint64_t magic;
  int64_t num_ranks;
  int64_t slot_bytes;
  alignas(64) std::atomic<uint32_t> word;     ///< phase, and kFailedBit
  alignas(64) std::atomic<uint32_t> arrived;  ///< ranks in this phase
  alignas(64) std::atomic<uint32_t> failure;  ///< 0 none, 1 being written, 2 written
  ErrorCode code;
  char message[kMessageBytes];
};

struct alignas(64) NodeMemory::RankState {
  std::atomic<int32_t> pid;          ///< 0 until the rank is here
  std::atomic<uint64_t> rounds;      ///< entered so far
  std::array<RoundStamp, 2> stamps;  ///< of the last two
};

namespace {

constexpr size_t kRanksAt = 4096;

Error system_error(ErrorCode code, const std::string& what) {
  return Error{code, "shared memory of the node: " + what + ": " + std::strerror(errno)};
}

Error bad_memory(const std::string& what) {
  return Error{ErrorCode::invalid_argument, "shared memory of the node: " + what};
}

size_t slots_at(int64_t num_ranks, size_t state_size) {
  return kRanksAt + aligned(static_cast<size_t>(num_ranks) * state_size);
}

}  // namespace

size_t NodeMemory::size_of_memory(int64_t num_ranks, int64_t slot_bytes) {
  static_assert(sizeof(Header) <= kRanksAt);
  return slots_at(num_ranks, sizeof(RankState)) + 2 * static_cast<size_t>(num_ranks * slot_bytes);
}

Result<int> NodeMemory::create(int32_t num_ranks, int64_t slot_bytes) {
  if (num_ranks < 1 || num_ranks > kMaxRanks) {
    return bad_memory(std::to_string(num_ranks) + " ranks, expected 1 to " +
                      std::to_string(kMaxRanks));
  }
  // A reduce-scatter needs a 64-byte piece for each rank.
  if (slot_bytes < 64 * int64_t{num_ranks} || slot_bytes > (int64_t{1} << 30) ||
      slot_bytes % 64 != 0) {
    return bad_memory("slots of " + std::to_string(slot_bytes) +
                      " bytes, expected a multiple of 64 from 64 a rank to 1 GiB");
  }
  const int fd = ::memfd_create("hadal-ranks", MFD_CLOEXEC);
  if (fd < 0) {
    return system_error(ErrorCode::resource_exhausted, "memfd_create");
  }
  const size_t size = size_of_memory(num_ranks, slot_bytes);
  if (::ftruncate(fd, static_cast<off_t>(size)) != 0) {
    const Error error =
        system_error(ErrorCode::resource_exhausted, std::to_string(size) + " bytes");
    ::close(fd);
    return error;
  }
  Header header{};
  header.magic = kMagic;
  header.num_ranks = num_ranks;
  header.slot_bytes = slot_bytes;
  if (::pwrite(fd, &header, sizeof header, 0) != static_cast<ssize_t>(sizeof header)) {
    const Error error = system_error(ErrorCode::resource_exhausted, "first page");
    ::close(fd);
    return error;
  }
  return fd;
}

Result<std::unique_ptr<NodeMemory>> NodeMemory::map(int fd, const NodeMemoryOptions& options) {
  struct stat info {};

  if (::fstat(fd, &info) != 0) {
    return system_error(ErrorCode::invalid_argument, "descriptor " + std::to_string(fd));
  }
  const auto size = static_cast<size_t>(info.st_size);
  if (size < kRanksAt) {
    return bad_memory(std::to_string(size) + " bytes are no memory of a node");
  }
  void* memory = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) {
    return system_error(ErrorCode::resource_exhausted, "map " + std::to_string(size) + " bytes");
  }
  std::unique_ptr<NodeMemory> mapped(
      new NodeMemory(static_cast<std::byte*>(memory), size, options));
  const Header& header = mapped->header();
  if (header.magic != kMagic || header.num_ranks != options.num_ranks ||
      size != size_of_memory(header.num_ranks, header.slot_bytes)) {
    return bad_memory("made for " + std::to_string(header.num_ranks) + " ranks, expected " +
                      std::to_string(options.num_ranks));
  }
  mapped->rank_state(options.local_rank).pid.store(::getpid(), std::memory_order_release);
  return mapped;
}

NodeMemory::NodeMemory(std::byte* memory, size_t size, const NodeMemoryOptions& options)
    : memory_(memory),
      size_(size),
      options_(options),
      process_fds_(static_cast<size_t>(options.num_ranks), -1) {
  // Spinning helps only when everyone can run at once, with room for what else runs here.
  const bool all_can_run =
      std::thread::hardware_concurrency() >= 2 * static_cast<unsigned>(options.num_ranks);
  spins_ = all_can_run ? kSpins : 0;
}

NodeMemory::~NodeMemory() {
  for (const int fd : process_fds_) {
    if (fd >= 0) {
      ::close(fd);
    }
  }
  ::munmap(memory_, size_);
}

NodeMemory::Header& NodeMemory::header() const {
  return *reinterpret_cast<Header*>(memory_);
}

NodeMemory::RankState& NodeMemory::rank_state(int32_t local_rank) const {
  return reinterpret_cast<RankState*>(memory_ + kRanksAt)[local_rank];
}

int64_t NodeMemory::slot_bytes() const {
  return header().slot_bytes;
}

std::byte* NodeMemory::slot(int32_t local_rank) const {
  const auto index = static_cast<size_t>(round_ % 2) * static_cast<size_t>(options_.num_ranks) +
                     static_cast<size_t>(local_rank);
  return memory_ + slots_at(options_.num_ranks, sizeof(RankState)) +
         index * static_cast<size_t>(slot_bytes());
}

std::string NodeMemory::name(int32_t local_rank) const {
  return "rank " + std::to_string(options_.first_rank + local_rank);
}

bool NodeMemory::meet(const RoundStamp& stamp) {
  Header& shared = header();
  const uint32_t word = shared.word.load(std::memory_order_acquire);
  if ((word & kFailedBit) != 0) {
    return false;
  }
  RankState& own = rank_state(options_.local_rank);
  own.stamps[own.rounds.load(std::memory_order_relaxed) % 2] = stamp;
  own.rounds.fetch_add(1, std::memory_order_release);
  const auto all = static_cast<uint32_t>(options_.num_ranks);
  if (shared.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == all) {
    shared.arrived.store(0, std::memory_order_relaxed);
    uint32_t old = word;
    uint32_t next = 0;
    do {
      next = (old & kFailedBit) | ((old + 1) & ~kFailedBit);
    } while (!shared.word.compare_exchange_weak(old, next, std::memory_order_acq_rel));
    futex_wake_all(shared.word);
    return (next & kFailedBit) == 0 && check_stamps(stamp);
  }
  return wait_for_phase(word, stamp) && check_stamps(stamp);
}

bool NodeMemory::wait_for_phase(uint32_t old_word, const RoundStamp& stamp) {
  std::atomic<uint32_t>& word = header().word;
  uint32_t now = old_word;
  for (int i = 0; i < spins_ && now == old_word; ++i) {
    pause_briefly();
    now = word.load(std::memory_order_acquire);
  }
  if (now == old_word) {
    const TimePoint begin = system_clock().now();
    while ((now = word.load(std::memory_order_acquire)) == old_word) {
      futex_wait(word, old_word, kLookMs);
      if (word.load(std::memory_order_acquire) == old_word && give_up(begin, stamp)) {
        return false;
      }
    }
  }
  // The phase may have ended well before someone failed: then this round's data is whole.
  return (now & ~kFailedBit) != (old_word & ~kFailedBit);
}

bool NodeMemory::check_stamps(const RoundStamp& stamp) {
  const uint64_t entered =
      rank_state(options_.local_rank).rounds.load(std::memory_order_relaxed) - 1;
  for (int32_t rank = 0; rank < options_.num_ranks; ++rank) {
    const RoundStamp other = rank_state(rank).stamps[entered % 2];
    if (other != stamp) {
      fail(Error{ErrorCode::data_loss,
                 name(rank) + " brought " + to_string(other) + " where " +
                     name(options_.local_rank) + " brought " + to_string(stamp)});
      return false;
    }
  }
  return true;
}

bool NodeMemory::has_died(int32_t local_rank) {
  const int32_t pid = rank_state(local_rank).pid.load(std::memory_order_acquire);
  if (pid == 0) {
    return false;
  }
  int& fd = process_fds_[static_cast<size_t>(local_rank)];
  if (fd < 0) {
    // Where the kernel or a filter refuses, a zombie looks alive and only the deadline helps.
    fd = static_cast<int>(::syscall(SYS_pidfd_open, pid, 0));
    if (fd < 0) {
      return ::kill(pid, 0) != 0 && errno == ESRCH;
    }
  }
  pollfd ended{fd, POLLIN, 0};
  return ::poll(&ended, 1, 0) == 1;
}

bool NodeMemory::give_up(TimePoint begin, const RoundStamp& stamp) {
  const uint64_t target = rank_state(options_.local_rank).rounds.load(std::memory_order_relaxed);
  const bool is_late =
      system_clock().now() - begin > std::chrono::milliseconds(options_.deadline_ms);
  std::string missing;
  for (int32_t rank = 0; rank < options_.num_ranks; ++rank) {
    if (rank_state(rank).rounds.load(std::memory_order_acquire) >= target) {
      continue;
    }
    if (has_died(rank)) {
      fail(Error{ErrorCode::unavailable,
                 name(rank) + " died: it did not come to " + to_string(stamp)});
      return true;
    }
    missing += (missing.empty() ? "" : ", ") + name(rank);
  }
  if (!is_late || missing.empty()) {
    return false;
  }
  fail(Error{ErrorCode::unavailable,
             missing + " did not come to " + to_string(stamp) + " within " +
                 std::to_string(options_.deadline_ms) + " ms"});
  return true;
}

void NodeMemory::fail(const Error& error) noexcept {
  Header& shared = header();
  uint32_t none = 0;
  if (shared.failure.compare_exchange_strong(none, 1, std::memory_order_acq_rel)) {
    shared.code = error.code;
    const size_t length = error.message.copy(shared.message, kMessageBytes - 1);
    shared.message[length] = '\0';
    shared.failure.store(2, std::memory_order_release);
  }
  shared.word.fetch_or(kFailedBit, std::memory_order_acq_rel);
  futex_wake_all(shared.word);
}

Status NodeMemory::status() const {
  const Header& shared = header();
  if ((shared.word.load(std::memory_order_acquire) & kFailedBit) == 0) {
    return ok_status();
  }
  if (shared.failure.load(std::memory_order_acquire) != 2) {
    return Error{ErrorCode::unavailable, "a rank of the node failed"};
  }
  return Error{shared.code, shared.message};
}

}  // namespace hadal
