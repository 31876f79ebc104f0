// Frequencies against values of the reference (float32) and against the formula's landmarks.
#include <cmath>

#include <hadal/model/config.h>

#include "catch.h"
#include "configs.h"

namespace hadal {
namespace {

TEST_CASE("rope: YaRN keeps fast waves, stretches slow ones and ramps between", "[model]") {
  const auto config = parse_deepseek_config(kR1Config);
  REQUIRE(config);
  const std::vector<float> frequencies = rope_inverse_frequencies(config.value());
  REQUIRE(frequencies.size() == 32);
  for (size_t i = 0; i < 32; ++i) {
    const double plain = std::pow(10000.0, -2.0 * static_cast<double>(i) / 64.0);
    const double ramp = std::min(std::max((static_cast<double>(i) - 10.0) / 13.0, 0.0), 1.0);
    CHECK(frequencies[i] == Approx(plain / 40.0 * ramp + plain * (1.0 - ramp)).epsilon(1e-6));
  }
  CHECK(frequencies[0] == 1.0F);
}

TEST_CASE("rope: without scaling frequencies are plain", "[model]") {
  const auto config = parse_deepseek_config(kMoonlightConfig);
  REQUIRE(config);
  const std::vector<float> frequencies = rope_inverse_frequencies(config.value());
  CHECK(frequencies[31] == Approx(std::pow(50000.0, -62.0 / 64.0)).epsilon(1e-6));
  CHECK(rope_magnitude(config.value()) == 1.0F);
}

TEST_CASE("rope: equal correction bounds do not divide by zero", "[model]") {
  auto config = parse_deepseek_config(kR1Config);
  REQUIRE(config);
  DeepseekConfig kimi = config.value();
  kimi.yarn->beta_fast = 1.0;
  kimi.yarn->factor = 32.0;
  kimi.rope_theta = 50000.0;
  for (const float frequency : rope_inverse_frequencies(kimi)) {
    CHECK(std::isfinite(frequency));
    CHECK(frequency > 0.0F);
  }
}

}  // namespace
}  // namespace hadal
