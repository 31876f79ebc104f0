// A runner around another that spoils the results of one step.
#include "planted_fault.h"

#include <charconv>
#include <chrono>
#include <thread>

#include <hadal/runtime/wrapped_runner.h>

namespace hadal {
namespace {

class FaultyRunner final : public WrappedRunner {
 public:
  FaultyRunner(std::unique_ptr<Runner> runner, const PlantedFault& fault)
      : WrappedRunner(std::move(runner)), fault_(fault) {}

  Result<StepResult> wait() override {
    auto result = WrappedRunner::wait();
    if (!result || result.value().step_id < fault_.step_id) {
      return result;
    }
    if (fault_.kind == FaultKind::hang) {
      hang();
      return result;
    }
    for (RowResult& row : result.value().rows) {
      if (row.token >= 0) {
        row.token = (row.token + 1) % limits().vocab_size;
      }
    }
    return result;
  }

 private:
  void hang() {
    if (has_hung_) {
      return;
    }
    do {
      std::this_thread::sleep_for(
          std::chrono::duration<double>(fault_.seconds > 0 ? fault_.seconds : 1.0));
    } while (fault_.seconds <= 0);
    has_hung_ = true;
  }

  PlantedFault fault_;
  bool has_hung_ = false;
};

constexpr double kHangSecondsMax = 86'400;

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
  std::string_view step = text.substr(colon + 1);
  if (const size_t second = step.find(':');
      second != std::string_view::npos && fault.kind == FaultKind::hang) {
    if (!parse_all(step.substr(second + 1), fault.seconds) || !(fault.seconds > 0) ||
        fault.seconds > kHangSecondsMax) {
      return std::nullopt;
    }
    step = step.substr(0, second);
  }
  if (!parse_all(text.substr(at + 1, colon - at - 1), fault.rank) || fault.rank < 0 ||
      !parse_all(step, fault.step_id)) {
    return std::nullopt;
  }
  return fault;
}

std::unique_ptr<Runner> plant_fault(std::unique_ptr<Runner> runner, const PlantedFault& fault) {
  return std::make_unique<FaultyRunner>(std::move(runner), fault);
}

}  // namespace hadal
