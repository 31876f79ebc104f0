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
  CHECK_THAT(status.error().message, Contains("num_attention_heads 128") && Contains("tp 24"));
  const auto lite = parse_deepseek_config(kV2LiteConfig);
  REQUIRE(lite);
  const auto experts = check_layout(lite.value(), make_parallel_layout(16, 8, 0).value());
  CHECK(experts);
}

}  // namespace
}  // namespace hadal
