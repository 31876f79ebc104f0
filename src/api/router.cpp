// The table of routes.
#include "router.h"

#include <algorithm>
#include <array>

namespace hadal::api {

namespace {

constexpr std::string_view kGet = "GET, HEAD, OPTIONS";
constexpr std::string_view kPost = "POST, OPTIONS";
constexpr std::string_view kModelPrefix = "/v1/models/";

constexpr std::array<Route, 19> kRoutes = {{
    {"/v1/chat/completions", RouteId::chat_completions, kPost},
    {"/v1/completions", RouteId::completions, kPost},
    {"/v1/models", RouteId::models, kGet},
    {kModelPrefix, RouteId::model, kGet},
    {"/tokenize", RouteId::tokenize, kPost},
    {"/v1/tokenize", RouteId::tokenize, kPost},
    {"/detokenize", RouteId::detokenize, kPost},
    {"/v1/detokenize", RouteId::detokenize, kPost},
    {"/flush_cache", RouteId::flush_cache, "GET, HEAD, POST, OPTIONS"},
    {"/get_model_info", RouteId::model_info, kGet},
    {"/model_info", RouteId::model_info, kGet},
    {"/get_server_info", RouteId::server_info, kGet},
    {"/server_info", RouteId::server_info, kGet},
    {"/health", RouteId::health, kGet, false, true},
    {"/health_generate", RouteId::health_generate, kGet, false},
    {"/livez", RouteId::livez, kGet, false, true},
    {"/readyz", RouteId::readyz, kGet, false, true},
    {"/startupz", RouteId::startupz, kGet, false, true},
    {"/metrics", RouteId::metrics, kGet, false, true},
}};

}  // namespace

std::span<const Route> all_routes() {
  return kRoutes;
}

const Route* find_route(std::string_view path, PortScope scope) {
  for (const Route& route : kRoutes) {
    const bool matches = route.id == RouteId::model
                             ? path.starts_with(kModelPrefix) && path.size() > kModelPrefix.size()
                             : path == route.path;
    if (matches && (scope == PortScope::serving || route.is_on_admin_port)) {
      return &route;
    }
  }
  return nullptr;
}

bool allows_method(const Route& route, std::string_view method) {
  std::string_view rest = route.methods;
  while (!rest.empty()) {
    const size_t comma = std::min(rest.find(", "), rest.size());
    if (rest.substr(0, comma) == method) {
      return true;
    }
    rest.remove_prefix(std::min(comma + 2, rest.size()));
  }
  return false;
}

}  // namespace hadal::api
