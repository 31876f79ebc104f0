// One rank of a world whose others are not there, for measuring that rank's work alone.
#include <algorithm>
#include <memory>

#include <hadal/comm/communicator.h>

#include "dense_bytes.h"

namespace hadal {

namespace {

class LoopbackCommunicator final : public Communicator {
 public:
  LoopbackCommunicator(Backend& backend, int32_t rank, int32_t world_size)
      : backend_(backend), rank_(rank), world_size_(world_size) {}

  int32_t rank() const override { return rank_; }

  int32_t world_size() const override { return world_size_; }

  void all_reduce_sum(TensorView /*inout*/, Stream& /*stream*/) override {}

  void reduce_scatter_sum(ConstTensorView in, TensorView out, Stream& stream) override {
    const int64_t size_bytes = dense_bytes(out);
    HADAL_CHECK(dense_bytes(in) == world_size_ * size_bytes,
                "reduce_scatter: in is not world_size x out");
    copy(bytes_of(in, rank_ * size_bytes, size_bytes), bytes_of(out, 0, size_bytes), stream);
  }

  /// Doubles what is there until every part is this rank's: few copies, and no part is left as it
  /// was.
  void all_gather(ConstTensorView in, TensorView out, Stream& stream) override {
    const int64_t size_bytes = dense_bytes(in);
    const int64_t all_bytes = dense_bytes(out);
    HADAL_CHECK(all_bytes == world_size_ * size_bytes,
                "all_gather: out is not world_size times in");
    copy(bytes_of(in, 0, size_bytes), bytes_of(out, 0, size_bytes), stream);
    for (int64_t done = size_bytes; done < all_bytes; done *= 2) {
      const int64_t next = std::min(done, all_bytes - done);
      copy(bytes_of(out, 0, next), bytes_of(out, done, next), stream);
    }
  }

  void broadcast(TensorView /*inout*/, int32_t root, Stream& /*stream*/) override {
    HADAL_CHECK(root >= 0 && root < world_size_, "broadcast: root is outside the world");
  }

  Status poll_error() override { return ok_status(); }

  void abort() noexcept override {}

 private:
  static TensorView bytes_of(const TensorView& view, int64_t begin, int64_t size_bytes) {
    return make_view(view.data + begin, DType::u8, Shape{1, size_bytes}, view.device);
  }

  static ConstTensorView bytes_of(const ConstTensorView& view, int64_t begin, int64_t size_bytes) {
    return make_view(view.data + begin, DType::u8, Shape{1, size_bytes}, view.device);
  }

  void copy(const ConstTensorView& from, const TensorView& to, Stream& stream) {
    if (from.data != to.data) {
      backend_.copy(to, from, stream);
    }
  }

  Backend& backend_;
  int32_t rank_;
  int32_t world_size_;
};

}  // namespace

std::unique_ptr<Communicator> make_loopback_communicator(Backend& backend,
                                                         int32_t rank,
                                                         int32_t world_size) {
  HADAL_CHECK(rank >= 0 && rank < world_size, "loopback: a rank outside the world");
  return std::make_unique<LoopbackCommunicator>(backend, rank, world_size);
}

}  // namespace hadal
