// Buffer: memory that a backend gave out, returned to it by the destructor; and what a backend need
// not have.
#include <utility>

#include <hadal/backend/backend.h>

namespace hadal {

Buffer::Buffer(std::byte* data, int64_t size_bytes, std::function<void(std::byte*)> release)
    : data_(data), size_bytes_(size_bytes), release_(std::move(release)) {}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_bytes_(std::exchange(other.size_bytes_, 0)),
      release_(std::exchange(other.release_, nullptr)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    if (data_ != nullptr && release_) {
      release_(data_);
    }
    data_ = std::exchange(other.data_, nullptr);
    size_bytes_ = std::exchange(other.size_bytes_, 0);
    release_ = std::exchange(other.release_, nullptr);
  }
  return *this;
}

Buffer::~Buffer() {
  if (data_ != nullptr && release_) {
    release_(data_);
  }
}

Result<std::unique_ptr<Graph>> Backend::capture(Stream& /*stream*/,
                                                const std::function<void()>& /*work*/) {
  return Error{ErrorCode::unsupported, "this backend captures no graphs"};
}

Result<DeviceCeilings> Backend::measure_ceilings() {
  return Error{ErrorCode::unsupported, "this backend's device is the host"};
}

}  // namespace hadal
