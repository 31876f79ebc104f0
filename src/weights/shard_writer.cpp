// Writing a pre-sharded directory. All files grow side by side, tensor by tensor, so that the
// source is read about once and in its own order, whatever the number of ranks.
#include <algorithm>
#include <array>
#include <cerrno>
#include <fstream>
#include <map>
#include <system_error>

#include <nlohmann/json.hpp>

#include <hadal/weights/shards.h>

#include "crc32c.h"
#include "file_store.h"
#include "shard_format.h"

#include <fcntl.h>
#include <unistd.h>

namespace hadal {
namespace {

using nlohmann::json;

constexpr size_t kHeaderAlignment = 4096;  // the first tensor begins on a page
constexpr uintmax_t kSmallFileBytesMax = 64'000'000;

Error io_error(const std::filesystem::path& path, int code) {
  return Error{
      code == ENOSPC ? ErrorCode::resource_exhausted : ErrorCode::invalid_argument,
      "shard: cannot write " + path.string() + ": " + std::system_category().message(code)};
}

/// One file: its header is known before its first tensor, so it is written front to back.
class ShardFile {
 public:
  explicit ShardFile(std::string name) : name_(std::move(name)) {}

  ShardFile(const ShardFile&) = delete;
  ShardFile& operator=(const ShardFile&) = delete;

  ~ShardFile() {
    if (fd_ >= 0) {
      ::close(fd_);
    }
  }

  void declare(const std::string& tensor, StoredType type, const std::vector<int64_t>& shape) {
    int64_t bytes = stored_size(type);
    for (const int64_t size : shape) {
      bytes *= size;
    }
    header_[tensor] = {{"dtype", stored_name(type)},
                       {"shape", shape},
                       {"data_offsets", {data_bytes_, data_bytes_ + bytes}}};
    data_bytes_ += bytes;
  }

  Status open(const std::filesystem::path& directory) {
    path_ = directory / name_;
    std::string text = header_.dump();
    text.resize((text.size() + 8 + kHeaderAlignment - 1) / kHeaderAlignment * kHeaderAlignment - 8,
                ' ');
    if (text.size() > static_cast<size_t>(kSafetensorsHeaderBytesMax)) {
      return Error{ErrorCode::unsupported,
                   "shard: the header of " + name_ + " would have " + std::to_string(text.size()) +
                       " bytes, expected at most " + std::to_string(kSafetensorsHeaderBytesMax)};
    }
    fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd_ < 0) {
      return io_error(path_, errno);
    }
    const auto size = static_cast<uint64_t>(text.size());
    std::array<std::byte, 8> prefix{};
    for (size_t i = 0; i < prefix.size(); ++i) {
      prefix[i] = static_cast<std::byte>(size >> (8 * i) & 0xffU);
    }
    HADAL_RETURN_IF_ERROR(append(prefix));
    return append(std::as_bytes(std::span(text)));
  }

  Status append(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const auto in_block = static_cast<size_t>(kFileBlockBytes - size_bytes_ % kFileBlockBytes);
      const auto part = bytes.first(std::min(bytes.size(), in_block));
      if (size_bytes_ % kFileBlockBytes == 0) {
        checksums_.push_back(0);
      }
      checksums_.back() = crc32c(part, checksums_.back());
      HADAL_RETURN_IF_ERROR(write_all(part));
      size_bytes_ += static_cast<int64_t>(part.size());
      bytes = bytes.subspan(part.size());
    }
    return ok_status();
  }

  Status close() {
    const int code = ::fsync(fd_) == 0 ? 0 : errno;
    ::close(fd_);
    fd_ = -1;
    if (code != 0) {
      return io_error(path_, code);
    }
    return ok_status();
  }

  json manifest() const {
    return {{"name", name_}, {"size_bytes", size_bytes_}, {"crc32c", checksums_}};
  }

  int64_t data_bytes() const { return data_bytes_; }

 private:
  Status write_all(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t count = ::write(fd_, bytes.data(), bytes.size());
      if (count < 0 && errno != EINTR) {
        return io_error(path_, errno);
      }
      bytes = bytes.subspan(static_cast<size_t>(std::max<ssize_t>(count, 0)));
    }
    return ok_status();
  }

  std::string name_;
  std::filesystem::path path_;
  json header_ = json::object();
  int64_t data_bytes_ = 0;
  int64_t size_bytes_ = 0;
  std::vector<uint32_t> checksums_;
  int fd_ = -1;
};

bool same(const WeightSlice& a, const WeightSlice& b) {
  return a.row_begin == b.row_begin && a.num_rows == b.num_rows && a.col_begin == b.col_begin &&
         a.num_cols == b.num_cols;
}

/// A tensor part and the file that it goes to.
struct Part {
  const ShardRead* read = nullptr;
  StoredType type = StoredType::bf16;
  ShardFile* file = nullptr;
};

class Writer {
 public:
  explicit Writer(const ShardWriteArgs& args) : args_(args) {}

  Status run() {
    HADAL_RETURN_IF_ERROR(make_output());
    HADAL_RETURN_IF_ERROR(place_parts());
    int64_t total = 0;
    for (const auto& file : files_) {
      HADAL_RETURN_IF_ERROR(file->open(args_.output));
      total += file->data_bytes();
    }
    LoadMeter meter(total, args_.progress, system_clock());
    std::vector<std::byte> bytes;
    for (const Part& part : parts_) {
      const WeightSlice& slice = part.read->slice;
      bytes.resize(static_cast<size_t>(slice.num_rows * slice.num_cols * stored_size(part.type)));
      HADAL_RETURN_IF_ERROR(args_.source.read(part.read->spec, slice, bytes));
      HADAL_RETURN_IF_ERROR(part.file->append(bytes));
      meter.add(static_cast<int64_t>(bytes.size()));
    }
    for (const auto& file : files_) {
      HADAL_RETURN_IF_ERROR(file->close());
    }
    HADAL_RETURN_IF_ERROR(copy_small_files());
    return write_manifest();
  }

 private:
  Status make_output() const {
    std::error_code error;
    std::filesystem::create_directories(args_.output, error);
    if (error) {
      return io_error(args_.output, error.value());
    }
    if (!std::filesystem::is_empty(args_.output, error) || error) {
      return Error{ErrorCode::invalid_argument,
                   "shard: " + args_.output.string() + " is in use, expected an empty directory"};
    }
    return ok_status();
  }

  /// Decides file and order of every part. Step i of all ranks is one turn, so each file grows in
  /// its rank's load order.
  Status place_parts() {
    for (size_t rank = 0; rank < args_.ranks.size(); ++rank) {
      const std::string number = std::to_string(rank);
      const std::string name = "rank-" + std::string(5 - std::min<size_t>(5, number.size()), '0') +
                               number + ".safetensors";
      files_.push_back(std::make_unique<ShardFile>(name));
    }
    files_.push_back(std::make_unique<ShardFile>("shared.safetensors"));
    for (size_t i = 0; i < args_.ranks.front().size(); ++i) {
      const ShardRead& first = args_.ranks.front()[i];
      const bool is_shared =
          args_.ranks.size() > 1 &&
          std::all_of(args_.ranks.begin(), args_.ranks.end(), [&](const auto& reads) {
            return reads[i].spec.name == first.spec.name && same(reads[i].slice, first.slice);
          });
      const size_t count = is_shared ? 1 : args_.ranks.size();
      for (size_t rank = 0; rank < count; ++rank) {
        HADAL_RETURN_IF_ERROR(
            place(args_.ranks[rank][i], *files_[is_shared ? args_.ranks.size() : rank]));
      }
    }
    return ok_status();
  }

  Status place(const ShardRead& read, ShardFile& file) {
    if (read.slice.num_rows == 0 || read.slice.num_cols == 0) {
      return ok_status();
    }
    const auto type = args_.source.find(read.spec);
    if (!type) {
      return type.error();
    }
    // One rank's whole tensor may be another's, too: only the shared file has plain names.
    if (args_.ranks.size() == 1 || &file == files_.back().get()) {
      file.declare(read.spec.name, type.value(), read.spec.shape);
    } else {
      file.declare(slice_name(read.spec.name, read.slice),
                   type.value(),
                   {read.slice.num_rows, read.slice.num_cols});
    }
    parts_.push_back({&read, type.value(), &file});
    return ok_status();
  }

  /// Configuration, tokenizer, template: everything small but weights.
  Status copy_small_files() const {
    std::error_code error;
    std::filesystem::directory_iterator entry(args_.model_dir, error);
    for (; !error && entry != std::filesystem::directory_iterator{}; entry.increment(error)) {
      const std::filesystem::path& path = entry->path();
      const std::string name = path.filename().string();
      if (!entry->is_regular_file(error) || path.extension() == ".safetensors" ||
          name.ends_with(".safetensors.index.json") || name == kShardManifest ||
          entry->file_size(error) > kSmallFileBytesMax) {
        continue;
      }
      std::filesystem::copy_file(path, args_.output / name, error);
      if (error) {
        return io_error(args_.output / name, error.value());
      }
    }
    if (error) {
      return Error{ErrorCode::not_found,
                   "shard: cannot list " + args_.model_dir.string() + ": " + error.message()};
    }
    return ok_status();
  }

  Status write_manifest() const {
    json manifest = {{"format", kShardFormat},
                     {"version", kShardVersion},
                     {"tp", args_.layout.tp},
                     {"ep", args_.layout.ep},
                     {"block_bytes", kFileBlockBytes},
                     {"files", json::array()}};
    for (const auto& file : files_) {
      manifest["files"].push_back(file->manifest());
    }
    const std::filesystem::path path = args_.output / kShardManifest;
    std::ofstream out(path, std::ios::binary);
    out << manifest.dump() << "\n";
    out.close();
    if (!out) {
      return io_error(path, ENOSPC);
    }
    return ok_status();
  }

  const ShardWriteArgs& args_;
  std::vector<std::unique_ptr<ShardFile>> files_;
  std::vector<Part> parts_;
};

}  // namespace

Status write_shards(const ShardWriteArgs& args) {
  HADAL_CHECK(!args.ranks.empty(), "a layout has ranks");
  for (const auto& reads : args.ranks) {
    HADAL_CHECK(reads.size() == args.ranks.front().size(), "ranks read equally many parts");
  }
  return Writer(args).run();
}

}  // namespace hadal
