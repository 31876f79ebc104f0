// Nodes and what joins them. A failure on one level ends the other, so that no rank waits there for
// one that has left.
#include <cstring>
#include <vector>

#include <hadal/comm/process_communicator.h>

#include "dense_bytes.h"
#include "tree_sum.h"

namespace hadal {

namespace {

TensorView flat_view(std::byte* data, DType dtype, int64_t count, Device device) {
  return make_view(data, dtype, Shape{count}, device);
}

class TwoLevelCommunicator final : public Communicator {
 public:
  TwoLevelCommunicator(std::unique_ptr<Communicator> node,
                       std::unique_ptr<Communicator> cross,
                       AllReduce all_reduce)
      : node_(std::move(node)), cross_(std::move(cross)), all_reduce_(all_reduce) {}

  int32_t rank() const override { return cross_->rank() * node_size() + node_->rank(); }

  int32_t world_size() const override { return cross_->world_size() * node_size(); }

  void all_reduce_sum(TensorView inout, Stream& stream) override {
    dense_bytes(inout);
    if (all_reduce_ == AllReduce::flat) {
      sum_flat(inout, stream);
      return;
    }
    if (inout.device.type != DeviceType::cpu || inout.dtype != DType::bf16) {
      sum_in_place(inout, stream);
      return;
    }
    const int64_t count = inout.shape.numel();
    sum_in_place(widened(inout), stream);
    round_to_bf16(wide_.data(), count, inout);
  }

  void reduce_scatter_sum(ConstTensorView in, TensorView out, Stream& stream) override {
    const int64_t part = dense_bytes(out);
    HADAL_CHECK(dense_bytes(in) == part * world_size(),
                "reduce_scatter: in is not world_size x out");
    HADAL_CHECK(in.device.type == DeviceType::cpu, "reduce_scatter over nodes: host tensors only");
    const int64_t count = out.shape.numel();
    if (all_reduce_ == AllReduce::flat) {
      const auto sources = gather_inputs(in, rank() * part, stream);
      tree_sum(sources, in.dtype, count, out.data);
      return;
    }
    const bool is_bf16 = in.dtype == DType::bf16;
    const ConstTensorView all = is_bf16 ? ConstTensorView(widened(in)) : in;
    const auto whole = [&](const std::byte* data, int64_t size) {
      return make_view(data, all.dtype, Shape{size}, in.device);
    };
    const int64_t nodes = cross_->world_size();
    const int64_t element = size_of(all.dtype);
    scratch_.resize(static_cast<size_t>((nodes + 1) * count * element));
    const auto sum_of_node = [&](int64_t node) {
      return flat_view(scratch_.data() + node * count * element, all.dtype, count, in.device);
    };
    const int64_t node_count = count * node_size();
    for (int64_t node = 0; node < nodes; ++node) {
      node_->reduce_scatter_sum(
          whole(all.data + node * node_count * element, node_count), sum_of_node(node), stream);
    }
    if (!is_ok()) {
      return;
    }
    const TensorView sum = is_bf16 ? sum_of_node(nodes) : out;
    cross_->reduce_scatter_sum(whole(scratch_.data(), nodes * count), sum, stream);
    spread_failure();
    if (is_bf16) {
      round_to_bf16(sum.as<float>(), count, out);
    }
  }

  void all_gather(ConstTensorView in, TensorView out, Stream& stream) override {
    const int64_t bytes = dense_bytes(in);
    HADAL_CHECK(dense_bytes(out) == bytes * world_size(), "all_gather: out is not world_size x in");
    const int64_t count = in.shape.numel();
    const int64_t node_bytes = bytes * node_size();
    const auto part = [&](int64_t node, int64_t nodes) {
      return flat_view(
          out.data + node * node_bytes, in.dtype, count * node_size() * nodes, in.device);
    };
    const int64_t nodes = cross_->world_size();
    if (in.device.type != DeviceType::cpu) {
      // Without scratch: the node's inputs lie together in out and travel as one piece.
      const TensorView own = part(cross_->rank(), 1);
      node_->all_gather(in, own, stream);
      cross_->all_gather(own, part(0, nodes), stream);
      spread_failure();
      return;
    }
    gathered_.resize(static_cast<size_t>(bytes * nodes));
    cross_->all_gather(in, flat_view(gathered_.data(), in.dtype, count * nodes, in.device), stream);
    for (int64_t node = 0; node < nodes && is_ok(); ++node) {
      node_->all_gather(flat_view(gathered_.data() + node * bytes, in.dtype, count, in.device),
                        part(node, 1),
                        stream);
    }
    spread_failure();
  }

  void broadcast(TensorView inout, int32_t root, Stream& stream) override {
    HADAL_CHECK(root >= 0 && root < world_size(), "broadcast: root is outside the world");
    if (node_->rank() == root % node_size()) {
      cross_->broadcast(inout, root / node_size(), stream);
    }
    if (is_ok()) {
      node_->broadcast(inout, root % node_size(), stream);
      spread_failure();
    }
  }

  Status poll_error() override {
    HADAL_RETURN_IF_ERROR(node_->poll_error());
    return cross_->poll_error();
  }

  void abort() noexcept override {
    fail(Error{ErrorCode::cancelled, "the group of ranks was aborted"});
  }

  void fail(const Error& reason) noexcept override {
    node_->fail(reason);
    cross_->fail(reason);
  }

 private:
  int32_t node_size() const { return node_->world_size(); }

  /// Ends both levels once one has failed.
  void spread_failure() {
    if (const Status status = poll_error(); !status) {
      fail(status.error());
    }
  }

  bool is_ok() {
    spread_failure();
    return static_cast<bool>(poll_error());
  }

  /// Gathers `in` of all ranks; returns where each rank's bytes from `offset` on lie.
  std::vector<const std::byte*> gather_inputs(ConstTensorView in, int64_t offset, Stream& stream) {
    const int64_t bytes = dense_bytes(in);
    scratch_.resize(static_cast<size_t>(bytes * world_size()));
    const int64_t count = in.shape.numel() * world_size();
    all_gather(in, flat_view(scratch_.data(), in.dtype, count, in.device), stream);
    std::vector<const std::byte*> sources;
    for (int32_t r = 0; r < world_size(); ++r) {
      sources.push_back(scratch_.data() + r * bytes + offset);
    }
    return sources;
  }

  void sum_flat(TensorView inout, Stream& stream) {
    HADAL_CHECK(inout.device.type == DeviceType::cpu, "a flat sum of two levels is the host's");
    const auto sources = gather_inputs(inout, 0, stream);
    tree_sum(sources, inout.dtype, inout.shape.numel(), inout.data);
  }

  /// bf16 as f32 in wide_: nodes exchange unrounded sums, or the result would depend on where nodes
  /// end.
  TensorView widened(const ConstTensorView& in) {
    wide_.resize(static_cast<size_t>(in.shape.numel()));
    for (size_t i = 0; i < wide_.size(); ++i) {
      wide_[i] = bf16_to_f32(in.as<uint16_t>()[i]);
    }
    return flat_view(
        reinterpret_cast<std::byte*>(wide_.data()), DType::f32, in.shape.numel(), in.device);
  }

  static void round_to_bf16(const float* in, int64_t count, const TensorView& out) {
    for (int64_t i = 0; i < count; ++i) {
      out.as<uint16_t>()[i] = f32_to_bf16(in[i]);
    }
  }

  void sum_in_place(TensorView inout, Stream& stream) {
    const int64_t count = inout.shape.numel();
    if (count % node_size() != 0) {
      node_->all_reduce_sum(inout, stream);
      if (is_ok()) {
        cross_->all_reduce_sum(inout, stream);
        spread_failure();
      }
      return;
    }
    const TensorView all = flat_view(inout.data, inout.dtype, count, inout.device);
    const int64_t share = count / node_size();
    const TensorView mine = all.rows(node_->rank() * share, share);
    node_->reduce_scatter_sum(all, mine, stream);
    if (!is_ok()) {
      return;
    }
    cross_->all_reduce_sum(mine, stream);
    if (!is_ok()) {
      return;
    }
    node_->all_gather(mine, all, stream);
    spread_failure();
  }

  std::unique_ptr<Communicator> node_;
  std::unique_ptr<Communicator> cross_;
  AllReduce all_reduce_;
  std::vector<float> wide_;
  std::vector<std::byte> scratch_;
  std::vector<std::byte> gathered_;
};

}  // namespace

std::unique_ptr<Communicator> make_two_level_communicator(std::unique_ptr<Communicator> node,
                                                          std::unique_ptr<Communicator> cross,
                                                          AllReduce all_reduce) {
  return std::make_unique<TwoLevelCommunicator>(std::move(node), std::move(cross), all_reduce);
}

}  // namespace hadal
