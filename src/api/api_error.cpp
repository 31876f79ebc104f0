// Error bodies, and the one table from internal error codes to HTTP.
#include "api_error.h"

#include "json_writer.h"

namespace hadal::api {

std::string_view ApiError::type() const {
  switch (status) {
    case 401:
      return "authentication_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    default:
      return status >= 500 ? "server_error" : "invalid_request_error";
  }
}

Gate gate_of_status(int status) {
  switch (status) {
    case 401:
    case 429:
      return Gate::identity;
    case 408:
    case 413:
    case 414:
    case 431:
      return Gate::bytes;
    default:
      return status >= 400 && status < 500 ? Gate::shape : Gate::none;
  }
}

ApiError invalid_field(std::string param, std::string message, std::string code) {
  std::string text = param.empty() ? std::move(message) : param + ": " + message;
  return ApiError{400, std::move(text), std::move(param), std::move(code)};
}

ApiError from_error(const Error& error, std::string param) {
  switch (error.code) {
    case ErrorCode::invalid_argument:
    case ErrorCode::unsupported:
    case ErrorCode::not_found:
    case ErrorCode::data_loss:
      return ApiError{400, error.message, std::move(param), {}};
    case ErrorCode::resource_exhausted:
      return ApiError{503, error.message, {}, "overloaded"};
    case ErrorCode::cancelled:
    case ErrorCode::unavailable:
      break;
  }
  return ApiError{503, error.message, {}, "unavailable"};
}

std::string error_body(const ApiError& error) {
  JsonWriter json;
  const auto text_or_null = [&](std::string_view text) {
    if (text.empty()) {
      json.null();
    } else {
      json.string(text);
    }
  };
  json.begin_object().key("error").begin_object();
  json.key("message").string(error.message).key("type").string(error.type());
  json.key("param");
  text_or_null(error.param);
  json.key("code");
  text_or_null(error.code);
  json.end_object();
  json.key("object").string("error").key("message").string(error.message);
  json.key("type").string(error.type()).key("param");
  text_or_null(error.param);
  json.key("code").integer(error.status).end_object();
  return json.take();
}

}  // namespace hadal::api
