// Offline bounds on small traces whose answers can be counted by hand.
#include <numeric>

#include <hadal/sim/bounds.h>

#include "catch.h"

namespace hadal::sim {
namespace {

SimRequest ask(std::vector<TokenSegment> prompt, uint64_t output_seed, int32_t output_tokens = 1) {
  SimRequest request;
  request.prompt = std::move(prompt);
  request.output_seed = output_seed;
  request.output_tokens = output_tokens;
  request.max_new_tokens = output_tokens;
  return request;
}

ReuseBounds bounds_of(const std::vector<SimRequest>& requests, int32_t num_pages = 1'000) {
  std::vector<int32_t> order(requests.size());
  std::iota(order.begin(), order.end(), 0);
  return compute_bounds({"t", requests}, order, num_pages);
}

TEST_CASE("Bounds: an infinite cache reuses to the token, and leaves one", "[sim]") {
  const ReuseBounds b = bounds_of({ask({{1, 0, 200}}, 90),
                                   ask({{1, 0, 150}, {2, 0, 50}}, 91),
                                   ask({{1, 0, 200}}, 92),
                                   ask({{3, 0, 10}}, 93)});
  CHECK(b.num_prompt_tokens == 610);
  CHECK(b.infinite == 150 + 199);
  CHECK(b.whole_prompt == 0);
  CHECK(b.belady == b.infinite);
}

TEST_CASE("Bounds: the next turn reuses prompt and answer", "[sim]") {
  const ReuseBounds b =
      bounds_of({ask({{1, 0, 100}}, 90, 30), ask({{1, 0, 100}, {90, 0, 30}, {2, 0, 20}}, 91)});
  CHECK(b.infinite == 130);
  CHECK(b.whole_prompt == 130);
}

TEST_CASE("Bounds: Belady keeps what is used next", "[sim]") {
  // Documents of two pages; with room for two of them and the pages of answers, the circle
  // A B C A B C ... keeps one document each round where LRU keeps none.
  std::vector<SimRequest> requests;
  for (uint64_t i = 0; i < 30; ++i)
    requests.push_back(ask({{1 + i % 3, 0, 128}, {100 + i, 0, 2}}, 200 + i));
  const ReuseBounds whole = bounds_of(requests, 1'000);
  CHECK(whole.infinite == 27 * 128);
  CHECK(whole.belady == whole.infinite);
  const ReuseBounds tight = bounds_of(requests, 4);
  CHECK(tight.belady < whole.belady);
  CHECK(tight.belady > 27 * 128 / 3);
  CHECK(bounds_of(requests, 1).belady < tight.belady);
}

}  // namespace
}  // namespace hadal::sim
