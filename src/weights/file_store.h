// The store over safetensors files, whole tensors or slices of them. Headers are parsed once; a
// read copies rows out of the mappings, so the kernel pages in what a rank needs and nothing else.
#pragma once

#include <unordered_map>

#include <hadal/weights/weight_store.h>

#include "mapped_file.h"

namespace hadal {

/// "name@row_begin:num_rows,col_begin:num_cols", the tensor of a pre-sharded file that holds a part
/// of `name`.
std::string slice_name(const std::string& name, const WeightSlice& slice);

class FileStore final : public WeightStore {
 public:
  explicit FileStore(std::filesystem::path directory) : directory_(std::move(directory)) {}

  /// Maps a file and takes up its tensors. With `has_slices`, names are those of slice_name() where
  /// they hold an '@', and `block_crc32c` are the file's checksums.
  Status add_file(const std::string& file_name,
                  bool has_slices = false,
                  std::vector<uint32_t> block_crc32c = {});

  /// The file that holds the whole tensor; empty when there is none.
  std::string file_of(const std::string& name) const;

  bool has(std::string_view name) const override;
  Result<StoredType> find(const WeightSpec& spec) const override;
  Status read(const WeightSpec& spec,
              const WeightSlice& slice,
              std::span<std::byte> out) const override;
  std::vector<StoredFile> files() const override;
  std::optional<FileRange> range(const WeightSpec& spec, const WeightSlice& slice) const override;

  std::string describe() const override { return directory_.string(); }

 private:
  struct File {
    std::filesystem::path path;
    MappedFile mapping;
    std::vector<uint32_t> block_crc32c;
  };

  /// A rectangle of a tensor and where it lies.
  struct Piece {
    size_t file = 0;
    TensorRecord record;
    WeightSlice rectangle;
    bool is_whole = true;
  };

  Error wrong_piece(const WeightSpec& spec, const Piece& piece) const;
  const Piece* piece_with(const WeightSpec& spec, const WeightSlice& slice) const;

  std::filesystem::path directory_;
  std::vector<File> files_;
  std::unordered_map<std::string, std::vector<Piece>> pieces_;
};

}  // namespace hadal
