// Frames cut anywhere, and what is not a frame.
#include "frame.h"

#include <random>

#include "catch.h"
#include "wire.h"

using namespace hadal;

namespace {

std::vector<std::byte> random_bytes(std::mt19937& random, size_t size) {
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) {
    byte = static_cast<std::byte>(random() & 0xFFU);
  }
  return bytes;
}

}  // namespace

TEST_CASE("frames survive any cut of the stream", "[cluster]") {
  std::mt19937 random(7);
  std::vector<std::byte> stream;
  std::vector<std::vector<std::byte>> payloads;
  for (size_t i = 0; i < 40; ++i) {
    payloads.push_back(random_bytes(random, random() % 3000));
    const auto bytes = encode_frame(static_cast<uint16_t>(i + 1), payloads.back());
    stream.insert(stream.end(), bytes.begin(), bytes.end());
  }
  FrameReader reader(3000);
  size_t num_read = 0;
  for (size_t at = 0; at < stream.size();) {
    const size_t size = std::min<size_t>(1 + random() % 700, stream.size() - at);
    reader.feed(std::span(stream).subspan(at, size));
    at += size;
    while (true) {
      const auto frame = reader.next();
      REQUIRE(frame);
      if (!frame.value()) {
        break;
      }
      CHECK(frame.value()->type == num_read + 1);
      CHECK(frame.value()->payload == payloads[num_read]);
      ++num_read;
    }
  }
  CHECK(num_read == payloads.size());
}

TEST_CASE("a frame that is too long is refused by its head alone", "[cluster]") {
  FrameReader reader(100);
  const auto bytes = encode_frame(5, std::vector<std::byte>(101));
  reader.feed(std::span(bytes).first(kFrameHeadBytes));
  const auto frame = reader.next();
  REQUIRE_FALSE(frame);
  CHECK(frame.error().code == ErrorCode::data_loss);
  CHECK(frame.error().message == "a frame of 101 bytes, expected at most 100");
}

TEST_CASE("garbage is no frame", "[cluster]") {
  std::mt19937 random(3);
  for (int i = 0; i < 2000; ++i) {
    FrameReader reader(1 << 20);
    reader.feed(random_bytes(random, kFrameHeadBytes + random() % 64));
    CHECK_FALSE(reader.next());
  }
  // A good head with one byte changed.
  const auto good = encode_frame(5, std::vector<std::byte>(4));
  for (const size_t at : {0U, 1U, 2U, 3U, 6U, 7U, 11U}) {
    auto bad = good;
    bad[at] ^= std::byte{0x40};
    FrameReader reader(1024);
    reader.feed(bad);
    CHECK_FALSE(reader.next());
  }
}

TEST_CASE("wire: a reader never goes beyond its input", "[cluster]") {
  WireWriter out;
  out.put_u32(7);
  out.put_text("word");
  WireReader in(out.bytes());
  CHECK(in.get_u32() == 7);
  CHECK(in.get_text(4) == "word");
  CHECK(in.is_done());
  CHECK(in.get_u64() == 0);
  CHECK_FALSE(in.ok());
  WireReader capped(out.bytes());
  capped.get_u32();
  CHECK(capped.get_text(3).empty());
  CHECK_FALSE(capped.ok());
  WireWriter liar;
  liar.put_u32(0xFFFFFFFF);
  WireReader lied_to(liar.bytes());
  CHECK(lied_to.get_text(SIZE_MAX).empty());
  CHECK_FALSE(lied_to.ok());
}
