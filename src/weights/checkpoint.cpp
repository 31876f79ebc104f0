// Hugging Face directories. Headers are parsed once at open; a read copies rows out of the mapping,
// so the kernel pages in what a rank needs and nothing else.
#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>
#include <set>
#include <system_error>
#include <unordered_map>
#include <utility>

#include <hadal/weights/weight_store.h>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace hadal {
namespace {

constexpr std::string_view kSingleFile = "model.safetensors";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";
constexpr int64_t kIndexBytesMax = 256'000'000;
constexpr size_t kShardsMax = 4096;

/// A read-only mapping of one file.
class MappedFile {
 public:
  MappedFile() = default;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  MappedFile(MappedFile&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  ~MappedFile() {
    if (data_ != nullptr) {
      ::munmap(data_, size_);
    }
  }

  static Result<MappedFile> open(const std::filesystem::path& path) {
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
      return Error{
          ErrorCode::not_found,
          "weights: cannot open " + path.string() + ": " + std::system_category().message(errno)};
    }
    MappedFile file;

    struct stat info {};

    if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
      ::close(fd);
      return Error{ErrorCode::not_found, "weights: " + path.string() + " is not a regular file"};
    }
    file.size_ = static_cast<size_t>(info.st_size);
    if (file.size_ > 0) {
      void* data = ::mmap(nullptr, file.size_, PROT_READ, MAP_PRIVATE, fd, 0);
      if (data == MAP_FAILED) {
        const std::string reason = std::system_category().message(errno);
        ::close(fd);
        return Error{ErrorCode::resource_exhausted,
                     "weights: cannot map " + path.string() + ": " + reason};
      }
      file.data_ = data;
    }
    ::close(fd);
    return file;
  }

  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(data_), size_}; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

struct Shard {
  std::filesystem::path path;
  MappedFile file;
};

struct Entry {
  size_t shard = 0;
  TensorRecord record;
};

bool is_plain_float(StoredType type) {
  return type == StoredType::f32 || type == StoredType::f16 || type == StoredType::bf16;
}

class Checkpoint final : public WeightStore {
 public:
  explicit Checkpoint(std::filesystem::path directory) : directory_(std::move(directory)) {}

  Status add_shard(const std::string& file_name) {
    const std::filesystem::path path = directory_ / file_name;
    auto file = MappedFile::open(path);
    if (!file) {
      return file.error();
    }
    const auto bytes = file.value().bytes();
    auto header = parse_safetensors_header(bytes, static_cast<int64_t>(bytes.size()));
    if (!header) {
      return Error{header.error().code,
                   "weights: " + path.string() + ": " + header.error().message};
    }
    const size_t shard = shards_.size();
    shards_.push_back({path, std::move(file).value()});
    for (TensorRecord& record : header.value().tensors) {
      const auto [at, is_new] = entries_.try_emplace(record.name, Entry{shard, record});
      if (!is_new) {
        return Error{ErrorCode::data_loss,
                     "weights: tensor '" + record.name + "' is in two files, " +
                         shards_[at->second.shard].path.string() + " and " + path.string()};
      }
    }
    return ok_status();
  }

  /// Every tensor of the index must be in the shard that the index names.
  Status check_index(const std::map<std::string, std::string>& files) const {
    for (const auto& [name, file] : files) {
      const auto at = entries_.find(name);
      if (at == entries_.end() || shards_[at->second.shard].path.filename() != file) {
        return Error{ErrorCode::data_loss,
                     "weights: " + (directory_ / file).string() + ": tensor '" + name +
                         "' is missing, expected there by " + std::string(kIndexFile)};
      }
    }
    return ok_status();
  }

  bool has(std::string_view name) const override {
    return entries_.find(std::string(name)) != entries_.end();
  }

  Result<StoredType> find(const WeightSpec& spec) const override {
    const auto at = entries_.find(spec.name);
    if (at == entries_.end()) {
      return Error{ErrorCode::not_found,
                   "weights: " + directory_.string() + ": tensor '" + spec.name +
                       "' is missing, expected " + std::string(stored_name(spec.type)) + " " +
                       shape_text(spec.shape)};
    }
    const TensorRecord& found = at->second.record;
    const bool type_fits =
        found.type == spec.type || (is_plain_float(found.type) && is_plain_float(spec.type));
    if (!type_fits || found.shape != spec.shape) {
      return Error{ErrorCode::data_loss,
                   "weights: " + shards_[at->second.shard].path.string() + ": tensor '" +
                       spec.name + "': expected " + std::string(stored_name(spec.type)) + " " +
                       shape_text(spec.shape) + ", found " + std::string(stored_name(found.type)) +
                       " " + shape_text(found.shape)};
    }
    return found.type;
  }

  Status read(const WeightSpec& spec,
              const WeightSlice& slice,
              std::span<std::byte> out) const override {
    const auto type = find(spec);
    if (!type) {
      return type.error();
    }
    const Entry& entry = entries_.find(spec.name)->second;
    const WeightSlice all = whole(spec.shape);
    const int64_t size = stored_size(type.value());
    HADAL_CHECK(slice.row_begin >= 0 && slice.num_rows >= 0 && slice.col_begin >= 0 &&
                    slice.num_cols >= 0 && slice.num_rows <= all.num_rows - slice.row_begin &&
                    slice.num_cols <= all.num_cols - slice.col_begin,
                "slice outside tensor " + spec.name);
    HADAL_CHECK(static_cast<int64_t>(out.size()) == slice.num_rows * slice.num_cols * size,
                "read buffer of the wrong size for " + spec.name);
    if (out.empty()) {
      return ok_status();
    }
    const std::byte* source = shards_[entry.shard].file.bytes().data() + entry.record.begin +
                              (slice.row_begin * all.num_cols + slice.col_begin) * size;
    const auto row_bytes = static_cast<size_t>(slice.num_cols * size);
    if (slice.num_cols == all.num_cols) {
      std::memcpy(out.data(), source, out.size());
      return ok_status();
    }
    for (int64_t row = 0; row < slice.num_rows; ++row) {
      std::memcpy(out.data() + static_cast<size_t>(row) * row_bytes,
                  source + row * all.num_cols * size,
                  row_bytes);
    }
    return ok_status();
  }

  std::string describe() const override { return directory_.string(); }

 private:
  std::filesystem::path directory_;
  std::vector<Shard> shards_;
  std::unordered_map<std::string, Entry> entries_;
};

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

}  // namespace

bool has_checkpoint(const std::filesystem::path& directory) {
  std::error_code error;
  return std::filesystem::exists(directory / kIndexFile, error) ||
         std::filesystem::exists(directory / kSingleFile, error);
}

Result<std::unique_ptr<WeightStore>> open_checkpoint(const std::filesystem::path& directory) {
  auto store = std::make_unique<Checkpoint>(directory);
  const std::filesystem::path index_path = directory / kIndexFile;
  std::error_code error;
  if (!std::filesystem::exists(index_path, error)) {
    if (!std::filesystem::exists(directory / kSingleFile, error)) {
      return Error{ErrorCode::not_found,
                   "weights: " + directory.string() + " holds neither " + std::string(kIndexFile) +
                       " nor " + std::string(kSingleFile)};
    }
    HADAL_RETURN_IF_ERROR(store->add_shard(std::string(kSingleFile)));
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
    HADAL_RETURN_IF_ERROR(store->add_shard(shard));
  }
  HADAL_RETURN_IF_ERROR(store->check_index(files.value()));
  return std::unique_ptr<WeightStore>(std::move(store));
}

}  // namespace hadal
