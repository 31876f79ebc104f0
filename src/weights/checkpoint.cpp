// Hugging Face directories: one file, or the shards that an index names.
#include <fstream>
#include <map>
#include <set>
#include <system_error>
#include <utility>

#include <hadal/weights/weight_store.h>

#include "file_store.h"

namespace hadal {
namespace {

constexpr std::string_view kSingleFile = "model.safetensors";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";
constexpr int64_t kIndexBytesMax = 256'000'000;
constexpr size_t kShardsMax = 4096;

Result<std::string> read_index(const std::filesystem::path& path) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error || size > static_cast<uintmax_t>(kIndexBytesMax)) {
    return Error{ErrorCode::data_loss,
                 "weights: " + path.string() + ": " +
                     (error ? error.message()
                            : std::to_string(size) + " bytes, expected at most " +
                                  std::to_string(kIndexBytesMax))};
  }
  std::string text(static_cast<size_t>(size), '\0');
  std::ifstream in(path, std::ios::binary);
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!in) {
    return Error{ErrorCode::data_loss, "weights: cannot read " + path.string()};
  }
  return text;
}

/// Every tensor of the index must be in the shard that the index names.
Status check_index(const FileStore& store,
                   const std::filesystem::path& index_path,
                   const std::map<std::string, std::string>& files) {
  for (const auto& [name, file] : files) {
    if (store.file_of(name) != file) {
      return Error{ErrorCode::data_loss,
                   "weights: " + (index_path.parent_path() / file).string() + ": tensor '" + name +
                       "' is missing, expected there by " + std::string(kIndexFile)};
    }
  }
  return ok_status();
}

}  // namespace

bool has_checkpoint(const std::filesystem::path& directory) {
  std::error_code error;
  return std::filesystem::exists(directory / kIndexFile, error) ||
         std::filesystem::exists(directory / kSingleFile, error);
}

Result<std::unique_ptr<WeightStore>> open_checkpoint(const std::filesystem::path& directory) {
  auto store = std::make_unique<FileStore>(directory);
  const std::filesystem::path index_path = directory / kIndexFile;
  std::error_code error;
  if (!std::filesystem::exists(index_path, error)) {
    if (!std::filesystem::exists(directory / kSingleFile, error)) {
      return Error{ErrorCode::not_found,
                   "weights: " + directory.string() + " holds neither " + std::string(kIndexFile) +
                       " nor " + std::string(kSingleFile)};
    }
    HADAL_RETURN_IF_ERROR(store->add_file(std::string(kSingleFile)));
    return std::unique_ptr<WeightStore>(std::move(store));
  }
  auto text = read_index(index_path);
  if (!text) {
    return text.error();
  }
  auto files = parse_safetensors_index(text.value());
  if (!files) {
    return Error{files.error().code,
                 "weights: " + index_path.string() + ": " + files.error().message};
  }
  std::set<std::string> shards;
  for (const auto& [name, file] : files.value()) {
    shards.insert(file);
  }
  if (shards.size() > kShardsMax) {
    return Error{ErrorCode::data_loss,
                 "weights: " + index_path.string() + ": " + std::to_string(shards.size()) +
                     " shards, expected at most " + std::to_string(kShardsMax)};
  }
  for (const std::string& shard : shards) {
    HADAL_RETURN_IF_ERROR(store->add_file(shard));
  }
  HADAL_RETURN_IF_ERROR(check_index(*store, index_path, files.value()));
  return std::unique_ptr<WeightStore>(std::move(store));
}

}  // namespace hadal
