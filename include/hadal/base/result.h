// Result<T>: a value or an Error. The only way an expected failure crosses a function boundary in
// hadal.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>

#include <hadal/base/check.h>

namespace hadal {

enum class ErrorCode : uint8_t {
  invalid_argument,    ///< the caller's input is wrong (HTTP 400, exit 64)
  not_found,           ///< a named thing does not exist
  resource_exhausted,  ///< a queue, memory or page limit was reached
  cancelled,           ///< the requester went away
  unavailable,         ///< a peer or the engine cannot answer now
  data_loss,           ///< a file or a frame is damaged
  unsupported,         ///< understood, but hadal does not do it
};

/// What went wrong: `message` says what was wrong, what was expected and what was found.
struct Error {
  ErrorCode code = ErrorCode::invalid_argument;
  std::string message;
};

template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value)
      : state_(std::in_place_index<0>, std::move(value)) {}  // NOLINT(google-explicit-constructor)

  Result(Error error)
      : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT(google-explicit-constructor)

  explicit operator bool() const { return state_.index() == 0; }

  T& value() & {
    HADAL_CHECK(state_.index() == 0, "value() of a failed Result");
    return *std::get_if<0>(&state_);
  }

  const T& value() const& {
    HADAL_CHECK(state_.index() == 0, "value() of a failed Result");
    return *std::get_if<0>(&state_);
  }

  T&& value() && {
    HADAL_CHECK(state_.index() == 0, "value() of a failed Result");
    return std::move(*std::get_if<0>(&state_));
  }

  const Error& error() const {
    HADAL_CHECK(state_.index() == 1, "error() of a successful Result");
    return *std::get_if<1>(&state_);
  }

 private:
  std::variant<T, Error> state_;
};

using Status = Result<std::monostate>;

inline Status ok_status() {
  return std::monostate{};
}

}  // namespace hadal

/// Returns the error of a Status-like expression from the enclosing function.
#define HADAL_RETURN_IF_ERROR(expr)                  \
  do {                                               \
    if (auto hadal_status_ = (expr); !hadal_status_) \
      return hadal_status_.error();                  \
  } while (false)
