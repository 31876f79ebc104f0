// A runner around another: passes every call on. Who watches or changes steps overrides what it
// needs, and a method that Runner gains later cannot be forgotten.
#pragma once

#include <memory>
#include <utility>

#include <hadal/runtime/runner.h>

namespace hadal {

class WrappedRunner : public Runner {
 public:
  explicit WrappedRunner(std::unique_ptr<Runner> inner) : inner_(std::move(inner)) {}

  const RunnerLimits& limits() const override { return inner_->limits(); }

  Status submit(const BatchPlan& plan) override { return inner_->submit(plan); }

  Result<StepResult> wait() override { return inner_->wait(); }

  bool has_result() const override { return inner_->has_result(); }

  double launch_seconds() const override { return inner_->launch_seconds(); }

  StepCounts step_counts() const override { return inner_->step_counts(); }

 private:
  std::unique_ptr<Runner> inner_;
};

}  // namespace hadal
