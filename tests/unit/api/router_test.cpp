// Routes and keys.
#include "router.h"

#include <string>

#include "catch.h"

using namespace hadal::api;

TEST_CASE("router: only exact paths", "[api]") {
  for (const Route& route : all_routes()) {
    const std::string path = std::string(route.path) + (route.id == RouteId::model ? "a/b" : "");
    const Route* found = find_route(path, PortScope::serving);
    REQUIRE(found != nullptr);
    CHECK(found->id == route.id);
    CHECK((find_route(path, PortScope::admin) != nullptr) == route.is_on_admin_port);
  }
  for (const char* path : {"/",
                           "//v1/models",
                           "/v1//models",
                           "/v1/./models",
                           "/v1/../health",
                           "/v1/models/",
                           "/V1/Models",
                           "/v1%2fmodels",
                           "/v1/chat/completions/",
                           "/drain",
                           "/v1/embeddings"}) {
    INFO(path);
    CHECK(find_route(path, PortScope::serving) == nullptr);
  }
}

TEST_CASE("router: methods", "[api]") {
  const Route& chat = *find_route("/v1/chat/completions", PortScope::serving);
  CHECK(allows_method(chat, "POST"));
  CHECK_FALSE(allows_method(chat, "GET"));
  CHECK_FALSE(allows_method(chat, "POS"));
  CHECK_FALSE(allows_method(chat, ""));
  CHECK(allows_method(*find_route("/v1/models", PortScope::serving), "HEAD"));
  CHECK(allows_method(*find_route("/flush_cache", PortScope::serving), "POST"));
}

TEST_CASE("router: everything but the probes needs the key", "[api]") {
  int open_routes = 0;
  for (const Route& route : all_routes()) {
    open_routes += route.needs_key ? 0 : 1;
  }
  CHECK(open_routes == 6);
}
