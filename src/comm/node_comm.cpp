// A tensor goes through the slots in pieces; a piece is a round: write the own slot, meet, read the
// others'. The slots of round n are written again in round n + 2, which nobody reaches before all
// have met in n + 1, that is, have read n.
//
// A sum of a small piece is made by every rank for itself. For a larger one each rank sums its
// share, puts it back into its own slot and all meet again: twice the meetings, 1 / ranks of the
// additions, the same bits.
#include "node_comm.h"

#include <algorithm>
#include <cstring>

#include "dense_bytes.h"
#include "tree_sum.h"

namespace hadal {

namespace {

constexpr int64_t kSumAloneBytes = 64 << 10;  ///< of a piece, all ranks together

class NodeCommunicator final : public Communicator {
 public:
  explicit NodeCommunicator(std::shared_ptr<NodeMemory> memory)
      : memory_(std::move(memory)), sources_(static_cast<size_t>(memory_->num_ranks())) {}

  int32_t rank() const override { return memory_->local_rank(); }

  int32_t world_size() const override { return memory_->num_ranks(); }

  void all_reduce_sum(TensorView inout, Stream& /*stream*/) override {
    const int64_t bytes = dense_bytes(inout);
    const RoundStamp stamp = stamp_of(CommOp::all_reduce, bytes);
    for_pieces(bytes, memory_->slot_bytes(), [&](int64_t begin, int64_t size) {
      std::memcpy(own_slot(), inout.data + begin, static_cast<size_t>(size));
      if (!memory_->meet(stamp)) {
        return false;
      }
      const int64_t count = size / size_of(inout.dtype);
      if (size * world_size() <= kSumAloneBytes) {
        tree_sum(slots(0), inout.dtype, count, inout.data + begin);
        return true;
      }
      return sum_together(inout, begin, count, stamp);
    });
  }

  void reduce_scatter_sum(ConstTensorView in, TensorView out, Stream& /*stream*/) override {
    const int64_t part = dense_bytes(out);
    HADAL_CHECK(dense_bytes(in) == part * world_size(),
                "reduce_scatter: in is not world_size x out");
    const RoundStamp stamp = stamp_of(CommOp::reduce_scatter, part);
    const int64_t piece = memory_->slot_bytes() / world_size() / 64 * 64;
    for_pieces(part, piece, [&](int64_t begin, int64_t size) {
      for (int32_t r = 0; r < world_size(); ++r) {
        std::memcpy(own_slot() + r * piece, in.data + r * part + begin, static_cast<size_t>(size));
      }
      if (!memory_->meet(stamp)) {
        return false;
      }
      tree_sum(slots(rank() * piece), in.dtype, size / size_of(in.dtype), out.data + begin);
      return true;
    });
  }

  void all_gather(ConstTensorView in, TensorView out, Stream& /*stream*/) override {
    const int64_t bytes = dense_bytes(in);
    HADAL_CHECK(dense_bytes(out) == bytes * world_size(), "all_gather: out is not world_size x in");
    const RoundStamp stamp = stamp_of(CommOp::all_gather, bytes);
    for_pieces(bytes, memory_->slot_bytes(), [&](int64_t begin, int64_t size) {
      std::memcpy(own_slot(), in.data + begin, static_cast<size_t>(size));
      if (!memory_->meet(stamp)) {
        return false;
      }
      for (int32_t r = 0; r < world_size(); ++r) {
        std::memcpy(out.data + r * bytes + begin, memory_->slot(r), static_cast<size_t>(size));
      }
      return true;
    });
  }

  void broadcast(TensorView inout, int32_t root, Stream& /*stream*/) override {
    HADAL_CHECK(root >= 0 && root < world_size(), "broadcast: root is outside the world");
    const int64_t bytes = dense_bytes(inout);
    RoundStamp stamp = stamp_of(CommOp::broadcast, bytes);
    stamp.root = root;
    for_pieces(bytes, memory_->slot_bytes(), [&](int64_t begin, int64_t size) {
      if (rank() == root) {
        std::memcpy(own_slot(), inout.data + begin, static_cast<size_t>(size));
      }
      if (!memory_->meet(stamp)) {
        return false;
      }
      if (rank() != root) {
        std::memcpy(inout.data + begin, memory_->slot(root), static_cast<size_t>(size));
      }
      return true;
    });
  }

  Status poll_error() override { return memory_->status(); }

  void abort() noexcept override {
    fail(Error{ErrorCode::cancelled, "the group of ranks was aborted"});
  }

  void fail(const Error& reason) noexcept override { memory_->fail(reason); }

 private:
  static RoundStamp stamp_of(CommOp op, int64_t bytes) {
    return {.op = static_cast<uint32_t>(op), .root = 0, .bytes = bytes};
  }

  /// Calls round(begin, size) for pieces of at most `piece` bytes until one says false.
  template <class Round>
  void for_pieces(int64_t bytes, int64_t piece, const Round& round) {
    int64_t begin = 0;
    do {
      const bool went_well = round(begin, std::min(piece, bytes - begin));
      memory_->next_round();
      if (!went_well) {
        return;
      }
      begin += piece;
    } while (begin < bytes);
  }

  /// The second half of a large sum; the inputs lie in the slots.
  bool sum_together(TensorView inout, int64_t begin, int64_t count, const RoundStamp& stamp) {
    const int64_t element = size_of(inout.dtype);
    // Shares end on cache lines, so that no two ranks write one.
    const int64_t line = 64 / element;
    const int64_t share = ((count + world_size() - 1) / world_size() + line - 1) / line * line;
    const auto begin_of = [&](int32_t r) { return std::min(r * share, count); };
    const int64_t mine = begin_of(rank());
    const int64_t my_count = begin_of(rank() + 1) - mine;
    tree_sum(slots(mine * element), inout.dtype, my_count, own_slot() + mine * element);
    if (!memory_->meet(stamp)) {
      return false;
    }
    for (int32_t r = 0; r < world_size(); ++r) {
      const int64_t at = begin_of(r) * element;
      const int64_t size = begin_of(r + 1) * element - at;
      std::memcpy(inout.data + begin + at, memory_->slot(r) + at, static_cast<size_t>(size));
    }
    return true;
  }

  std::byte* own_slot() const { return memory_->slot(rank()); }

  std::span<const std::byte* const> slots(int64_t offset) {
    for (int32_t r = 0; r < world_size(); ++r) {
      sources_[static_cast<size_t>(r)] = memory_->slot(r) + offset;
    }
    return sources_;
  }

  std::shared_ptr<NodeMemory> memory_;
  std::vector<const std::byte*> sources_;
};

}  // namespace

std::unique_ptr<Communicator> make_node_communicator(std::shared_ptr<NodeMemory> memory) {
  return std::make_unique<NodeCommunicator>(std::move(memory));
}

}  // namespace hadal
