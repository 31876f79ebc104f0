// Directories that `hadal shard` writes for one layout: a file for each rank in load order, one
// file for what all ranks hold alike, a manifest with layout and checksums, and the small files of
// the model. Such a directory loads with sequential reads and only under its own layout.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <hadal/weights/weight_store.h>

namespace hadal {

/// What a directory was cut for.
struct ShardLayout {
  int32_t tp = 1;
  int32_t ep = 1;
};

struct ShardRead {
  WeightSpec spec;
  WeightSlice slice;
};

/// True when the directory holds hadal_shards.json.
bool has_shards(const std::filesystem::path& directory);

/// Opens the files of all ranks; headers are checked, contents when they are read (Readahead).
/// invalid_argument when the directory was written for another layout, data_loss names a file that
/// is damaged.
Result<std::unique_ptr<WeightStore>> open_shards(const std::filesystem::path& directory,
                                                 const ShardLayout& layout);

struct ShardWriteArgs {
  const WeightStore& source;
  std::filesystem::path model_dir;  ///< its small files are copied
  std::filesystem::path output;     ///< must not exist, or be empty
  ShardLayout layout;
  /// What each rank reads, in load order; the lists have the same length.
  std::vector<std::vector<ShardRead>> ranks;
  LoadProgressFn progress;  ///< bytes written
};

/// The manifest is written last, so that a directory with one is complete. invalid_argument for an
/// output that is in use, resource_exhausted for a full disk, and the source's errors.
Status write_shards(const ShardWriteArgs& args);

}  // namespace hadal
