// A request body as a tree of TemplateValues: bounded in depth and size before it is built, without
// duplicate keys, every string marked as request data.
#pragma once

#include <string_view>

#include <hadal/text/template_value.h>

#include "api_error.h"

namespace hadal::api {

struct JsonLimits {
  int32_t depth_max = 32;
  int32_t values_max = 100'000;     ///< keys, and values other than numbers
  int32_t numbers_max = 1'000'000;  ///< a prompt may be a long list of token ids
};

/// The body must be one JSON object in UTF-8 without byte-order mark; anything else is 400.
/// Integers beyond 64 bits become doubles, which integer fields then refuse.
ApiResult<TemplateValue> parse_request_json(std::string_view body, const JsonLimits& limits = {});

}  // namespace hadal::api
