// What a node reads: every wanted byte once, in load order, and damage is noticed on the way.
#include <map>
#include <random>
#include <thread>

#include <hadal/weights/readahead.h>

#include "catch.h"
#include "crc32c.h"
#include "safetensors_file.h"

namespace hadal {
namespace {

using Catch::Matchers::Contains;

constexpr int64_t kBlock = kFileBlockBytes;

std::span<const std::byte> bytes_of(const std::string& text) {
  return std::as_bytes(std::span(text));
}

/// How often each unit of 4 KiB of a file is read.
std::map<std::pair<int32_t, int64_t>, int> count_units(const std::vector<FileRange>& plan) {
  constexpr int64_t kUnit = 4096;
  std::map<std::pair<int32_t, int64_t>, int> counts;
  for (const FileRange& range : plan) {
    for (int64_t at = range.begin; at < range.end; at += kUnit) {
      ++counts[{range.file, at / kUnit}];
    }
  }
  return counts;
}

TEST_CASE("crc32c: the vectors of RFC 3720, with and without the instruction", "[weights]") {
  const std::string zeros(32, '\0');
  const std::string ones(32, '\xff');
  std::string up;
  for (int i = 0; i < 32; ++i) {
    up.push_back(static_cast<char>(i));
  }
  for (const auto& checksum : {crc32c, crc32c_portable}) {
    CHECK(checksum(bytes_of(zeros), 0) == 0x8a9136aa);
    CHECK(checksum(bytes_of(ones), 0) == 0x62a8ab43);
    CHECK(checksum(bytes_of(up), 0) == 0x46dd794e);
    CHECK(checksum(bytes_of(up).subspan(13), checksum(bytes_of(up).first(13), 0)) == 0x46dd794e);
  }
}

TEST_CASE("read plan: overlaps once, small gaps closed, large ones skipped", "[weights]") {
  const std::vector<FileRange> plan = plan_reads({{{0, 100, 200}, 5},
                                                  {{0, 150, 300}, 5},
                                                  {{0, 100, 200}, 7},
                                                  {{0, 300 + 4096, 9000}, 6},
                                                  {{0, 5'000'000, 5'000'100}, 1},
                                                  {{1, 0, 10}, 3}});
  REQUIRE(plan.size() == 3);
  CHECK(plan[0].begin == 5'000'000);  // wanted first
  CHECK(plan[1].file == 1);
  CHECK(plan[2].begin == 100);
  CHECK(plan[2].end == 9000);
  CHECK(total_bytes(plan) == 100 + 10 + 8900);
}

TEST_CASE("read plan: blocks follow the order, and files take turns", "[weights]") {
  const std::vector<FileRange> plan = plan_reads(
      {{{0, 0, 3 * kBlock}, 0}, {{0, 3 * kBlock, 4 * kBlock}, 1}, {{1, 0, 2 * kBlock}, 0}});
  REQUIRE(plan.size() == 6);
  const std::vector<std::pair<int32_t, int64_t>> expected = {
      {0, 0}, {1, 0}, {0, 1}, {1, 1}, {0, 2}, {0, 3}};
  for (size_t i = 0; i < plan.size(); ++i) {
    CHECK(plan[i].file == expected[i].first);
    CHECK(plan[i].begin == expected[i].second * kBlock);
  }
}

TEST_CASE("read plan: any wishes are covered, and nothing is read twice", "[weights]") {
  std::mt19937_64 random(7);
  for (int round = 0; round < 50; ++round) {
    std::vector<WantedRange> wanted;
    for (int i = 0; i < 40; ++i) {
      const auto begin = static_cast<int64_t>(random() % 10'000) * 4096;
      const auto size = static_cast<int64_t>(1 + random() % 300) * 4096;
      wanted.push_back({{static_cast<int32_t>(random() % 3), begin, begin + size},
                        static_cast<int64_t>(random() % 8)});
    }
    const auto counts = count_units(plan_reads(wanted));
    int twice = 0;
    for (const auto& [unit, count] : counts) {
      twice += count > 1 ? 1 : 0;
    }
    REQUIRE(twice == 0);
    std::vector<FileRange> wishes;
    for (const WantedRange& wish : wanted) {
      wishes.push_back(wish.range);
    }
    int missing = 0;
    for (const auto& [unit, count] : count_units(wishes)) {
      missing += counts.count(unit) == 0 ? 1 : 0;
    }
    REQUIRE(missing == 0);
  }
}

struct OneFile {
  OneFile() {
    std::string text(static_cast<size_t>(2 * kBlock + 1000), '\0');
    std::mt19937 random(3);
    for (char& byte : text) {
      byte = static_cast<char>(random());
    }
    dir.write("f.safetensors", text);
    file.path = dir.path() / "f.safetensors";
    file.size_bytes = static_cast<int64_t>(text.size());
    for (int64_t at = 0; at < file.size_bytes; at += kBlock) {
      file.block_crc32c.push_back(
          crc32c(bytes_of(text.substr(static_cast<size_t>(at), static_cast<size_t>(kBlock)))));
    }
  }

  std::vector<FileRange> all() const { return plan_reads({{{0, 0, file.size_bytes}, 0}}); }

  TempDirectory dir;
  StoredFile file;
};

TEST_CASE("readahead: processes that share a node read each byte once between them", "[weights]") {
  const OneFile one;
  int64_t bytes = 0;
  for (int32_t share = 0; share < 2; ++share) {
    ReadaheadConfig config;
    config.share_index = share;
    config.share_count = 2;
    Readahead readahead({one.file}, one.all(), config);
    REQUIRE(readahead.finish());
    CHECK(readahead.bytes_read() == (share == 0 ? kBlock + 1000 : kBlock));
    bytes += readahead.bytes_read();
  }
  CHECK(bytes == one.file.size_bytes);
}

TEST_CASE("readahead: a damaged block is named", "[weights]") {
  OneFile one;
  SECTION("sound") {
    Readahead readahead({one.file}, one.all(), {});
    CHECK(readahead.finish());
  }
  SECTION("one bit") {
    one.file.block_crc32c[1] ^= 1;
    Readahead readahead({one.file}, one.all(), {});
    const Status status = readahead.finish();
    REQUIRE_FALSE(status);
    CHECK(status.error().code == ErrorCode::data_loss);
    CHECK_THAT(status.error().message,
               Contains("f.safetensors is damaged: bytes 8388608..16777216"));
  }
  SECTION("a file that was cut") {
    std::filesystem::resize_file(one.file.path, 5000);
    Readahead readahead({one.file}, one.all(), {});
    const Status status = readahead.finish();
    REQUIRE_FALSE(status);
    CHECK_THAT(status.error().message, Contains("f.safetensors") && Contains("shorter"));
  }
  SECTION("a file that is gone") {
    std::filesystem::remove(one.file.path);
    Readahead readahead({one.file}, one.all(), {});
    const Status status = readahead.finish();
    REQUIRE_FALSE(status);
    CHECK_THAT(status.error().message, Contains("cannot open") && Contains("f.safetensors"));
  }
}

TEST_CASE("readahead: it waits for ranks that are far behind", "[weights]") {
  const OneFile one;
  std::atomic<double> fraction{0.0};
  ReadaheadConfig config;
  config.num_queues = 1;
  config.lead_bytes = 0;
  config.fraction_consumed = [&fraction] { return fraction.load(); };
  Readahead readahead({one.file}, one.all(), config);
  while (readahead.bytes_read() < kBlock) {
    std::this_thread::yield();
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  CHECK(readahead.bytes_read() == kBlock);  // position 0 was due at once, no other
  fraction = 1.0;
  while (readahead.bytes_read() < one.file.size_bytes) {
    std::this_thread::yield();
  }
  CHECK(readahead.finish());
}

}  // namespace
}  // namespace hadal
