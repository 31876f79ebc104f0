// The layout of the shared memory and the futexes in it. Everything is an atomic or is written
// before the atomic that announces it; nothing in it is a pointer.
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <new>

#include <climits>

#include <hadal/cluster/board.h>

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace hadal {
namespace {

constexpr uint64_t kMagic = 0x32524F4244414848;  // changes with the layout
constexpr uint64_t kRingBytes = uint64_t{32} << 20;
constexpr uint64_t kAckRing = 16;
constexpr size_t kEndTextMax = 1000;

using Bell = std::atomic<uint32_t>;
static_assert(Bell::is_always_lock_free && std::atomic<uint64_t>::is_always_lock_free);

uint32_t* raw(Bell& bell) {
  return reinterpret_cast<uint32_t*>(&bell);
}

void wake_all(Bell& bell) {
  syscall(SYS_futex, raw(bell), FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

/// Until the bell no longer shows `seen`, or for at most `limit`.
void sleep_on(Bell& bell, uint32_t seen, std::chrono::nanoseconds limit) {
  timespec wait{};
  wait.tv_sec = limit.count() / 1'000'000'000;
  wait.tv_nsec = limit.count() % 1'000'000'000;
  syscall(SYS_futex, raw(bell), FUTEX_WAIT, seen, &wait, nullptr, 0);
}

/// No bell is trusted alone: a process that should have rung it may be stopped.
constexpr auto kNapMax = std::chrono::milliseconds(20);

std::chrono::nanoseconds nap_until(TimePoint deadline) {
  const auto left = std::chrono::nanoseconds(deadline - system_clock().now());
  return std::clamp<std::chrono::nanoseconds>(left, std::chrono::nanoseconds(0), kNapMax);
}

struct RecordHead {
  uint64_t size = 0;
};

uint64_t record_bytes(uint64_t size) {
  return sizeof(RecordHead) + (size + 7) / 8 * 8;
}

/// Every page mapped before the first plan: rank 0 should not fault on its way. A kernel that
/// cannot do it (before 5.14) maps them one by one later.
void populate(void* at, size_t size) {
#ifdef MADV_POPULATE_WRITE
  madvise(at, size, MADV_POPULATE_WRITE);
#else
  static_cast<void>(at);
  static_cast<void>(size);
#endif
}

}  // namespace

/// Padded so that ranks do not share cache lines.
struct alignas(128) Board::Reader {
  std::atomic<uint64_t> tail{0};
  Bell bell{0};
  std::atomic<uint32_t> is_asleep{0};
};

namespace {

struct AckSlot {
  std::atomic<uint64_t> step_id{0};  ///< last written: the hashes are this step's
  std::atomic<uint64_t> consumed{0};
  std::atomic<uint64_t> produced{0};
};

struct Blob {
  std::atomic<uint32_t> size_plus_one{0};
  std::array<std::byte, kBlobBytesMax> bytes;
};

struct alignas(128) RankCell {
  std::atomic<uint32_t> phase{0};
  std::atomic<int32_t> pid{0};
  std::atomic<uint64_t> beats{0};
  std::atomic<uint64_t> acked{0};
  std::array<AckSlot, kAckRing> acks;
  std::array<Blob, kBlobRounds> blobs;
};

}  // namespace

struct Board::Memory {
  uint64_t magic = kMagic;
  BoardShape shape;
  std::atomic<uint32_t> end_claimed{0};
  std::atomic<uint32_t> end_reason{0};
  uint32_t end_size = 0;
  std::array<char, kEndTextMax> end_text{};
  std::atomic<uint32_t> all_ready{0};
  alignas(128) std::atomic<uint64_t> head{0};
  alignas(128) Bell ack_bell{0};
  std::atomic<int32_t> awaited_rank{0};  ///< whose answer wakes; kAnyRank
  Reader supervisor;
  RankCell supervisor_cell;
  std::array<Reader, kBoardRanksMax> readers;
  std::array<RankCell, kBoardRanksMax> cells;
  alignas(4096) std::array<std::byte, kRingBytes> ring;

  RankCell& cell(int32_t rank) {
    HADAL_CHECK(rank >= kSupervisorReader && rank < shape.world_size, "board: no such rank");
    return rank == kSupervisorReader ? supervisor_cell : cells[static_cast<size_t>(rank)];
  }
};

Board::Board(int fd, Memory* memory) : fd_(fd), memory_(memory) {
  const BoardShape& shape = memory->shape;
  if (shape.supervisor_reads) {
    readers_.push_back(kSupervisorReader);
  }
  for (int32_t i = 0; i < shape.num_local; ++i) {
    if (shape.first_rank + i != 0) {  // rank 0 makes the plans
      readers_.push_back(shape.first_rank + i);
    }
  }
}

Board::~Board() {
  munmap(memory_, sizeof(Memory));
  close(fd_);
}

Result<std::unique_ptr<Board>> Board::create(const BoardShape& shape) {
  HADAL_CHECK(shape.world_size <= kBoardRanksMax && shape.num_local >= 1 &&
                  shape.first_rank + shape.num_local <= shape.world_size,
              "board: impossible shape");
  const int fd = memfd_create("hadal-ranks", 0);
  if (fd < 0 || ftruncate(fd, static_cast<off_t>(sizeof(Memory))) != 0) {
    return Error{ErrorCode::resource_exhausted,
                 std::string("shared memory for the ranks: ") +
                     std::strerror(errno)};  // NOLINT(concurrency-mt-unsafe)
  }
  void* at = mmap(nullptr, sizeof(Memory), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) {
    close(fd);
    return Error{ErrorCode::resource_exhausted, "shared memory for the ranks cannot be mapped"};
  }
  populate(at, sizeof(Memory));
  // Fresh pages are zero, which is every atomic's start.
  auto* memory = static_cast<Memory*>(at);
  memory->shape = shape;
  memory->magic = kMagic;
  return std::unique_ptr<Board>(new Board(fd, memory));
}

Result<std::unique_ptr<Board>> Board::attach(const std::string& path) {
  const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) {
    return Error{
        ErrorCode::not_found,
        "--rank-board " + path + ": " + std::strerror(errno)};  // NOLINT(concurrency-mt-unsafe)
  }

  struct stat info {};

  void* at = MAP_FAILED;
  if (fstat(fd, &info) == 0 && info.st_size == static_cast<off_t>(sizeof(Memory))) {
    at = mmap(nullptr, sizeof(Memory), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  }
  auto* memory = static_cast<Memory*>(at);
  if (at == MAP_FAILED || memory->magic != kMagic) {
    close(fd);
    return Error{ErrorCode::data_loss, "--rank-board " + path + ": not this hadal's board"};
  }
  populate(at, sizeof(Memory));
  return std::unique_ptr<Board>(new Board(fd, memory));
}

const BoardShape& Board::shape() const {
  return memory_->shape;
}

std::string Board::path_for_children() const {
  return "/proc/self/fd/" + std::to_string(fd_);
}

std::string Board::path_for_others() const {
  return "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(fd_);
}

Board::Reader& Board::reader(int32_t index) const {
  return index == kSupervisorReader ? memory_->supervisor
                                    : memory_->readers[static_cast<size_t>(index)];
}

void Board::copy_in(uint64_t at, std::span<const std::byte> bytes) const {
  const uint64_t begin = at % kRingBytes;
  const uint64_t first = std::min<uint64_t>(bytes.size(), kRingBytes - begin);
  std::memcpy(memory_->ring.data() + begin, bytes.data(), first);
  std::memcpy(memory_->ring.data(), bytes.data() + first, bytes.size() - first);
}

void Board::copy_out(uint64_t at, std::span<std::byte> bytes) const {
  const uint64_t begin = at % kRingBytes;
  const uint64_t first = std::min<uint64_t>(bytes.size(), kRingBytes - begin);
  std::memcpy(bytes.data(), memory_->ring.data() + begin, first);
  std::memcpy(bytes.data() + first, memory_->ring.data(), bytes.size() - first);
}

/// Readers form a heap: whoever stands at place p wakes 2p + 1 and 2p + 2, the producer 0 and 1.
void Board::ring_readers(size_t from) const {
  for (size_t place = from; place < std::min(from + 2, readers_.size()); ++place) {
    Reader& sleeper = reader(readers_[place]);
    sleeper.bell.fetch_add(1);
    if (sleeper.is_asleep.load() != 0) {
      wake_all(sleeper.bell);
    }
  }
}

bool Board::publish(std::span<const std::byte> plan) {
  const uint64_t head = memory_->head.load(std::memory_order_relaxed);
  const uint64_t bytes = record_bytes(plan.size());
  for (const int32_t index : readers_) {
    if (head + bytes - reader(index).tail.load(std::memory_order_acquire) > kRingBytes) {
      return false;
    }
  }
  const RecordHead record{plan.size()};
  copy_in(head, std::as_bytes(std::span(&record, 1)));
  copy_in(head + sizeof record, plan);
  memory_->head.store(head + bytes);
  ring_readers(0);
  return true;
}

bool Board::read(int32_t index, std::vector<std::byte>& plan, TimePoint deadline) {
  Reader& self = reader(index);
  const uint64_t tail = self.tail.load(std::memory_order_relaxed);
  while (memory_->head.load() == tail) {
    if (end_reason() != EndReason::none || system_clock().now() >= deadline) {
      return false;
    }
    const uint32_t seen = self.bell.load();
    self.is_asleep.store(1);
    if (memory_->head.load() == tail) {
      sleep_on(self.bell, seen, nap_until(deadline));
    }
    self.is_asleep.store(0);
  }
  const auto place =
      static_cast<size_t>(std::find(readers_.begin(), readers_.end(), index) - readers_.begin());
  ring_readers(2 * place + 2);
  RecordHead record;
  copy_out(tail, std::as_writable_bytes(std::span(&record, 1)));
  HADAL_CHECK(record.size <= kRingBytes, "board: a plan longer than the stream");
  plan.resize(record.size);
  copy_out(tail + sizeof record, plan);
  self.tail.store(tail + record_bytes(record.size), std::memory_order_release);
  return true;
}

void Board::set_ack(int32_t rank, const StepAck& ack) {
  RankCell& cell = memory_->cell(rank);
  AckSlot& slot = cell.acks[ack.step_id % kAckRing];
  slot.consumed.store(ack.consumed, std::memory_order_relaxed);
  slot.produced.store(ack.produced, std::memory_order_relaxed);
  slot.step_id.store(ack.step_id);
  cell.acked.store(ack.step_id);
  memory_->ack_bell.fetch_add(1);
  const int32_t awaited = memory_->awaited_rank.load();
  if (awaited == rank || awaited == kAnyRank) {
    wake_all(memory_->ack_bell);
  }
}

uint64_t Board::last_acked(int32_t rank) const {
  return memory_->cell(rank).acked.load();
}

std::optional<StepAck> Board::ack_of(int32_t rank, uint64_t step_id) const {
  const RankCell& cell = memory_->cell(rank);
  const uint64_t acked = cell.acked.load();
  const AckSlot& slot = cell.acks[step_id % kAckRing];
  if (acked < step_id || acked - step_id >= kAckRing || slot.step_id.load() != step_id) {
    return std::nullopt;
  }
  return StepAck{step_id, slot.consumed.load(), slot.produced.load()};
}

uint32_t Board::ack_count() const {
  return memory_->ack_bell.load();
}

void Board::wait_ack(uint32_t seen, int32_t rank, TimePoint deadline) const {
  memory_->awaited_rank.store(rank);
  if (memory_->ack_bell.load() == seen && end_reason() == EndReason::none) {
    sleep_on(memory_->ack_bell, seen, nap_until(deadline));
  }
}

void Board::set_phase(int32_t rank, RankPhase phase) {
  memory_->cell(rank).phase.store(static_cast<uint32_t>(phase));
}

RankPhase Board::phase(int32_t rank) const {
  return static_cast<RankPhase>(memory_->cell(rank).phase.load());
}

void Board::set_pid(int32_t rank, int32_t pid) {
  memory_->cell(rank).pid.store(pid);
}

int32_t Board::pid(int32_t rank) const {
  return memory_->cell(rank).pid.load();
}

void Board::beat(int32_t rank) {
  memory_->cell(rank).beats.fetch_add(1);
}

uint64_t Board::beats(int32_t rank) const {
  return memory_->cell(rank).beats.load();
}

void Board::set_all_ready() {
  memory_->all_ready.store(1);
}

bool Board::is_all_ready() const {
  return memory_->all_ready.load() != 0;
}

void Board::set_blob(int32_t rank, int32_t round, std::span<const std::byte> bytes) {
  HADAL_CHECK(round >= 0 && round < kBlobRounds && std::ssize(bytes) <= kBlobBytesMax,
              "board: impossible blob");
  Blob& blob = memory_->cell(rank).blobs[static_cast<size_t>(round)];
  std::copy(bytes.begin(), bytes.end(), blob.bytes.begin());
  blob.size_plus_one.store(static_cast<uint32_t>(bytes.size()) + 1);
}

std::optional<std::vector<std::byte>> Board::blob(int32_t rank, int32_t round) const {
  HADAL_CHECK(round >= 0 && round < kBlobRounds, "board: impossible blob");
  const Blob& blob = memory_->cell(rank).blobs[static_cast<size_t>(round)];
  const uint32_t size_plus_one = blob.size_plus_one.load();
  if (size_plus_one == 0 || size_plus_one > kBlobBytesMax + 1) {
    return std::nullopt;
  }
  return std::vector<std::byte>(blob.bytes.begin(),
                                blob.bytes.begin() + static_cast<ptrdiff_t>(size_plus_one - 1));
}

void Board::set_end(EndReason reason, const std::string& text) {
  if (memory_->end_claimed.exchange(1) != 0) {
    return;
  }
  const size_t size = std::min(text.size(), kEndTextMax);
  std::copy_n(text.begin(), size, memory_->end_text.begin());
  memory_->end_size = static_cast<uint32_t>(size);
  memory_->end_reason.store(static_cast<uint32_t>(reason));
  for (const int32_t index : readers_) {
    reader(index).bell.fetch_add(1);
    wake_all(reader(index).bell);
  }
  memory_->ack_bell.fetch_add(1);
  wake_all(memory_->ack_bell);
}

EndReason Board::end_reason() const {
  return static_cast<EndReason>(memory_->end_reason.load());
}

GroupEnd Board::end() const {
  const EndReason reason = end_reason();
  if (reason == EndReason::none) {
    return {};
  }
  return {reason,
          std::string(memory_->end_text.data(), std::min<size_t>(memory_->end_size, kEndTextMax))};
}

}  // namespace hadal
