// A runner around another that spoils the results of one step.
#include "planted_fault.h"

#include <charconv>
#include <chrono>
#include <thread>

namespace hadal {
namespace {

class FaultyRunner final : public Runner {
 public:
  FaultyRunner(std::unique_ptr<Runner> runner, const PlantedFault& fault)
      : runner_(std::move(runner)), fault_(fault) {}

  const RunnerLimits& limits() const override { return runner_->limits(); }

  Status submit(const BatchPlan& plan) override { return runner_->submit(plan); }

  double launch_seconds() const override { return runner_->launch_seconds(); }

  StepCounts step_counts() const override { return runner_->step_counts(); }

  Result<StepResult> wait() override {
    auto result = runner_->wait();
    if (!result || result.value().step_id < fault_.step_id) {
      return result;
    }
    while (fault_.kind == FaultKind::hang) {
      std::this_thread::sleep_for(std::chrono::seconds(1));
    }
    for (RowResult& row : result.value().rows) {
      if (row.token >= 0) {
        row.token = (row.token + 1) % limits().vocab_size;
      }
    }
    return result;
  }

 private:
  std::unique_ptr<Runner> runner_;
  PlantedFault fault_;
};

template <class T>
bool parse_all(std::string_view text, T& value) {
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), value);
  return parsed.ec == std::errc{} && parsed.ptr == text.data() + text.size();
}

}  // namespace

std::optional<PlantedFault> parse_planted_fault(std::string_view text) {
  PlantedFault fault;
  const size_t at = text.find('@');
  const size_t colon = text.find(':', at == std::string_view::npos ? 0 : at);
  if (at == std::string_view::npos || colon == std::string_view::npos) {
    return std::nullopt;
  }
  const std::string_view kind = text.substr(0, at);
  if (kind != "hang" && kind != "token") {
    return std::nullopt;
  }
  fault.kind = kind == "hang" ? FaultKind::hang : FaultKind::token;
  if (!parse_all(text.substr(at + 1, colon - at - 1), fault.rank) || fault.rank < 0 ||
      !parse_all(text.substr(colon + 1), fault.step_id)) {
    return std::nullopt;
  }
  return fault;
}

std::unique_ptr<Runner> plant_fault(std::unique_ptr<Runner> runner, const PlantedFault& fault) {
  return std::make_unique<FaultyRunner>(std::move(runner), fault);
}

}  // namespace hadal
