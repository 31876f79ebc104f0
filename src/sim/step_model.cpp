// See step_model.h.
#include <algorithm>
#include <map>

#include <nlohmann/json.hpp>

#include <hadal/base/check.h>
#include <hadal/sim/step_model.h>

namespace hadal::sim {
namespace {

using nlohmann::json;

constexpr size_t kMaxPoints = 10'000;
constexpr uint64_t kMostAbsorbedTokens = 65'536;

struct Measurement {
  double size = 0.0;     ///< batch, or tokens of prefill
  double context = 0.0;  ///< of each row, or the prefix
  double seconds = 0.0;
};

Error invalid(std::string_view origin, const std::string& what) {
  return Error{ErrorCode::invalid_argument, std::string(origin) + ": " + what};
}

Result<std::vector<Measurement>> read_measurements(const json& table,
                                                   const char* name,
                                                   const char* size_name,
                                                   const char* context_name,
                                                   std::string_view origin) {
  const auto list = table.find(name);
  if (list == table.end() || !list->is_array() || list->empty() || list->size() > kMaxPoints)
    return invalid(origin, std::string(name) + ": expected an array of 1 to 10000 measurements");
  std::vector<Measurement> out;
  for (const json& entry : *list) {
    const auto number = [&](const char* field, double low) {
      const auto found = entry.is_object() ? entry.find(field) : entry.end();
      if (!entry.is_object() || found == entry.end() || !found->is_number())
        return -1.0;
      const double value = found->get<double>();
      return value >= low && value <= 1e9 ? value : -1.0;
    };
    const Measurement read{
        number(size_name, 1.0), number(context_name, 0.0), number("step_ms", 0.0)};
    if (read.size < 0.0 || read.context < 0.0 || read.seconds < 0.0)
      return invalid(origin,
                     std::string(name) + ": expected " + size_name + " >= 1, " + context_name +
                         " >= 0 and step_ms >= 0, got " + entry.dump().substr(0, 80));
    out.push_back({read.size, read.context, read.seconds * 1e-3});
  }
  return out;
}

/// seconds = weights(size) + slope * work, where work grows with the context: the slope by least
/// squares within each size, then the mean rest of each size.
template <class Work>
Result<double> fit(const std::vector<Measurement>& measurements,
                   const Work& work,
                   Curve& weights,
                   const std::string& what) {
  std::map<double, std::vector<Measurement>> by_size;
  for (const Measurement& measurement : measurements)
    by_size[measurement.size].push_back(measurement);
  double numerator = 0.0;
  double denominator = 0.0;
  for (const auto& [size, group] : by_size) {
    double mean_work = 0.0;
    double mean_seconds = 0.0;
    for (const Measurement& m : group) {
      mean_work += work(m) / static_cast<double>(group.size());
      mean_seconds += m.seconds / static_cast<double>(group.size());
    }
    for (const Measurement& m : group) {
      numerator += (work(m) - mean_work) * (m.seconds - mean_seconds);
      denominator += (work(m) - mean_work) * (work(m) - mean_work);
    }
  }
  if (denominator <= 0.0 || by_size.size() < 2)
    return Error{ErrorCode::invalid_argument, what};
  const double slope = std::max(0.0, numerator / denominator);
  for (const auto& [size, group] : by_size) {
    double rest = 0.0;
    for (const Measurement& m : group)
      rest += (m.seconds - slope * work(m)) / static_cast<double>(group.size());
    weights.points.push_back({size, std::max(0.0, rest)});
  }
  return slope;
}

}  // namespace

StepShape StepShape::of(const BatchPlan& plan) {
  StepShape shape;
  for (const PlanRow& row : plan.rows) {
    const int64_t begin = row.kv_begin;
    const int64_t count = row.num_tokens;
    if (count == 1 && row.form == AttentionForm::generated) {
      ++shape.decode_rows;
      shape.decode_context_tokens += begin + 1;
    } else {
      const int64_t pairs = count * begin + count * (count + 1) / 2;
      shape.prefill_tokens += row.num_tokens;
      if (row.form == AttentionForm::generated)
        shape.absorbed_pairs += pairs;
      else
        shape.prefill_pairs += pairs + begin * kPairsOfPrefixToken;
    }
  }
  return shape;
}

double Curve::at(double x) const {
  HADAL_CHECK(!points.empty(), "sim: a curve without points");
  if (points.size() == 1)
    return points.front().y;
  const auto above = std::find_if(
      points.begin() + 1, points.end() - 1, [&](const Point& point) { return point.x >= x; });
  const Point& a = *(above - 1);
  const Point& b = *above;
  return std::max(0.0, a.y + (x - a.x) * (b.y - a.y) / (b.x - a.x));
}

double StepModel::seconds(const StepShape& shape) const {
  double weights = 0.0;
  const auto rows = static_cast<double>(shape.decode_rows);
  const auto tokens = static_cast<double>(shape.prefill_tokens);
  if (shape.prefill_tokens == 0)
    weights = decode.at(rows);
  else if (mixing == Mixing::max)
    weights = std::max(decode.at(rows + tokens), prefill.at(tokens));
  else if (shape.decode_rows == 0)
    weights = prefill.at(tokens);
  else
    weights = decode.at(rows) + std::max(0.0, prefill.at(tokens) - prefill.at(0.0));
  return weights +
         static_cast<double>(shape.decode_context_tokens + shape.absorbed_pairs) * context_s +
         static_cast<double>(shape.prefill_pairs) * pair_s;
}

StepModel r1_group_model() {
  constexpr double kContext = 4096.0;
  constexpr double kKvBytes = 61.0 * 1152.0;
  constexpr double kPairFlops = 61.0 * 2.0 * 8.0 * (192.0 + 128.0);  // of one rank's 8 heads
  constexpr Curve::Point kDecodeMs[] = {
      {1, 4.1}, {8, 7.2}, {32, 14.5}, {64, 20.3}, {128, 27.8}, {256, 40.6}, {512, 66.5}};
  StepModel model;
  model.name = "deepseek-r1-16xh200-roofline";
  model.mixing = StepModel::Mixing::max;
  model.context_s = kKvBytes / (0.85 * 4.8e12);
  model.pair_s = kPairFlops / 550e12;
  for (const auto& [batch, milliseconds] : kDecodeMs)
    model.decode.points.push_back(
        {batch, milliseconds * 1e-3 - batch * kContext * model.context_s});
  // Beyond 512 rows the experts are all read; more rows cost what prefill says.
  model.decode.points.push_back({1e9, model.decode.points.back().y});
  const double chunk_s = 4096.0 / 82'000.0 - 4096.0 * 4097.0 / 2.0 * model.pair_s;
  model.prefill.points = {{0.0, 0.0}, {4096.0, chunk_s}};
  return model;
}

Result<StepModel> read_step_table(std::string_view text, std::string_view origin) {
  const json table = json::parse(text, nullptr, false);
  if (!table.is_object())
    return invalid(origin, "expected one JSON object");
  StepModel model;
  model.name = table.contains("name") && table["name"].is_string()
                   ? table["name"].get<std::string>()
                   : std::string(origin);
  const auto mixing = table.find("mixing");
  if (mixing != table.end() && *mixing != "add" && *mixing != "max")
    return invalid(origin, "mixing: expected \"add\" or \"max\", got " + mixing->dump());
  if (mixing != table.end() && *mixing == "max")
    model.mixing = StepModel::Mixing::max;
  const auto absorbed = table.find("absorbed_chunk_tokens");
  if (absorbed != table.end()) {
    if (!absorbed->is_number_unsigned() || absorbed->get<uint64_t>() > kMostAbsorbedTokens)
      return invalid(origin, "absorbed_chunk_tokens: expected 0 to 65536, got " + absorbed->dump());
    model.absorbed_chunk_tokens = absorbed->get<int32_t>();
  }
  auto decode = read_measurements(table, "decode", "batch", "context", origin);
  if (!decode)
    return decode.error();
  auto prefill = read_measurements(table, "prefill", "tokens", "prefix", origin);
  if (!prefill)
    return prefill.error();
  const auto context_s = fit(
      decode.value(),
      [](const Measurement& m) { return m.size * m.context; },
      model.decode,
      std::string(origin) + ": decode: expected two batches, and two contexts of one batch");
  if (!context_s)
    return context_s.error();
  const auto pairs = [](const Measurement& m) {
    return m.size * m.context + m.size * (m.size + 1) / 2;
  };
  const auto is_absorbed = [&](const Measurement& m) {
    return cheaper_form(static_cast<int32_t>(m.context),
                        static_cast<int32_t>(m.size),
                        model.absorbed_chunk_tokens) == AttentionForm::generated;
  };
  for (Measurement& m : prefill.value()) {
    if (is_absorbed(m))
      m.seconds = std::max(0.0, m.seconds - pairs(m) * context_s.value());
  }
  const auto pair_s = fit(
      prefill.value(),
      [&](const Measurement& m) {
        return is_absorbed(m) ? 0.0 : pairs(m) + m.context * kPairsOfPrefixToken;
      },
      model.prefill,
      std::string(origin) + ": prefill: expected two sizes, and two prefixes of one size");
  if (!pair_s)
    return pair_s.error();
  model.context_s = context_s.value();
  model.pair_s = pair_s.value();
  return model;
}

}  // namespace hadal::sim
