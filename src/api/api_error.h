// What a client is told when a request fails, and ApiResult<T>: a value or that.
//
// Messages are written here or by the validators; text of third-party exceptions and request data
// beyond short numbers never get in.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include <hadal/base/check.h>
#include <hadal/base/result.h>
#include <hadal/traffic/gate.h>

namespace hadal::api {

struct ApiError {
  int status = 400;
  std::string message;
  std::string param;         ///< the field at fault; empty = none
  std::string code;          ///< OpenAI's machine-readable reason; empty = none
  Gate gate = Gate::none;    ///< which refused it; none = as the status says, if at all
  double retry_after_s = 0;  ///< 429 and 503: when to come again; 0 = not known

  /// OpenAI's error type for the status.
  std::string_view type() const;
};

/// The gate that answers with this status when nobody named another; none for 5xx.
Gate gate_of_status(int status);
/// 400 about one field.
ApiError invalid_field(std::string param, std::string message, std::string code = {});
/// Maps what the engine or the text layer reports; `param` for errors that are the request's fault.
ApiError from_error(const Error& error, std::string param = {});

/// OpenAI's nested error object with SGLang's flat members beside it: clients of both read it.
std::string error_body(const ApiError& error);

template <class T>
class [[nodiscard]] ApiResult {
 public:
  ApiResult(T value)  // NOLINT(google-explicit-constructor)
      : state_(std::in_place_index<0>, std::move(value)) {}

  ApiResult(ApiError error)  // NOLINT(google-explicit-constructor)
      : state_(std::in_place_index<1>, std::move(error)) {}

  explicit operator bool() const { return state_.index() == 0; }

  T& value() & {
    HADAL_CHECK(state_.index() == 0, "value() of a failed ApiResult");
    return *std::get_if<0>(&state_);
  }

  T&& value() && {
    HADAL_CHECK(state_.index() == 0, "value() of a failed ApiResult");
    return std::move(*std::get_if<0>(&state_));
  }

  const ApiError& error() const {
    HADAL_CHECK(state_.index() == 1, "error() of a successful ApiResult");
    return *std::get_if<1>(&state_);
  }

 private:
  std::variant<T, ApiError> state_;
};

}  // namespace hadal::api
