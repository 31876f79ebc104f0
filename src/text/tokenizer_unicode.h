// Bridges the Unicode versions of two regex engines. Hugging Face's Oniguruma knows Unicode 16,
// PCRE2 10.42 (Debian 12, Ubuntu 24.04) Unicode 14, and PCRE2's \s has one character too many. The
// patterns are matched against a shadow of the text in which every character that the two classify
// differently is replaced by an old one of the right category, script and length in bytes.
#pragma once

#include <string>
#include <string_view>

namespace hadal {

/// `utf8` itself when no character needs replacing, else a copy of equal length kept in `storage`.
std::string_view shadow_for_matching(std::string_view utf8, std::string* storage);

}  // namespace hadal
