// Helpers of the fuzz targets: input as text, and a check whose breach is a finding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string_view>
#include <utility>

namespace fuzz {

inline std::string_view as_text(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

/// The input cut at its first 0xFF byte, which no valid UTF-8 holds; the second part may be empty.
inline std::pair<std::string_view, std::string_view> two_parts(std::string_view input) {
  const size_t cut = input.find('\xff');
  if (cut == std::string_view::npos) {
    return {input, {}};
  }
  return {input.substr(0, cut), input.substr(cut + 1)};
}

/// libFuzzer reports an abort as a finding.
inline void expect(bool holds, const char* what) {
  if (!holds) {
    std::fprintf(stderr, "broken property: %s\n", what);
    std::abort();
  }
}

}  // namespace fuzz
