// What a simulation shows: percentiles, goodput, reuse against its bounds, fairness; as text for a
// terminal, JSON for records and an SVG plot.
#pragma once

#include <array>
#include <string>
#include <vector>

#include <hadal/sim/bounds.h>
#include <hadal/sim/simulator.h>

namespace hadal::sim {

struct Slo {
  double ttft_s = 2.0;
  double tpot_s = 0.1;
};

/// p50, p90, p99 and the mean, in seconds.
struct Distribution {
  double p50 = 0.0;
  double p90 = 0.0;
  double p99 = 0.0;
  double mean = 0.0;
};

/// Nearest rank; zeros without values.
Distribution distribution_of(std::vector<double> values);

/// Jain's index: 1 = all equal, 1/n = one has everything; 1 without values.
double jain_index(const std::vector<double>& values);

struct TenantReport {
  std::string tenant;
  int64_t num_finished = 0;
  int64_t num_rejected = 0;
  Distribution ttft;
};

struct Report {
  int64_t num_requests = 0;
  int64_t num_finished = 0;
  int64_t num_rejected = 0;
  int64_t num_failed = 0;
  Distribution ttft;
  Distribution tpot;
  Distribution e2e;
  Distribution gap;  ///< between two tokens of a sequence
  double makespan_s = 0.0;
  double output_tokens_per_s = 0.0;
  double requests_per_s = 0.0;
  double goodput_per_s = 0.0;  ///< finished within the SLO, per second of arrivals
  double attainment = 0.0;     ///< of finished requests, within the SLO
  double mean_running = 0.0;
  double hit_rate = 0.0;  ///< cached tokens of prompt tokens, finished requests
  ReuseBounds bounds;
  int64_t num_retractions = 0;
  int64_t num_evicted_pages = 0;
  int64_t num_steps = 0;
  double device_utilisation = 0.0;
  double fairness = 1.0;
  std::vector<TenantReport> tenants;
};

Report make_report(const Trace& trace, const SimResult& result, const Slo& slo, int32_t num_pages);

std::string to_text(const Report& report, const Slo& slo);
/// One JSON object.
std::string to_json(const Report& report, const Slo& slo);
/// Running and waiting requests and pool usage over time, and the distributions of TTFT and TPOT.
std::string to_svg(const SimResult& result, const std::string& title, int32_t num_pages);

}  // namespace hadal::sim
