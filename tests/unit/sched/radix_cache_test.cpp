// The radix cache, one drawn case for each rule that is easy to break; cache_machine.cpp holds it
// against its specification over random operations.
#include "radix_cache.h"

#include <algorithm>
#include <ctime>

#include "catch.h"

namespace hadal {
namespace {

using Tokens = std::vector<TokenId>;

Tokens counting(int32_t count, TokenId first = 0) {
  Tokens tokens;
  for (int32_t i = 0; i < count; ++i)
    tokens.push_back(first + i);
  return tokens;
}

/// A cache with its pages, and what a sequence does to it when it ends.
struct Fixture {
  explicit Fixture(int32_t num_pages) : pages(num_pages), cache(pages) {}

  /// Caches `tokens` as a finished sequence does; returns the number of adopted pages.
  int32_t donate(const Tokens& tokens, const std::string& name_space = "") {
    PrefixMatch match = cache.match(name_space, tokens);
    Lease lease = cache.acquire(name_space, match);
    int32_t num_adopted = 0;
    for (size_t at = static_cast<size_t>(match.num_pages) * 64; at < tokens.size(); at += 64) {
      const auto key = std::span(tokens).subspan(at, std::min<size_t>(64, tokens.size() - at));
      const PageId page = pages.allocate();
      if (cache.extend(lease, key, page) == Extension::adopted)
        ++num_adopted;
      else
        pages.free(page);
    }
    cache.release(lease);
    cache.check_invariants();
    return num_adopted;
  }

  PageAllocator pages;
  RadixCache cache;
};

TEST_CASE("RadixCache: a match is exact to the token", "[sched][radix]") {
  Fixture f(16);
  CHECK(f.donate(counting(200)) == 4);
  for (const int32_t length : {1, 63, 64, 65, 128, 199, 200, 250}) {
    const PrefixMatch match = f.cache.match("", counting(length));
    CHECK(match.num_tokens() == std::min(length, 200));
    CHECK(match.num_pages == std::min(length, 200) / 64);
  }
  Tokens other = counting(200);
  other[100] = 9999;
  CHECK(f.cache.match("", other).num_tokens() == 100);
  other[0] = 9999;
  CHECK(f.cache.match("", other).num_tokens() == 0);
}

TEST_CASE("RadixCache: namespaces share nothing", "[sched][radix]") {
  Fixture f(16);
  f.donate(counting(100), "a");
  CHECK(f.cache.match("b", counting(100)).num_tokens() == 0);
  CHECK(f.cache.match("", counting(100)).num_tokens() == 0);
  f.donate(counting(100), "b");
  CHECK(f.cache.num_cached() == 4);
  CHECK(f.cache.match("a", counting(100)).tip != f.cache.match("b", counting(100)).tip);
  f.cache.evict(4);
  CHECK(f.cache.match("a", counting(100)).num_tokens() == 0);
}

TEST_CASE("RadixCache: inserting again adopts nothing; a longer tail replaces a shorter",
          "[sched][radix]") {
  Fixture f(16);
  CHECK(f.donate(counting(100)) == 2);
  CHECK(f.donate(counting(100)) == 0);
  CHECK(f.donate(counting(80)) == 0);
  CHECK(f.pages.num_free() == 14);
  CHECK(f.donate(counting(120)) == 1);
  CHECK(f.pages.num_free() == 14);
  CHECK(f.cache.match("", counting(200)).num_tokens() == 120);
}

TEST_CASE("RadixCache: a leased path survives any eviction, siblings do not", "[sched][radix]") {
  Fixture f(16);
  f.donate(counting(192));
  Tokens fork = counting(192);
  fork[130] = 7777;  // parts inside the third page
  f.donate(fork);
  CHECK(f.cache.num_cached() == 4);
  Lease lease = f.cache.acquire("", f.cache.match("", counting(192)));
  CHECK(f.cache.num_leased() == 3);
  CHECK(f.cache.evict(100) == 1);
  f.cache.check_invariants();
  CHECK(f.cache.match("", counting(192)).num_tokens() == 192);
  CHECK(f.cache.match("", fork).num_tokens() == 130);
  f.cache.release(lease);
  CHECK(f.cache.evict(100) == 3);
  CHECK(f.pages.num_free() == 16);
}

TEST_CASE("RadixCache: a use of one branch keeps the other branch's age", "[sched][radix]") {
  //  [0..63] - [a] oldest
  //          - [b]
  //  Using b and then c must leave a the first to go, then b, then c, then the shared page.
  Fixture f(16);
  Tokens a = counting(128);
  Tokens b = counting(128);
  Tokens c = counting(128);
  b[64] = 1001;
  c[64] = 1002;
  f.donate(a);
  f.donate(b);
  f.donate(c);
  for (const Tokens& used : {b, c}) {
    Lease lease = f.cache.acquire("", f.cache.match("", used));
    f.cache.release(lease);
  }
  const auto cached = [&](const Tokens& tokens) { return f.cache.match("", tokens).num_pages; };
  f.cache.evict(1);
  CHECK((cached(a) == 1 && cached(b) == 2 && cached(c) == 2));
  f.cache.evict(1);
  CHECK((cached(b) == 1 && cached(c) == 2));
  f.cache.evict(1);
  CHECK(cached(c) == 1);
  f.cache.evict(1);
  CHECK(cached(c) == 0);
}

TEST_CASE("RadixCache: poisoned pages are dropped unless somebody else uses them",
          "[sched][radix]") {
  Fixture f(16);
  f.donate(counting(192));
  Lease mine = f.cache.acquire("", f.cache.match("", counting(192)));
  Lease theirs = f.cache.acquire("", f.cache.match("", counting(64)));
  f.cache.release_and_drop(mine);
  f.cache.check_invariants();
  CHECK(f.cache.match("", counting(192)).num_tokens() == 64);
  f.cache.release(theirs);
  CHECK(f.pages.num_free() == 15);
}

TEST_CASE("RadixCache: a million tokens match without recursion, thousands of siblings in a moment",
          "[sched][radix]") {
  Fixture f(1 << 15);
  const Tokens huge = counting(1'000'000);
  f.donate(huge);
  CHECK(f.cache.match("", huge).num_tokens() == 1'000'000);
  f.cache.evict(1 << 15);
  for (int32_t i = 0; i < 4000; ++i) {
    Tokens sibling = counting(64);
    sibling[63] = 100'000 + (i * 7919) % 4000;
    const PageId page = f.pages.allocate();
    Lease lease = f.cache.acquire("", PrefixMatch{});
    REQUIRE(f.cache.extend(lease, sibling, page) == Extension::adopted);
    f.cache.release(lease);
  }
  f.cache.check_invariants();
  const std::clock_t start = std::clock();
  int64_t num_common = 0;
  for (int32_t i = 0; i < 1000; ++i) {
    Tokens query = counting(64);
    query[63] = 100'000 + 3 * i;
    num_common += f.cache.match("", query).num_tokens();
  }
  const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  CHECK(num_common == 64'000);
  CHECK(seconds < 0.1);  // 4 million comparisons of 64 tokens would take longer
}

}  // namespace
}  // namespace hadal
