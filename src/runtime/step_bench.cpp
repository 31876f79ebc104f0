// Rows of a decode step all stand at the same position, step after step, so that every step costs
// the same; their tokens are drawn anew, so that they choose experts as different texts do.
#include <algorithm>
#include <chrono>
#include <map>
#include <thread>

#include <hadal/runtime/step_bench.h>

#include "model_setup.h"
#include "profile_ops.h"
#include "rank_worker.h"

namespace hadal {
namespace {

using Seconds = std::chrono::duration<double>;

constexpr int32_t kWarmUpSteps = 3;
constexpr int32_t kStepsLeast = 10;
constexpr int32_t kStepsMost = 2000;
/// For graphs and for measuring ceilings.
constexpr int64_t kSpareBytes = int64_t{3} << 30;
constexpr int64_t kRoutingTables = 8;  ///< layers take turns

int32_t pages_of(int32_t tokens) {
  return (tokens + kPageTokens - 1) / kPageTokens;
}

uint64_t next_random(uint64_t& state) {
  state = state * 6364136223846793005ULL + 1442695040888963407ULL;
  return state >> 33U;
}

double at_fraction(const std::vector<double>& sorted, double fraction) {
  return sorted[static_cast<size_t>(fraction * static_cast<double>(sorted.size() - 1) + 0.5)];
}

/// The graphs that decode steps of these batches replay, and no others.
GraphConfig graphs_for(const StepBenchConfig& config, int32_t max_slots) {
  GraphConfig graphs = config.runner.graphs;
  const std::vector<int32_t> all = graph_batches(graphs, max_slots);
  graphs.batches.clear();
  for (const int32_t batch : config.batches) {
    const auto found = std::lower_bound(all.begin(), all.end(), batch);
    if (found != all.end()) {
      graphs.batches.push_back(*found);
    }
  }
  graphs.is_enabled = !graphs.batches.empty();
  return graphs;
}

/// `top_k` different experts, all in `top_groups` of the groups.
void draw_experts(const DeepseekConfig& model, uint64_t& random, int32_t* ids) {
  const auto draw = [&](int64_t count, int64_t size, const auto& taken) {
    for (int64_t i = 0; i < count;) {
      const auto value = static_cast<int64_t>(next_random(random) % static_cast<uint64_t>(size));
      i += taken(i, value) ? 1 : 0;
    }
  };
  std::vector<int64_t> groups;
  draw(model.topk_group, model.n_group, [&](int64_t /*i*/, int64_t group) {
    const bool is_new = std::find(groups.begin(), groups.end(), group) == groups.end();
    if (is_new) {
      groups.push_back(group);
    }
    return is_new;
  });
  const int64_t size = model.n_routed_experts / model.n_group;
  draw(model.num_experts_per_tok, size * model.topk_group, [&](int64_t i, int64_t value) {
    const auto id =
        static_cast<int32_t>(groups[static_cast<size_t>(value / size)] * size + value % size);
    const bool is_new = std::find(ids, ids + i, id) == ids + i;
    ids[i] = id;
    return is_new;
  });
}

Status check_finite(const StepResult& result) {
  for (const RowResult& row : result.rows) {
    if (row.has_nan) {
      return Error{ErrorCode::data_loss, "bench step: logits are not finite"};
    }
  }
  return ok_status();
}

class StepBenchImpl final : public StepBench {
 public:
  StepBenchImpl(StepBenchConfig config, DeepseekConfig model)
      : config_(std::move(config)), model_(std::move(model)) {}

  Status prepare(const ModelSetup& setup);

  Result<StepReport> decode(int32_t batch) override {
    return measure(batch, config_.context, 1, AttentionForm::generated);
  }

  Result<StepReport> prefill(int32_t tokens) override {
    const int32_t absorbed =
        config_.runner.is_deterministic ? 0 : backend_->absorbed_chunk_tokens();
    return measure(
        1, config_.prefix + tokens, tokens, cheaper_form(config_.prefix, tokens, absorbed));
  }

  BenchRouting routing() const override {
    return routing_memory_.data() == nullptr ? BenchRouting::model : BenchRouting::uniform;
  }

  int64_t weight_bytes() const override { return worker_->model().weight_bytes(); }

  double load_s() const override { return load_s_; }

  const CaptureReport& capture_report() const override { return captured_; }

  Backend& backend() override { return *backend_; }

 private:
  RankSizes sizes_for(const ModelSetup& setup) const;
  void fill_pages();
  Status spread_routing();
  BatchPlan plan(int32_t rows, int32_t length, int32_t new_tokens, AttentionForm form);
  Result<StepReport> measure(int32_t rows, int32_t length, int32_t new_tokens, AttentionForm form);
  Result<double> run(BatchPlan plan, StepMode mode = StepMode::automatic);
  /// Mean seconds of `steps` steps of which two are in flight.
  template <class MakePlan>
  Result<double> run_overlapped(int32_t steps, const MakePlan& make_plan);
  Status profile(BatchPlan plan, StepReport& report);

  StepBenchConfig config_;
  DeepseekConfig model_;
  ProfilingBackend* backend_ = nullptr;  ///< the worker's
  std::unique_ptr<RankWorker> worker_;
  Buffer routing_memory_;  ///< expert ids; empty = the router's
  RankSizes sizes_;
  double load_s_ = 0.0;
  CaptureReport captured_;
  uint64_t step_id_ = 0;
  uint64_t random_ = 1;
  std::vector<int32_t> slot_pages_;  ///< how many pages each slot has
  int32_t next_page_ = 0;
};

RankSizes StepBenchImpl::sizes_for(const ModelSetup& setup) const {
  int32_t slots = 1;
  int32_t tokens = 1;
  int32_t longest = config_.batches.empty() ? 1 : config_.context;
  int64_t pages = 1;
  for (const int32_t batch : config_.batches) {
    slots = std::max(slots, batch);
    tokens = std::max(tokens, batch);
    pages = std::max<int64_t>(pages, int64_t{batch} * pages_of(config_.context));
  }
  for (const int32_t prompt : config_.prefills) {
    tokens = std::max(tokens, prompt);
    longest = std::max(longest, config_.prefix + prompt);
    pages = std::max<int64_t>(pages, pages_of(config_.prefix + prompt));
  }
  RankSizes sizes;
  sizes.kv_dtype = setup.kv_dtype;
  sizes.limits = {.num_pages = static_cast<int32_t>(std::min<int64_t>(pages, 1 << 24)),
                  .max_step_tokens = tokens,
                  .max_slots = slots,
                  .max_context_tokens = pages_of(longest) * kPageTokens,
                  .vocab_size = static_cast<int32_t>(model_.vocab_size)};
  sizes.graphs = graphs_for(config_, slots);
  return sizes;
}

Status StepBenchImpl::prepare(const ModelSetup& setup) {
  const int32_t tp = config_.runner.tp;
  auto inner = make_rank_backend(config_.runner, 0, 1);
  if (!inner) {
    return inner.error();
  }
  auto backend = std::make_unique<ProfilingBackend>(std::move(inner).value());
  backend_ = backend.get();
  auto comm =
      tp > 1 ? make_loopback_communicator(*backend_, config_.rank, tp) : make_self_communicator();
  worker_ = std::make_unique<RankWorker>(std::move(backend), std::move(comm));
  sizes_ = sizes_for(setup);
  const auto start = std::chrono::steady_clock::now();
  HADAL_RETURN_IF_ERROR(worker_->load({.config = model_,
                                       .layout = setup.layouts[static_cast<size_t>(config_.rank)],
                                       .weights = *setup.weights,
                                       .backend = *backend_,
                                       .max_positions = sizes_.limits.max_context_tokens}));
  load_s_ = Seconds(std::chrono::steady_clock::now() - start).count();
  // Work space comes first in importance: the pool takes what is left, and rows share its pages
  // when that is too little for each to have its own.
  const int64_t page_bytes =
      model_.num_hidden_layers * kPageTokens * model_.kv_record(sizes_.kv_dtype).size_bytes();
  const RunnerLimits& limits = sizes_.limits;
  const int64_t work =
      worker_->model().arena_bytes(limits.max_step_tokens) +
      sampling_bytes(worker_->model().shape().vocab_per_rank, limits.max_step_tokens) +
      sampler_state_bytes(model_.vocab_size, limits.max_slots) +
      staging_bytes(limits.max_step_tokens, limits.max_slots, limits.max_context_tokens) +
      backend_->reserve_bytes(ops_limits(model_,
                                         worker_->model().layout(),
                                         limits.max_step_tokens,
                                         limits.max_slots,
                                         limits.max_context_tokens)) +
      kSpareBytes;
  const int64_t fitting = (backend_->memory_info().free_bytes - work) / page_bytes;
  const int32_t least = pages_of(sizes_.limits.max_context_tokens);
  if (fitting < least) {
    return Error{ErrorCode::resource_exhausted,
                 "bench step: one row of " + std::to_string(sizes_.limits.max_context_tokens) +
                     " tokens does not fit beside the weights: " +
                     std::to_string(backend_->memory_info().free_bytes) + " bytes are free"};
  }
  sizes_.limits.num_pages =
      static_cast<int32_t>(std::min<int64_t>(sizes_.limits.num_pages, fitting));
  HADAL_RETURN_IF_ERROR(worker_->prepare(sizes_));
  slot_pages_.assign(static_cast<size_t>(sizes_.limits.max_slots), 0);
  fill_pages();
  HADAL_RETURN_IF_ERROR(spread_routing());
  auto captured = worker_->capture_graphs();
  if (!captured) {
    return captured.error();
  }
  captured_ = std::move(captured).value();
  return ok_status();
}

/// Cached latents are normalised: every page gets random values in [-1.7, 1.7), the same ones.
void StepBenchImpl::fill_pages() {
  const TensorView pool = worker_->kv_pages();
  const KvRecord record = model_.kv_record(pool.dtype);
  std::vector<std::byte> host(static_cast<size_t>(pool.strides[0] * size_of(pool.dtype)));
  std::vector<float> token(static_cast<size_t>(model_.kv_width()));
  for (size_t at = 0; at < host.size(); at += static_cast<size_t>(record.size_bytes())) {
    for (float& value : token) {
      value = (static_cast<float>(next_random(random_) & 0xffffU) / 32768.0F - 1.0F) * 1.7F;
    }
    write_kv_record(record, token.data(), host.data() + at);
  }
  const auto stream = backend_->create_stream();
  const Shape page{1, pool.shape[1], pool.shape[2], pool.shape[3]};
  backend_->copy(pool.rows(0, 1), make_view(host.data(), pool.dtype, page), *stream);
  for (int64_t done = 1; done < pool.shape[0]; done *= 2) {
    const int64_t more = std::min(done, pool.shape[0] - done);
    backend_->copy(pool.rows(done, more), pool.rows(0, more), *stream);
  }
  stream->synchronize();
}

Status StepBenchImpl::spread_routing() {
  const bool is_uniform = config_.routing == BenchRouting::automatic
                              ? config_.runner.load_format == LoadFormat::dummy
                              : config_.routing == BenchRouting::uniform;
  if (!is_uniform || model_.n_routed_experts == 0) {
    return ok_status();
  }
  const int64_t tokens = sizes_.limits.max_step_tokens;
  const int64_t top_k = model_.num_experts_per_tok;
  std::vector<int32_t> ids(static_cast<size_t>(kRoutingTables * tokens * top_k));
  for (size_t at = 0; at < ids.size(); at += static_cast<size_t>(top_k)) {
    draw_experts(model_, random_, ids.data() + at);
  }
  auto memory =
      backend_->allocate(static_cast<int64_t>(ids.size() * sizeof(int32_t)), MemoryKind::device);
  if (!memory) {
    return memory.error();
  }
  routing_memory_ = std::move(memory).value();
  const Shape all{kRoutingTables * tokens, top_k};
  const TensorView table = make_view(routing_memory_.data(), DType::i32, all, backend_->device());
  const auto stream = backend_->create_stream();
  backend_->copy(
      table, make_view(reinterpret_cast<std::byte*>(ids.data()), DType::i32, all), *stream);
  stream->synchronize();
  std::vector<ConstTensorView> tables;
  for (int64_t i = 0; i < kRoutingTables; ++i) {
    tables.push_back(table.rows(i * tokens, tokens));
  }
  backend_->set_routing(std::move(tables));
  return ok_status();
}

BatchPlan StepBenchImpl::plan(int32_t rows,
                              int32_t length,
                              int32_t new_tokens,
                              AttentionForm form) {
  BatchPlan plan;
  for (int32_t slot = 0; slot < rows; ++slot) {
    int32_t& has = slot_pages_[static_cast<size_t>(slot)];
    SlotUpdate update;
    update.slot = slot;
    if (has == 0) {
      update.reset.emplace();
      update.reset->sampling.temperature = 0.0F;
    }
    for (; has < pages_of(length); ++has) {
      update.append_pages.push_back(next_page_);
      next_page_ = (next_page_ + 1) % sizes_.limits.num_pages;
    }
    if (update.reset || !update.append_pages.empty()) {
      plan.slot_updates.push_back(std::move(update));
    }
    plan.rows.push_back({.slot = slot,
                         .kv_begin = length - new_tokens,
                         .num_tokens = new_tokens,
                         .form = form,
                         .num_logits = 1,
                         .sample = true});
    for (int32_t i = 0; i < new_tokens; ++i) {
      plan.tokens.push_back(
          static_cast<TokenId>(next_random(random_) % static_cast<uint64_t>(model_.vocab_size)));
    }
  }
  return plan;
}

Result<double> StepBenchImpl::run(BatchPlan plan, StepMode mode) {
  plan.step_id = step_id_++;
  const auto start = std::chrono::steady_clock::now();
  const auto result = worker_->run(plan, mode);
  if (!result) {
    return result.error();
  }
  HADAL_RETURN_IF_ERROR(check_finite(result.value()));
  return Seconds(std::chrono::steady_clock::now() - start).count();
}

template <class MakePlan>
Result<double> StepBenchImpl::run_overlapped(int32_t steps, const MakePlan& make_plan) {
  const auto submit = [&] {
    BatchPlan next = make_plan();
    next.step_id = step_id_++;
    return worker_->submit(next);
  };
  const auto start = std::chrono::steady_clock::now();
  HADAL_RETURN_IF_ERROR(submit());
  for (int32_t i = 0; i < steps; ++i) {
    if (i + 1 < steps) {
      HADAL_RETURN_IF_ERROR(submit());
    }
    const auto result = worker_->collect();
    if (!result) {
      return result.error();
    }
    HADAL_RETURN_IF_ERROR(check_finite(result.value()));
  }
  return Seconds(std::chrono::steady_clock::now() - start).count() / steps;
}

Status StepBenchImpl::profile(BatchPlan plan, StepReport& report) {
  for (const ProfileMode mode : {ProfileMode::routing, ProfileMode::timing}) {
    backend_->set_mode(mode);
    const bool is_graph = report.has_graph && mode == ProfileMode::timing;
    if (const auto time = run(plan, is_graph ? StepMode::fresh_graph : StepMode::plain); !time) {
      return time.error();
    }
    plan.slot_updates.clear();
  }
  std::map<std::string, OpTotal> totals;
  double experts = 0.0;
  int32_t layers = 0;
  for (const OpSample& sample : backend_->samples()) {
    OpTotal& total = totals[sample.name];
    total.name = sample.name;
    ++total.calls;
    total.seconds += sample.seconds;
    total.bytes += sample.bytes;
    total.flops += sample.flops;
    if (sample.experts >= 0) {
      experts += sample.experts;
      ++layers;
    }
  }
  backend_->set_mode(ProfileMode::off);
  report.mean_experts = layers > 0 ? experts / layers : 0.0;
  for (auto& [name, total] : totals) {
    report.ops.push_back(std::move(total));
  }
  std::sort(report.ops.begin(), report.ops.end(), [](const OpTotal& a, const OpTotal& b) {
    return a.seconds > b.seconds;
  });
  return ok_status();
}

Result<StepReport> StepBenchImpl::measure(int32_t rows,
                                          int32_t length,
                                          int32_t new_tokens,
                                          AttentionForm form) {
  HADAL_CHECK(rows > 0 && rows <= sizes_.limits.max_slots && length >= new_tokens &&
                  length <= sizes_.limits.max_context_tokens &&
                  rows * new_tokens <= sizes_.limits.max_step_tokens,
              "bench step: a step that was not configured");
  const auto make_plan = [&] { return plan(rows, length, new_tokens, form); };
  const int64_t replayed_before = worker_->counts().replayed;
  std::vector<double> times;
  double total = 0.0;
  for (int32_t i = 0; i < kWarmUpSteps + kStepsMost; ++i) {
    const auto time = run(make_plan());
    if (!time) {
      return time.error();
    }
    if (i >= kWarmUpSteps) {
      times.push_back(time.value());
      total += time.value();
    }
    if (static_cast<int32_t>(times.size()) >= kStepsLeast && total >= config_.seconds) {
      break;
    }
  }
  std::sort(times.begin(), times.end());
  StepReport report;
  report.num_steps = static_cast<int32_t>(times.size());
  report.median_s = at_fraction(times, 0.5);
  report.p10_s = at_fraction(times, 0.1);
  report.p90_s = at_fraction(times, 0.9);
  report.has_graph = worker_->counts().replayed > replayed_before;
  const auto overlapped = run_overlapped(report.num_steps, make_plan);
  if (!overlapped) {
    return overlapped.error();
  }
  report.overlapped_s = overlapped.value();
  report.kv_pages_wanted = int64_t{rows} * pages_of(length);
  report.kv_pages = sizes_.limits.num_pages;
  HADAL_RETURN_IF_ERROR(profile(make_plan(), report));
  return report;
}

}  // namespace

Result<std::unique_ptr<StepBench>> StepBench::create(const StepBenchConfig& config) {
  if (config.rank < 0 || config.rank >= config.runner.tp) {
    return Error{ErrorCode::invalid_argument,
                 "--as-rank: expected 0 to " + std::to_string(config.runner.tp - 1) + ", got " +
                     std::to_string(config.rank)};
  }
  auto setup = make_setup(config.runner);
  if (!setup) {
    return setup.error();
  }
  int32_t longest = config.batches.empty() ? 0 : config.context;
  for (const int32_t prompt : config.prefills) {
    longest = std::max(longest, config.prefix + prompt);
  }
  if (longest > setup.value().context_length) {
    return Error{ErrorCode::invalid_argument,
                 "bench step: expected at most the model's " +
                     std::to_string(setup.value().context_length) + " tokens of context, got " +
                     std::to_string(longest)};
  }
  auto bench = std::make_unique<StepBenchImpl>(config, setup.value().model);
  HADAL_RETURN_IF_ERROR(bench->prepare(setup.value()));
  return std::unique_ptr<StepBench>(std::move(bench));
}

}  // namespace hadal
