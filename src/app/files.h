// Reading small files whole.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include <hadal/base/result.h>

namespace hadal {

/// The whole of a small file; not_found names it. `size_max` bounds the allocation.
Result<std::string> read_small_file(const std::filesystem::path& path, int64_t size_max);

}  // namespace hadal
