// The page of a node's supervisor.
#include <vector>

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <hadal/base/check.h>
#include <hadal/metrics/rank_metrics.h>

namespace hadal {
namespace {

struct RankSeries {
  prometheus::Gauge* ready;
  prometheus::Counter* steps;
  prometheus::Gauge* silent;
  prometheus::Gauge* resident;
};

}  // namespace

struct RankMetrics::Impl {
  prometheus::Registry registry{prometheus::Registry::InsertBehavior::Throw};
  int32_t first_rank = 0;
  std::vector<RankSeries> ranks;
};

RankMetrics::RankMetrics(const std::string& model_name,
                         int32_t node,
                         int32_t first_rank,
                         int32_t num_ranks)
    : impl_(std::make_unique<Impl>()) {
  impl_->first_rank = first_rank;
  prometheus::Registry& registry = impl_->registry;
  auto& ready = prometheus::BuildGauge()
                    .Name("hadal_rank_ready")
                    .Help("1 once the rank has loaded.")
                    .Register(registry);
  auto& steps = prometheus::BuildCounter()
                    .Name("hadal_rank_steps_total")
                    .Help("Steps that the rank has answered.")
                    .Register(registry);
  auto& silent = prometheus::BuildGauge()
                     .Name("hadal_rank_silent_seconds")
                     .Help("Time since the rank's last sign of life.")
                     .Register(registry);
  auto& resident = prometheus::BuildGauge()
                       .Name("hadal_rank_resident_bytes")
                       .Help("Host memory of the rank's process.")
                       .Register(registry);
  for (int32_t rank = first_rank; rank < first_rank + num_ranks; ++rank) {
    const prometheus::Labels labels{
        {"model_name", model_name}, {"node", std::to_string(node)}, {"rank", std::to_string(rank)}};
    impl_->ranks.push_back(
        {&ready.Add(labels), &steps.Add(labels), &silent.Add(labels), &resident.Add(labels)});
  }
}

RankMetrics::~RankMetrics() = default;

void RankMetrics::show(int32_t rank, const RankView& view) {
  const int32_t index = rank - impl_->first_rank;
  HADAL_CHECK(index >= 0 && index < std::ssize(impl_->ranks), "metrics: a rank of another node");
  const RankSeries& series = impl_->ranks[static_cast<size_t>(index)];
  series.ready->Set(view.is_ready ? 1 : 0);
  series.steps->Increment(static_cast<double>(view.steps) - series.steps->Value());
  series.silent->Set(view.silent_s);
  series.resident->Set(static_cast<double>(view.resident_bytes));
}

std::string RankMetrics::to_prometheus_text() const {
  return prometheus::TextSerializer().Serialize(impl_->registry.Collect());
}

}  // namespace hadal
