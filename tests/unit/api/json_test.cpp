// Bodies in, text out: what the JSON reader refuses, and that the writer cannot write nonsense.
#include <string>

#include <nlohmann/json.hpp>

#include "catch.h"
#include "field_reader.h"
#include "json_writer.h"
#include "request_json.h"

using namespace hadal;
using namespace hadal::api;

namespace {

std::string repeat(std::string_view text, size_t count) {
  std::string out;
  for (size_t i = 0; i < count; ++i) {
    out += text;
  }
  return out;
}

}  // namespace

TEST_CASE("request_json: bodies that are not one bounded JSON object are 400", "[api]") {
  const std::vector<std::string> bodies = {"",
                                           "   ",
                                           "null",
                                           "[]",
                                           "\"x\"",
                                           "1",
                                           "{} {}",
                                           "{}x",
                                           "{\"a\":1,}",
                                           "{'a':1}",
                                           "// c\n{}",
                                           "\xEF\xBB\xBF{}",
                                           std::string("{\0\"\0a\0}\0", 8),
                                           "{\"a\":NaN}",
                                           "{\"a\":Infinity}",
                                           "{\"a\":1e400}",
                                           "{\"a\":1,\"a\":2}",
                                           "{\"a\":{\"b\":1,\"c\":2,\"b\":1}}",
                                           "{\"a\":\"\xC0\xAF\"}",
                                           "{\"a\":\"\xED\xA0\x80\"}",
                                           "{\"a\":\"\xF4\x90\x80\x80\"}",
                                           "{\"a\":\"\\ud800\"}",
                                           "{\"a\":\"\x01\"}",
                                           "{\"a\":" + repeat("[", 33) + repeat("]", 33) + "}",
                                           "{\"a\":" + repeat("[", 1'000'000),
                                           "{\"a\":[" + repeat("{},", 200'000) + "{}]}",
                                           "{\"a\":[" + repeat("0,", 1'000'001) + "0]}"};
  for (const std::string& body : bodies) {
    INFO(body.substr(0, 60));
    const ApiResult<TemplateValue> result = parse_request_json(body);
    REQUIRE_FALSE(static_cast<bool>(result));
    CHECK(result.error().status == 400);
    CHECK(result.error().message.size() < 200);
  }
}

TEST_CASE("request_json: keeps order, marks strings as content, allows depth 32", "[api]") {
  const ApiResult<TemplateValue> deep =
      parse_request_json("{\"a\":" + repeat("[", 31) + repeat("]", 31) + "}");
  CHECK(static_cast<bool>(deep));
  ApiResult<TemplateValue> result = parse_request_json("{\"z\":\"\\u0000x\",\"a\":[1,2.5,true]}");
  REQUIRE(static_cast<bool>(result));
  const TemplateValue::Object& object = *as_object(result.value());
  REQUIRE(object.size() == 2);
  CHECK(object[0].first == "z");
  CHECK(*as_string(object[0].second) == std::string("\0x", 2));
  CHECK(object[0].second.is_content);
  CHECK(std::get<int64_t>((*as_list(object[1].second))[0].value) == 1);
}

TEST_CASE("field_reader: integers are not coerced and do not lose digits", "[api]") {
  const auto read = [](const std::string& value) -> std::optional<int64_t> {
    ApiResult<TemplateValue> body = parse_request_json("{\"n\":" + value + "}");
    REQUIRE(static_cast<bool>(body));
    std::optional<ApiError> error;
    FieldReader reader(*as_object(body.value()), "", error);
    const auto result = reader.integer("n", 0, 1'000'000'000'000'000'000);
    CHECK(result.has_value() != error.has_value());
    if (error) {
      CHECK(error->param == "n");
    }
    return result;
  };
  CHECK(read("5") == 5);
  CHECK(read("5.0") == 5);
  CHECK(read("9007199254740993") == 9007199254740993);
  for (const char* bad : {"true",
                          "\"5\"",
                          "5.5",
                          "-1",
                          "[]",
                          "{}",
                          "9223372036854775808",
                          "18446744073709551616",
                          "99999999999999999999",
                          "1e300"}) {
    INFO(bad);
    CHECK_FALSE(read(bad));
  }
}

TEST_CASE("json_writer: any bytes become valid JSON", "[api]") {
  const std::string all = [] {
    std::string text = "a\n\n\"\\\xE2\x80\xA8\x7F\xED\xA0\x80\xF4\x90\x80\x80\xF0\x9F\x98\x80\xC3";
    for (int byte = 0; byte < 256; ++byte) {
      text += static_cast<char>(static_cast<unsigned char>(byte));
    }
    return text;
  }();
  JsonWriter json;
  json.begin_object().key("t").string(all).key("f").number(0.1F).key("nan");
  json.number(std::numeric_limits<float>::quiet_NaN()).key("l").begin_array().integer(-1).null();
  json.boolean(true).begin_object().end_object().end_array().end_object();
  const std::string text = json.take();
  CHECK(text.find('\n') == std::string::npos);
  const auto parsed = nlohmann::json::parse(text);
  CHECK(parsed["f"] == 0.1);
  CHECK(parsed["nan"] == -9999);
  CHECK(parsed["l"].dump() == "[-1,null,true,{}]");
  const std::string back = parsed["t"].get<std::string>();
  CHECK(back.starts_with("a\n\n\"\\\xE2\x80\xA8\x7F\xEF\xBF\xBD"));
  CHECK(back.find("\xF0\x9F\x98\x80\xEF\xBF\xBD") != std::string::npos);
}
