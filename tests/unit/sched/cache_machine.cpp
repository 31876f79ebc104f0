// Random operations on the radix cache, compared after each with a cache that is a plain list:
// what matches (R6, R12), what is adopted or known already (R13), who is evicted (R10), and the
// leases and ages of every page.
#include <algorithm>
#include <map>
#include <random>
#include <sstream>

#include "naive_cache.h"
#include "property_machine.h"
#include "radix_cache.h"
#include "scheduler_harness.h"

namespace hadal {
namespace {

using Tokens = std::vector<TokenId>;

enum Kind : uint32_t { kBegin, kGrow, kEnd, kDrop, kEvict, kFlush };

constexpr auto kPage = static_cast<size_t>(kPageTokens);
constexpr size_t kMaxSessions = 6;

/// Sequences of few families that part at random places, also inside pages.
Tokens random_tokens(uint32_t seed) {
  std::mt19937 rng(seed);
  Tokens tokens;
  const size_t length = 1 + rng() % 300;
  auto family = static_cast<TokenId>(rng() % 2);
  for (size_t i = 0; i < length; ++i) {
    if (rng() % 150 == 0)
      family = static_cast<TokenId>(rng() % 3);
    tokens.push_back(family);
  }
  return tokens;
}

std::string random_namespace(uint32_t seed) {
  return seed % 4 == 0 ? "salt" : "";
}

class CacheMachine final : public PropertyMachine {
 public:
  explicit CacheMachine(uint32_t seed)
      : pages_(8 + static_cast<int32_t>(seed % 5) * 10), cache_(pages_) {}

  ~CacheMachine() override {
    for (auto& [uid, session] : sessions_)
      cache_.release(session.lease);
  }

  void apply(const Operation& operation) override {
    const auto found = sessions_.find(operation.target);
    if (operation.kind == kBegin && sessions_.size() < kMaxSessions)
      begin(operation);
    else if (operation.kind == kGrow && found != sessions_.end())
      grow(found->second);
    else if (operation.kind == kEnd && found != sessions_.end())
      end(found->first);
    else if (operation.kind == kDrop && found != sessions_.end())
      drop(found->first);
    else if (operation.kind == kEvict)
      evict();
    else if (operation.kind == kFlush)
      flush();
    check();
  }

  void finish() override {
    while (!sessions_.empty()) {
      end(sessions_.begin()->first);
      check();
    }
    flush();
    check();
    need(pages_.num_free() == pages_.num_pages() && naive_.entries().empty(),
         "D3: the whole pool can be reclaimed");
  }

  void add_coverage(Coverage& coverage) const override {
    coverage[0] += num_evicted_;
    coverage[1] += num_matched_;
    coverage[2] += num_tails_;
    coverage[3] += num_present_;
  }

 private:
  struct Session {
    std::string name_space;
    Tokens tokens;       ///< what it wants cached
    size_t covered = 0;  ///< what the lease covers
    bool is_done = false;
    Lease lease;
  };

  void begin(const Operation& operation) {
    Session session;
    session.name_space = random_namespace(operation.seed);
    session.tokens = random_tokens(operation.seed);
    const PrefixMatch match = cache_.match(session.name_space, session.tokens);
    const NaiveCache::Match expected = naive_.match(session.name_space, session.tokens);
    need(match.num_pages == expected.num_pages, "R12: whole pages of a match");
    need(match.num_tail_tokens == expected.num_tail_tokens, "R12: tail of a match");
    need((match.tail == kNoPage) == (expected.num_tail_tokens == 0), "R12: page of a tail");
    num_matched_ += match.num_pages;
    const int32_t num_cached = cache_.num_cached();
    const int32_t num_evictable = cache_.num_evictable_in(match);
    Lease tail;
    if (match.tail != kNoPage)
      tail = cache_.acquire_tail(session.name_space, match);
    session.lease = cache_.acquire(session.name_space, match);
    need(num_cached - cache_.num_cached() == num_evictable,
         "R14: what a lease takes from eviction");
    session.covered = static_cast<size_t>(match.num_pages) * kPage;
    check_path(session);
    if (match.tail != kNoPage) {
      cache_.release(tail);
      touch_tail(session, match);
      ++num_tails_;
    }
    naive_.lease(session.name_space, std::span(session.tokens).first(session.covered), 1);
    sessions_.emplace(operation.uid, std::move(session));
  }

  /// R9: the pages of a lease hold its tokens, first page first.
  void check_path(const Session& session) const {
    std::vector<PageId> path;
    cache_.append_pages(session.lease, path);
    need(path.size() == static_cast<size_t>(session.lease.num_pages()), "R9: length of a path");
    for (size_t i = 0; i < path.size(); ++i) {
      const size_t end = std::min(session.covered, (i + 1) * kPage);
      const auto entry = std::find_if(
          naive_.entries().begin(), naive_.entries().end(), [&](const NaiveCache::Entry& other) {
            return other.page == path[i];
          });
      need(entry != naive_.entries().end() && entry->name_space == session.name_space &&
               entry->prefix.size() == end &&
               std::equal(entry->prefix.begin(), entry->prefix.end(), session.tokens.begin()),
           "R6: a page of a lease holds another prefix");
    }
  }

  /// The tail that was pinned for a moment is young again, below its (leased) parents.
  void touch_tail(const Session& session, const PrefixMatch& match) {
    for (const NaiveCache::Entry& entry : naive_.entries()) {
      if (entry.page != match.tail)
        continue;
      const Tokens prefix = entry.prefix;
      naive_.lease(session.name_space, prefix, 1);
      naive_.lease(session.name_space, prefix, -1);
      need(static_cast<size_t>(match.num_tokens()) <= prefix.size() &&
               std::equal(
                   prefix.begin(), prefix.begin() + match.num_tokens(), session.tokens.begin()),
           "R6: a tail holds another prefix");
      return;
    }
    need(false, "R12: the tail is no page of the cache");
  }

  void grow(Session& session) {
    const size_t end = std::min(session.tokens.size(), session.covered + kPage);
    if (session.is_done || session.covered == end || session.covered % kPage != 0)
      return;
    if (pages_.num_free() == 0)
      evict();
    if (pages_.num_free() == 0)
      return;
    const PageId page = pages_.allocate();
    const NaiveCache::Extended expected =
        naive_.extend(session.name_space, std::span(session.tokens).first(end), page);
    const auto key = std::span(session.tokens).subspan(session.covered, end - session.covered);
    need((cache_.extend(session.lease, key, page) == Extension::adopted) == expected.is_new,
         "R13: a known page is not adopted");
    if (expected.continued >= 0) {
      const bool is_gone = pages_.is_free(expected.continued);
      need(is_gone || expected.may_stay, "R13: the tail that was continued is free");
      if (is_gone)
        naive_.forget(expected.continued);
    }
    if (expected.is_new) {
      session.covered = end;
      check_path(session);
      return;
    }
    ++num_present_;
    pages_.free(page);
    if (key.size() < kPage) {
      session.is_done = true;
      return;
    }
    cache_.follow(session.lease, key);
    // The path was leased already; only its new tip is.
    naive_.lease(session.name_space, std::span(session.tokens).first(end), 1);
    naive_.lease(session.name_space, std::span(session.tokens).first(session.covered), -1);
    session.covered = end;
    check_path(session);
  }

  void end(uint32_t uid) {
    Session& session = sessions_.at(uid);
    naive_.lease(session.name_space, std::span(session.tokens).first(session.covered), -1);
    cache_.release(session.lease);
    sessions_.erase(uid);
  }

  /// The KV of the path is not to be trusted: pages that nobody else uses leave, from the tip.
  void drop(uint32_t uid) {
    Session& session = sessions_.at(uid);
    const auto path = std::span(session.tokens).first(session.covered);
    naive_.lease(session.name_space, path, -1);
    std::vector<PageId> gone;
    naive_.drop(session.name_space, path, gone);
    cache_.release_and_drop(session.lease);
    for (const PageId page : gone)
      need(pages_.is_free(page), "R10: a page that is not to be trusted stays");
    sessions_.erase(uid);
  }

  void evict() {
    const PageId page = naive_.evict();
    need(cache_.evict(1) == (page >= 0 ? 1 : 0), "R10: number of evicted pages");
    if (page < 0)
      return;
    ++num_evicted_;
    need(pages_.is_free(page), "R10: the least recently used page goes first");
  }

  /// R15: leased pages stay.
  void flush() {
    const int32_t expected = naive_.num_unleased();
    while (naive_.evict() >= 0) {
    }
    need(cache_.evict(pages_.num_pages() + 1) == expected, "R15: a flush frees what is not leased");
  }

  void check() const {
    cache_.check_invariants();
    need(cache_.num_cached() == naive_.num_unleased(), "R14: number of unleased pages");
    need(static_cast<size_t>(cache_.num_cached() + cache_.num_leased()) == naive_.entries().size(),
         "R14: number of pages");
    for (const NaiveCache::Entry& entry : naive_.entries())
      need(cache_.contains(entry.page) && cache_.refs(entry.page) == entry.refs,
           "R1: refs are the leases through a page");
    need(static_cast<size_t>(pages_.num_free()) + naive_.entries().size() ==
             static_cast<size_t>(pages_.num_pages()),
         "P1: free + tree is all");
  }

  PageAllocator pages_;
  RadixCache cache_;
  NaiveCache naive_;
  std::map<uint32_t, Session> sessions_;  ///< by the uid of the operation that began it
  int64_t num_evicted_ = 0;
  int64_t num_matched_ = 0;
  int64_t num_tails_ = 0;
  int64_t num_present_ = 0;
};

std::vector<Operation> generate(uint32_t seed, int count) {
  std::mt19937 rng(seed ^ 0x7F4A7C15U);
  std::vector<Operation> operations;
  std::vector<uint32_t> begun;
  for (int i = 0; i < count; ++i) {
    Operation operation;
    operation.uid = static_cast<uint32_t>(i);
    operation.seed = static_cast<uint32_t>(rng());
    const auto choice = rng() % 100;
    operation.kind = choice < 18   ? kBegin
                     : choice < 72 ? kGrow
                     : choice < 86 ? kEnd
                     : choice < 89 ? kDrop
                     : choice < 99 ? kEvict
                                   : kFlush;
    if (!begun.empty())
      operation.target = begun[begun.size() - 1 - rng() % std::min<size_t>(6, begun.size())];
    if (operation.kind == kBegin)
      begun.push_back(operation.uid);
    operations.push_back(operation);
  }
  return operations;
}

std::string describe(const Operation& operation) {
  std::ostringstream text;
  static constexpr const char* kNames[] = {"begin", "grow", "end", "drop", "evict", "flush"};
  text << kNames[operation.kind];
  if (operation.kind == kBegin)
    text << " #" << operation.uid << " " << random_tokens(operation.seed).size()
         << " tokens, namespace '" << random_namespace(operation.seed) << "'";
  else if (operation.kind < kEvict)
    text << " #" << operation.target;
  return text.str();
}

}  // namespace

const PropertyMachineKind kCacheMachine = {
    "cache",
    140,
    {"evicted pages", "matched pages", "matched tails", "known pages"},
    [](uint32_t seed) -> std::unique_ptr<PropertyMachine> {
      return std::make_unique<CacheMachine>(seed);
    },
    generate,
    describe};

}  // namespace hadal
