// An SVG of three panels: requests over time, the page pool over time, and latency distributions.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>

#include <hadal/sim/report.h>

namespace hadal::sim {
namespace {

constexpr double kWidth = 860.0;
constexpr double kLeft = 60.0;
constexpr double kPanelHeight = 170.0;
constexpr double kPanelGap = 60.0;
constexpr size_t kMaxPoints = 800;

struct Series {
  const char* name;
  const char* colour;
  std::vector<std::pair<double, double>> points;
};

std::string format(const char* pattern, double a, double b = 0.0, double c = 0.0, double d = 0.0) {
  char text[256];
  std::snprintf(text, sizeof text, pattern, a, b, c, d);
  return text;
}

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '<')
      out += "&lt;";
    else if (c == '&')
      out += "&amp;";
    else
      out += c;
  }
  return out;
}

std::string label(double x, double y, const char* anchor, const std::string& text) {
  return format("<text x='%.1f' y='%.1f' ", x, y) + "text-anchor='" + anchor + "'>" +
         escaped(text) + "</text>\n";
}

/// One panel; x runs over [x_min, x_max] and is labelled by `x_label`.
std::string panel(int number,
                  const std::string& title,
                  const std::vector<Series>& series,
                  const std::function<std::string(double)>& x_label) {
  double x_min = HUGE_VAL;
  double x_max = -HUGE_VAL;
  double y_max = 1e-9;
  for (const Series& s : series) {
    for (const auto& [x, y] : s.points) {
      x_min = std::min(x_min, x);
      x_max = std::max(x_max, x);
      y_max = std::max(y_max, y);
    }
  }
  if (!(x_max > x_min))
    x_max = (x_min = std::isfinite(x_min) ? x_min : 0.0) + 1.0;
  const double top = 50.0 + number * (kPanelHeight + kPanelGap);
  const double bottom = top + kPanelHeight;
  const auto px = [&](double x) {
    return kLeft + (x - x_min) / (x_max - x_min) * (kWidth - kLeft - 20.0);
  };
  const auto py = [&](double y) { return bottom - y / y_max * kPanelHeight; };
  std::string out = format("<path d='M%.1f %.1fV%.1fH", kLeft, top, bottom) +
                    format("%.1f' fill='none' stroke='#888'/>\n", kWidth - 20.0);
  out += label(kLeft, top - 8.0, "start", title);
  out += label(kLeft - 6.0, top + 10.0, "end", format("%.4g", y_max));
  out += label(kLeft - 6.0, bottom, "end", "0");
  for (int i = 0; i <= 4; ++i) {
    const double x = x_min + (x_max - x_min) * i / 4.0;
    out += label(px(x), bottom + 16.0, "middle", x_label(x));
  }
  double legend = kWidth - 20.0;
  for (const Series& s : series) {
    out += "<polyline fill='none' stroke='" + std::string(s.colour) + "' points='";
    const size_t stride = std::max<size_t>(1, s.points.size() / kMaxPoints);
    for (size_t i = 0; i < s.points.size(); i += stride)
      out += format("%.1f,%.1f ", px(s.points[i].first), py(s.points[i].second));
    out += "'/>\n<g fill='" + std::string(s.colour) + "'>" +
           label(legend, top - 8.0, "end", s.name) + "</g>\n";
    legend -= 20.0 + 8.0 * static_cast<double>(std::string(s.name).size());
  }
  return out;
}

/// Share of requests at or below a latency, over its logarithm.
Series cumulative(const char* name, const char* colour, std::vector<double> values) {
  Series series{name, colour, {}};
  std::sort(values.begin(), values.end());
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] > 0.0)
      series.points.emplace_back(std::log10(values[i]),
                                 static_cast<double>(i + 1) / static_cast<double>(values.size()));
  }
  return series;
}

}  // namespace

std::string to_svg(const SimResult& result, const std::string& title, int32_t num_pages) {
  Series running{"running", "#1f77b4", {}};
  Series waiting{"waiting", "#d62728", {}};
  Series leased{"leased", "#1f77b4", {}};
  Series cached{"leased and cached", "#2ca02c", {}};
  for (const Sample& sample : result.samples) {
    running.points.emplace_back(sample.time_s, sample.num_running);
    waiting.points.emplace_back(sample.time_s, sample.num_waiting);
    leased.points.emplace_back(sample.time_s, 100.0 * sample.pages_leased / num_pages);
    cached.points.emplace_back(sample.time_s,
                               100.0 * (sample.pages_leased + sample.pages_cached) / num_pages);
  }
  std::vector<double> ttft;
  std::vector<double> tpot;
  for (const RequestResult& request : result.requests) {
    if (request.outcome != Outcome::finished)
      continue;
    ttft.push_back(request.ttft_s());
    if (request.num_output_tokens > 1)
      tpot.push_back(request.tpot_s());
  }
  const auto seconds = [](double x) { return format("%.0f s", x); };
  const auto latency = [](double x) { return format("%.3g s", std::pow(10.0, x)); };
  const double height = 50.0 + 3.0 * (kPanelHeight + kPanelGap);
  std::string out = "<svg xmlns='http://www.w3.org/2000/svg' " +
                    format("width='%.0f' height='%.0f' ", kWidth, height) +
                    "font-family='sans-serif' font-size='12'>\n<rect width='100%' height='100%' "
                    "fill='#fff'/>\n";
  out += label(kLeft, 20.0, "start", title);
  out += panel(0, "requests", {running, waiting}, seconds);
  out += panel(1, "page pool, %", {leased, cached}, seconds);
  out += panel(2,
               "share of requests at most this slow",
               {cumulative("TTFT", "#1f77b4", std::move(ttft)),
                cumulative("TPOT", "#ff7f0e", std::move(tpot))},
               latency);
  return out + "</svg>\n";
}

}  // namespace hadal::sim
