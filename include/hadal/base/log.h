// One-line log with severity and time, to stderr. Thread-safe. The sink is set once by app at
// start.
#pragma once

#include <cstdint>
#include <string_view>

namespace hadal {

enum class LogLevel : uint8_t { debug, info, warning, error };

void set_log_level(LogLevel level);
void log(LogLevel level, std::string_view message);

inline void log_debug(std::string_view message) {
  log(LogLevel::debug, message);
}

inline void log_info(std::string_view message) {
  log(LogLevel::info, message);
}

inline void log_warning(std::string_view message) {
  log(LogLevel::warning, message);
}

inline void log_error(std::string_view message) {
  log(LogLevel::error, message);
}

}  // namespace hadal
