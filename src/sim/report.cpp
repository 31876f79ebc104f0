// Numbers and text of a report; the plot is in plot.cpp.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <numeric>

#include <nlohmann/json.hpp>

#include <hadal/sim/report.h>

namespace hadal::sim {
namespace {

using json = nlohmann::ordered_json;

double percentile(const std::vector<double>& sorted, double share) {
  const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(sorted.size())));
  return sorted[std::clamp<size_t>(rank, 1, sorted.size()) - 1];
}

json to_json_object(const Distribution& d) {
  return {{"p50_s", d.p50}, {"p90_s", d.p90}, {"p99_s", d.p99}, {"mean_s", d.mean}};
}

std::string line(const char* name, const Distribution& d) {
  char text[160];
  std::snprintf(text,
                sizeof text,
                "%-6s p50 %9.1f   p90 %9.1f   p99 %9.1f   mean %9.1f ms\n",
                name,
                d.p50 * 1e3,
                d.p90 * 1e3,
                d.p99 * 1e3,
                d.mean * 1e3);
  return text;
}

void add_latencies(const SimResult& result, const Slo& slo, Report& report) {
  std::vector<double> ttft;
  std::vector<double> tpot;
  std::vector<double> e2e;
  int64_t num_good = 0;
  int64_t num_output = 0;
  int64_t num_prompt = 0;
  int64_t num_cached = 0;
  for (const RequestResult& request : result.requests) {
    if (request.outcome != Outcome::finished)
      continue;
    ttft.push_back(request.ttft_s());
    e2e.push_back(request.e2e_s());
    if (request.num_output_tokens > 1)
      tpot.push_back(request.tpot_s());
    num_good += request.ttft_s() <= slo.ttft_s && request.tpot_s() <= slo.tpot_s ? 1 : 0;
    num_output += request.num_output_tokens;
    num_prompt += request.num_prompt_tokens;
    num_cached += request.num_cached_tokens;
  }
  report.num_finished = static_cast<int64_t>(ttft.size());
  report.ttft = distribution_of(std::move(ttft));
  report.tpot = distribution_of(std::move(tpot));
  report.e2e = distribution_of(std::move(e2e));
  if (report.num_finished == 0 || report.makespan_s <= 0.0)
    return;
  report.output_tokens_per_s = static_cast<double>(num_output) / report.makespan_s;
  report.requests_per_s = static_cast<double>(report.num_finished) / report.makespan_s;
  report.goodput_per_s = static_cast<double>(num_good) / report.makespan_s;
  report.attainment = static_cast<double>(num_good) / static_cast<double>(report.num_finished);
  report.hit_rate = num_prompt > 0 ? static_cast<double>(num_cached) / double(num_prompt) : 0.0;
}

void add_tenants(const Trace& trace, const SimResult& result, Report& report) {
  std::map<std::string, std::pair<TenantReport, std::vector<double>>> tenants;
  for (size_t i = 0; i < result.requests.size(); ++i) {
    const RequestResult& request = result.requests[i];
    auto& [tenant, ttft] = tenants[trace.requests[i].tenant];
    tenant.num_rejected += request.outcome == Outcome::rejected ? 1 : 0;
    if (request.outcome == Outcome::finished) {
      ++tenant.num_finished;
      ttft.push_back(request.ttft_s());
    }
  }
  for (auto& [name, entry] : tenants) {
    entry.first.tenant = name;
    entry.first.ttft = distribution_of(std::move(entry.second));
    report.tenants.push_back(std::move(entry.first));
  }
  std::vector<double> service;
  for (const TenantService& tenant : result.contended) {
    if (tenant.weighted_tokens > 0.0)
      service.push_back(tenant.weighted_tokens);
  }
  report.fairness = jain_index(service);
}

}  // namespace

Distribution distribution_of(std::vector<double> values) {
  Distribution d;
  if (values.empty())
    return d;
  std::sort(values.begin(), values.end());
  d.p50 = percentile(values, 0.50);
  d.p90 = percentile(values, 0.90);
  d.p99 = percentile(values, 0.99);
  d.mean = std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
  return d;
}

double jain_index(const std::vector<double>& values) {
  double sum = 0.0;
  double squares = 0.0;
  for (const double value : values) {
    sum += value;
    squares += value * value;
  }
  return squares > 0.0 ? sum * sum / (static_cast<double>(values.size()) * squares) : 1.0;
}

Report make_report(const Trace& trace, const SimResult& result, const Slo& slo, int32_t num_pages) {
  Report report;
  report.num_requests = static_cast<int64_t>(result.requests.size());
  double first_s = result.end_s;
  std::vector<int32_t> order;
  for (size_t i = 0; i < result.requests.size(); ++i) {
    const RequestResult& request = result.requests[i];
    report.num_rejected += request.outcome == Outcome::rejected ? 1 : 0;
    report.num_failed += request.outcome == Outcome::failed ? 1 : 0;
    first_s = std::min(first_s, request.arrival_s);
    if (request.outcome == Outcome::finished)
      order.push_back(static_cast<int32_t>(i));
  }
  report.makespan_s = result.end_s - first_s;
  report.gap = {result.gaps.quantile(0.50),
                result.gaps.quantile(0.90),
                result.gaps.quantile(0.99),
                result.gaps.mean()};
  add_latencies(result, slo, report);
  add_tenants(trace, result, report);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return result.requests[static_cast<size_t>(a)].admitted_s <
           result.requests[static_cast<size_t>(b)].admitted_s;
  });
  report.bounds = compute_bounds(trace, order, num_pages);
  report.num_retractions = result.scheduler.num_retractions;
  report.num_evicted_pages = result.scheduler.num_evicted_pages;
  report.num_steps = result.num_steps;
  report.device_utilisation =
      report.makespan_s > 0.0 ? result.device_busy_s / report.makespan_s : 0.0;
  for (const Sample& sample : result.samples)
    report.mean_running += sample.num_running / static_cast<double>(result.samples.size());
  return report;
}

std::string to_text(const Report& r, const Slo& slo) {
  char text[1024];
  std::snprintf(
      text,
      sizeof text,
      "requests  %lld finished, %lld rejected, %lld failed of %lld in %.1f s; %.1f running "
      "on average\n"
      "output    %.1f tokens/s, %.2f requests/s; device busy %.1f %%\n"
      "goodput   %.2f requests/s within TTFT %.0f ms and TPOT %.0f ms (%.1f %% of the "
      "finished)\n"
      "reuse     %.2f %% of prompt tokens; infinite cache %.2f %%, Belady at this size "
      "%.2f %%, whole prompts %.2f %%, no cache 0 %%\n"
      "pressure  %lld retractions, %lld evicted pages, %lld steps; fairness %.3f\n",
      static_cast<long long>(r.num_finished),
      static_cast<long long>(r.num_rejected),
      static_cast<long long>(r.num_failed),
      static_cast<long long>(r.num_requests),
      r.makespan_s,
      r.mean_running,
      r.output_tokens_per_s,
      r.requests_per_s,
      100.0 * r.device_utilisation,
      r.goodput_per_s,
      slo.ttft_s * 1e3,
      slo.tpot_s * 1e3,
      100.0 * r.attainment,
      100.0 * r.hit_rate,
      100.0 * r.bounds.rate(r.bounds.infinite),
      100.0 * r.bounds.rate(r.bounds.belady),
      100.0 * r.bounds.rate(r.bounds.whole_prompt),
      static_cast<long long>(r.num_retractions),
      static_cast<long long>(r.num_evicted_pages),
      static_cast<long long>(r.num_steps),
      r.fairness);
  std::string out =
      line("TTFT", r.ttft) + line("TPOT", r.tpot) + line("ITL", r.gap) + line("E2E", r.e2e) + text;
  if (r.tenants.size() < 2)
    return out;
  for (const TenantReport& tenant : r.tenants) {
    out += "tenant    '" + tenant.tenant + "': " + std::to_string(tenant.num_finished) +
           " finished, " + std::to_string(tenant.num_rejected) + " rejected\n" +
           line("  TTFT", tenant.ttft);
  }
  return out;
}

std::string to_json(const Report& r, const Slo& slo) {
  json tenants = json::array();
  for (const TenantReport& tenant : r.tenants)
    tenants.push_back({{"tenant", tenant.tenant},
                       {"finished", tenant.num_finished},
                       {"rejected", tenant.num_rejected},
                       {"ttft", to_json_object(tenant.ttft)}});
  const json object = {{"requests", r.num_requests},
                       {"finished", r.num_finished},
                       {"rejected", r.num_rejected},
                       {"failed", r.num_failed},
                       {"makespan_s", r.makespan_s},
                       {"mean_running", r.mean_running},
                       {"ttft", to_json_object(r.ttft)},
                       {"tpot", to_json_object(r.tpot)},
                       {"itl", to_json_object(r.gap)},
                       {"e2e", to_json_object(r.e2e)},
                       {"output_tokens_per_s", r.output_tokens_per_s},
                       {"requests_per_s", r.requests_per_s},
                       {"slo", {{"ttft_s", slo.ttft_s}, {"tpot_s", slo.tpot_s}}},
                       {"goodput_per_s", r.goodput_per_s},
                       {"slo_attainment", r.attainment},
                       {"hit_rate", r.hit_rate},
                       {"hit_rate_infinite_cache", r.bounds.rate(r.bounds.infinite)},
                       {"hit_rate_belady", r.bounds.rate(r.bounds.belady)},
                       {"hit_rate_whole_prompts", r.bounds.rate(r.bounds.whole_prompt)},
                       {"retractions", r.num_retractions},
                       {"evicted_pages", r.num_evicted_pages},
                       {"steps", r.num_steps},
                       {"device_utilisation", r.device_utilisation},
                       {"fairness", r.fairness},
                       {"tenants", tenants}};
  return object.dump(2);
}

}  // namespace hadal::sim
