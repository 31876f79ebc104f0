// Paths to handlers: one table that dispatch, authorization and the method check share, so that no
// two of them can see a request differently.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "api_error.h"

namespace hadal::api {

enum class RouteId : uint8_t {
  chat_completions,
  completions,
  models,
  model,
  tokenize,
  detokenize,
  flush_cache,
  model_info,
  server_info,
  health,
  health_generate,
  livez,
  readyz,
  startupz,
  metrics,
};

enum class PortScope : uint8_t { serving, admin };

struct Route {
  std::string_view path;
  RouteId id;
  std::string_view methods;  ///< as the Allow header says them
  bool needs_key = true;
  bool is_on_admin_port = false;
};

std::span<const Route> all_routes();

/// 404 for paths that the port does not have. `/v1/models/ID` matches any ID that is not empty.
const Route* find_route(std::string_view path, PortScope scope);
/// HEAD counts as GET.
bool allows_method(const Route& route, std::string_view method);

}  // namespace hadal::api
