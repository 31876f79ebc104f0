// See fair_share.h.
#include "fair_share.h"

#include <algorithm>
#include <limits>

#include <hadal/base/check.h>

namespace hadal {
namespace {

constexpr size_t kMaxKnown = 4096;  ///< then idle shares are forgotten

}  // namespace

ShareId FairShares::open(std::string_view key, double weight) {
  HADAL_CHECK(weight > 0.0, "fair share: a weight is positive");
  auto found = index_.find(key);
  if (found == index_.end()) {
    if (index_.size() >= kMaxKnown)
      forget_idle();
    if (unused_.empty()) {
      unused_.push_back(static_cast<ShareId>(shares_.size()));
      shares_.emplace_back();
    }
    found = index_.emplace(std::string(key), unused_.back()).first;
    at(unused_.back()) = Share{std::string(key), 0.0, weight, 0};
    unused_.pop_back();
  }
  Share& share = at(found->second);
  if (share.num_sequences == 0) {
    note_progress();
    share.served = std::max(share.served, reached_ - kCredit);
    ++num_busy_;
  }
  share.weight = weight;
  ++share.num_sequences;
  is_least_known_ = false;
  return found->second;
}

bool FairShares::is_least(ShareId share) const {
  return served(share) <= least_busy();
}

/// Of the shares with sequences the smallest counter; 0 without any. Asked for each prompt of a
/// plan and of thousands of keys, so it is kept until one of them changes.
double FairShares::least_busy() const {
  if (!is_least_known_) {
    least_ = std::numeric_limits<double>::max();
    for (const Share& share : shares_) {
      if (share.num_sequences > 0)
        least_ = std::min(least_, share.served);
    }
    is_least_known_ = true;
  }
  return num_busy_ > 0 ? least_ : 0.0;
}

void FairShares::close(ShareId share) {
  HADAL_CHECK(at(share).num_sequences > 0, "fair share: closed more often than opened");
  if (at(share).num_sequences == 1) {
    note_progress();
    --num_busy_;
  }
  --at(share).num_sequences;
  is_least_known_ = false;
}

void FairShares::charge(ShareId share, double cost) {
  // Only the least one's counter can move the smallest.
  is_least_known_ = is_least_known_ && at(share).served > least_;
  at(share).served += cost / at(share).weight;
}

/// Never falls: the credits of those that are busy add nothing to a newcomer's.
void FairShares::note_progress() {
  reached_ = std::max(reached_, least_busy());
}

void FairShares::forget_idle() {
  for (auto entry = index_.begin(); entry != index_.end();) {
    if (at(entry->second).num_sequences > 0) {
      ++entry;
      continue;
    }
    unused_.push_back(entry->second);
    entry = index_.erase(entry);
  }
}

}  // namespace hadal
