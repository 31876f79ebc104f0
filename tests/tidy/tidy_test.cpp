// The rules of ARCHITECTURE.md and CONTRIBUTING.md that text alone can show. Each rule has a list
// of exceptions, which may only shrink: an exception that is no longer needed fails as well.
#include <algorithm>
#include <map>
#include <set>
#include <sstream>

#include "catch.h"
#include "source_text.h"

namespace fs = std::filesystem;
using namespace tidy;

namespace {

/// A module may include itself, `modules` and `third_party`; anything else but the standard
/// library and POSIX fails. Lower layers first.
struct ModuleRule {
  std::string_view name;
  std::string_view folder;
  std::set<std::string_view> modules;
  std::set<std::string_view> third_party;
};

const std::vector<ModuleRule>& layer_table() {
  static const std::vector<ModuleRule> table = {
      {"base", "src/base", {}, {"spdlog"}},
      {"metrics", "src/metrics", {"base"}, {"prometheus"}},
      {"net", "src/net", {"base"}, {}},
      {"traffic", "src/traffic", {"base"}, {"openssl"}},
      {"auth", "src/auth", {"base", "net"}, {"openssl"}},
      {"doctor", "src/doctor", {"base", "net", "auth"}, {}},
      {"tensor", "src/tensor", {"base"}, {}},
      {"text", "src/text", {"base"}, {"nlohmann", "pcre2"}},
      {"plan", "src/plan", {"base", "text"}, {}},
      {"backend", "src/backend", {"base", "tensor"}, {}},
      {"sched", "src/sched", {"base", "text", "plan"}, {}},
      {"sim", "src/sim", {"base", "text", "plan", "sched"}, {"nlohmann"}},
      {"ops", "src/ops", {"base", "tensor", "backend"}, {}},
      {"comm", "src/comm", {"base", "net", "tensor", "backend"}, {}},
      {"weights", "src/weights", {"base", "tensor", "backend"}, {"nlohmann"}},
      {"kernels", "kernels", {"base", "tensor", "backend", "ops", "comm"}, {"cuda", "nccl"}},
      {"model",
       "src/model",
       {"base", "tensor", "text", "plan", "backend", "ops", "comm", "weights"},
       {"nlohmann"}},
      {"runtime",
       "src/runtime",
       {"base",
        "tensor",
        "text",
        "plan",
        "backend",
        "ops",
        "comm",
        "weights",
        "model",
        "metrics",
        // linked, never included: the factories of the backends live there
        "kernels_cpu",
        "kernels_cuda"},
       {}},
      {"cluster", "src/cluster", {"base", "net", "auth", "text", "plan", "runtime"}, {"openssl"}},
      {"engine",
       "src/engine",
       {"base", "text", "plan", "sched", "runtime", "cluster", "metrics"},
       {}},
      {"api",
       "src/api",
       {"base", "text", "plan", "runtime", "engine", "metrics", "traffic"},
       {"boost", "nlohmann", "openssl"}},
      {"app",
       "src/app",
       {"base", "metrics", "net",    "tensor", "text",    "plan",   "sched",
        "sim",  "backend", "ops",    "comm",   "weights", "model",  "runtime",
        "auth", "cluster", "engine", "api",    "doctor",  "traffic"},
       {"CLI", "nlohmann"}},
  };
  return table;
}

const ModuleRule* module_of(const SourceFile& file) {
  for (const ModuleRule& module : layer_table()) {
    if (file.is_below(module.folder) ||
        file.is_below("include/hadal/" + std::string(module.name))) {
      return &module;
    }
  }
  return nullptr;
}

/// The library a header belongs to; empty for the standard library and POSIX.
std::string third_party_of(const std::string& include) {
  static const std::map<std::string, std::string, std::less<>> prefixes = {
      {"boost/", "boost"},
      {"nlohmann/", "nlohmann"},
      {"CLI/", "CLI"},
      {"prometheus/", "prometheus"},
      {"spdlog/", "spdlog"},
      {"openssl/", "openssl"},
      {"pcre2", "pcre2"},
      {"cuda", "cuda"},
      {"cublas", "cuda"},
      {"nccl", "nccl"},
      {"cute/", "cutlass"},
      {"cutlass/", "cutlass"},
      {"catch2/", "catch2"},
      {"grpc", "grpc"},
      {"torch/", "torch"}};
  for (const auto& [prefix, library] : prefixes) {
    if (include.starts_with(prefix)) {
      return library;
    }
  }
  return {};
}

/// Path -> why. Every entry must still be needed.
using Exceptions = std::map<std::string, std::string, std::less<>>;

/// Collects breaches of one rule, and fails on unused exceptions.
class Rule {
 public:
  explicit Rule(Exceptions exceptions = {}) : exceptions_(std::move(exceptions)) {}

  void breach(const std::string& path, size_t line, const std::string& what) {
    if (exceptions_.count(path) != 0) {
      used_.insert(path);
      return;
    }
    report_ << path << ":" << line << ": " << what << "\n";
  }

  void finish() {
    for (const auto& [path, reason] : exceptions_) {
      if (used_.count(path) == 0) {
        report_ << path << ": the exception (" << reason << ") is no longer needed, remove it\n";
      }
    }
    INFO(report_.str());
    CHECK(report_.str().empty());
  }

 private:
  Exceptions exceptions_;
  std::set<std::string> used_;
  std::ostringstream report_;
};

const fs::path kRoot = HADAL_SOURCE_DIR;

const std::vector<SourceFile>& sources() {
  static const std::vector<SourceFile> files = read_sources(kRoot);
  return files;
}

/// Generated or copied data, one row a line; the rules on size are about code.
bool is_table(const SourceFile& file) {
  return file.path.find("_tables.") != std::string::npos;
}

bool is_product(const SourceFile& file) {
  return !file.is_below("tests") && !file.is_below("bench");
}

}  // namespace

TEST_CASE("tidy: the scanner tells code from comments and literals", "[tidy]") {
  const SourceFile file = parse_source("x.cpp",
                                       "int a; // throw\n"
                                       "auto s = \"throw \\\" throw\"; throw 1;\n"
                                       "/* throw\n throw */ auto r = R\"x(throw)x\";\n"
                                       "char c = '\"'; int million = 1'000'000; // throw\n");
  CHECK_FALSE(has_word(file.code[0], "throw"));
  CHECK(file.code[1].ends_with("throw 1;"));
  CHECK_FALSE(has_word(file.code[2], "throw"));
  CHECK_FALSE(has_word(file.code[3], "throw"));
  CHECK_FALSE(has_word(file.code[4], "throw"));
  CHECK(has_word(file.code[4], "million"));
  CHECK_FALSE(has_word("rethrown", "throw"));
  CHECK(utf8_length("｜a") == 2);
  const SourceFile functions = parse_source(
      "y.cpp", "int f();\nint g(int a) {\n  return a;\n}\nint h(int a,\n      int b) {\n}\n");
  REQUIRE(functions_of(functions).size() == 2);
  CHECK(functions_of(functions)[0].length == 3);
  CHECK(functions_of(functions)[1].line == 5);
}

TEST_CASE("tidy: modules include only lower layers and their own third-party code", "[tidy]") {
  Rule rule;
  for (const SourceFile& file : sources()) {
    const ModuleRule* module = module_of(file);
    if (module == nullptr) {
      continue;
    }
    for (const Include& include : includes_of(file)) {
      if (include.is_quoted) {
        const bool is_private = fs::exists((kRoot / file.path).parent_path() / include.name) ||
                                fs::exists(kRoot / module->folder / include.name);
        if (!is_private) {
          rule.breach(file.path, include.line, include.name + " is not of this module");
        }
        continue;
      }
      if (include.name.starts_with("hadal/")) {
        const std::string other = include.name.substr(6, include.name.find('/', 6) - 6);
        if (other != module->name && module->modules.count(other) == 0) {
          rule.breach(file.path, include.line, std::string(module->name) + " may not use " + other);
        }
      } else if (const std::string library = third_party_of(include.name); !library.empty()) {
        const bool is_public = file.is_below("include");
        if (is_public || module->third_party.count(library) == 0) {
          rule.breach(file.path, include.line, library + " is not allowed here");
        }
      }
    }
  }
  rule.finish();
}

TEST_CASE("tidy: CMake links only what the layer table allows", "[tidy]") {
  Rule rule;
  for (const ModuleRule& module : layer_table()) {
    const fs::path list = kRoot / module.folder / "CMakeLists.txt";
    std::istringstream words(fs::exists(list) ? read_text(list) : "");
    std::string word;
    bool in_deps = false;
    while (words >> word) {
      const bool closes = word.ends_with(")");
      const std::string name = word.substr(0, word.size() - (closes ? 1 : 0));
      if (name == "DEPS" || name == "LIBS" || name == "SRCS" || name == "LABELS") {
        in_deps = name == "DEPS";
      } else if (in_deps && module.modules.count(name) == 0) {
        rule.breach(std::string(module.folder) + "/CMakeLists.txt", 1, "DEPS names " + name);
      }
      in_deps = in_deps && !closes;
    }
  }
  rule.finish();
}

TEST_CASE("tidy: files have at most 600 lines, functions 70", "[tidy]") {
  Rule files;
  Rule functions;
  for (const SourceFile& file : sources()) {
    if (file.lines.size() > 600 && !is_table(file)) {
      files.breach(file.path, 600, std::to_string(file.lines.size()) + " lines");
    }
    if (!is_product(file)) {
      continue;
    }
    for (const Function& function : functions_of(file)) {
      if (function.length > 70) {
        functions.breach(
            file.path, function.line, "function of " + std::to_string(function.length) + " lines");
      }
    }
  }
  files.finish();
  functions.finish();
}

TEST_CASE("tidy: lines have at most 100 columns", "[tidy]") {
  Rule rule;
  for (const SourceFile& file : sources()) {
    for (size_t i = 0; i < file.lines.size(); ++i) {
      // Test data in literals cannot be broken; code beyond the column can.
      const bool is_data = !is_product(file) && i < file.code.size() &&
                           file.code[i].find_first_not_of(" \";,(){}", 100) == std::string::npos;
      if (utf8_length(file.lines[i]) > 100 && !is_data && !is_table(file)) {
        rule.breach(file.path, i + 1, std::to_string(utf8_length(file.lines[i])) + " columns");
      }
    }
  }
  rule.finish();
}

TEST_CASE("tidy: every file says what it is for", "[tidy]") {
  Rule rule;
  for (const SourceFile& file : sources()) {
    if (file.lines.empty() || !file.lines[0].starts_with("// ")) {
      rule.breach(file.path, 1, "expected a comment on the first line");
    }
    if (file.is_header() && file.is_below("include") &&
        std::find(file.lines.begin(), file.lines.end(), "#pragma once") == file.lines.end()) {
      rule.breach(file.path, 1, "expected #pragma once");
    }
  }
  rule.finish();
}

TEST_CASE("tidy: no notes to self in the sources", "[tidy]") {
  Rule rule;
  const std::string words[] = {
      std::string("FIX") + "ME", std::string("TO") + "DO", std::string("XX") + "X"};
  for (const SourceFile& file : sources()) {
    for (size_t i = 0; i < file.lines.size(); ++i) {
      for (const std::string& word : words) {
        if (has_word(file.lines[i], word)) {
          rule.breach(file.path, i + 1, word);
        }
      }
    }
  }
  rule.finish();
}

TEST_CASE("tidy: calls that hadal does without", "[tidy]") {
  Rule rule;
  const std::vector<std::string_view> everywhere = {"std::regex",
                                                    "system(",
                                                    "popen(",
                                                    "strcpy(",
                                                    "strcat(",
                                                    "sprintf(",
                                                    "gets(",
                                                    "alloca(",
                                                    "atoi(",
                                                    "atof(",
                                                    "std::stoi",
                                                    "std::stol",
                                                    "std::stoll",
                                                    "std::stof",
                                                    "std::stod",
                                                    "const_cast",
                                                    "std::rand",
                                                    "rand("};
  for (const SourceFile& file : sources()) {
    if (!is_product(file)) {
      continue;
    }
    for (size_t i = 0; i < file.code.size(); ++i) {
      for (const std::string_view call : everywhere) {
        if (has_word(file.code[i], call)) {
          rule.breach(file.path, i + 1, std::string(call));
        }
      }
      if (has_word(file.code[i], "getenv") && !file.is_below("src/app")) {
        rule.breach(file.path, i + 1, "getenv outside src/app");
      }
      const bool may_end = file.is_below("src/app") || file.is_below("src/base");
      if ((has_word(file.code[i], "std::abort") || has_word(file.code[i], "std::exit") ||
           has_word(file.code[i], "_exit(")) &&
          !may_end) {
        rule.breach(file.path, i + 1, "ends the process outside of app");
      }
      if (has_word(file.code[i], "sleep_for") &&
          (file.is_below("src/engine") || file.is_below("src/sched"))) {
        rule.breach(file.path, i + 1, "a sleep in the step loop");
      }
    }
  }
  rule.finish();
}

TEST_CASE("tidy: hadal throws nothing", "[tidy]") {
  Rule rule;
  for (const SourceFile& file : sources()) {
    for (size_t i = 0; i < file.code.size() && is_product(file); ++i) {
      if (has_word(file.code[i], "throw")) {
        rule.breach(file.path, i + 1, "throw");
      }
    }
  }
  rule.finish();
}

TEST_CASE("tidy: headers open no namespace for others", "[tidy]") {
  Rule rule;
  for (const SourceFile& file : sources()) {
    for (size_t i = 0; i < file.code.size() && file.is_header(); ++i) {
      if (has_word(file.code[i], "using namespace")) {
        rule.breach(file.path, i + 1, "using namespace in a header");
      }
    }
  }
  rule.finish();
}

TEST_CASE("tidy: every source file is in a CMake list", "[tidy]") {
  Rule rule;
  for (const SourceFile& file : sources()) {
    if (file.is_header()) {
      continue;
    }
    const fs::path path = file.path;
    bool found = false;
    for (fs::path folder = path.parent_path(); !found && !folder.empty();
         folder = folder.parent_path()) {
      const fs::path list = kRoot / folder / "CMakeLists.txt";
      const std::string name = fs::relative(path, folder).generic_string();
      found = fs::exists(list) && has_word(read_text(list), name);
    }
    if (!found && file.is_below("tests/support")) {  // shared by suites, which list it themselves
      for (const auto& suite : fs::directory_iterator(kRoot / "tests")) {
        const fs::path list = suite.path() / "CMakeLists.txt";
        found = found ||
                (fs::exists(list) && has_word(read_text(list), path.filename().generic_string()));
      }
    }
    if (!found) {
      rule.breach(file.path, 1, "no CMakeLists.txt names it");
    }
  }
  rule.finish();
}

TEST_CASE("tidy: paths that the documents name exist", "[tidy]") {
  Rule rule;
  for (const char* name : {"ARCHITECTURE.md", "README.md", "CONTRIBUTING.md"}) {
    REQUIRE(fs::exists(kRoot / name));
    for (const std::string& path : paths_named_in(read_text(kRoot / name))) {
      if (path.find_first_of("*<{") == std::string::npos && !fs::exists(kRoot / path)) {
        rule.breach(name, 1, path + " does not exist");
      }
    }
  }
  rule.finish();
}
