// The safetensors header and the shard index: what is accepted lies inside the file, has the bytes
// its shape needs, and overlaps nothing.
#include <cstring>
#include <vector>

#include <hadal/weights/safetensors.h>

#include "fuzz_input.h"

namespace {

void check_header(std::string_view text, int64_t data_bytes) {
  // The length in front is made right, so that the JSON behind it is reached.
  std::vector<std::byte> file(8 + text.size());
  const uint64_t length = text.size();
  std::memcpy(file.data(), &length, 8);
  std::memcpy(file.data() + 8, text.data(), text.size());
  const int64_t file_size = static_cast<int64_t>(file.size()) + data_bytes;
  const auto header = hadal::parse_safetensors_header(file, file_size);
  if (!header) {
    fuzz::expect(!header.error().message.empty(), "an error says something");
    return;
  }
  int64_t end = header.value().data_begin;
  for (const hadal::TensorRecord& tensor : header.value().tensors) {
    fuzz::expect(tensor.begin >= end, "tensors do not overlap");
    fuzz::expect(tensor.end <= file_size, "tensors end inside the file");
    __int128 bytes = hadal::stored_size(tensor.type);
    for (const int64_t extent : tensor.shape) {
      fuzz::expect(extent >= 0, "extents are not negative");
      bytes *= extent;
      fuzz::expect(bytes <= file_size, "the product of a shape stays small");
    }
    fuzz::expect(bytes == tensor.end - tensor.begin, "bytes match the shape");
    end = tensor.end;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input = fuzz::as_text(data, size);
  if (input.size() < 2) {
    return 0;
  }
  const int64_t data_bytes = data[0] + 256 * (data[1] & 15);
  check_header(input.substr(2), data_bytes);
  const auto raw = std::as_bytes(std::span(data, size));
  (void)hadal::parse_safetensors_header(raw, static_cast<int64_t>(size));
  const auto index = hadal::parse_safetensors_index(input.substr(2));
  if (index) {
    for (const auto& [name, shard] : index.value()) {
      fuzz::expect(shard.find('/') == std::string::npos && shard != "..", "shards are file names");
    }
  }
  return 0;
}
