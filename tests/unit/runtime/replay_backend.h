// The CPU backend with graphs: a captured graph is the function that was captured, run again at
// every launch. So a rank's choice, padding and reuse of graphs are tested without a GPU.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include <hadal/backend/backend.h>

#include "wrapped_backend.h"

namespace hadal {

class ReplayBackend final : public WrappedBackend {
 public:
  explicit ReplayBackend(const CpuBackendConfig& config)
      : WrappedBackend(make_cpu_backend(config)) {}

  bool has_graphs() const override { return true; }

  Result<std::unique_ptr<Graph>> capture(Stream& /*stream*/,
                                         const std::function<void()>& work) override {
    return std::unique_ptr<Graph>(std::make_unique<Replay>(work));
  }

 private:
  class Replay final : public Graph {
   public:
    explicit Replay(std::function<void()> work) : work_(std::move(work)) {}

    void launch(Stream& /*stream*/) override { work_(); }

   private:
    std::function<void()> work_;
  };
};

}  // namespace hadal
