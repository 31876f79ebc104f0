// Files of a model: what a node reads of them, and writing them anew for one layout.
#include <hadal/weights/shards.h>

#include "model_setup.h"

namespace hadal {

LoadPlan plan_load(const ModelSetup& setup, std::span<const ParallelLayout> layouts) {
  LoadPlan plan;
  plan.files = setup.weights->files();
  if (plan.files.empty()) {
    return plan;
  }
  std::vector<WantedRange> wanted;
  for (const ParallelLayout& layout : layouts) {
    visit_weight_reads(setup.model,
                       layout,
                       false,
                       [&](const WeightSpec& spec, const WeightSlice& slice, int64_t order) {
                         if (const auto range = setup.weights->range(spec, slice)) {
                           wanted.push_back({*range, order});
                         }
                       });
  }
  plan.reads = plan_reads(std::move(wanted), plan.files);
  return plan;
}

Result<LoadPlan> plan_model_load(const ModelRunnerConfig& config) {
  const auto setup = make_setup(config);
  if (!setup) {
    return setup.error();
  }
  return plan_load(setup.value(), setup.value().layouts);
}

Status shard_model(const ModelRunnerConfig& config, const std::filesystem::path& output) {
  if (has_shards(config.model_dir)) {
    return Error{ErrorCode::invalid_argument,
                 "shard: " + config.model_dir.string() +
                     " is sharded already, expected the original checkpoint"};
  }
  const auto setup = make_setup(config);
  if (!setup) {
    return setup.error();
  }
  const ModelSetup& made = setup.value();
  // Checkpoints may leave their MTP layers out; what is there goes along.
  const bool with_mtp = made.model.num_nextn_predict_layers > 0 &&
                        check_weights(made.model, made.layouts.front(), *made.weights, true);
  ShardWriteArgs args{
      *made.weights, config.model_dir, output, {config.tp, config.ep}, {}, config.progress};
  for (const ParallelLayout& layout : made.layouts) {
    std::vector<ShardRead>& reads = args.ranks.emplace_back();
    visit_weight_reads(made.model,
                       layout,
                       with_mtp,
                       [&](const WeightSpec& spec, const WeightSlice& slice, int64_t /*order*/) {
                         reads.push_back({spec, slice});
                       });
  }
  return write_shards(args);
}

}  // namespace hadal
