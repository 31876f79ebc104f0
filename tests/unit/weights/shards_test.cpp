// A directory written for a layout gives every rank what the source gave, and nothing else.
#include <fstream>

#include <hadal/weights/readahead.h>
#include <hadal/weights/shards.h>

#include "catch.h"
#include "safetensors_file.h"

namespace hadal {
namespace {

using Catch::Matchers::Contains;

/// Two ranks: a matrix by rows, one by columns, its scale alike on both, a norm alike on both, and
/// a vocabulary whose last rank has nothing.
std::vector<std::vector<ShardRead>> two_ranks() {
  const WeightSpec up{"up.weight", {256, 64}, StoredType::f8_e4m3, 64};
  const WeightSpec down{"down.weight", {64, 256}, StoredType::f8_e4m3, 256};
  const WeightSpec scale{"down.weight_scale_inv", {1, 2}, StoredType::f32, 256};
  const WeightSpec norm{"norm.weight", {64}, StoredType::bf16, 64};
  const WeightSpec table{"embed_tokens.weight", {7, 64}, StoredType::bf16, 64};
  std::vector<std::vector<ShardRead>> ranks(2);
  for (int64_t rank = 0; rank < 2; ++rank) {
    ranks[static_cast<size_t>(rank)] = {{up, {rank * 128, 128, 0, 64}},
                                        {down, {0, 64, rank * 128, 128}},
                                        {scale, {0, 1, rank, 1}},
                                        {norm, {0, 1, 0, 64}},
                                        {table, {rank * 7, rank == 0 ? 7 : 0, 0, 64}}};
  }
  return ranks;
}

struct Sharded {
  Sharded() : source(make_dummy_weights(3)) {
    model.write("config.json", "{}");
    model.write("tokenizer.json", "[]");
    model.write("model.safetensors", "weights");
    REQUIRE(write_shards(args()));
  }

  ShardWriteArgs args() const {
    return {*source, model.path(), output.path(), {2, 1}, two_ranks(), {}};
  }

  std::string open_error(const ShardLayout& layout = {2, 1}) const {
    const auto store = open_shards(output.path(), layout);
    REQUIRE_FALSE(store);
    return store.error().message;
  }

  Status read_all(const WeightStore& store) const {
    std::vector<WantedRange> wanted;
    for (const auto& reads : two_ranks()) {
      for (const ShardRead& read : reads) {
        if (const auto range = store.range(read.spec, read.slice)) {
          wanted.push_back({*range, 0});
        }
      }
    }
    Readahead readahead(store.files(), plan_reads(wanted, store.files()), {});
    return readahead.finish();
  }

  TempDirectory model;
  TempDirectory output;
  std::unique_ptr<WeightStore> source;
};

std::vector<std::byte> bytes_of(const WeightStore& store, const ShardRead& read) {
  const auto count = read.slice.num_rows * read.slice.num_cols * stored_size(read.spec.type);
  std::vector<std::byte> bytes(static_cast<size_t>(count));
  const Status status = store.read(read.spec, read.slice, bytes);
  INFO((status ? "" : status.error().message));
  REQUIRE(status);
  return bytes;
}

TEST_CASE("shards: every rank reads what the source holds", "[weights]") {
  const Sharded sharded;
  const auto store = open_shards(sharded.output.path(), {2, 1});
  REQUIRE(store);
  for (const auto& reads : two_ranks()) {
    for (const ShardRead& read : reads) {
      INFO(read.spec.name);
      CHECK(bytes_of(*store.value(), read) == bytes_of(*sharded.source, read));
    }
  }
  CHECK(sharded.read_all(*store.value()));
  CHECK(std::filesystem::exists(sharded.output.path() / "tokenizer.json"));
  CHECK_FALSE(std::filesystem::exists(sharded.output.path() / "model.safetensors"));
  CHECK(has_shards(sharded.output.path()));
}

TEST_CASE("shards: a rank's file holds its tensors in load order, one after the other",
          "[weights]") {
  const Sharded sharded;
  const auto store = open_shards(sharded.output.path(), {2, 1});
  REQUIRE(store);
  int64_t end = 0;
  const std::vector<ShardRead> reads = two_ranks()[1];
  for (const ShardRead& read : reads) {
    const auto range = store.value()->range(read.spec, read.slice);
    if (read.spec.name == "norm.weight") {
      CHECK(range->file == 2);  // shared
    } else if (range) {
      CHECK(range->file == 1);
      CHECK((end == 0 || range->begin == end));
      CHECK((end != 0 || range->begin % 4096 == 0));
      end = range->end;
    }
  }
  CHECK(end == store.value()->files()[1].size_bytes);
}

TEST_CASE("shards: another layout, and damage, are named", "[weights]") {
  const Sharded sharded;
  const auto rank_1 = sharded.output.path() / "rank-00001.safetensors";
  SECTION("layout") {
    CHECK_THAT(sharded.open_error({4, 1}),
               Contains("was sharded for --tp 2 --ep-size 1, got --tp 4 --ep-size 1"));
    CHECK_THAT(sharded.open_error({2, 2}), Contains("got --tp 2 --ep-size 2"));
  }
  SECTION("a slice that no rank had") {
    const auto store = open_shards(sharded.output.path(), {2, 1});
    REQUIRE(store);
    std::vector<std::byte> out(64 * 64);
    const Status status = store.value()->read(two_ranks()[0][0].spec, {96, 64, 0, 64}, out);
    REQUIRE_FALSE(status);
    CHECK_THAT(status.error().message, Contains("up.weight@96:64,0:64"));
  }
  SECTION("a file that is shorter") {
    std::filesystem::resize_file(rank_1, 5000);
    CHECK_THAT(sharded.open_error(), Contains("rank-00001.safetensors: 5000 bytes, expected"));
  }
  SECTION("a file that is gone") {
    std::filesystem::remove(rank_1);
    CHECK_THAT(sharded.open_error(), Contains("rank-00001.safetensors"));
  }
  SECTION("a flipped bit in a weight") {
    std::fstream file(rank_1, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(6000);
    file.put('\x55');
    file.close();
    const auto store = open_shards(sharded.output.path(), {2, 1});
    REQUIRE(store);
    const Status status = sharded.read_all(*store.value());
    REQUIRE_FALSE(status);
    CHECK_THAT(status.error().message, Contains("rank-00001.safetensors is damaged"));
  }
  SECTION("a manifest that is no manifest") {
    for (const char* text : {"",
                             "{",
                             "[]",
                             R"({"format":"x"})",
                             R"({"format":"hadal-shards","version":1,"block_bytes":8388608})",
                             R"({"format":"hadal-shards","version":1,"block_bytes":8388608,"tp":2,
                                 "ep":1,"files":[{"name":"../x","size_bytes":0,"crc32c":[]}]})"}) {
      sharded.output.write("hadal_shards.json", text);
      CHECK_THAT(sharded.open_error(), Contains("hadal_shards.json"));
    }
  }
  SECTION("an output in use") {
    const Status status = write_shards(sharded.args());
    REQUIRE_FALSE(status);
    CHECK_THAT(status.error().message, Contains("is in use"));
  }
}

}  // namespace
}  // namespace hadal
