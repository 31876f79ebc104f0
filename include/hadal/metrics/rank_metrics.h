// What a node without rank 0 exports: one series a rank, with the labels model_name, node and rank.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include <hadal/metrics/metrics.h>

namespace hadal {

/// One rank as its supervisor sees it.
struct RankView {
  bool is_ready = false;
  uint64_t steps = 0;          ///< answered since the start; never less than before
  double silent_s = 0;         ///< since its last sign of life
  int64_t resident_bytes = 0;  ///< of its process; 0 = unknown
};

class RankMetrics final : public MetricsPage {
 public:
  /// Ranks first_rank to first_rank + num_ranks - 1, of this node.
  RankMetrics(const std::string& model_name, int32_t node, int32_t first_rank, int32_t num_ranks);
  ~RankMetrics() override;
  /// `rank` is one of this node's. Any thread.
  void show(int32_t rank, const RankView& view);
  std::string to_prometheus_text() const override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hadal
