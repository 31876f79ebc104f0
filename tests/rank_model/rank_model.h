// A model over forked ranks: every process holds one rank's shard and reports what it computed.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "forked_ranks.h"
#include "tiny_model.h"

namespace hadal::tiny {

/// Processes on how many nodes, and how they sum.
struct RankLayout {
  int32_t tp = 1;
  int32_t ep = 1;
  int32_t node_size = 1;
  AllReduce all_reduce = AllReduce::hier;
};

/// Logits as text, so that a child can report them.
inline std::string pack(const Logits& rows) {
  std::string bytes;
  for (const auto& row : rows) {
    bytes.append(reinterpret_cast<const char*>(row.data()), row.size() * sizeof(float));
  }
  return bytes;
}

inline Logits unpack(const std::string& bytes, size_t width) {
  Logits rows(bytes.size() / (width * sizeof(float)), std::vector<float>(width));
  INFO("a rank reported " << bytes.substr(0, 200));
  REQUIRE(bytes.size() == rows.size() * width * sizeof(float));
  for (size_t r = 0; r < rows.size(); ++r) {
    std::memcpy(rows[r].data(), bytes.data() + r * width * sizeof(float), width * sizeof(float));
  }
  return rows;
}

/// Runs `use` on a harness in every process and returns the report of rank 0, which is that of all.
template <class Use>
std::string on_process_ranks(const DeepseekConfig& config,
                             const WeightStore& weights,
                             HarnessConfig options,
                             const RankLayout& layout,
                             const Use& use) {
  options.tp = layout.tp;
  options.ep = layout.ep;
  testing::ForkedRanks ranks({.world_size = layout.tp,
                              .node_size = layout.node_size,
                              .all_reduce = layout.all_reduce,
                              .deadline_ms = 300000},
                             [&](Communicator& comm) {
                               Harness harness(config, weights, options, comm);
                               std::string text = use(harness);
                               const Status status = comm.poll_error();
                               return status ? text : "failed: " + status.error().message;
                             });
  const std::vector<std::string> reports = ranks.reports();
  for (const std::string& report : reports) {
    CHECK((report == reports.front()));
  }
  return reports.front();
}

}  // namespace hadal::tiny
