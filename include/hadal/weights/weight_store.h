// Where weights come from: a Hugging Face directory of safetensors, memory-mapped, or the counter
// generator that makes every element of a checkpoint from its name (src/weights/DUMMY.md).
//
// A reader says what it expects (WeightSpec) and which rectangle it wants (WeightSlice); only the
// pages of that rectangle are touched, so sixteen ranks read a checkpoint once between them.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <hadal/backend/generated_values.h>
#include <hadal/base/clock.h>
#include <hadal/base/result.h>
#include <hadal/weights/safetensors.h>

namespace hadal {

/// A tensor of the unsharded checkpoint as the configuration implies it.
struct WeightSpec {
  std::string name;
  std::vector<int64_t> shape;
  StoredType type = StoredType::bf16;
  /// Input features of the weight (of the weight that a scale belongs to); only dummy weights use
  /// it.
  int64_t in_features = 1;
};

/// A rectangle of a tensor seen as rows x columns: columns are the last dimension, rows all others.
struct WeightSlice {
  int64_t row_begin = 0;
  int64_t num_rows = 0;
  int64_t col_begin = 0;
  int64_t num_cols = 0;
};

/// The whole of a tensor of this shape.
WeightSlice whole(std::span<const int64_t> shape);

/// Bytes [begin, end) of file number `file` of a store.
struct FileRange {
  int32_t file = 0;
  int64_t begin = 0;
  int64_t end = 0;
};

/// Files are read and checksummed in blocks of this size, counted from a file's first byte.
inline constexpr int64_t kFileBlockBytes = int64_t{8} << 20;

struct StoredFile {
  std::filesystem::path path;
  int64_t size_bytes = 0;
  std::vector<uint32_t> block_crc32c;  ///< of each block; empty = the file has no checksums
};

/// All methods are const and thread-safe: rank threads share one store.
class WeightStore {
 public:
  virtual ~WeightStore() = default;

  /// True when the checkpoint has a tensor of this name. Dummy weights have every name.
  virtual bool has(std::string_view name) const = 0;

  /// Checks the tensor against the spec and returns the type it is stored in: the spec's, or
  /// another of F32, F16 and BF16 where the spec asks for one of them. not_found or data_loss name
  /// file, tensor, expected and found.
  virtual Result<StoredType> find(const WeightSpec& spec) const = 0;

  /// Copies a rectangle, row-major and dense, in its stored type. `out` has exactly its size.
  /// Errors as `find`; a rectangle outside the shape is our mistake.
  virtual Status read(const WeightSpec& spec,
                      const WeightSlice& slice,
                      std::span<std::byte> out) const = 0;

  /// The files that `read` reads from; none for dummy weights.
  virtual std::vector<StoredFile> files() const { return {}; }

  /// The bytes from the first to the last that `read` would touch; nullopt when it touches none,
  /// or would fail.
  virtual std::optional<FileRange> range(const WeightSpec& /*spec*/,
                                         const WeightSlice& /*slice*/) const {
    return std::nullopt;
  }

  /// The rectangle as a formula, where every element follows from one; its `read` gives the same.
  virtual std::optional<GeneratedValues> generated(const WeightSpec& /*spec*/,
                                                   const WeightSlice& /*slice*/) const {
    return std::nullopt;
  }

  /// For messages: the directory, or "dummy weights (seed 0)".
  virtual std::string describe() const = 0;
};

/// Opens model.safetensors, or the shards of model.safetensors.index.json. Every header is read and
/// checked here; a missing shard, a damaged file, a tensor in two shards or one that its shard
/// lacks is one error naming file and tensor.
Result<std::unique_ptr<WeightStore>> open_checkpoint(const std::filesystem::path& directory);

/// True when the directory holds model.safetensors or its index.
bool has_checkpoint(const std::filesystem::path& directory);

/// Weights made from names and indices alone.
std::unique_ptr<WeightStore> make_dummy_weights(uint64_t seed);

/// Reads a rectangle of a float tensor (F32, F16, BF16) as float32, exactly. `out` has its element
/// count.
Status read_f32(const WeightStore& store,
                const WeightSpec& spec,
                const WeightSlice& slice,
                std::span<float> out);

/// A moment of loading, as shown to the user.
struct LoadProgress {
  int64_t bytes_done = 0;
  int64_t bytes_total = 0;
  double seconds = 0.0;
  double gigabytes_per_second() const;
  /// Seconds still to go at the mean speed so far; 0 before the first byte.
  double eta_seconds() const;
};

/// "1.2 of 3.4 GB (35 %), 0.8 GB/s, 3 s left".
std::string progress_text(const LoadProgress& progress);

using LoadProgressFn = std::function<void(const LoadProgress&)>;

/// Adds up bytes over rank threads and calls back at most about five times a second and once at the
/// end.
class LoadMeter {
 public:
  /// `clock` outlives the meter; an empty `report` makes it silent.
  LoadMeter(int64_t bytes_total, LoadProgressFn report, const Clock& clock);
  /// Thread-safe; the callback runs on the calling thread, never two at once.
  void add(int64_t bytes);
  /// Share of the total that was added so far, 0 to 1. Thread-safe.
  double fraction();

 private:
  const Clock& clock_;
  const TimePoint start_;
  const LoadProgressFn report_;
  std::mutex mutex_;
  LoadProgress progress_;
  TimePoint last_report_;
};

}  // namespace hadal
