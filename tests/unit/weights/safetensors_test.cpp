// Right headers are read in full; every kind of damage is one error that says what and where.
#include <random>

#include <hadal/weights/safetensors.h>

#include "catch.h"
#include "safetensors_file.h"

namespace hadal {
namespace {

Result<SafetensorsHeader> parse(const std::string& bytes) {
  return parse_safetensors_header(std::as_bytes(std::span(bytes)),
                                  static_cast<int64_t>(bytes.size()));
}

Result<SafetensorsHeader> parse_with(const std::string& header, size_t data_bytes) {
  return parse(safetensors_bytes(header, std::string(data_bytes, 'x')));
}

std::string failure(const std::string& header, size_t data_bytes = 64) {
  const auto result = parse_with(header, data_bytes);
  REQUIRE_FALSE(result);
  CHECK(result.error().code == ErrorCode::data_loss);
  return result.error().message;
}

TEST_CASE("safetensors: a header is read in file order with absolute offsets", "[weights]") {
  const std::string text =
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},)"
      R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})";
  const auto header = parse_with(text, 16);
  REQUIRE(header);
  const auto& tensors = header.value().tensors;
  REQUIRE(tensors.size() == 2);
  CHECK(tensors[0].name == "a");
  CHECK(tensors[0].shape.empty());
  CHECK(tensors[1].name == "b");
  CHECK(tensors[1].type == StoredType::bf16);
  CHECK(tensors[1].shape == std::vector<int64_t>{2, 3});
  CHECK(tensors[1].begin == static_cast<int64_t>(8 + text.size() + 4));
  CHECK(tensors[1].end - tensors[1].begin == 12);
}

TEST_CASE("safetensors: every known dtype has its size and others are named", "[weights]") {
  for (const char* name : {"F64",
                           "F32",
                           "F16",
                           "BF16",
                           "F8_E4M3",
                           "F8_E5M2",
                           "I64",
                           "I32",
                           "I16",
                           "I8",
                           "U8",
                           "BOOL"}) {
    const auto type = stored_type_from_name(name);
    REQUIRE(type);
    const auto bytes = static_cast<size_t>(stored_size(*type)) * 3;
    CHECK(parse_with(std::string(R"({"t":{"dtype":")") + name +
                         R"(","shape":[3],"data_offsets":[0,)" + std::to_string(bytes) + "]}}",
                     bytes));
  }
  const std::string message = failure(R"({"t":{"dtype":"F4","shape":[3],"data_offsets":[0,3]}})");
  CHECK(message.find("'t'") != std::string::npos);
  CHECK(message.find("'F4'") != std::string::npos);
}

TEST_CASE("safetensors: damaged headers say what was expected and found", "[weights]") {
  struct Case {
    const char* header;
    const char* says;
  };

  const Case cases[] = {
      {R"({"t":{"dtype":"F32","shape":[4],"data_offsets":[0,12]}})",
       "takes 16 bytes, found a range of 12"},
      {R"({"t":{"dtype":"F32","shape":[32],"data_offsets":[0,128]}})",
       "not inside the file's 64 bytes"},
      {R"({"t":{"dtype":"U8","shape":[0],"data_offsets":[9,8]}})", "not inside"},
      {R"({"t":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"u":{"dtype":"U8","shape":[8],"data_offsets":[7,15]}})",
       "overlap tensor 't'"},
      {R"({"t":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"t":{"dtype":"U8","shape":[8],"data_offsets":[8,16]}})",
       "duplicate tensor"},
      {R"({"t":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,16]}})",
       "over 2^63"},
      {R"({"t":{"dtype":"U8","shape":[-1],"data_offsets":[0,16]}})", "negative number -1"},
      {R"({"t":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,16]}})",
       "unexpected number 18446744073709551615"},
      {R"({"t":{"dtype":"U8","shape":[1.5],"data_offsets":[0,16]}})", "unexpected number 1.5"},
      {R"({"t":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}})", "more than 8"},
      {R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0]}})", "two data_offsets"},
      {R"({"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}})", "more than 2"},
      {R"({"t":{"dtype":"U8","data_offsets":[0,1]}})", "expected dtype, shape"},
      {R"({"t":{"dtype":"U8","shape":[1],"shape":[1],"data_offsets":[0,1]}})", "given twice"},
      {R"({"t":{"dtype":8,"shape":[1],"data_offsets":[0,1]}})", "unexpected a number"},
      {R"({"t":{"dtype":"U8","shape":[[1]],"data_offsets":[0,1]}})", "unexpected an array"},
      {R"({"t":{"dtype":"U8","shape":{"a":1},"data_offsets":[0,1]}})", "unexpected an object"},
      {R"({"t":{"dtype":"U8","shape":[1],"offset":[0,1]}})", "unknown field 'offset'"},
      {R"({"t":null})", "unexpected null"},
      {R"([1])", "not a JSON object"},
      {R"(3)", "not a JSON object"},
      {R"({"t":)", "not valid JSON"},
      {"", "not valid JSON"},
  };
  for (const Case& c : cases) {
    INFO(c.header);
    CHECK_THAT(failure(c.header), Catch::Matchers::Contains(c.says));
  }
}

TEST_CASE("safetensors: the length prefix is checked before use", "[weights]") {
  CHECK_FALSE(parse(""));
  CHECK_FALSE(parse("1234567"));
  std::string huge(64, '\xff');
  const auto result = parse(huge);
  REQUIRE_FALSE(result);
  CHECK_THAT(result.error().message, Catch::Matchers::Contains("exceeds the limit"));
  std::string longer = safetensors_bytes("{}", "");
  longer[0] = 100;
  const auto truncated = parse(longer);
  REQUIRE_FALSE(truncated);
  CHECK_THAT(truncated.error().message, Catch::Matchers::Contains("exceeds the file's"));
}

TEST_CASE("safetensors: a million brackets do not recurse", "[weights]") {
  CHECK_FALSE(parse_with(std::string(1'000'000, '['), 0));
  CHECK_FALSE(parse_with(R"({"t":)" + std::string(1'000'000, '{'), 0));
  CHECK_FALSE(parse_safetensors_index(R"({"metadata":)" + std::string(1'000'000, '[')));
}

TEST_CASE("safetensors: random damage never crashes and never yields a range outside",
          "[weights]") {
  const std::string good =
      safetensors_bytes(R"({"a":{"dtype":"F32","shape":[2,4],"data_offsets":[0,32]},)"
                        R"("b":{"dtype":"F8_E4M3","shape":[32],"data_offsets":[32,64]}})",
                        std::string(64, 'x'));
  REQUIRE(parse(good));
  std::mt19937 random(20260101);
  for (int round = 0; round < 20000; ++round) {
    std::string bad = good;
    for (uint32_t n = random() % 4 + 1; n > 0; --n) {
      bad[random() % bad.size()] =
          static_cast<char>(random() % 2 == 0 ? random() % 256 : '0' + random() % 10);
    }
    if (const auto header = parse(bad)) {
      for (const TensorRecord& tensor : header.value().tensors) {
        REQUIRE(tensor.begin >= header.value().data_begin);
        REQUIRE(tensor.end >= tensor.begin);
        REQUIRE(tensor.end <= static_cast<int64_t>(bad.size()));
      }
    }
  }
}

TEST_CASE("safetensors: the index gives plain file names only", "[weights]") {
  const auto index = parse_safetensors_index(
      R"({"metadata":{"total_size":12,"x":[1,{"y":null}]},"weight_map":{"a":"1.safetensors","b":"2.safetensors"}})");
  REQUIRE(index);
  CHECK(index.value().size() == 2);
  CHECK(index.value().at("b") == "2.safetensors");
  for (const char* bad : {R"({"weight_map":{"a":"../x"}})",
                          R"({"weight_map":{"a":"/etc/passwd"}})",
                          R"({"weight_map":{"a":".."}})",
                          R"({"weight_map":{"a":""}})",
                          R"({"weight_map":{"a":"x\u0000y"}})",
                          R"({"weight_map":{"a":1}})",
                          R"({"weight_map":{"a":["x"]}})",
                          R"({"weight_map":{"a":"x","a":"y"}})",
                          R"({"weight_map":["x"]})",
                          R"({"weight_map":"x"})",
                          R"({"weight_map":{}})",
                          R"({"metadata":{}})",
                          R"([])",
                          R"({"weight_map")"}) {
    INFO(bad);
    CHECK_FALSE(parse_safetensors_index(bad));
  }
}

}  // namespace
}  // namespace hadal
