// The size is asked first, so that a wrong path cannot fill the memory.
#include "files.h"

#include <fstream>
#include <sstream>

namespace hadal {

Result<std::string> read_small_file(const std::filesystem::path& path, int64_t size_max) {
  std::error_code error;
  const auto size = std::filesystem::file_size(path, error);
  if (error) {
    return Error{ErrorCode::not_found, "cannot read '" + path.string() + "': " + error.message()};
  }
  if (size > static_cast<uintmax_t>(size_max)) {
    return Error{ErrorCode::data_loss,
                 path.string() + ": expected at most " + std::to_string(size_max) +
                     " bytes, found " + std::to_string(size)};
  }
  std::ifstream stream(path, std::ios::binary);
  std::ostringstream text;
  if (!stream || (size > 0 && !(text << stream.rdbuf()))) {
    return Error{ErrorCode::not_found, "cannot read '" + path.string() + "'"};
  }
  return text.str();
}

}  // namespace hadal
