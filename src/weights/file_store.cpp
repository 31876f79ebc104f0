// Rows of a mapping; the same code for whole tensors and for slices that `hadal shard` wrote.
#include "file_store.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>

namespace hadal {
namespace {

bool is_plain_float(StoredType type) {
  return type == StoredType::f32 || type == StoredType::f16 || type == StoredType::bf16;
}

bool contains(const WeightSlice& outer, const WeightSlice& inner) {
  return inner.row_begin >= outer.row_begin && inner.col_begin >= outer.col_begin &&
         inner.row_begin + inner.num_rows <= outer.row_begin + outer.num_rows &&
         inner.col_begin + inner.num_cols <= outer.col_begin + outer.num_cols;
}

/// The rectangle behind the '@' of a slice's name; nullopt when it is none of hadal's making.
std::optional<WeightSlice> parse_rectangle(std::string_view text) {
  constexpr int64_t kMax = int64_t{1} << 40;  // sums of two cannot overflow
  std::array<int64_t, 4> numbers{};
  constexpr std::string_view kEnds = ":,:";
  for (size_t i = 0; i < numbers.size(); ++i) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), numbers[i]);
    if (error != std::errc{} || numbers[i] < 0 || numbers[i] > kMax) {
      return std::nullopt;
    }
    text.remove_prefix(static_cast<size_t>(end - text.data()));
    if (i + 1 < numbers.size()) {
      if (text.empty() || text.front() != kEnds[i]) {
        return std::nullopt;
      }
      text.remove_prefix(1);
    }
  }
  if (!text.empty()) {
    return std::nullopt;
  }
  return WeightSlice{numbers[0], numbers[1], numbers[2], numbers[3]};
}

}  // namespace

std::string slice_name(const std::string& name, const WeightSlice& slice) {
  return name + "@" + std::to_string(slice.row_begin) + ":" + std::to_string(slice.num_rows) + "," +
         std::to_string(slice.col_begin) + ":" + std::to_string(slice.num_cols);
}

Status FileStore::add_file(const std::string& file_name,
                           bool has_slices,
                           std::vector<uint32_t> block_crc32c) {
  const std::filesystem::path path = directory_ / file_name;
  auto mapping = MappedFile::open(path);
  if (!mapping) {
    return mapping.error();
  }
  const auto bytes = mapping.value().bytes();
  auto header = parse_safetensors_header(bytes, static_cast<int64_t>(bytes.size()));
  if (!header) {
    return Error{header.error().code, "weights: " + path.string() + ": " + header.error().message};
  }
  const size_t file = files_.size();
  files_.push_back({path, std::move(mapping).value(), std::move(block_crc32c)});
  for (TensorRecord& record : header.value().tensors) {
    Piece piece{file, record, whole(record.shape), true};
    std::string name = record.name;
    if (const size_t at = name.rfind('@'); has_slices && at != std::string::npos) {
      const auto rectangle = parse_rectangle(std::string_view(name).substr(at + 1));
      if (!rectangle || rectangle->num_rows != piece.rectangle.num_rows ||
          rectangle->num_cols != piece.rectangle.num_cols) {
        return Error{ErrorCode::data_loss,
                     "weights: " + path.string() + ": slice '" + name +
                         "' does not fit its shape " + shape_text(record.shape)};
      }
      piece.rectangle = *rectangle;
      piece.is_whole = false;
      name.resize(at);
    }
    std::vector<Piece>& pieces = pieces_[name];
    if (!pieces.empty() && (piece.is_whole || pieces.front().is_whole)) {
      return Error{ErrorCode::data_loss,
                   "weights: tensor '" + name + "' is in two files, " +
                       files_[pieces.front().file].path.string() + " and " + path.string()};
    }
    pieces.push_back(std::move(piece));
  }
  return ok_status();
}

std::string FileStore::file_of(const std::string& name) const {
  const auto at = pieces_.find(name);
  return at == pieces_.end() ? "" : files_[at->second.front().file].path.filename().string();
}

bool FileStore::has(std::string_view name) const {
  return pieces_.find(std::string(name)) != pieces_.end();
}

Error FileStore::wrong_piece(const WeightSpec& spec, const Piece& piece) const {
  return Error{ErrorCode::data_loss,
               "weights: " + files_[piece.file].path.string() + ": tensor '" + spec.name +
                   "': expected " + std::string(stored_name(spec.type)) + " " +
                   shape_text(spec.shape) + ", found " +
                   std::string(stored_name(piece.record.type)) + " " +
                   (piece.is_whole ? shape_text(piece.record.shape) : piece.record.name)};
}

Result<StoredType> FileStore::find(const WeightSpec& spec) const {
  const auto at = pieces_.find(spec.name);
  if (at == pieces_.end()) {
    return Error{ErrorCode::not_found,
                 "weights: " + directory_.string() + ": tensor '" + spec.name +
                     "' is missing, expected " + std::string(stored_name(spec.type)) + " " +
                     shape_text(spec.shape)};
  }
  for (const Piece& piece : at->second) {
    const StoredType found = piece.record.type;
    const bool type_fits =
        found == spec.type || (is_plain_float(found) && is_plain_float(spec.type));
    const bool shape_fits = piece.is_whole ? piece.record.shape == spec.shape
                                           : contains(whole(spec.shape), piece.rectangle);
    if (!type_fits || !shape_fits || found != at->second.front().record.type) {
      return wrong_piece(spec, piece);
    }
  }
  return at->second.front().record.type;
}

const FileStore::Piece* FileStore::piece_with(const WeightSpec& spec,
                                              const WeightSlice& slice) const {
  const auto at = pieces_.find(spec.name);
  if (at == pieces_.end()) {
    return nullptr;
  }
  const auto found = std::find_if(at->second.begin(), at->second.end(), [&](const Piece& piece) {
    return contains(piece.rectangle, slice);
  });
  return found == at->second.end() ? nullptr : &*found;
}

Status FileStore::read(const WeightSpec& spec,
                       const WeightSlice& slice,
                       std::span<std::byte> out) const {
  const auto type = find(spec);
  if (!type) {
    return type.error();
  }
  const int64_t size = stored_size(type.value());
  HADAL_CHECK(contains(whole(spec.shape), slice) && slice.num_rows >= 0 && slice.num_cols >= 0,
              "slice outside tensor " + spec.name);
  HADAL_CHECK(static_cast<int64_t>(out.size()) == slice.num_rows * slice.num_cols * size,
              "read buffer of the wrong size for " + spec.name);
  if (out.empty()) {
    return ok_status();
  }
  const Piece* piece = piece_with(spec, slice);
  if (piece == nullptr) {
    return Error{ErrorCode::data_loss,
                 "weights: " + directory_.string() + " has no " + slice_name(spec.name, slice) +
                     ": it was sharded for another layout"};
  }
  const int64_t width = piece->rectangle.num_cols;
  const std::byte* source = files_[piece->file].mapping.bytes().data() + piece->record.begin +
                            ((slice.row_begin - piece->rectangle.row_begin) * width +
                             slice.col_begin - piece->rectangle.col_begin) *
                                size;
  const auto row_bytes = static_cast<size_t>(slice.num_cols * size);
  if (slice.num_cols == width) {
    std::memcpy(out.data(), source, out.size());
    return ok_status();
  }
  for (int64_t row = 0; row < slice.num_rows; ++row) {
    std::memcpy(
        out.data() + static_cast<size_t>(row) * row_bytes, source + row * width * size, row_bytes);
  }
  return ok_status();
}

std::vector<StoredFile> FileStore::files() const {
  std::vector<StoredFile> files;
  for (const File& file : files_) {
    files.push_back(
        {file.path, static_cast<int64_t>(file.mapping.bytes().size()), file.block_crc32c});
  }
  return files;
}

std::optional<FileRange> FileStore::range(const WeightSpec& spec, const WeightSlice& slice) const {
  const Piece* piece = piece_with(spec, slice);
  if (piece == nullptr || slice.num_rows <= 0 || slice.num_cols <= 0) {
    return std::nullopt;
  }
  const int64_t size = stored_size(piece->record.type);
  const int64_t width = piece->rectangle.num_cols;
  const int64_t first = (slice.row_begin - piece->rectangle.row_begin) * width + slice.col_begin -
                        piece->rectangle.col_begin;
  const int64_t end = first + (slice.num_rows - 1) * width + slice.num_cols;
  return FileRange{static_cast<int32_t>(piece->file),
                   piece->record.begin + first * size,
                   piece->record.begin + end * size};
}

}  // namespace hadal
