// Reports a broken invariant and aborts: a process that is wrong about itself must not serve.
#include <cstdio>
#include <cstdlib>

#include <hadal/base/check.h>

namespace hadal {

void check_failed(const char* file, int line, const char* condition, const std::string& message) {
  std::fprintf(
      stderr, "hadal: internal error at %s:%d: %s (%s)\n", file, line, message.c_str(), condition);
  std::fflush(stderr);
  std::abort();
}

}  // namespace hadal
