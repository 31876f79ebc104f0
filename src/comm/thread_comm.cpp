// Ranks as threads of one process: tensor parallelism in tests, with sanitizers, without a network.
//
// Every collective copies its input into the group's own scratch, meets the others once at a
// barrier and then reads only scratch, so an aborted rank may free its tensors at once. Scratch
// alternates between two sets: a rank reaches collective n + 2 only after all have entered n + 1,
// that is, have done with the set of n.
#include <array>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <hadal/comm/communicator.h>

#include "dense_bytes.h"
#include "tree_sum.h"

namespace hadal {

namespace {

/// Shared by the ranks of one world.
class Group {
 public:
  explicit Group(int32_t world_size) : world_size_(world_size) {
    for (auto& set : scratch_) {
      set.resize(static_cast<size_t>(world_size));
    }
  }

  int32_t world_size() const { return world_size_; }

  /// Rank-owned scratch until the rank enters the barrier; read-only for all after it.
  std::vector<std::byte>& scratch(uint64_t sequence, int32_t rank) {
    return scratch_[sequence % 2][static_cast<size_t>(rank)];
  }

  /// Waits for all ranks; false once aborted.
  bool arrive_and_wait() {
    std::unique_lock lock(mutex_);
    if (reason_) {
      return false;
    }
    const uint64_t phase = phase_;
    if (++arrived_ == world_size_) {
      arrived_ = 0;
      ++phase_;
      lock.unlock();
      changed_.notify_all();
      return true;
    }
    changed_.wait(lock, [&] { return phase_ != phase || reason_; });
    return phase_ != phase;
  }

  void abort(const Error& reason) noexcept {
    {
      const std::lock_guard lock(mutex_);
      if (!reason_) {
        reason_ = reason;
      }
    }
    changed_.notify_all();
  }

  Status status() {
    const std::lock_guard lock(mutex_);
    return reason_ ? Status(*reason_) : ok_status();
  }

 private:
  const int32_t world_size_;
  std::array<std::vector<std::vector<std::byte>>, 2> scratch_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int32_t arrived_ = 0;
  uint64_t phase_ = 0;
  std::optional<Error> reason_;
};

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(std::shared_ptr<Group> group, int32_t rank)
      : group_(std::move(group)), rank_(rank) {}

  int32_t rank() const override { return rank_; }

  int32_t world_size() const override { return group_->world_size(); }

  void all_reduce_sum(TensorView inout, Stream& /*stream*/) override {
    const int64_t size = dense_bytes(inout);
    if (!exchange(inout.data, size)) {
      return;
    }
    for (int32_t rank = 0; rank < world_size(); ++rank) {
      check_size(rank, size);
    }
    const auto sources = all_sources(0);
    tree_sum(sources, inout.dtype, inout.shape.numel(), inout.data);
  }

  void reduce_scatter_sum(ConstTensorView in, TensorView out, Stream& /*stream*/) override {
    const int64_t size = dense_bytes(in);
    const int64_t part = dense_bytes(out);
    HADAL_CHECK(size == part * world_size(), "reduce_scatter: in is not world_size x out");
    if (!exchange(in.data, size)) {
      return;
    }
    for (int32_t rank = 0; rank < world_size(); ++rank) {
      check_size(rank, size);
    }
    const auto sources = all_sources(part * rank_);
    tree_sum(sources, in.dtype, out.shape.numel(), out.data);
  }

  void all_gather(ConstTensorView in, TensorView out, Stream& /*stream*/) override {
    const int64_t size = dense_bytes(in);
    HADAL_CHECK(dense_bytes(out) == size * world_size(), "all_gather: out is not world_size x in");
    if (!exchange(in.data, size)) {
      return;
    }
    for (int32_t rank = 0; rank < world_size(); ++rank) {
      check_size(rank, size);
      std::memcpy(out.data + rank * size, source(rank), static_cast<size_t>(size));
    }
  }

  void broadcast(TensorView inout, int32_t root, Stream& /*stream*/) override {
    HADAL_CHECK(root >= 0 && root < world_size(), "broadcast: root is outside the world");
    const int64_t size = dense_bytes(inout);
    if (!exchange(inout.data, rank_ == root ? size : 0)) {
      return;
    }
    check_size(root, size);
    if (rank_ != root) {
      std::memcpy(inout.data, source(root), static_cast<size_t>(size));
    }
  }

  Status poll_error() override { return group_->status(); }

  void abort() noexcept override {
    fail(Error{ErrorCode::cancelled, "the group of ranks was aborted"});
  }

  void fail(const Error& reason) noexcept override { group_->abort(reason); }

 private:
  /// Publishes `size` bytes of this rank and meets the others.
  bool exchange(const std::byte* data, int64_t size) {
    ++sequence_;
    std::vector<std::byte>& scratch = group_->scratch(sequence_, rank_);
    scratch.resize(static_cast<size_t>(size));
    if (size > 0) {
      std::memcpy(scratch.data(), data, static_cast<size_t>(size));
    }
    return group_->arrive_and_wait();
  }

  void check_size(int32_t rank, int64_t size) {
    const auto found = static_cast<int64_t>(group_->scratch(sequence_, rank).size());
    HADAL_CHECK(found == size,
                "rank " + std::to_string(rank) + " brought " + std::to_string(found) +
                    " bytes to a collective, rank " + std::to_string(rank_) + " " +
                    std::to_string(size));
  }

  const std::byte* source(int32_t rank) { return group_->scratch(sequence_, rank).data(); }

  std::vector<const std::byte*> all_sources(int64_t offset) {
    std::vector<const std::byte*> sources;
    for (int32_t rank = 0; rank < world_size(); ++rank) {
      sources.push_back(source(rank) + offset);
    }
    return sources;
  }

  std::shared_ptr<Group> group_;
  int32_t rank_;
  uint64_t sequence_ = 0;
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> make_thread_communicators(int32_t world_size) {
  HADAL_CHECK(world_size >= 1, "a world has at least one rank");
  auto group = std::make_shared<Group>(world_size);
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int32_t rank = 0; rank < world_size; ++rank) {
    ranks.push_back(std::make_unique<ThreadCommunicator>(group, rank));
  }
  return ranks;
}

}  // namespace hadal
