// A scanner that is just good enough for clang-formatted C++: comments, strings, raw strings.
#include "source_text.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <fstream>
#include <sstream>

namespace tidy {

namespace fs = std::filesystem;

namespace {

constexpr std::array<std::string_view, 5> kFolders = {
    "include", "src", "kernels", "tests", "bench"};

bool is_identifier(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
}

/// Replaces comments and the insides of literals by blanks; line breaks stay.
std::string blank_comments_and_literals(const std::string& text) {
  std::string out = text;
  const auto blank = [&](size_t begin, size_t end) {
    for (size_t i = begin; i < std::min(end, out.size()); ++i) {
      out[i] = out[i] == '\n' ? '\n' : ' ';
    }
  };
  size_t i = 0;
  while (i < text.size()) {
    if (text.compare(i, 2, "//") == 0) {
      const size_t end = std::min(text.find('\n', i), text.size());
      blank(i, end);
      i = end;
    } else if (text.compare(i, 2, "/*") == 0) {
      const size_t close = text.find("*/", i + 2);
      const size_t end = close == std::string::npos ? text.size() : close + 2;
      blank(i, end);
      i = end;
    } else if (text.compare(i, 2, "R\"") == 0 && (i == 0 || !is_identifier(text[i - 1]))) {
      const size_t open = text.find('(', i);
      const std::string close = ")" + text.substr(i + 2, open - i - 2) + "\"";
      const size_t found = text.find(close, open);
      const size_t end = found == std::string::npos ? text.size() : found + close.size();
      blank(i + 2, end - 1);
      i = end;
    } else if (text[i] == '"' || (text[i] == '\'' && (i == 0 || !is_identifier(text[i - 1])))) {
      const char quote = text[i];
      size_t end = i + 1;
      while (end < text.size() && text[end] != quote && text[end] != '\n') {
        end += text[end] == '\\' ? 2 : 1;
      }
      blank(i + 1, end);
      i = end + 1;
    } else {
      ++i;
    }
  }
  return out;
}

std::vector<std::string> split_lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  std::string line;
  while (std::getline(stream, line)) {
    lines.push_back(line);
  }
  return lines;
}

}  // namespace

std::string read_text(const fs::path& file) {
  std::ifstream stream(file, std::ios::binary);
  std::ostringstream text;
  text << stream.rdbuf();
  return text.str();
}

SourceFile parse_source(std::string path, const std::string& text) {
  return SourceFile{
      std::move(path), split_lines(text), split_lines(blank_comments_and_literals(text))};
}

std::vector<SourceFile> read_sources(const fs::path& root) {
  std::vector<SourceFile> files;
  for (const std::string_view folder : kFolders) {
    if (!fs::exists(root / folder)) {
      continue;
    }
    for (const auto& entry : fs::recursive_directory_iterator(root / folder)) {
      const std::string extension = entry.path().extension().string();
      if (extension == ".h" || extension == ".cpp" || extension == ".cu" || extension == ".cuh") {
        files.push_back(parse_source(fs::relative(entry.path(), root).generic_string(),
                                     read_text(entry.path())));
      }
    }
  }
  std::sort(files.begin(), files.end(), [](const SourceFile& a, const SourceFile& b) {
    return a.path < b.path;
  });
  return files;
}

std::vector<Include> includes_of(const SourceFile& file) {
  std::vector<Include> includes;
  for (size_t i = 0; i < file.lines.size(); ++i) {
    const std::string& line = file.lines[i];
    if (!line.starts_with("#include ")) {
      continue;
    }
    const size_t open = line.find_first_of("<\"");
    const size_t close = open == std::string::npos ? open : line.find_first_of(">\"", open + 1);
    if (close != std::string::npos) {
      includes.push_back({line.substr(open + 1, close - open - 1), line[open] == '"', i + 1});
    }
  }
  return includes;
}

size_t utf8_length(std::string_view line) {
  return static_cast<size_t>(std::count_if(line.begin(), line.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0U) != 0x80U;
  }));
}

bool has_word(std::string_view code, std::string_view word) {
  for (size_t at = code.find(word); at != code.npos; at = code.find(word, at + 1)) {
    const size_t end = at + word.size();
    const bool starts = at == 0 || !is_identifier(code[at - 1]) || !is_identifier(word.front());
    const bool ends =
        end == code.size() || !is_identifier(code[end]) || !is_identifier(word.back());
    if (starts && ends) {
      return true;
    }
  }
  return false;
}

std::vector<std::string> paths_named_in(const std::string& markdown) {
  constexpr std::string_view kRoots[] = {
      "include/", "src/", "kernels/", "tests/", "bench/", "scripts/", "models/", "cmake/"};
  std::vector<std::string> paths;
  for (size_t i = 0; i < markdown.size(); ++i) {
    if (markdown[i] != '`' && markdown[i] != '(') {
      continue;
    }
    const std::string_view rest = std::string_view(markdown).substr(i + 1);
    const bool is_path = std::any_of(std::begin(kRoots), std::end(kRoots), [&](auto prefix) {
      return rest.starts_with(prefix);
    });
    if (is_path) {
      paths.emplace_back(rest.substr(0, rest.find_first_of("`) \n:#")));
    }
  }
  return paths;
}

std::vector<Function> functions_of(const SourceFile& file) {
  constexpr std::string_view kNotFunctions[] = {
      "namespace", "class ", "struct ", "enum ", "union ", "extern ", "#", "}", "constexpr Flag"};
  std::vector<Function> functions;
  size_t start = file.code.size();
  for (size_t i = 0; i < file.code.size(); ++i) {
    const std::string& line = file.code[i];
    const bool at_column_0 = !line.empty() && line[0] != ' ';
    if (at_column_0 && line[0] == '}') {
      if (start < file.code.size()) {
        functions.push_back({start + 1, i - start + 1});
      }
      start = file.code.size();
    } else if (at_column_0 && start == file.code.size()) {
      const bool is_other = std::any_of(std::begin(kNotFunctions),
                                        std::end(kNotFunctions),
                                        [&](auto word) { return line.starts_with(word); });
      const bool is_data = line.find('(') == std::string::npos;
      if (!is_other && !is_data) {
        start = i;
      }
    }
    const bool ends_declaration = !line.empty() && line.back() == ';';
    if (start < file.code.size() && ends_declaration && (at_column_0 || i == start)) {
      start = file.code.size();  // a declaration of one line
    }
  }
  return functions;
}

}  // namespace tidy
