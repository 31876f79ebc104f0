// Everyone sends to everyone: one hop, which is what counts between few nodes.
#include "cross_comm.h"

#include <cstring>

#include "dense_bytes.h"
#include "tree_sum.h"

namespace hadal {

namespace {

class CrossCommunicator final : public Communicator {
 public:
  explicit CrossCommunicator(std::unique_ptr<PeerLinks> links) : links_(std::move(links)) {}

  int32_t rank() const override { return links_->own_node(); }

  int32_t world_size() const override { return links_->num_nodes(); }

  void all_reduce_sum(TensorView inout, Stream& /*stream*/) override {
    const int64_t bytes = dense_bytes(inout);
    const auto sources = exchange_parts(CommOp::all_reduce, inout.data, 0, bytes);
    if (!sources.empty()) {
      tree_sum(sources, inout.dtype, inout.shape.numel(), inout.data);
    }
  }

  void reduce_scatter_sum(ConstTensorView in, TensorView out, Stream& /*stream*/) override {
    const int64_t part = dense_bytes(out);
    HADAL_CHECK(dense_bytes(in) == part * world_size(),
                "reduce_scatter: in is not world_size x out");
    const auto sources = exchange_parts(CommOp::reduce_scatter, in.data, part, part);
    if (!sources.empty()) {
      tree_sum(sources, in.dtype, out.shape.numel(), out.data);
    }
  }

  void all_gather(ConstTensorView in, TensorView out, Stream& /*stream*/) override {
    const int64_t bytes = dense_bytes(in);
    HADAL_CHECK(dense_bytes(out) == bytes * world_size(), "all_gather: out is not world_size x in");
    std::vector<PeerTransfer> transfers;
    for (int32_t r = 0; r < world_size(); ++r) {
      transfers.push_back({in.data, bytes, out.data + r * bytes, bytes});
    }
    if (links_->exchange(transfers, stamp_of(CommOp::all_gather, bytes))) {
      std::memmove(out.data + rank() * bytes, in.data, static_cast<size_t>(bytes));
    }
  }

  void broadcast(TensorView inout, int32_t root, Stream& /*stream*/) override {
    HADAL_CHECK(root >= 0 && root < world_size(), "broadcast: root is outside the world");
    const int64_t bytes = dense_bytes(inout);
    std::vector<PeerTransfer> transfers(static_cast<size_t>(world_size()));
    for (int32_t r = 0; r < world_size(); ++r) {
      PeerTransfer& transfer = transfers[static_cast<size_t>(r)];
      if (rank() == root) {
        transfer.out = inout.data;
        transfer.out_bytes = bytes;
      } else if (r == root) {
        transfer.in = inout.data;
        transfer.in_bytes = bytes;
      }
    }
    RoundStamp stamp = stamp_of(CommOp::broadcast, bytes);
    stamp.root = root;
    links_->exchange(transfers, stamp);
  }

  Status poll_error() override { return links_->status(); }

  void abort() noexcept override {
    fail(Error{ErrorCode::cancelled, "the group of ranks was aborted"});
  }

  void fail(const Error& reason) noexcept override { links_->fail(reason); }

 private:
  static RoundStamp stamp_of(CommOp op, int64_t bytes) {
    return {.op = static_cast<uint32_t>(op), .root = 0, .bytes = bytes};
  }

  /// Sends data + r * stride to every rank r, `bytes` long; returns what came from each, the own
  /// part in place. Empty when the group has failed.
  std::vector<const std::byte*> exchange_parts(CommOp op,
                                               const std::byte* data,
                                               int64_t stride,
                                               int64_t bytes) {
    const auto needed = static_cast<size_t>(bytes * world_size());
    if (received_.size() < needed) {
      received_.resize(needed);
    }
    std::vector<PeerTransfer> transfers;
    std::vector<const std::byte*> sources;
    for (int32_t r = 0; r < world_size(); ++r) {
      std::byte* in = received_.data() + r * bytes;
      transfers.push_back({data + r * stride, bytes, in, bytes});
      sources.push_back(r == rank() ? data + r * stride : in);
    }
    if (!links_->exchange(transfers, stamp_of(op, bytes))) {
      sources.clear();
    }
    return sources;
  }

  std::unique_ptr<PeerLinks> links_;
  std::vector<std::byte> received_;
};

}  // namespace

std::unique_ptr<Communicator> make_cross_communicator(std::unique_ptr<PeerLinks> links) {
  return std::make_unique<CrossCommunicator>(std::move(links));
}

}  // namespace hadal
