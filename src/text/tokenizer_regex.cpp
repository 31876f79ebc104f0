// PCRE2 with JIT where the platform allows it. A match that exhausts the JIT's stack is tried again
// by the interpreter, which keeps its backtracking points on the heap.
#define PCRE2_CODE_UNIT_WIDTH 8
#include "tokenizer_regex.h"

#include <array>

#include <hadal/base/check.h>

#include <pcre2.h>

namespace hadal {
namespace {

constexpr size_t kJitStackInitialBytes = size_t{32} << 10;
constexpr size_t kJitStackMaxBytes = size_t{16} << 20;
constexpr uint32_t kInterpreterHeapKib = uint32_t{256} << 10;
// Backtracking of a healthy pattern is a small multiple of the bytes it looks at.
constexpr size_t kMatchLimitFloor = 1'000'000;
constexpr size_t kMatchLimitPerByte = 16;

PCRE2_SPTR as_sptr(std::string_view text) {
  return reinterpret_cast<PCRE2_SPTR>(text.data() == nullptr ? "" : text.data());
}

}  // namespace

RegexScratch::RegexScratch()
    : data_(pcre2_match_data_create(1, nullptr)),
      context_(pcre2_match_context_create(nullptr)),
      jit_stack_(pcre2_jit_stack_create(kJitStackInitialBytes, kJitStackMaxBytes, nullptr)) {
  HADAL_CHECK(data_ != nullptr && context_ != nullptr, "out of memory for a regex match");
  pcre2_set_heap_limit(context_, kInterpreterHeapKib);
  if (jit_stack_ != nullptr)
    pcre2_jit_stack_assign(context_, nullptr, jit_stack_);
}

RegexScratch::~RegexScratch() {
  pcre2_match_data_free(data_);
  pcre2_match_context_free(context_);
  pcre2_jit_stack_free(jit_stack_);
}

Result<Regex> Regex::compile(std::string_view pattern) {
  int code = 0;
  PCRE2_SIZE offset = 0;
  const uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_NO_AUTO_CAPTURE | PCRE2_NEVER_BACKSLASH_C;
  std::shared_ptr<pcre2_code> compiled(
      pcre2_compile(as_sptr(pattern), pattern.size(), options, &code, &offset, nullptr),
      pcre2_code_free);
  if (compiled == nullptr) {
    std::array<PCRE2_UCHAR, 256> text = {};
    pcre2_get_error_message(code, text.data(), text.size());
    return Error{ErrorCode::invalid_argument,
                 std::string("regular expression: ") + reinterpret_cast<const char*>(text.data()) +
                     " at byte " + std::to_string(offset)};
  }
  Regex regex(std::move(compiled));
  regex.is_jit_ = pcre2_jit_compile(regex.code_.get(), PCRE2_JIT_COMPLETE) == 0;
  return regex;
}

Regex::Outcome Regex::find(std::string_view subject,
                           size_t from,
                           RegexScratch* scratch,
                           Match* match) const {
  const size_t limit = kMatchLimitFloor + kMatchLimitPerByte * subject.size();
  pcre2_set_match_limit(scratch->context_, static_cast<uint32_t>(std::min(limit, size_t{1} << 31)));
  int found = PCRE2_ERROR_JIT_STACKLIMIT;
  if (is_jit_) {
    found = pcre2_jit_match(
        code_.get(), as_sptr(subject), subject.size(), from, 0, scratch->data_, scratch->context_);
  }
  if (found == PCRE2_ERROR_JIT_STACKLIMIT) {
    found = pcre2_match(code_.get(),
                        as_sptr(subject),
                        subject.size(),
                        from,
                        PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                        scratch->data_,
                        scratch->context_);
  }
  if (found == PCRE2_ERROR_NOMATCH)
    return Outcome::none;
  if (found < 0)
    return Outcome::gave_up;
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(scratch->data_);
  *match = {range[0], range[1]};
  return Outcome::found;
}

}  // namespace hadal
