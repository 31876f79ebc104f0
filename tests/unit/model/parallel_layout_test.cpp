// The layout is one value from flags; what does not divide is named.
#include <hadal/model/parallel_layout.h>

#include "catch.h"
#include "configs.h"

namespace hadal {
namespace {

using Catch::Matchers::Contains;

TEST_CASE("layout: ranks of an expert group are neighbours", "[model]") {
  const auto layout = make_parallel_layout(8, 2, 5);
  REQUIRE(layout);
  CHECK(layout.value().moe_tp == 4);
  CHECK(layout.value().moe_ep == 2);
  CHECK(layout.value().moe_ep_rank() == 1);
  CHECK(layout.value().moe_tp_rank() == 1);
}

TEST_CASE("layout: flags that cannot be are refused", "[model]") {
  CHECK_FALSE(make_parallel_layout(0, 1, 0));
  CHECK_FALSE(make_parallel_layout(4, 3, 0));
  CHECK_FALSE(make_parallel_layout(4, 0, 0));
  CHECK_FALSE(make_parallel_layout(4, 1, 4));
}

TEST_CASE("layout: sizes that do not divide are named", "[model]") {
  const auto config = parse_deepseek_config(kR1Config);
  REQUIRE(config);
  CHECK(check_layout(config.value(), make_parallel_layout(16, 1, 3).value()));
  CHECK(check_layout(config.value(), make_parallel_layout(16, 16, 3).value()));
  const auto status = check_layout(config.value(), make_parallel_layout(24, 1, 0).value());
  REQUIRE_FALSE(status);
  CHECK_THAT(status.error().message,
             Contains("num_attention_heads 128") && Contains("--tp-size 24") &&
                 Contains("--tp-size can be 1, 2, 4, 8, 16"));
  const auto lite = parse_deepseek_config(kV2LiteConfig);
  REQUIRE(lite);
  const auto experts = check_layout(lite.value(), make_parallel_layout(16, 8, 0).value());
  CHECK(experts);
}

TEST_CASE("layout: cuts inside FP8 blocks are refused with the degrees that fit", "[model]") {
  const auto r1 = parse_deepseek_config(kR1Config);
  REQUIRE(r1);
  for (const auto& [tp, ep] : {std::pair{1, 1}, {8, 1}, {16, 1}, {16, 2}, {16, 16}}) {
    CHECK(check_fp8_blocks(r1.value(), make_parallel_layout(tp, ep, 0).value()));
  }
  const auto refused = [&](int32_t tp, int32_t ep) {
    const auto layout = make_parallel_layout(tp, ep, 0).value();
    REQUIRE(check_layout(r1.value(), layout));
    const auto status = check_fp8_blocks(r1.value(), layout);
    REQUIRE_FALSE(status);
    CHECK(status.error().code == ErrorCode::invalid_argument);
    return status.error().message;
  };
  CHECK(refused(32, 1) ==
        "parallel layout: --tp-size 32 cuts intermediate_size 18432 into slices of 576, inside the "
        "checkpoint's 128 x 128 FP8 blocks; with --ep-size 1, --tp-size can be 1, 2, 4, 8, 16");
  CHECK_THAT(refused(32, 2), Contains("with --ep-size 2, --tp-size can be 2, 4, 8, 16"));
  const auto lite = parse_deepseek_config(kV2LiteConfig);
  REQUIRE(lite);
  CHECK(check_fp8_blocks(lite.value(), make_parallel_layout(16, 1, 0).value()));
}

TEST_CASE("layout: pipeline and data parallelism are refused by name", "[model]") {
  const auto pipeline = make_parallel_layout({.tp = 8, .ep = 1, .pp = 2, .dp = 1}, 0);
  REQUIRE_FALSE(pipeline);
  CHECK(pipeline.error().code == ErrorCode::unsupported);
  CHECK_THAT(pipeline.error().message, Contains("--pp-size"));
  const auto data = make_parallel_layout({.tp = 8, .ep = 1, .pp = 1, .dp = 8}, 0);
  REQUIRE_FALSE(data);
  CHECK_THAT(data.error().message, Contains("--dp-size"));
}

}  // namespace
}  // namespace hadal
