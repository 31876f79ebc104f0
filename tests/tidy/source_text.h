// Source files as the tidy rules see them: lines, code without comments and literals, includes.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace tidy {

struct SourceFile {
  std::string path;                ///< relative to the repository root
  std::vector<std::string> lines;  ///< as written
  std::vector<std::string> code;   ///< the same lines, comments and literals blanked

  bool is_header() const { return path.ends_with(".h") || path.ends_with(".cuh"); }

  bool is_below(std::string_view folder) const {
    return path.size() > folder.size() && path.starts_with(folder) && path[folder.size()] == '/';
  }
};

struct Include {
  std::string name;
  bool is_quoted = false;
  size_t line = 0;  ///< from 1
};

/// Every C++ and CUDA file of the repository below include/, src/, kernels/, tests/ and bench/.
std::vector<SourceFile> read_sources(const std::filesystem::path& root);

SourceFile parse_source(std::string path, const std::string& text);
std::vector<Include> includes_of(const SourceFile& file);

std::string read_text(const std::filesystem::path& file);

/// Characters, not bytes.
size_t utf8_length(std::string_view line);

/// True when `word` stands in `code` with no identifier character on either side.
bool has_word(std::string_view code, std::string_view word);

/// Paths in backticks or Markdown links that start with one of the repository's folders.
std::vector<std::string> paths_named_in(const std::string& markdown);

/// A top-level function (clang-format puts its first and last line at column 0).
struct Function {
  size_t line = 0;  ///< of its first line, from 1
  size_t length = 0;
};

std::vector<Function> functions_of(const SourceFile& file);

}  // namespace tidy
