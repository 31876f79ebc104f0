// A trie of pages, each node known by its parent and its tokens. Children are kept in order, so
// that the child with the longest common prefix is a neighbour of where the query belongs.
#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <queue>
#include <unordered_set>

#include <hadal/plan/batch_plan.h>
#include <hadal/sim/bounds.h>

#include "random.h"

namespace hadal::sim {
namespace {

constexpr auto kPage = static_cast<size_t>(kPageTokens);
constexpr size_t kNever = std::numeric_limits<size_t>::max();

struct PageKey {
  int32_t parent = -1;
  std::array<TokenId, kPage> tokens{};  ///< padded with -1
  int32_t num_tokens = 0;

  bool operator<(const PageKey& other) const {
    return parent != other.parent ? parent < other.parent : tokens < other.tokens;
  }
};

PageKey make_key(int32_t parent, const std::vector<TokenId>& tokens, size_t begin) {
  PageKey key;
  key.parent = parent;
  key.num_tokens = static_cast<int32_t>(std::min(kPage, tokens.size() - begin));
  key.tokens.fill(-1);
  std::copy_n(tokens.begin() + static_cast<ptrdiff_t>(begin), key.num_tokens, key.tokens.begin());
  return key;
}

int32_t common_tokens(const PageKey& a, const PageKey& b) {
  const int32_t limit = std::min(a.num_tokens, b.num_tokens);
  return static_cast<int32_t>(
      std::mismatch(a.tokens.begin(), a.tokens.begin() + limit, b.tokens.begin()).first -
      a.tokens.begin());
}

class Trie {
 public:
  struct Match {
    int32_t num_pages = 0;
    int32_t num_tail_tokens = 0;
  };

  /// The longest known prefix of the first `limit` tokens.
  Match match(std::vector<TokenId> tokens, size_t limit) const {
    tokens.resize(limit);
    Match match;
    int32_t parent = -1;
    for (size_t begin = 0; begin < tokens.size(); begin += kPage) {
      const PageKey key = make_key(parent, tokens, begin);
      const auto at = nodes_.lower_bound(key);
      int32_t best = 0;
      if (at != nodes_.end() && at->first.parent == parent)
        best = common_tokens(key, at->first);
      if (best == kPageTokens) {
        ++match.num_pages;
        parent = at->second;
        continue;
      }
      if (at != nodes_.begin() && std::prev(at)->first.parent == parent)
        best = std::max(best, common_tokens(key, std::prev(at)->first));
      match.num_tail_tokens = best;
      break;
    }
    return match;
  }

  /// Adds all pages and appends the ids of the whole ones.
  void insert(const std::vector<TokenId>& tokens, std::vector<int32_t>& path) {
    int32_t parent = -1;
    for (size_t begin = 0; begin < tokens.size(); begin += kPage) {
      const PageKey key = make_key(parent, tokens, begin);
      parent = nodes_.emplace(key, static_cast<int32_t>(nodes_.size())).first->second;
      if (key.num_tokens == kPageTokens)
        path.push_back(parent);
    }
  }

  size_t size() const { return nodes_.size(); }

 private:
  std::map<PageKey, int32_t> nodes_;
};

/// One use of a page, in order of the trace.
struct Use {
  int32_t page = 0;
  bool is_prompt = false;  ///< read if it is cached; otherwise it is only made
};

/// Hits of pages of prompts when the page whose next use is furthest away goes first.
int64_t count_belady_hits(const std::vector<Use>& uses, size_t num_pages, size_t capacity) {
  std::vector<size_t> next_use(uses.size(), kNever);
  std::vector<size_t> seen(num_pages, kNever);
  for (size_t i = uses.size(); i-- > 0;) {
    next_use[i] = seen[static_cast<size_t>(uses[i].page)];
    seen[static_cast<size_t>(uses[i].page)] = i;
  }
  std::vector<size_t> cached_until(num_pages, kNever);  ///< its next use while it is cached
  std::vector<bool> is_cached(num_pages, false);
  std::priority_queue<std::pair<size_t, int32_t>> furthest;
  size_t num_cached = 0;
  int64_t num_hits = 0;
  for (size_t i = 0; i < uses.size(); ++i) {
    const auto page = static_cast<size_t>(uses[i].page);
    if (is_cached[page])
      num_hits += uses[i].is_prompt ? 1 : 0;
    else
      ++num_cached;
    is_cached[page] = true;
    cached_until[page] = next_use[i];
    furthest.emplace(next_use[i], uses[i].page);
    while (num_cached > capacity) {
      const auto [until, victim] = furthest.top();
      furthest.pop();
      const auto at = static_cast<size_t>(victim);
      if (!is_cached[at] || cached_until[at] != until)
        continue;  // used again since
      is_cached[at] = false;
      --num_cached;
    }
  }
  return num_hits;
}

}  // namespace

ReuseBounds compute_bounds(const Trace& trace,
                           const std::vector<int32_t>& order,
                           int32_t num_pages) {
  ReuseBounds bounds;
  Trie trie;
  std::vector<Use> uses;
  std::unordered_set<uint64_t> whole;
  std::vector<TokenId> tokens;
  std::vector<int32_t> path;
  int64_t num_tail_tokens = 0;
  for (const int32_t index : order) {
    const SimRequest& request = trace.requests[static_cast<size_t>(index)];
    tokens.clear();
    for (const TokenSegment& segment : request.prompt)
      append_tokens(segment, tokens);
    const size_t num_prompt = tokens.size();
    bounds.num_prompt_tokens += static_cast<int64_t>(num_prompt);
    const Trie::Match match = trie.match(tokens, num_prompt - 1);
    bounds.infinite += int64_t{match.num_pages} * kPageTokens + match.num_tail_tokens;
    num_tail_tokens += match.num_tail_tokens;

    const bool stops = request.max_new_tokens > request.output_tokens;
    append_tokens({request.output_seed, 0, request.output_tokens - (stops ? 1 : 0)}, tokens);
    uint64_t hash = 0;
    int64_t longest = 0;
    for (size_t i = 0; i < tokens.size(); ++i) {
      hash = mix(hash ^ static_cast<uint64_t>(tokens[i]));
      if (i + 1 < num_prompt && whole.count(hash) > 0)
        longest = static_cast<int64_t>(i) + 1;
      if (i + 1 == num_prompt)
        whole.insert(hash);
    }
    whole.insert(hash);
    bounds.whole_prompt += longest;

    path.clear();
    trie.insert(tokens, path);
    const size_t num_read = (num_prompt - 1) / kPage;
    for (size_t i = 0; i < path.size(); ++i)
      uses.push_back({path[i], i < num_read});
  }
  bounds.num_pages = static_cast<int32_t>(trie.size());
  const int64_t hits = count_belady_hits(uses, trie.size(), static_cast<size_t>(num_pages));
  bounds.belady = std::min(bounds.infinite, hits * kPageTokens + num_tail_tokens);
  return bounds;
}

}  // namespace hadal::sim
