// Digests of a model directory. A safetensors file counts by its header and size, so the cost is
// the same for 6 MB and 642 GB.
#include <algorithm>
#include <array>
#include <fstream>
#include <vector>

#include <hadal/cluster/identity.h>

#include <openssl/sha.h>

namespace hadal {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kSmallFileBytesMax = 256 << 20;
constexpr uint64_t kHeaderBytesMax = 256 << 20;
constexpr size_t kDigestBytesShown = 8;

std::string digest_of(const std::string& bytes) {
  std::array<unsigned char, SHA256_DIGEST_LENGTH> digest{};
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), digest.data());
  constexpr std::string_view kHex = "0123456789abcdef";
  std::string text;
  for (size_t i = 0; i < kDigestBytesShown; ++i) {
    text += kHex[digest[i] >> 4U];
    text += kHex[digest[i] & 15U];
  }
  return text;
}

Result<std::string> read_bytes(const fs::path& path, uint64_t offset, uint64_t size) {
  std::ifstream file(path, std::ios::binary);
  std::string bytes(size, '\0');
  if (!file.seekg(static_cast<std::streamoff>(offset)) ||
      !file.read(bytes.data(), static_cast<std::streamsize>(size))) {
    return Error{ErrorCode::data_loss, "cannot read " + path.string()};
  }
  return bytes;
}

Result<std::string> safetensors_header(const fs::path& path, uint64_t file_bytes) {
  auto length = file_bytes < 8 ? Result<std::string>(std::string()) : read_bytes(path, 0, 8);
  if (!length) {
    return length.error();
  }
  uint64_t size = 0;
  for (size_t i = length.value().size(); i-- > 0;) {
    size = (size << 8U) | static_cast<uint8_t>(length.value()[i]);
  }
  if (length.value().empty() || size > kHeaderBytesMax || size > file_bytes - 8) {
    return Error{ErrorCode::data_loss, path.string() + ": not a safetensors file"};
  }
  return read_bytes(path, 8, size);
}

/// Regular files of the directory, by name.
Result<std::vector<fs::path>> files_in(const fs::path& dir) {
  std::error_code error;
  std::vector<fs::path> files;
  for (fs::directory_iterator at(dir, error), end; !error && at != end; at.increment(error)) {
    if (at->is_regular_file(error)) {
      files.push_back(at->path());
    }
  }
  if (error) {
    return Error{ErrorCode::not_found, dir.string() + ": " + error.message()};
  }
  std::sort(files.begin(), files.end());
  return files;
}

bool is_small_part(const std::string& name) {
  return name == "config.json" || name == "generation_config.json" || name == "tiktoken.model" ||
         name.starts_with("tokenizer") || name == "special_tokens_map.json" ||
         name == "chat_template.jinja";
}

}  // namespace

Result<Identity> model_identity(const fs::path& model_dir, bool with_weights) {
  const auto files = files_in(model_dir);
  if (!files) {
    return files.error();
  }
  Identity identity;
  std::string headers;
  std::string sizes;
  for (const fs::path& path : files.value()) {
    const std::string name = path.filename().string();
    const bool is_weights = name.ends_with(".safetensors");
    if (!is_small_part(name) && !(is_weights && with_weights)) {
      continue;
    }
    std::error_code error;
    const uint64_t size = fs::file_size(path, error);
    if (error || (!is_weights && size > kSmallFileBytesMax)) {
      return Error{ErrorCode::data_loss, "cannot read " + path.string()};
    }
    auto bytes = is_weights ? safetensors_header(path, size) : read_bytes(path, 0, size);
    if (!bytes) {
      return bytes.error();
    }
    if (is_weights) {
      headers += name + '\0' + digest_of(bytes.value()) + '\n';
      sizes += name + '\0' + std::to_string(size) + '\n';
    } else {
      identity.push_back({"model file " + name, digest_of(bytes.value())});
    }
  }
  if (with_weights) {
    identity.push_back({"names and sizes of the safetensors files", digest_of(sizes)});
    identity.push_back({"headers of the safetensors files", digest_of(headers)});
  }
  return identity;
}

}  // namespace hadal
