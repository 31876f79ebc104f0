// The radix cache against its specification (NaiveCache) over random operations, and one drawn case
// for each rule that is easy to break.
#include "radix_cache.h"

#include <algorithm>
#include <ctime>
#include <random>

#include "catch.h"
#include "naive_cache.h"

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

/// Random operations on both caches, compared after each.
class Comparison {
 public:
  explicit Comparison(uint32_t seed) : rng_(seed), pages_(kPages), cache_(pages_) {}

  void step() {
    const auto choice = rng_() % 10;
    if (choice < 4)
      begin();
    else if (choice < 7)
      grow();
    else if (choice < 9)
      end();
    else
      evict();
    check();
  }

  void finish() {
    while (!sessions_.empty())
      end();
    while (cache_.num_cached() > 0)
      evict();
    check();
    REQUIRE(pages_.num_free() == kPages);
    REQUIRE(naive_.entries().empty());
  }

 private:
  static constexpr int32_t kPages = 48;

  struct Session {
    std::string name_space;
    Tokens tokens;       ///< what it wants cached
    size_t covered = 0;  ///< what the lease covers
    bool is_done = false;
    Lease lease;
  };

  /// Sequences of few families that part at random places, also inside pages.
  Tokens random_tokens() {
    Tokens tokens;
    const size_t length = 1 + rng_() % 300;
    TokenId family = static_cast<TokenId>(rng_() % 2);
    for (size_t i = 0; i < length; ++i) {
      if (rng_() % 150 == 0)
        family = static_cast<TokenId>(rng_() % 3);
      tokens.push_back(family);
    }
    return tokens;
  }

  void begin() {
    if (sessions_.size() >= 6)
      return;
    Session session;
    session.name_space = rng_() % 4 == 0 ? "salt" : "";
    session.tokens = random_tokens();
    const PrefixMatch match = cache_.match(session.name_space, session.tokens);
    const NaiveCache::Match expected = naive_.match(session.name_space, session.tokens);
    REQUIRE(match.num_pages == expected.num_pages);
    REQUIRE(match.num_tail_tokens == expected.num_tail_tokens);
    REQUIRE((match.tail == kNoPage) == (expected.num_tail_tokens == 0));
    const int32_t num_cached = cache_.num_cached();
    const int32_t num_evictable = cache_.num_evictable_in(match);
    Lease tail;
    if (match.tail != kNoPage)
      tail = cache_.acquire_tail(session.name_space, match);
    session.lease = cache_.acquire(session.name_space, match);
    REQUIRE(num_cached - cache_.num_cached() == num_evictable);
    if (match.tail != kNoPage)
      cache_.release(tail);
    session.covered = static_cast<size_t>(match.num_pages) * 64;
    if (match.tail != kNoPage)
      touch_tail(session.name_space, match, session.tokens);
    naive_.lease(session.name_space, std::span(session.tokens).first(session.covered), 1);
    sessions_.push_back(std::move(session));
  }

  /// The tail that was pinned for a moment is young again, below its (leased) parents.
  void touch_tail(const std::string& name_space, const PrefixMatch& match, const Tokens& tokens) {
    for (const NaiveCache::Entry& entry : naive_.entries()) {
      if (entry.page == match.tail) {
        const Tokens prefix = entry.prefix;
        naive_.lease(name_space, prefix, 1);
        naive_.lease(name_space, prefix, -1);
        REQUIRE(std::equal(prefix.begin(), prefix.begin() + match.num_tokens(), tokens.begin()));
        return;
      }
    }
    FAIL("the tail is no page of the cache");
  }

  void grow() {
    if (sessions_.empty())
      return;
    Session& session = sessions_[rng_() % sessions_.size()];
    const size_t end = std::min(session.tokens.size(), session.covered + 64);
    if (session.is_done || session.covered == end || session.covered % 64 != 0)
      return;
    if (pages_.num_free() == 0)
      evict();
    if (pages_.num_free() == 0)
      return;
    const PageId page = pages_.allocate();
    std::vector<PageId> dropped;
    const bool is_adopted =
        naive_.extend(session.name_space, std::span(session.tokens).first(end), page, dropped);
    const auto key = std::span(session.tokens).subspan(session.covered, end - session.covered);
    REQUIRE((cache_.extend(session.lease, key, page) == Extension::adopted) == is_adopted);
    for (const PageId gone : dropped)
      REQUIRE(pages_.is_free(gone));
    if (is_adopted) {
      session.covered = end;
    } else {
      pages_.free(page);
      if (key.size() == 64) {
        cache_.follow(session.lease, key);
        // The path was leased already; only its new tip is.
        naive_.lease(session.name_space, std::span(session.tokens).first(end), 1);
        naive_.lease(session.name_space, std::span(session.tokens).first(session.covered), -1);
        session.covered = end;
      } else {
        session.is_done = true;
      }
    }
  }

  void end() {
    if (sessions_.empty())
      return;
    const size_t i = rng_() % sessions_.size();
    Session session = std::move(sessions_[i]);
    sessions_.erase(sessions_.begin() + static_cast<ptrdiff_t>(i));
    naive_.lease(session.name_space, std::span(session.tokens).first(session.covered), -1);
    cache_.release(session.lease);
  }

  void evict() {
    const PageId page = naive_.evict();
    REQUIRE(cache_.evict(1) == (page >= 0 ? 1 : 0));
    if (page >= 0)
      REQUIRE(pages_.is_free(page));
  }

  void check() {
    cache_.check_invariants();
    REQUIRE(cache_.num_cached() == naive_.num_unleased());
    REQUIRE(static_cast<size_t>(cache_.num_cached() + cache_.num_leased()) ==
            naive_.entries().size());
    for (const NaiveCache::Entry& entry : naive_.entries()) {
      if (!cache_.contains(entry.page) || cache_.refs(entry.page) != entry.refs)
        FAIL("page " << entry.page << " differs");
    }
  }

  std::mt19937 rng_;
  PageAllocator pages_;
  RadixCache cache_;
  NaiveCache naive_;
  std::vector<Session> sessions_;
};

TEST_CASE("RadixCache: 100,000 random operations agree with the naive cache", "[sched][radix]") {
  for (uint32_t seed = 0; seed < 10; ++seed) {
    INFO("seed " << seed);
    Comparison comparison(seed);
    for (int i = 0; i < 10'000; ++i)
      comparison.step();
    comparison.finish();
  }
}

}  // namespace
}  // namespace hadal
