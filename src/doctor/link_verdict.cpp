// When is a link slow? Beside other links, where there are enough of them; beside its own other
// direction and what its interface is rated for, where there are two nodes.
#include <algorithm>
#include <cstdio>

#include "checks.h"

namespace hadal {
namespace {

constexpr double kSlowShare = 0.5;
constexpr double kPairSpread = 0.6;
constexpr double kTrustedRateMbPerS = 1250;  // one TCP stream fills 10 Gb/s anywhere
constexpr double kRoundTripMaxUs = 5000;     // a step has over a hundred collectives
constexpr double kClockOffsetMaxMs = 1000;   // beyond it logs and certificates mislead

std::string number(const char* format, double value) {
  char text[48];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

std::string node_name(const LinkReport& report, int32_t node) {
  const auto index = static_cast<size_t>(node);
  const bool has_name = index < report.names.size() && !report.names[index].empty();
  return "node " + std::to_string(node) + (has_name ? " (" + report.names[index] + ")" : "");
}

/// What a healthy direction reaches here: the median of many, or on two nodes a share of the better
/// direction, since two readings of a busy host spread widely.
double usual_rate(const LinkReport& report) {
  std::vector<double> rates;
  for (const LinkMeasurement& link : report.links) {
    if (link.error.empty()) {
      rates.push_back(link.low_to_high_mb_per_s);
      rates.push_back(link.high_to_low_mb_per_s);
    }
  }
  if (rates.empty()) {
    return 0;
  }
  std::sort(rates.begin(), rates.end());
  return report.links.size() >= 3 ? rates[rates.size() / 2] : kPairSpread * rates.back();
}

std::string link_remedy(const LinkReport& report, int32_t from, int32_t to) {
  return "repair the path from " + node_name(report, from) + " to " + node_name(report, to) +
         ": cable, switch port, MTU, traffic shaping (ethtool, tc qdisc)";
}

void judge_link(const LinkReport& report,
                const LinkMeasurement& link,
                double expected_mb_per_s,
                std::vector<Finding>& findings) {
  if (!link.error.empty()) {
    findings.push_back(broken(
        "link",
        node_name(report, link.high) + " to " + node_name(report, link.low) + ": " + link.error,
        "let all TCP ports through between " + node_name(report, link.low) + " and " +
            node_name(report, link.high) + " (NetworkPolicy, firewall)"));
    return;
  }
  const bool up_is_slower = link.low_to_high_mb_per_s < link.high_to_low_mb_per_s;
  const double rate = std::min(link.low_to_high_mb_per_s, link.high_to_low_mb_per_s);
  const int32_t from = up_is_slower ? link.low : link.high;
  const int32_t to = up_is_slower ? link.high : link.low;
  if (rate < kSlowShare * expected_mb_per_s) {
    findings.push_back(broken("slow link",
                              node_name(report, from) + " to " + node_name(report, to) + ": " +
                                  number("%.0f MB/s", rate) +
                                  number(", expected %.0f", expected_mb_per_s),
                              link_remedy(report, from, to)));
  } else if (link.round_trip_us > kRoundTripMaxUs) {
    findings.push_back(broken("slow link",
                              node_name(report, from) + " to " + node_name(report, to) +
                                  number(": round trip of %.1f ms", link.round_trip_us / 1e3) +
                                  number(", expected under %.0f", kRoundTripMaxUs / 1e3),
                              link_remedy(report, from, to)));
  }
}

void judge_clocks(const LinkReport& report, std::vector<Finding>& findings) {
  for (const ClockOffset& clock : report.clocks) {
    if (std::abs(clock.offset_ms) - clock.uncertainty_ms > kClockOffsetMaxMs) {
      findings.push_back(broken(
          "clock skew",
          node_name(report, clock.node) + " is " +
              number("%.1f s", std::abs(clock.offset_ms) / 1e3) +
              (clock.offset_ms > 0 ? " ahead of" : " behind") + " node 0",
          "start chrony (or another NTP client) on the host of " + node_name(report, clock.node)));
    }
  }
}

}  // namespace

std::vector<Finding> judge_links(const LinkReport& report, double rated_mb_per_s) {
  std::vector<Finding> findings;
  for (const std::string& refusal : report.refusals) {
    findings.push_back(broken("other flags",
                              refusal,
                              "start every node with the same image and flags, only --node-rank "
                              "differs"));
  }
  for (const std::string& host : report.wrong_secrets) {
    findings.push_back(
        broken("group secret", "that of " + host + " is not node 0's", kSecretRemedy));
  }
  for (const int32_t node : report.missing_nodes) {
    findings.push_back(broken("missing node",
                              node_name(report, node) + " did not come",
                              "run hadal doctor with the same flags and --node-rank " +
                                  std::to_string(node) + "; its output says what stopped it"));
  }
  judge_clocks(report, findings);
  const double rated = kSlowShare * std::min(rated_mb_per_s, kTrustedRateMbPerS);
  const double expected = std::max(usual_rate(report), rated);
  for (const LinkMeasurement& link : report.links) {
    judge_link(report, link, expected, findings);
  }
  if (!report.all_reduce_error.empty() && count_failures(findings) == 0) {
    findings.push_back(broken("all-reduce",
                              report.all_reduce_error,
                              "run hadal doctor again; if it stays, replace the network hardware "
                              "of the node named"));
  }
  if (count_failures(findings) == 0) {
    findings.push_back(passed("links", std::to_string(report.links.size()) + " measured"));
  }
  return findings;
}

std::string link_table(const LinkReport& report) {
  std::string text;
  char line[192];
  for (const LinkMeasurement& link : report.links) {
    std::snprintf(line,
                  sizeof line,
                  "  node %d - node %d  %8.0f us round trip  %8.0f MB/s up  %8.0f MB/s down%s\n",
                  link.low,
                  link.high,
                  link.round_trip_us,
                  link.high_to_low_mb_per_s,
                  link.low_to_high_mb_per_s,
                  link.error.empty() ? "" : "  FAILED");
    text += line;
  }
  for (const ClockOffset& clock : report.clocks) {
    std::snprintf(line,
                  sizeof line,
                  "  node %d            clock %+.3f ms (+- %.3f)\n",
                  clock.node,
                  clock.offset_ms,
                  clock.uncertainty_ms);
    text += line;
  }
  if (report.all_reduce_bytes > 0) {
    std::snprintf(line,
                  sizeof line,
                  "  all nodes         all-reduce of %.1f MB in %.2f ms\n",
                  static_cast<double>(report.all_reduce_bytes) / 1e6,
                  report.all_reduce_ms);
    text += line;
  }
  if (report.strangers_dropped > 0) {
    text += "  " + std::to_string(report.strangers_dropped) +
            " connections that were not hadal's were dropped\n";
  }
  return text;
}

}  // namespace hadal
