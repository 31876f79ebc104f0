// Directories on disk: single and sharded, whole and damaged, slices against the whole.
#include <cstring>

#include <hadal/weights/weight_store.h>

#include "catch.h"
#include "safetensors_file.h"

namespace hadal {
namespace {

using Catch::Matchers::Contains;

std::string u8_tensor(const std::string& name, int begin, int end) {
  return "\"" + name + "\":{\"dtype\":\"U8\",\"shape\":[" + std::to_string(end - begin) +
         "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]}";
}

std::string error_of(const std::filesystem::path& directory) {
  const auto store = open_checkpoint(directory);
  REQUIRE_FALSE(store);
  return store.error().message;
}

TEST_CASE("checkpoint: any slice equals the same part of the whole", "[weights]") {
  const TempDirectory dir;
  std::string data(5 * 7 * 2, '\0');
  for (size_t i = 0; i < data.size(); ++i) {
    data[i] = static_cast<char>(i);
  }
  dir.write(
      "model.safetensors",
      safetensors_bytes(R"({"w":{"dtype":"BF16","shape":[5,7],"data_offsets":[0,70]}})", data));
  const auto store = open_checkpoint(dir.path());
  REQUIRE(store);
  const WeightSpec spec{"w", {5, 7}, StoredType::bf16, 7};
  for (int64_t row = 0; row < 5; ++row) {
    for (int64_t col = 0; col < 7; ++col) {
      const WeightSlice slice{row, 5 - row, col, 7 - col};
      std::vector<std::byte> out(static_cast<size_t>(slice.num_rows * slice.num_cols * 2));
      REQUIRE(store.value()->read(spec, slice, out));
      size_t at = 0;
      for (int64_t r = row; r < 5; ++r) {
        const size_t bytes = static_cast<size_t>(slice.num_cols) * 2;
        REQUIRE(std::memcmp(out.data() + at, data.data() + (r * 7 + col) * 2, bytes) == 0);
        at += bytes;
      }
    }
  }
}

TEST_CASE("checkpoint: shards are found through the index", "[weights]") {
  const TempDirectory dir;
  dir.write("one.safetensors", safetensors_bytes("{" + u8_tensor("a", 0, 4) + "}", "aaaa"));
  dir.write("two.safetensors", safetensors_bytes("{" + u8_tensor("b", 0, 2) + "}", "bb"));
  dir.write("model.safetensors.index.json",
            R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  const auto store = open_checkpoint(dir.path());
  REQUIRE(store);
  std::vector<std::byte> out(2);
  REQUIRE(store.value()->read({"b", {2}, StoredType::u8, 1}, {0, 1, 0, 2}, out));
  CHECK(out[1] == std::byte{'b'});
  CHECK(store.value()->has("a"));
  CHECK_FALSE(store.value()->has("c"));
}

TEST_CASE("checkpoint: damage is one error that names file and tensor", "[weights]") {
  const TempDirectory dir;
  CHECK_THAT(error_of(dir.path()), Contains("neither model.safetensors.index.json nor"));
  const std::string index = R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})";
  const std::string one = safetensors_bytes("{" + u8_tensor("a", 0, 4) + "}", "aaaa");
  dir.write("model.safetensors.index.json", index);
  dir.write("one.safetensors", one);
  CHECK_THAT(error_of(dir.path()), Contains("cannot open") && Contains("two.safetensors"));
  dir.write("two.safetensors", safetensors_bytes("{" + u8_tensor("c", 0, 2) + "}", "cc"));
  CHECK_THAT(error_of(dir.path()), Contains("two.safetensors: tensor 'b' is missing"));
  dir.write(
      "two.safetensors",
      safetensors_bytes("{" + u8_tensor("a", 0, 2) + "," + u8_tensor("b", 2, 4) + "}", "aabb"));
  CHECK_THAT(error_of(dir.path()), Contains("tensor 'a' is in two files"));
  dir.write("two.safetensors", safetensors_bytes("{" + u8_tensor("b", 0, 4) + "}", "bb"));
  CHECK_THAT(error_of(dir.path()),
             Contains("two.safetensors: tensor 'b'") && Contains("truncated"));
  dir.write("two.safetensors", "");
  CHECK_THAT(error_of(dir.path()), Contains("two.safetensors: file of 0 bytes is too short"));
  dir.write("model.safetensors.index.json", "{");
  CHECK_THAT(error_of(dir.path()), Contains("index.json: not valid JSON"));
}

TEST_CASE("checkpoint: a tensor that is not as expected says both", "[weights]") {
  const TempDirectory dir;
  dir.write("model.safetensors", safetensors_bytes("{" + u8_tensor("a", 0, 4) + "}", "aaaa"));
  const auto store = open_checkpoint(dir.path());
  REQUIRE(store);
  const auto shape = store.value()->find({"a", {2, 2}, StoredType::u8, 1});
  REQUIRE_FALSE(shape);
  CHECK_THAT(shape.error().message,
             Contains("model.safetensors: tensor 'a': expected U8 [2, 2], found U8 [4]"));
  const auto type = store.value()->find({"a", {4}, StoredType::f8_e4m3, 1});
  REQUIRE_FALSE(type);
  CHECK_THAT(type.error().message, Contains("expected F8_E4M3 [4], found U8 [4]"));
  const auto missing = store.value()->find({"z", {4}, StoredType::bf16, 1});
  REQUIRE_FALSE(missing);
  CHECK(missing.error().code == ErrorCode::not_found);
  CHECK_THAT(missing.error().message, Contains("tensor 'z' is missing, expected BF16 [4]"));
}

TEST_CASE("checkpoint: plain floats are interchangeable and widen exactly", "[weights]") {
  const TempDirectory dir;
  const std::string halves("\x00\x3c\x00\xc0", 4);  // 1, -2 as F16
  const std::string brains("\x80\x3f\x00\xc0", 4);  // 1, -2 as BF16
  dir.write("model.safetensors",
            safetensors_bytes(R"({"h":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},)"
                              R"("b":{"dtype":"BF16","shape":[2],"data_offsets":[4,8]}})",
                              halves + brains));
  const auto store = open_checkpoint(dir.path());
  REQUIRE(store);
  for (const char* name : {"h", "b"}) {
    float values[2] = {0, 0};
    REQUIRE(read_f32(*store.value(), {name, {2}, StoredType::f32, 1}, {0, 1, 0, 2}, values));
    CHECK(values[0] == 1.0F);
    CHECK(values[1] == -2.0F);
  }
}

}  // namespace
}  // namespace hadal
