// Who has been served how much: a counter of tokens a key (a tenant, an API key), weighed.
//
// The key with the smallest counter is served next (virtual token counters, Sheng et al. 2024,
// "Fairness in Serving Large Language Models"). A key that was idle starts again at most kCredit
// below where the busy ones are: a newcomer owes nothing, and idle time earns one long request,
// once. So who uses less than its share is ahead of the others for as long as its request takes,
// instead of from its own prompt on behind them; who uses its share or more has no credit.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <hadal/sched/request.h>

namespace hadal {

using ShareId = int32_t;

class FairShares {
 public:
  static constexpr double kInputCost = 1.0;    ///< a prompt token that was not cached
  static constexpr double kOutputCost = 4.0;   ///< a generated token
  static constexpr double kCredit = 16'384.0;  ///< a prompt of 8,000 tokens and its answer of 2,000

  /// The share of a key, for one sequence more. A weight of 2 may use twice as much as one of 1.
  ShareId open(std::string_view key, double weight);
  /// One sequence less. Idle shares are forgotten when there are many.
  void close(ShareId share);

  /// `cost` is not negative.
  void charge(ShareId share, double cost);

  double served(ShareId share) const { return shares_[static_cast<size_t>(share)].served; }

  double weight(ShareId share) const { return shares_[static_cast<size_t>(share)].weight; }

  /// Whether no share with sequences has had less; `share` has some.
  bool is_least(ShareId share) const;

  /// By what they have had; a share that comes back starts at the counter of the busy ones, so of
  /// equal ones the smaller goes first.
  bool goes_before(ShareId a, ShareId b) const {
    if (served(a) != served(b))
      return served(a) < served(b);
    return num_sequences(a) < num_sequences(b);
  }

  int32_t num_sequences(ShareId share) const {
    return shares_[static_cast<size_t>(share)].num_sequences;
  }

  /// Keys with sequences.
  int32_t num_busy() const { return num_busy_; }

  /// Keys that are remembered: the busy ones and, of the idle, the latest thousands.
  size_t num_known() const { return index_.size(); }

 private:
  struct Share {
    std::string key;
    double served = 0.0;
    double weight = 1.0;
    int32_t num_sequences = 0;
  };

  Share& at(ShareId share) { return shares_[static_cast<size_t>(share)]; }

  double least_busy() const;
  void forget_idle();
  void note_progress();

  std::vector<Share> shares_;
  std::vector<ShareId> unused_;
  std::map<std::string, ShareId, std::less<>> index_;
  int32_t num_busy_ = 0;
  mutable double least_ = 0.0;  ///< what least_busy() found, while is_least_known_
  mutable bool is_least_known_ = false;
  double reached_ = 0.0;  ///< the highest that least_busy() has been: newcomers start from it
};

}  // namespace hadal
