// The radix cache as its specification reads: a plain list of pages with the whole prefix that each
// holds. Every answer is found by looking at everything.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <hadal/plan/batch_plan.h>

namespace hadal {

class NaiveCache {
 public:
  struct Entry {
    PageId page = 0;
    std::string name_space;
    std::vector<TokenId> prefix;  ///< all tokens up to the end of this page
    int32_t refs = 0;
    uint64_t age = 0;  ///< larger = used later; matters while refs == 0
  };

  struct Match {
    int32_t num_pages = 0;
    int32_t num_tail_tokens = 0;
  };

  Match match(const std::string& name_space, std::span<const TokenId> tokens) const {
    Match best;
    while (find(name_space, tokens, (best.num_pages + 1) * kPageTokens) != nullptr)
      ++best.num_pages;
    const auto num_whole = static_cast<size_t>(best.num_pages * kPageTokens);
    for (const Entry& entry : entries_) {
      if (entry.name_space != name_space || page_begin(entry) != num_whole)
        continue;
      const size_t common = common_tokens(entry.prefix, tokens);
      if (common > num_whole)
        best.num_tail_tokens =
            std::max(best.num_tail_tokens, static_cast<int32_t>(common - num_whole));
    }
    return best;
  }

  /// Adds `delta` leases to the pages of the prefix; a released path ages from its tip upwards.
  void lease(const std::string& name_space, std::span<const TokenId> prefix, int32_t delta) {
    for (size_t end = prefix.size(); end > 0; end = (end - 1) / kPage * kPage) {
      Entry* entry = find(name_space, prefix, static_cast<int32_t>(end));
      entry->refs += delta;
      entry->age = ++clock_;
    }
  }

  struct Extended {
    bool is_new = false;    ///< the page was adopted, with one lease
    PageId continued = -1;  ///< an unleased tail that the page goes on with, to be dropped
    bool may_stay = false;  ///< ... or not: other pages go on with it too
  };

  /// The caller forgets() the continued tail.
  Extended extend(const std::string& name_space, std::span<const TokenId> prefix, PageId page) {
    const size_t begin = (prefix.size() - 1) / kPage * kPage;
    size_t longest = begin;
    int32_t num_longest = 0;
    for (const Entry& entry : entries_) {
      if (entry.name_space != name_space || page_begin(entry) != begin)
        continue;
      const size_t common = common_tokens(entry.prefix, prefix);
      if (common == prefix.size())
        return {};
      num_longest = common > longest ? 1 : num_longest + (common == longest ? 1 : 0);
      longest = std::max(longest, common);
    }
    Extended result;
    result.is_new = true;
    for (const Entry& entry : entries_) {
      if (longest > begin && entry.name_space == name_space && page_begin(entry) == begin &&
          entry.refs == 0 && entry.prefix.size() == longest &&
          common_tokens(entry.prefix, prefix) == longest)
        result.continued = entry.page;
    }
    result.may_stay = num_longest > 1;
    entries_.push_back({page, name_space, {prefix.begin(), prefix.end()}, 1, 0});
    return result;
  }

  void forget(PageId page) {
    std::erase_if(entries_, [&](const Entry& entry) { return entry.page == page; });
  }

  /// Removes the pages of the prefix that nobody leases and nothing continues, from its end up.
  void drop(const std::string& name_space,
            std::span<const TokenId> prefix,
            std::vector<PageId>& dropped) {
    for (size_t end = prefix.size(); end > 0; end = (end - 1) / kPage * kPage) {
      const Entry* entry = find(name_space, prefix, static_cast<int32_t>(end));
      const bool is_continued =
          std::any_of(entries_.begin(), entries_.end(), [&](const Entry& other) {
            return other.name_space == name_space && page_begin(other) == end &&
                   common_tokens(other.prefix, prefix) >= end;
          });
      if (entry->refs > 0 || is_continued)
        return;
      dropped.push_back(entry->page);
      forget(dropped.back());
    }
  }

  /// Least recently used unleased page; -1 when there is none.
  PageId evict() {
    auto oldest = entries_.end();
    for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
      if (entry->refs == 0 && (oldest == entries_.end() || entry->age < oldest->age))
        oldest = entry;
    }
    if (oldest == entries_.end())
      return -1;
    const PageId page = oldest->page;
    entries_.erase(oldest);
    return page;
  }

  int32_t num_unleased() const {
    return static_cast<int32_t>(std::count_if(
        entries_.begin(), entries_.end(), [](const Entry& entry) { return entry.refs == 0; }));
  }

  const std::vector<Entry>& entries() const { return entries_; }

 private:
  static constexpr auto kPage = static_cast<size_t>(kPageTokens);

  static size_t page_begin(const Entry& entry) { return (entry.prefix.size() - 1) / kPage * kPage; }

  /// Tokens that both begin with.
  static size_t common_tokens(std::span<const TokenId> a, std::span<const TokenId> b) {
    size_t i = 0;
    while (i < a.size() && i < b.size() && a[i] == b[i])
      ++i;
    return i;
  }

  Entry* find(const std::string& name_space, std::span<const TokenId> tokens, int32_t end) {
    return const_cast<Entry*>(std::as_const(*this).find(name_space, tokens, end));
  }

  const Entry* find(const std::string& name_space,
                    std::span<const TokenId> tokens,
                    int32_t end) const {
    const auto size = static_cast<size_t>(end);
    for (const Entry& entry : entries_) {
      if (entry.name_space == name_space && entry.prefix.size() == size && size <= tokens.size() &&
          common_tokens(entry.prefix, tokens) == size)
        return &entry;
    }
    return nullptr;
  }

  std::vector<Entry> entries_;
  uint64_t clock_ = 0;
};

}  // namespace hadal
