// hadal_shards.json: {"format": "hadal-shards", "version": 1, "tp": 16, "ep": 1, "block_bytes":
// 8388608, "files": [{"name": ..., "size_bytes": ..., "crc32c": [...]}]}.
#include <fstream>
#include <set>

#include <nlohmann/json.hpp>

#include <hadal/weights/shards.h>

#include "file_store.h"
#include "shard_format.h"

namespace hadal {
namespace {

using nlohmann::json;

constexpr int64_t kManifestBytesMax = 64'000'000;
constexpr size_t kFilesMax = 4097;

Error bad_manifest(const std::filesystem::path& path, const std::string& what) {
  return Error{ErrorCode::data_loss, "weights: " + path.string() + ": " + what};
}

Result<json> read_manifest(const std::filesystem::path& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error || size > static_cast<uintmax_t>(kManifestBytesMax)) {
    return bad_manifest(path, error ? error.message() : "larger than 64 MB");
  }
  std::ifstream in(path, std::ios::binary);
  json manifest = json::parse(in, nullptr, false);
  if (!manifest.is_object() || manifest.value("format", json()) != kShardFormat ||
      manifest.value("version", json()) != kShardVersion ||
      manifest.value("block_bytes", json()) != kFileBlockBytes) {
    return bad_manifest(path, "expected a manifest of format hadal-shards, version 1");
  }
  return manifest;
}

std::string flags_text(int64_t tp, int64_t ep) {
  return "--tp " + std::to_string(tp) + " --ep-size " + std::to_string(ep);
}

Status check_layout(const std::filesystem::path& path,
                    const json& manifest,
                    const ShardLayout& layout) {
  const json tp = manifest.value("tp", json());
  const json ep = manifest.value("ep", json());
  if (!tp.is_number_integer() || !ep.is_number_integer()) {
    return bad_manifest(path, "expected the integers tp and ep");
  }
  if (tp != layout.tp || ep != layout.ep) {
    return Error{ErrorCode::invalid_argument,
                 "weights: " + path.parent_path().string() + " was sharded for " +
                     flags_text(tp.get<int64_t>(), ep.get<int64_t>()) + ", got " +
                     flags_text(layout.tp, layout.ep) +
                     ": give the same layout, or run hadal shard for this one"};
  }
  return ok_status();
}

struct FileEntry {
  std::string name;
  int64_t size_bytes = 0;
  std::vector<uint32_t> crc32c;
};

Result<FileEntry> parse_file(const std::filesystem::path& path, const json& entry) {
  const json name = entry.is_object() ? entry.value("name", json()) : json();
  const json size = entry.is_object() ? entry.value("size_bytes", json()) : json();
  const json checksums = entry.is_object() ? entry.value("crc32c", json()) : json();
  if (!name.is_string() || !size.is_number_unsigned() || !checksums.is_array()) {
    return bad_manifest(path, "expected files with name, size_bytes and crc32c");
  }
  FileEntry file{name.get<std::string>(), size.get<int64_t>(), {}};
  if (file.name.empty() || file.name.find('/') != std::string::npos || file.size_bytes < 0) {
    return bad_manifest(path, "file name '" + file.name + "' is not a plain one");
  }
  for (const json& checksum : checksums) {
    if (!checksum.is_number_unsigned() || checksum.get<uint64_t>() > UINT32_MAX) {
      return bad_manifest(path, "a checksum of " + file.name + " is no 32-bit number");
    }
    file.crc32c.push_back(checksum.get<uint32_t>());
  }
  const auto blocks =
      static_cast<size_t>((file.size_bytes + kFileBlockBytes - 1) / kFileBlockBytes);
  if (file.crc32c.size() != blocks) {
    return bad_manifest(path,
                        file.name + " has " + std::to_string(file.crc32c.size()) +
                            " checksums, expected " + std::to_string(blocks));
  }
  return file;
}

}  // namespace

bool has_shards(const std::filesystem::path& directory) {
  std::error_code error;
  return std::filesystem::exists(directory / kShardManifest, error);
}

Result<std::unique_ptr<WeightStore>> open_shards(const std::filesystem::path& directory,
                                                 const ShardLayout& layout) {
  const std::filesystem::path path = directory / kShardManifest;
  const auto manifest = read_manifest(path);
  if (!manifest) {
    return manifest.error();
  }
  HADAL_RETURN_IF_ERROR(check_layout(path, manifest.value(), layout));
  const json files = manifest.value().value("files", json());
  if (!files.is_array() || files.empty() || files.size() > kFilesMax) {
    return bad_manifest(path, "expected 1 to 4097 files");
  }
  auto store = std::make_unique<FileStore>(directory);
  for (const json& entry : files) {
    auto file = parse_file(path, entry);
    if (!file) {
      return file.error();
    }
    const FileEntry& found = file.value();
    std::error_code error;
    const auto size = std::filesystem::file_size(directory / found.name, error);
    if (error || size != static_cast<uintmax_t>(found.size_bytes)) {
      return Error{ErrorCode::data_loss,
                   "weights: " + (directory / found.name).string() + ": " +
                       (error ? error.message() : std::to_string(size) + " bytes") + ", expected " +
                       std::to_string(found.size_bytes) + " bytes"};
    }
    HADAL_RETURN_IF_ERROR(store->add_file(found.name, true, found.crc32c));
  }
  return std::unique_ptr<WeightStore>(std::move(store));
}

}  // namespace hadal
