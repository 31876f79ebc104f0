// The layout of cached tokens, and the scales of FP8 latents.
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "catch.h"
#include "op_test.h"
#include "step_fixture.h"

namespace hadal::test {

namespace {

float scale_of(float amax) {
  return std::bit_cast<float>(kv_scale_bits(std::bit_cast<uint32_t>(amax)));
}

}  // namespace

TEST_CASE("kv record: DeepSeek's token takes 656 bytes in FP8, 1152 in BF16", "[ops]") {
  const KvRecord fp8{DType::f8_e4m3, 512, 64};
  CHECK(fp8.scales_at() == 512);
  CHECK(fp8.rope_at() == 528);
  CHECK(fp8.size_bytes() == 656);
  CHECK(fp8.elements() == 656);
  const KvRecord bf16{DType::bf16, 512, 64};
  CHECK(bf16.rope_at() == 1024);
  CHECK(bf16.size_bytes() == 1152);
  CHECK(bf16.elements() == 576);
  // A group and a part; codes padded to the scales' alignment.
  const KvRecord odd{DType::f8_e4m3, 129, 6};
  CHECK(odd.scales_at() == 132);
  CHECK(odd.rope_at() == 140);
  CHECK(odd.size_bytes() == 152);
  for (const KvRecord& record : {fp8, bf16, odd, KvRecord{DType::f32, 40, 10}}) {
    const GuardedTensor page(record.dtype, Shape{1, 64, record.elements()});
    CHECK(kv_record(page.view(), record.latents).rope == record.rope);
  }
}

TEST_CASE("kv record: a scale is the least power of two that fits, exactly", "[ops]") {
  for (int exponent = -22; exponent <= 7; ++exponent) {
    const float power = std::exp2(static_cast<float>(exponent));
    const float amax = 448.0F * power;
    CHECK(scale_of(amax) == power);
    if (exponent < 7) {
      CHECK(scale_of(std::nextafter(amax, 1e30F)) == 2.0F * power);
    }
    const float inverse =
        std::bit_cast<float>(kv_scale_inverse_bits(std::bit_cast<uint32_t>(power)));
    CHECK(inverse * power == 1.0F);
  }
  Random random(5);
  std::uniform_real_distribution<float> spread(-12.0F, 10.0F);
  for (int i = 0; i < 10000; ++i) {
    const float amax = std::exp2(spread(random));
    REQUIRE(static_cast<double>(scale_of(amax)) == kv_scale(static_cast<double>(amax)));
  }
  CHECK(scale_of(0.0F) == scale_of(1e-4F));
  for (const float amax : {std::nextafter(57344.0F, 1e9F),
                           std::numeric_limits<float>::infinity(),
                           std::numeric_limits<float>::quiet_NaN()}) {
    CHECK(std::isnan(scale_of(amax)));
  }
}

TEST_CASE("kv record: a latent that is not a number shows in its group alone", "[ops]") {
  const KvRecord record{DType::f8_e4m3, 256, 2};
  std::vector<float> token(258, 1.5F);
  token[130] = std::numeric_limits<float>::quiet_NaN();
  const GuardedTensor slot(DType::f8_e4m3, Shape{record.elements()});
  write_kv_record(record, token.data(), slot.view().data);
  float scales[2];
  std::memcpy(scales, slot.view().data + record.scales_at(), sizeof scales);
  CHECK(scales[0] == std::exp2(-8.0F));
  CHECK(e4m3_to_f32(slot.view().as<uint8_t>()[7]) * scales[0] == 1.5F);
  CHECK(std::isnan(scales[1]));
  CHECK(slot.guards_are_whole());
}

}  // namespace hadal::test
