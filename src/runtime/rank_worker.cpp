// The life of a step on one rank: apply updates, copy pages, stage inputs, forward, sample;
// collect.
//
// Nothing between submit and collect waits for the device. A graph holds the forward pass alone:
// what varies with the requests (how many rows want logits, biases, best tokens) comes after it, op
// by op, and is given to the stream long before the graph ends.
#include "rank_worker.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <set>
#include <string>

#include "model_setup.h"

namespace hadal {
namespace {

constexpr int64_t kAlign = 256;

Error bad_plan(const std::string& what) {
  return {ErrorCode::data_loss, "plan: " + what};
}

int64_t aligned(int64_t bytes) {
  return (bytes + kAlign - 1) / kAlign * kAlign;
}

TensorView take_state(std::byte*& at, DType dtype, const Shape& shape, Device device) {
  const TensorView view = make_view(at, dtype, shape, device);
  at += aligned(shape.numel() * size_of(dtype));
  return view;
}

int64_t logit_bytes(int64_t vocab_per_rank) {
  return aligned(4 * kLogitRowsMax * vocab_per_rank);
}

/// Histories of as many slots as one upload holds.
int64_t history_bytes(const RunnerLimits& limits) {
  return aligned(4 * int64_t{limits.max_context_tokens}) +
         3 * aligned(4 * (int64_t{limits.max_slots} + 1));
}

}  // namespace

int64_t sampling_bytes(int64_t vocab_per_rank, int64_t max_step_tokens) {
  return logit_bytes(vocab_per_rank) + result_bytes(max_step_tokens, kMaxTopLogprobs);
}

int64_t sampler_state_bytes(int64_t vocab_size, int64_t max_slots) {
  return max_slots * (5 * vocab_size + 4) + 3 * 256;
}

RankWorker::RankWorker(std::unique_ptr<Backend> backend, std::unique_ptr<Communicator> comm)
    : backend_(std::move(backend)), comm_(std::move(comm)), stream_(backend_->create_stream()) {}

RankWorker::~RankWorker() = default;

Status RankWorker::load(const ModelLoadArgs& args) {
  auto model = Model::load(args);
  if (!model) {
    return model.error();
  }
  model_ = std::move(model).value();
  return ok_status();
}

Status RankWorker::allocate(Buffer& buffer, int64_t size_bytes, MemoryKind kind) {
  auto memory = backend_->allocate(size_bytes, kind);
  if (!memory) {
    return memory.error();
  }
  buffer = std::move(memory).value();
  return ok_status();
}

Status RankWorker::prepare(const RankSizes& sizes) {
  sizes_ = sizes;
  const RunnerLimits& limits = sizes.limits;
  const ModelShape& shape = model_->shape();
  slots_ = std::make_unique<SlotTable>(SlotLimits{.num_slots = limits.max_slots,
                                                  .num_pages = limits.num_pages,
                                                  .vocab_size = limits.vocab_size,
                                                  .max_context_tokens = limits.max_context_tokens});
  HADAL_RETURN_IF_ERROR(backend_->reserve(ops_limits(model_->config(),
                                                     model_->layout(),
                                                     limits.max_step_tokens,
                                                     limits.max_slots,
                                                     limits.max_context_tokens)));
  auto pool = KvPool::create(
      *backend_, model_->config().kv_record(sizes.kv_dtype), limits.num_pages, shape.num_layers);
  if (!pool) {
    return pool.error();
  }
  pool_ = std::move(pool).value();
  return allocate_work_space();
}

Status RankWorker::allocate_work_space() {
  const RunnerLimits& limits = sizes_.limits;
  const Device device = backend_->device();
  const int64_t vocab_per_rank = model_->shape().vocab_per_rank;
  const int64_t before = sampling_bytes(vocab_per_rank, limits.max_step_tokens);
  const int64_t arena_bytes = model_->arena_bytes(limits.max_step_tokens);
  HADAL_RETURN_IF_ERROR(allocate(arena_memory_, before + arena_bytes, MemoryKind::device));
  logits_ =
      make_view(arena_memory_.data(), DType::f32, Shape{kLogitRowsMax, vocab_per_rank}, device);
  outputs_ = arena_memory_.data() + logit_bytes(vocab_per_rank);
  arena_ = StepArena(arena_memory_.data() + before, arena_bytes, device);
  HADAL_RETURN_IF_ERROR(allocate(sampler_memory_,
                                 sampler_state_bytes(limits.vocab_size, limits.max_slots),
                                 MemoryKind::device));
  std::byte* at = sampler_memory_.data();
  const Shape counts{limits.max_slots, limits.vocab_size};
  sampler_.generated_counts = take_state(at, DType::i32, counts, device);
  sampler_.prompt_seen = take_state(at, DType::u8, counts, device);
  sampler_.last_tokens = take_state(at, DType::i32, Shape{limits.max_slots}, device);
  for (Flight& flight : flights_) {
    HADAL_RETURN_IF_ERROR(allocate(flight.results,
                                   result_bytes(limits.max_step_tokens, kMaxTopLogprobs),
                                   MemoryKind::pinned_host));
    flight.done = backend_->create_event();
  }
  for (StepMarks& marks : marks_) {
    marks = {backend_->create_event(), backend_->create_event()};
  }
  for (const auto& [block, bytes] :
       {std::pair{
            &staging_,
            staging_bytes(limits.max_step_tokens, limits.max_slots, limits.max_context_tokens)},
        std::pair{&history_, history_bytes(limits)}}) {
    auto made = StagingBlock::create(*backend_, bytes);
    if (!made) {
      return made.error();
    }
    *block = std::move(made).value();
  }
  return ok_status();
}

Result<CaptureReport> RankWorker::capture_graphs(
    const std::function<void(size_t, size_t)>& progress) {
  CaptureReport report;
  if (backend_->has_graphs()) {
    report.batches = graph_batches(sizes_.graphs, sizes_.limits.max_slots);
  }
  if (report.batches.empty()) {
    return report;
  }
  report.lengths = graph_lengths(sizes_.limits.max_context_tokens);
  const auto start = std::chrono::steady_clock::now();
  const int64_t free_before = backend_->memory_info().free_bytes;
  const size_t num_graphs = report.batches.size() * report.lengths.size();
  for (const int32_t rows : report.batches) {
    for (const int32_t length : report.lengths) {
      auto step = stage({}, GraphShape{rows, length});
      if (!step) {
        return step.error();
      }
      auto pass = capture(step.value(), true);
      if (!pass) {
        return Error{pass.error().code,
                     "CUDA graph of " + std::to_string(rows) + " rows: " + pass.error().message +
                         "; --disable-cuda-graph does without, --cuda-graph-max-bs with fewer"};
      }
      passes_[{rows, length}] = std::move(pass).value();
      if (progress) {
        progress(passes_.size(), num_graphs);
      }
    }
  }
  stream_->synchronize();
  HADAL_RETURN_IF_ERROR(comm_->poll_error());
  shapes_ = GraphShapes(report.batches, report.lengths, sizes_.graphs.pads);
  report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  report.bytes = std::max<int64_t>(0, free_before - backend_->memory_info().free_bytes);
  return report;
}

Status RankWorker::check_plan(const BatchPlan& plan) const {
  if (has_step_ && plan.step_id != last_step_id_ + 1) {
    return bad_plan("step " + std::to_string(plan.step_id) + " after step " +
                    std::to_string(last_step_id_));
  }
  const RunnerLimits& limits = sizes_.limits;
  if (plan.tokens.size() > static_cast<size_t>(limits.max_step_tokens) ||
      plan.rows.size() > 2 * static_cast<size_t>(limits.max_slots) ||
      plan.page_copies.size() > static_cast<size_t>(limits.max_slots)) {
    return bad_plan(std::to_string(plan.tokens.size()) + " tokens, " +
                    std::to_string(plan.rows.size()) + " rows and " +
                    std::to_string(plan.page_copies.size()) + " page copies exceed the limits");
  }
  for (const PageMove& move : plan.page_moves) {
    if (move.page < 0 || move.page >= limits.num_pages || move.host_page < 0 ||
        move.host_page >= limits.num_host_pages) {
      return bad_plan("move between page " + std::to_string(move.page) + " and host page " +
                      std::to_string(move.host_page));
    }
  }
  for (const PageCopy& copy : plan.page_copies) {
    const bool in_range = copy.src >= 0 && copy.src < limits.num_pages && copy.dst >= 0 &&
                          copy.dst < limits.num_pages && copy.num_tokens >= 0 &&
                          copy.num_tokens <= kPageTokens;
    if (!in_range) {
      return bad_plan("copy of " + std::to_string(copy.num_tokens) + " tokens from page " +
                      std::to_string(copy.src) + " to " + std::to_string(copy.dst));
    }
  }
  return ok_status();
}

/// Slots that no penalty concerns keep counts of sequences before; nobody reads them.
void RankWorker::reset_samplers(const BatchPlan& plan) {
  std::vector<const SlotUpdate*> updates;
  for (const SlotUpdate& update : plan.slot_updates) {
    if (update.reset && slots_->at(update.slot).has_penalty()) {
      updates.push_back(&update);
    }
  }
  const auto most_tokens = static_cast<size_t>(sizes_.limits.max_context_tokens);
  for (size_t begin = 0; begin < updates.size();) {
    // As many distinct slots as the block holds.
    std::set<SlotId> slots;
    size_t num_tokens = 0;
    size_t end = begin;
    for (; end < updates.size(); ++end) {
      const size_t more = updates[end]->reset->history.size();
      if (num_tokens + more > most_tokens || !slots.insert(updates[end]->slot).second) {
        break;
      }
      num_tokens += more;
    }
    history_.clear();
    const auto count = static_cast<int64_t>(end - begin);
    ResetSlotsArgs args;
    args.state = sampler_;
    auto ids = history_.add<int32_t>(DType::i32, {count}, args.slots);
    auto offsets = history_.add<int32_t>(DType::i32, {count + 1}, args.history_offsets);
    auto prompts = history_.add<int32_t>(DType::i32, {count}, args.num_prompt_tokens);
    auto tokens =
        history_.add<int32_t>(DType::i32, {static_cast<int64_t>(num_tokens)}, args.history);
    int32_t at = 0;
    for (size_t i = 0; begin < end; ++begin, ++i) {
      const SlotReset& reset = *updates[begin]->reset;
      const auto size = static_cast<int32_t>(reset.history.size());
      ids[i] = updates[begin]->slot;
      offsets[i] = at;
      prompts[i] = std::min(reset.num_prompt_tokens, size);
      std::copy(reset.history.begin(), reset.history.end(), tokens.begin() + at);
      at += size;
    }
    offsets[static_cast<size_t>(count)] = at;
    history_.upload(*backend_, *stream_);
    backend_->ops().reset_slots(args, *stream_);
  }
}

Status RankWorker::apply_updates(const BatchPlan& plan) {
  for (const SlotUpdate& update : plan.slot_updates) {
    HADAL_RETURN_IF_ERROR(slots_->apply(update));
  }
  reset_samplers(plan);
  size_t num_tokens = 0;
  for (const PlanRow& row : plan.rows) {
    HADAL_RETURN_IF_ERROR(slots_->check_row(row));
    num_tokens += static_cast<size_t>(row.num_tokens);
  }
  if (num_tokens != plan.tokens.size()) {
    return bad_plan("rows of " + std::to_string(num_tokens) + " tokens, but " +
                    std::to_string(plan.tokens.size()) + " tokens");
  }
  return ok_status();
}

/// All ranks hold the same latents, so each writes its part of the host pages and reads all. A rank
/// that reads what another wrote has met it in a collective since: no plan does both.
void RankWorker::move_pages(const BatchPlan& plan) {
  for (const PageMove& move : plan.page_moves) {
    const TensorView page = pool_.view().rows(move.page, 1);
    const TensorView host = sizes_.host_pages.rows(move.host_page, 1);
    if (!move.to_host) {
      backend_->copy(page, host, *stream_);
    } else if (move.host_page % comm_->world_size() == comm_->rank()) {
      backend_->copy(host, page, *stream_);
    }
  }
}

ForwardContext RankWorker::context() {
  return {.ops = backend_->ops(),
          .comm = comm_->world_size() > 1 ? comm_.get() : nullptr,
          .arena = arena_,
          .kv_pool = pool_.view(),
          .stream = *stream_};
}

Result<StagedStep> RankWorker::stage(const BatchPlan& plan,
                                     const std::optional<GraphShape>& shape) {
  auto staged = stage_step({.plan = plan,
                            .slots = *slots_,
                            .sampler = sampler_,
                            .vocab_size = sizes_.limits.vocab_size,
                            .logit_rows_max = static_cast<int32_t>(kLogitRowsMax),
                            .shape = shape},
                           staging_);
  if (staged) {
    staging_.upload(*backend_, *stream_);
  }
  return staged;
}

void RankWorker::run_pass(Pass& pass) {
  arena_.reset();
  const ForwardContext run = context();
  pass.inputs.geometry = &pass.geometry;
  run.ops.begin_step(pass.geometry, run.stream);
  pass.result = model_->forward(pass.inputs, run);
}

/// A first run of a size may load kernels and connect ranks, which a capture may not.
Result<std::unique_ptr<RankWorker::Pass>> RankWorker::capture(const StagedStep& step,
                                                              bool warms_up) {
  auto pass = std::make_unique<Pass>();
  pass->geometry = step.geometry;
  pass->inputs = step.inputs;
  if (warms_up) {
    run_pass(*pass);
  }
  auto graph = backend_->capture(*stream_, [this, p = pass.get()] { run_pass(*p); });
  if (!graph) {
    return graph.error();
  }
  pass->graph = std::move(graph).value();
  return pass;
}

ForwardResult RankWorker::forward(const StagedStep& step, const Pass* captured) {
  if (captured == nullptr) {
    Pass pass{step.geometry, step.inputs, {}, nullptr};
    run_pass(pass);
    return pass.result;
  }
  HADAL_CHECK(captured->inputs.tokens.data == step.inputs.tokens.data &&
                  captured->inputs.token_slots.data == step.inputs.token_slots.data &&
                  captured->geometry.positions.data == step.geometry.positions.data &&
                  captured->geometry.page_table.data == step.geometry.page_table.data &&
                  captured->geometry.page_table.shape == step.geometry.page_table.shape,
              "a graph of a step that lies elsewhere");
  captured->graph->launch(*stream_);
  return captured->result;
}

void RankWorker::count_pass(const BatchPlan& plan, bool is_replayed) {
  std::atomic<int64_t>& count = is_replayed       ? num_replayed_
                                : is_decode(plan) ? num_plain_decodes_
                                                  : num_plain_others_;
  count.fetch_add(1, std::memory_order_relaxed);
}

StepCounts RankWorker::counts() const {
  return {.replayed = num_replayed_.load(std::memory_order_relaxed),
          .plain_decodes = num_plain_decodes_.load(std::memory_order_relaxed),
          .plain_others = num_plain_others_.load(std::memory_order_relaxed)};
}

void RankWorker::sample(const SamplePlan& sampling,
                        const ForwardResult& forward,
                        const SampleOutputs& out) {
  const auto num_entries = static_cast<int64_t>(sampling.asks.size());
  const ForwardContext run = context();
  const auto* entries = reinterpret_cast<const SampleEntry*>(sampling.entries.data);
  for (int64_t begin = 0; begin < num_entries; begin += kLogitRowsMax) {
    const int64_t count = std::min(kLogitRowsMax, num_entries - begin);
    model_->logits(forward, sampling.token_rows.rows(begin, count), logits_.rows(0, count), run);
    SampleArgs args;
    args.logits = logits_.rows(0, count);
    args.comm = run.comm;
    args.vocab_size = sizes_.limits.vocab_size;
    args.entries = entries + begin;
    args.num_entries = static_cast<int32_t>(count);
    args.bias_tokens = sampling.bias_tokens;
    args.bias_values = sampling.bias_values;
    args.state = sampler_;
    args.out_tokens = out.tokens.rows(begin, count);
    args.out_logprobs = out.logprobs.rows(begin, count);
    args.out_has_nan = out.has_nan.rows(begin, count);
    if (sampling.max_top > 0) {
      args.out_top_tokens = out.top_tokens.rows(begin, count);
      args.out_top_logprobs = out.top_logprobs.rows(begin, count);
    }
    run.ops.sample(args, run.stream);
  }
}

Status RankWorker::submit(const BatchPlan& plan, StepMode mode) {
  HADAL_RETURN_IF_ERROR(check_plan(plan));
  HADAL_RETURN_IF_ERROR(apply_updates(plan));
  has_step_ = true;
  last_step_id_ = plan.step_id;
  const bool is_fresh = mode == StepMode::fresh_graph && is_decode(plan) && backend_->has_graphs();
  std::optional<GraphShape> shape;
  if (is_fresh) {
    shape = GraphShape{static_cast<int32_t>(plan.rows.size()), longest_row(plan)};
  } else if (mode == StepMode::automatic) {
    shape = shapes_.find(plan);
  }
  auto staged = stage(plan, shape);
  if (!staged) {
    return staged.error();
  }
  StagedStep& step = staged.value();
  const StepMarks& marks = marks_[num_submitted_ % marks_.size()];
  marks.begin->record(*stream_);
  move_pages(plan);
  if (!step.page_copies.empty()) {
    backend_->ops().copy_pages({.kv_pool = pool_.view(), .copies = step.page_copies}, *stream_);
  }
  const Pass* captured = nullptr;
  if (is_fresh) {
    auto pass = capture(step, false);
    if (!pass) {
      return pass.error();
    }
    fresh_ = std::move(pass).value();
    captured = fresh_.get();
  } else if (shape) {
    captured = passes_.at({shape->rows, shape->length}).get();
  }
  Flight& flight = flights_[num_submitted_++ % kStepsInFlightMost];
  flight.step_id = plan.step_id;
  flight.rows = plan.rows;
  if (step.geometry.num_tokens > 0) {
    const ForwardResult result = forward(step, captured);
    count_pass(plan, captured != nullptr);
    const auto num_entries = static_cast<int64_t>(step.sampling.asks.size());
    if (num_entries > 0) {
      const SampleOutputs out =
          place_results(outputs_, backend_->device(), num_entries, step.sampling.max_top);
      sample(step.sampling, result, out);
      marks.end->record(*stream_);
      flight.host =
          place_results(flight.results.data(), Device{}, num_entries, step.sampling.max_top);
      const Shape all{1, out.size_bytes};
      backend_->copy(make_view(flight.results.data(), DType::u8, all),
                     make_view(outputs_, DType::u8, all, backend_->device()),
                     *stream_);
    }
  }
  if (step.sampling.asks.empty()) {
    marks.end->record(*stream_);
  }
  flight.sampling = std::move(step.sampling);
  flight.done->record(*stream_);
  return ok_status();
}

Result<StepResult> RankWorker::collect() {
  const size_t index = num_collected_++;
  const Flight& flight = flights_[index % kStepsInFlightMost];
  flight.done->synchronize();
  HADAL_RETURN_IF_ERROR(comm_->poll_error());
  StepResult result = read_results(flight.step_id, flight.rows, flight.sampling, flight.host);
  const StepMarks& marks = marks_[index % marks_.size()];
  result.device_busy_s = marks.end->seconds_since(*marks.begin);
  if (index > 0) {
    result.device_idle_s = marks.begin->seconds_since(*marks_[(index - 1) % marks_.size()].end);
  }
  return result;
}

Result<StepResult> RankWorker::run(const BatchPlan& plan, StepMode mode) {
  HADAL_RETURN_IF_ERROR(submit(plan, mode));
  return collect();
}

}  // namespace hadal
