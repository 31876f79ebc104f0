// The regular expressions of pre-tokenisers, run by PCRE2 with UTF and Unicode properties. The hard
// thing is that Hugging Face runs them with Oniguruma: patterns are translated construct by
// construct, and one that hadal does not know to mean the same in both is refused by name.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include <hadal/base/result.h>

struct pcre2_real_code_8;
struct pcre2_real_match_data_8;
struct pcre2_real_match_context_8;
struct pcre2_real_jit_stack_8;

namespace hadal {

/// The same pattern in PCRE2's syntax. unsupported names the construct and its byte offset.
/// `pattern` must be UTF-8 of at most 8 KiB.
Result<std::string> translate_oniguruma(std::string_view pattern);

/// What one thread needs for matching; not shared between threads.
class RegexScratch {
 public:
  RegexScratch();
  ~RegexScratch();
  RegexScratch(const RegexScratch&) = delete;
  RegexScratch& operator=(const RegexScratch&) = delete;

 private:
  friend class Regex;
  pcre2_real_match_data_8* data_ = nullptr;
  pcre2_real_match_context_8* context_ = nullptr;
  pcre2_real_jit_stack_8* jit_stack_ = nullptr;
};

/// Immutable; `find` may be called from any thread with its own scratch.
class Regex {
 public:
  struct Match {
    size_t begin = 0;
    size_t end = 0;
  };

  enum class Outcome : uint8_t { found, none, gave_up };

  /// `pattern` is in PCRE2's syntax. invalid_argument when it does not compile.
  static Result<Regex> compile(std::string_view pattern);

  /// The first match at or after `from`. `subject` must be well-formed UTF-8. gave_up: the match
  /// limit (linear in the subject) was reached.
  Outcome find(std::string_view subject, size_t from, RegexScratch* scratch, Match* match) const;

 private:
  explicit Regex(std::shared_ptr<pcre2_real_code_8> code) : code_(std::move(code)) {}

  std::shared_ptr<pcre2_real_code_8> code_;
  bool is_jit_ = false;
};

}  // namespace hadal
