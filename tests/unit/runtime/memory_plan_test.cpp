// Pages from bytes, at the edges.
#include <hadal/runtime/memory_plan.h>

#include "catch.h"

namespace hadal {
namespace {

PageBudget budget() {
  PageBudget result;
  result.free_bytes = 1'000'000;
  result.memory_fraction = 0.5;
  result.fixed_bytes = 100'000;
  result.kv_bytes_per_token = 100;  // 6400 bytes a page: 62.5 pages fit
  result.useful_tokens = 1'000'000;
  return result;
}

TEST_CASE("plan_pages: takes what fits, what is useful, or what was asked for", "[runtime]") {
  PageBudget b = budget();
  CHECK(plan_pages(b).value() == 62);
  b.useful_tokens = 65;
  CHECK(plan_pages(b).value() == 2);
  b.max_total_tokens = 640;
  CHECK(plan_pages(b).value() == 10);
  b.max_total_tokens = 641;
  CHECK(plan_pages(b).value() == 11);
}

TEST_CASE("plan_pages: says what is needed and had when it does not fit", "[runtime]") {
  PageBudget b = budget();
  b.max_total_tokens = 64 * 63;
  const auto asked = plan_pages(b);
  REQUIRE_FALSE(asked);
  CHECK(asked.error().code == ErrorCode::resource_exhausted);
  CHECK_THAT(asked.error().message, Catch::Matchers::Contains("63 KV pages 403.2 kB"));
  b = budget();
  b.fixed_bytes = 499'000;
  CHECK_FALSE(plan_pages(b));
  b.fixed_bytes = 600'000;
  CHECK_FALSE(plan_pages(b));
}

TEST_CASE("memory plan: graphs count and are named, where there are any", "[runtime]") {
  MemoryPlan plan;
  plan.weight_bytes = 1000;
  plan.rope_bytes = 10;
  CHECK_THAT(to_text(plan), !Catch::Matchers::Contains("CUDA graphs"));
  plan.graph_bytes = 7'000'000;
  CHECK(plan.fixed_bytes() == 7'001'010);
  CHECK_THAT(to_text(plan), Catch::Matchers::Contains("CUDA graphs, at most"));
  CHECK_THAT(to_text(plan), Catch::Matchers::Contains("7.00 MB"));
}

}  // namespace
}  // namespace hadal
