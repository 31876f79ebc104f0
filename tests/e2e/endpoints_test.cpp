// Every path but generation: shapes that clients read, refusals that they understand.
#include "test_server.h"

using namespace hadal_test;

namespace {

void check_error(const HttpAnswer& answer, int status, const std::string& code = {}) {
  CHECK(answer.status == status);
  const json body = json::parse(answer.body);
  CHECK(body["object"] == "error");
  CHECK(body["code"] == status);
  CHECK(body["error"]["message"].is_string());
  CHECK(body["error"]["message"] == body["message"]);
  CHECK(body["error"].contains("param"));
  CHECK(body["error"]["type"].is_string());
  if (!code.empty()) {
    CHECK(body["error"]["code"] == code);
  }
}

}  // namespace

TEST_CASE("e2e: models and information", "[e2e]") {
  TestServer server({}, [](hadal::ApiConfig& config) { config.served_model_name = "org/tiny"; });
  HttpClient client(server.port());
  const json models = json::parse(client.get("/v1/models").body);
  CHECK(models["data"][0]["id"] == "org/tiny");
  CHECK(models["data"][0]["max_model_len"] == 4096);
  CHECK(client.get("/v1/models/org/tiny").status == 200);
  CHECK(client.get("/v1/models/org%2Ftiny").status == 200);
  check_error(client.get("/v1/models/other"), 404, "model_not_found");
  check_error(client.get("/v1/models/../../x"), 404);
  const json info = json::parse(client.get("/get_model_info").body);
  CHECK(info["model_path"] == "/models/tiny");
  CHECK(info["is_generation"] == true);
  const json state = json::parse(client.get("/get_server_info").body);
  CHECK(state["server_args"]["tp_size"] == 1);
  CHECK(state["max_total_num_tokens"] == 256 * 64);
  CHECK(state["internal_states"][0]["pages_total"] == 256);
  CHECK(client.get("/health_generate").status == 200);
  const HttpAnswer metrics = client.get("/metrics");
  CHECK(metrics.fields.at("content-type") == "text/plain; version=0.0.4; charset=utf-8");
  CHECK(metrics.body.find("hadal_") != std::string::npos);
}

TEST_CASE("e2e: tokens there and back", "[e2e]") {
  TestServer server;
  HttpClient client(server.port());
  const json text = json::parse(client.post("/tokenize", R"({"prompt":"hé"})").body);
  CHECK(text["tokens"] == json({TinyTokenizer::kBos, 'h', 0xC3, 0xA9}));
  CHECK(text["count"] == 4);
  CHECK(text["max_model_len"] == 4096);
  const json plain = json::parse(
      client.post("/v1/tokenize", R"({"content":["a","b"],"add_special_tokens":false})").body);
  CHECK(plain["tokens"] == json::parse("[[97],[98]]"));
  const json chat =
      json::parse(client.post("/tokenize", R"({"messages":[{"role":"user","content":"a"}]})").body);
  CHECK(chat["count"] == 6);
  const json back = json::parse(client.post("/detokenize", R"({"tokens":[256,104,195,169]})").body);
  CHECK(back["text"] == "hé");
  CHECK(back["prompt"] == "hé");
  const json special = json::parse(
      client.post("/detokenize", R"({"tokens":[256],"skip_special_tokens":false})").body);
  CHECK(special["text"] == "<｜begin▁of▁sentence｜>");
  check_error(client.post("/detokenize", R"({"tokens":[267]})"), 400);
  check_error(client.post("/detokenize", R"({"tokens":["a"]})"), 400);
  check_error(client.post("/detokenize", R"({})"), 400);
  check_error(client.post("/tokenize", R"({"prompt":5})"), 400);
}

TEST_CASE("e2e: the cache is flushed when idle", "[e2e]") {
  TestServer server({.step_us = 2000});
  HttpClient client(server.port());
  const json body = completion_body(2, 1, {{"prompt", std::string(300, 'f')}});
  CHECK(client.post("/v1/completions", body.dump()).status == 200);
  REQUIRE(eventually([&] { return server.is_idle(); }));
  CHECK(eventually([&] { return server.engine().stats().pages_cached > 0; }));
  CHECK(client.post("/flush_cache", "").status == 200);
  CHECK(eventually([&] { return server.engine().stats().pages_cached == 0; }));
  HttpClient busy(server.port());
  REQUIRE(busy.send(post_text("/v1/completions", completion_body(1000, 1).dump())));
  REQUIRE(eventually([&] { return server.engine().stats().num_running == 1; }));
  check_error(client.get("/flush_cache"), 400, "not_idle");
}

TEST_CASE("e2e: unknown paths, wrong methods, bad bodies", "[e2e]") {
  TestServer server;
  HttpClient client(server.port());
  check_error(client.get("/nothing"), 404);
  check_error(client.get("/livez/"), 404);
  const HttpAnswer method = client.get("/v1/chat/completions");
  check_error(method, 405);
  CHECK(method.fields.at("allow") == "POST, OPTIONS");
  for (const char* bad : {"", "{", "[]", R"({"messages":5})"}) {
    check_error(client.post("/v1/chat/completions", bad), 400);
  }
  const HttpAnswer named = client.post("/v1/chat/completions",
                                       R"({"messages":[{"role":"user","content":"x"}],"top_p":2})");
  check_error(named, 400);
  CHECK(json::parse(named.body)["error"]["param"] == "top_p");
  REQUIRE(client.send("HEAD /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"));
  const auto head = client.receive(false);
  REQUIRE(head);
  CHECK(head->status == 200);
  CHECK(std::stoi(head->fields.at("content-length")) > 0);
  CHECK(client.get("/health").status == 200);  // the same connection all along
}

TEST_CASE("e2e: keys", "[e2e]") {
  TestServer server({}, [](hadal::ApiConfig& config) { config.api_key = "secret"; });
  for (const char* open : {"/health", "/livez", "/readyz", "/startupz", "/metrics"}) {
    CHECK(HttpClient(server.port()).get(open).status == 200);
  }
  const std::string body = completion_body(1, 1).dump();
  HttpClient refused(server.port());
  const HttpAnswer answer = refused.post("/v1/completions", body);
  check_error(answer, 401, "invalid_api_key");
  CHECK(answer.fields.at("www-authenticate") == "Bearer");
  check_error(HttpClient(server.port()).get("/v1/models", {"Authorization: Bearer Secret"}), 401);
  check_error(HttpClient(server.port())
                  .get("/v1/models", {"Authorization: Bearer secret", "Authorization: Bearer x"}),
              401);
  HttpClient client(server.port());
  CHECK(client.post("/v1/completions", body, {"Authorization: Bearer secret"}).status == 200);
}

TEST_CASE("e2e: CORS", "[e2e]") {
  TestServer open;
  HttpClient client(open.port());
  REQUIRE(
      client.send("OPTIONS /v1/chat/completions HTTP/1.1\r\nHost: a\r\nOrigin: http://ui\r\n"
                  "Access-Control-Request-Method: POST\r\n"
                  "Access-Control-Request-Headers: authorization,content-type\r\n\r\n"));
  const auto preflight = client.receive();
  REQUIRE(preflight);
  CHECK(preflight->status == 204);
  CHECK(preflight->fields.at("access-control-allow-origin") == "*");
  CHECK(preflight->fields.at("access-control-allow-headers") == "authorization,content-type");
  CHECK(client.get("/v1/models").fields.at("access-control-allow-origin") == "*");
  TestServer closed({}, [](hadal::ApiConfig& config) { config.cors_origins = {"http://good"}; });
  HttpClient other(closed.port());
  CHECK(other.get("/v1/models", {"Origin: http://evil"})
            .fields.count("access-control-allow-origin") == 0);
  CHECK(other.get("/v1/models", {"Origin: http://good"}).fields.at("access-control-allow-origin") ==
        "http://good");
}
