// The eviction policies and the host tier: who goes first, where the KV goes, and how it comes
// back.
#include <algorithm>
#include <memory>

#include <hadal/sched/scheduler.h>

#include "catch.h"
#include "radix_cache.h"
#include "scheduler_harness.h"

namespace hadal {
namespace {

using Ask = SchedulerHarness::Ask;

std::vector<TokenId> words(TokenId family, int32_t num_tokens = 64) {
  std::vector<TokenId> tokens;
  for (int32_t i = 0; i < num_tokens; ++i)
    tokens.push_back((family * 331 + i) % 1000);
  return tokens;
}

struct Fixture {
  explicit Fixture(EvictionPolicy policy, int32_t num_host_pages = 0)
      : cache(pages, {policy, num_host_pages}) {}

  void insert(TokenId family, int32_t num_pages = 1, int32_t priority = 0) {
    const std::vector<TokenId> tokens = words(family, 64 * num_pages);
    Lease lease = cache.acquire("", PrefixMatch{}, priority);
    for (int32_t i = 0; i < num_pages; ++i) {
      if (pages.num_free() == 0)
        REQUIRE(cache.evict(1) == 1);
      const PageId page = pages.allocate();
      REQUIRE(cache.extend(lease,
                           std::span(tokens).subspan(static_cast<size_t>(i) * 64, 64),
                           page) == Extension::adopted);
    }
    cache.release(lease);
    cache.check_invariants();
  }

  void use(TokenId family) {
    Lease lease = cache.acquire("", cache.match("", words(family)));
    cache.release(lease);
  }

  bool knows(TokenId family) const { return cache.match("", words(family)).num_pages == 1; }

  PageAllocator pages{6};
  RadixCache cache;
};

TEST_CASE("RadixCache: lfu evicts the least used, the oldest of equals", "[sched]") {
  Fixture f(EvictionPolicy::lfu);
  for (TokenId family = 1; family <= 4; ++family)
    f.insert(family);
  for (int i = 0; i < 3; ++i)
    f.use(1);
  f.use(2);
  f.use(3);
  f.cache.check_invariants();
  f.cache.evict(1);
  CHECK_FALSE(f.knows(4));
  f.cache.evict(1);
  CHECK_FALSE(f.knows(2));
  f.cache.evict(1);
  CHECK_FALSE(f.knows(3));
  CHECK(f.knows(1));
}

TEST_CASE("RadixCache: lfu forgets what was popular once", "[sched]") {
  Fixture f(EvictionPolicy::lfu);
  f.insert(1);
  for (int i = 0; i < 9; ++i)
    f.use(1);
  int num_newer = 0;
  for (TokenId family = 2; f.knows(1) && num_newer < 40; ++family, ++num_newer) {
    f.insert(family);
    f.use(family);
    f.cache.evict(family > 3 ? 1 : 0);
    f.cache.check_invariants();
  }
  CHECK(num_newer > 3);
  CHECK(num_newer < 30);
}

TEST_CASE("RadixCache: priority evicts what urgent requests did not use", "[sched]") {
  Fixture f(EvictionPolicy::priority);
  f.insert(1, 1, 5);
  f.insert(2, 1, -1000);
  f.insert(3, 1, 0);
  f.use(2);
  f.cache.evict(1);
  CHECK(f.knows(2));  // used by a request of priority 0 since
  CHECK_FALSE(f.knows(3));
  f.cache.evict(1);
  CHECK_FALSE(f.knows(2));
  CHECK(f.knows(1));
}

TEST_CASE("RadixCache: ages of evicted pages are counted from their last use", "[sched]") {
  Fixture f(EvictionPolicy::lru);
  const auto at = [](int seconds) { return TimePoint{} + std::chrono::seconds(seconds); };
  f.cache.set_now(at(10));
  f.insert(1);
  f.insert(2);
  f.cache.set_now(at(15));
  f.use(1);
  f.cache.set_now(at(40));
  CHECK(f.cache.oldest_age_seconds() == 30.0);
  f.cache.evict(1);
  CHECK_FALSE(f.knows(2));
  CHECK(f.cache.evicted_age_seconds() == 30.0);
  CHECK(f.cache.oldest_age_seconds() == 25.0);
}

TEST_CASE("RadixCache: evicted pages are kept on the host and come back", "[sched]") {
  Fixture f(EvictionPolicy::lru, 4);
  f.insert(1, 3);
  CHECK(f.cache.evict(2) == 2);
  std::vector<PageMove> moves;
  f.cache.take_moves(moves);
  REQUIRE(moves.size() == 2);
  CHECK((moves[0].to_host && moves[1].to_host));
  CHECK(f.cache.num_host_pages_used() == 2);
  PrefixMatch match = f.cache.match("", words(1, 192));
  CHECK(match.num_pages == 1);
  CHECK(match.num_host_pages == 2);
  CHECK(f.cache.bring_back("", match, 1) == 1);
  f.cache.check_invariants();
  match = f.cache.match("", words(1, 192));
  CHECK(match.num_pages == 2);
  CHECK(f.cache.bring_back("", match, 5) == 1);
  CHECK(f.cache.match("", words(1, 192)).num_pages == 3);
  moves.clear();
  f.cache.take_moves(moves);
  REQUIRE(moves.size() == 2);
  CHECK_FALSE(moves[0].to_host);
  // Their copies are still there: evicted again, nothing has to move.
  f.cache.evict(2);
  moves.clear();
  f.cache.take_moves(moves);
  CHECK(moves.empty());
  CHECK(f.cache.match("", words(1, 192)).num_host_pages == 2);
  f.cache.check_invariants();
  f.cache.clear();
  CHECK(f.cache.num_host_pages_used() == 0);
  CHECK(f.pages.num_free() == 6);
}

TEST_CASE("RadixCache: a full host tier forgets its oldest, leaves first", "[sched]") {
  Fixture f(EvictionPolicy::lru, 4);
  std::vector<PageMove> moves;
  for (TokenId family = 1; family <= 8; ++family) {
    f.insert(family, 3);
    f.cache.take_moves(moves);
    f.cache.check_invariants();
    CHECK(f.cache.num_host_pages_used() <= 4);
  }
  const PrefixMatch newest = f.cache.match("", words(8, 192));
  CHECK(newest.num_pages == 3);
  CHECK(f.cache.match("", words(6, 192)).num_host_pages == 3);
  CHECK(f.cache.match("", words(1, 192)).num_tokens_in_all_tiers() == 0);
}

SchedulerConfig tier_config(int32_t num_host_pages) {
  SchedulerConfig config;
  config.num_pages = 24;
  config.max_slots = 4;
  config.max_step_tokens = 512;
  config.max_context_tokens = 1400;
  config.vocab_size = 1000;
  config.max_steps_in_flight = 2;
  config.num_host_pages = num_host_pages;
  config.max_pages_back_per_step = 4;
  return config;
}

TEST_CASE("Scheduler: with a host tier prompts are found again long after their pages went",
          "[sched]") {
  int64_t cached[2] = {0, 0};
  for (const int32_t num_host_pages : {0, 200}) {
    SchedulerHarness h(tier_config(num_host_pages));
    for (int round = 0; round < 3; ++round) {
      for (TokenId family = 0; family < 10; ++family)
        h.submit({words(family, 600), 5});
      h.drain();
    }
    const SchedulerStats stats = h.stats();
    cached[num_host_pages > 0 ? 1 : 0] = stats.num_cached_tokens;
    CHECK((stats.num_pages_brought_back > 0) == (num_host_pages > 0));
  }
  CHECK(cached[1] >= 2 * 10 * 576);  // every whole page, two rounds
  CHECK(cached[0] < cached[1] / 2);
}

TEST_CASE("Scheduler: pages come back a few a step beside running sequences", "[sched]") {
  SchedulerHarness h(tier_config(100));
  h.submit({words(1, 600), 5});
  h.drain();
  h.submit({words(2, 1300), 5});
  h.drain();
  REQUIRE(h.stats().host_pages_used > 0);
  h.submit({words(3, 10), 60});
  h.turn();
  h.turn();
  const RequestId again = h.submit({words(1, 600), 5});
  size_t most = 0;
  size_t sum = 0;
  for (int i = 0; i < 30; ++i) {
    h.turn();
    size_t back = 0;
    for (const PageMove& move : h.last_plan().page_moves)
      back += move.to_host ? 0 : 1;
    most = std::max(most, back);
    sum += back;
  }
  CHECK(most <= 4);
  CHECK(sum > 4);
  h.drain();
  CHECK(h.record(again).num_cached_tokens >= 576);
}

}  // namespace
}  // namespace hadal
