// HADAL_CHECK: an invariant whose breach is our mistake. Always on; prints where and why, then
// aborts. HADAL_DCHECK: the same for checks too dear for release; on in Debug and sanitizer builds.
#pragma once

#include <string>

namespace hadal {

[[noreturn]] void check_failed(const char* file,
                               int line,
                               const char* condition,
                               const std::string& message);

}  // namespace hadal

#define HADAL_CHECK(condition, message)                                 \
  do {                                                                  \
    if (!(condition)) [[unlikely]]                                      \
      ::hadal::check_failed(__FILE__, __LINE__, #condition, (message)); \
  } while (false)

#if !defined(NDEBUG) || defined(HADAL_SANITIZED)
#define HADAL_DCHECK(condition, message) HADAL_CHECK(condition, message)
#define HADAL_DEBUG_CHECKS 1
#else
#define HADAL_DCHECK(condition, message) \
  do {                                   \
  } while (false)
#define HADAL_DEBUG_CHECKS 0
#endif
