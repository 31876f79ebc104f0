// The life of a step on one rank: apply updates, copy pages, stage inputs, forward, sample,
// collect.
#include "rank_worker.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "model_setup.h"

namespace hadal {
namespace {

Error bad_plan(const std::string& what) {
  return {ErrorCode::data_loss, "plan: " + what};
}

/// Room for the results of `entries` asks with `top` best tokens each: five arrays, each aligned.
int64_t result_bytes(int64_t entries, int64_t top) {
  return 2 * 4 * entries + entries + 2 * 4 * entries * top + 5 * 256;
}

TensorView take_state(std::byte*& at, DType dtype, const Shape& shape, Device device) {
  const TensorView view = make_view(at, dtype, shape, device);
  at += (shape.numel() * size_of(dtype) + 255) / 256 * 256;
  return view;
}

}  // namespace

int64_t sampling_bytes(int64_t vocab_per_rank, int64_t max_step_tokens) {
  return 4 * kLogitRowsMax * vocab_per_rank + 256 + result_bytes(max_step_tokens, kMaxTopLogprobs);
}

int64_t sampler_state_bytes(int64_t vocab_size, int64_t max_slots) {
  return max_slots * (5 * vocab_size + 4) + 3 * 256;
}

/// A step's sampling results on the device; top arrays are absent when nobody asks.
struct RankWorker::SampleOutputs {
  TensorView tokens;
  TensorView logprobs;
  TensorView has_nan;
  TensorView top_tokens;
  TensorView top_logprobs;
};

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
  auto pool =
      KvPool::create(*backend_, sizes.kv_dtype, limits.num_pages, shape.num_layers, shape.kv_width);
  if (!pool) {
    return pool.error();
  }
  pool_ = std::move(pool).value();
  const int64_t arena_bytes = model_->arena_bytes(limits.max_step_tokens) +
                              sampling_bytes(shape.vocab_per_rank, limits.max_step_tokens);

  struct Wanted {
    Buffer& buffer;
    int64_t bytes;
    MemoryKind kind;
  };

  for (const Wanted& wanted : {Wanted{arena_memory_, arena_bytes, MemoryKind::device},
                               Wanted{sampler_memory_,
                                      sampler_state_bytes(limits.vocab_size, limits.max_slots),
                                      MemoryKind::device},
                               Wanted{results_,
                                      result_bytes(limits.max_step_tokens, kMaxTopLogprobs),
                                      MemoryKind::pinned_host}}) {
    auto memory = backend_->allocate(wanted.bytes, wanted.kind);
    if (!memory) {
      return memory.error();
    }
    wanted.buffer = std::move(memory).value();
  }
  arena_ = StepArena(arena_memory_.data(), arena_bytes, backend_->device());
  std::byte* at = sampler_memory_.data();
  const Shape counts{limits.max_slots, limits.vocab_size};
  sampler_.generated_counts = take_state(at, DType::i32, counts, backend_->device());
  sampler_.prompt_seen = take_state(at, DType::u8, counts, backend_->device());
  sampler_.last_tokens = take_state(at, DType::i32, Shape{limits.max_slots}, backend_->device());
  for (const auto& [block, bytes] :
       {std::pair{
            &staging_,
            staging_bytes(limits.max_step_tokens, limits.max_slots, limits.max_context_tokens)},
        std::pair{&history_, int64_t{4} * limits.max_context_tokens + 5 * 256}}) {
    auto made = StagingBlock::create(*backend_, bytes);
    if (!made) {
      return made.error();
    }
    *block = std::move(made).value();
  }
  return ok_status();
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

void RankWorker::reset_sampler(SlotId slot, const SlotReset& reset) {
  history_.clear();
  ResetSlotsArgs args;
  args.state = sampler_;
  const auto size = static_cast<int32_t>(reset.history.size());
  history_.add<int32_t>(DType::i32, {1}, args.slots)[0] = slot;
  auto offsets = history_.add<int32_t>(DType::i32, {2}, args.history_offsets);
  offsets[0] = 0;
  offsets[1] = size;
  auto tokens = history_.add<int32_t>(DType::i32, {size}, args.history);
  std::copy(reset.history.begin(), reset.history.end(), tokens.begin());
  history_.add<int32_t>(DType::i32, {1}, args.num_prompt_tokens)[0] =
      std::min(reset.num_prompt_tokens, size);
  history_.upload(*backend_, *stream_);
  backend_->ops().reset_slots(args, *stream_);
  stream_->synchronize();  // the staging block is reused by the next reset
}

Status RankWorker::apply_updates(const BatchPlan& plan) {
  for (const SlotUpdate& update : plan.slot_updates) {
    HADAL_RETURN_IF_ERROR(slots_->apply(update));
    if (update.reset && slots_->at(update.slot).has_penalty()) {
      reset_sampler(update.slot, *update.reset);
    }
  }
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

void RankWorker::sample(const StagedStep& step, const ForwardResult& forward, SampleOutputs& out) {
  const SamplePlan& sampling = step.sampling;
  const auto num_entries = static_cast<int64_t>(sampling.asks.size());
  const int64_t vocab_per_rank = model_->shape().vocab_per_rank;
  const TensorView logits = arena_.take(DType::f32, {kLogitRowsMax, vocab_per_rank});
  out.tokens = arena_.take(DType::i32, {num_entries});
  out.logprobs = arena_.take(DType::f32, {num_entries});
  out.has_nan = arena_.take(DType::u8, {num_entries});
  if (sampling.max_top > 0) {
    out.top_tokens = arena_.take(DType::i32, {num_entries, sampling.max_top});
    out.top_logprobs = arena_.take(DType::f32, {num_entries, sampling.max_top});
  }
  const ForwardContext run = context();
  const auto* entries = reinterpret_cast<const SampleEntry*>(sampling.entries.data);
  for (int64_t begin = 0; begin < num_entries; begin += kLogitRowsMax) {
    const int64_t count = std::min(kLogitRowsMax, num_entries - begin);
    model_->logits(forward, sampling.token_rows.rows(begin, count), logits.rows(0, count), run);
    SampleArgs args;
    args.logits = logits.rows(0, count);
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

StepResult RankWorker::collect(const BatchPlan& plan,
                               const SamplePlan& sampling,
                               const SampleOutputs& out) {
  std::byte* at = results_.data();
  const auto fetch = [&](const TensorView& device) {
    if (device.empty()) {
      return device;
    }
    const TensorView host = take_state(at, device.dtype, device.shape, Device{});
    backend_->copy(host, device, *stream_);
    return host;
  };
  SampleOutputs host;
  if (!sampling.asks.empty()) {
    host = {fetch(out.tokens),
            fetch(out.logprobs),
            fetch(out.has_nan),
            fetch(out.top_tokens),
            fetch(out.top_logprobs)};
  }
  stream_->synchronize();
  StepResult result;
  result.step_id = plan.step_id;
  std::vector<size_t> places(plan.rows.size());
  for (size_t r = 0; r < plan.rows.size(); ++r) {
    if (plan.rows[r].num_logits > 0) {
      places[r] = result.rows.size();
      result.rows.push_back({});
      result.rows.back().slot = plan.rows[r].slot;
    }
  }
  for (size_t i = 0; i < sampling.asks.size(); ++i) {
    RowResult& row = result.rows[places[sampling.asks[i].row]];
    const auto index = static_cast<int64_t>(i);
    std::vector<TokenLogprob> top;
    for (int32_t t = 0; t < sampling.num_top[i]; ++t) {
      top.push_back(
          {host.top_tokens.row<int32_t>(index)[t], host.top_logprobs.row<float>(index)[t]});
    }
    const TokenLogprob token{host.tokens.as<int32_t>()[i], host.logprobs.as<float>()[i]};
    row.has_nan = row.has_nan || host.has_nan.as<uint8_t>()[i] != 0;
    if (sampling.asks[i].is_prompt) {
      row.prompt_logprobs.push_back(token);
      row.prompt_top.push_back(std::move(top));
    } else {
      row.token = token.token;
      row.logprob = token.logprob;
      row.top = std::move(top);
    }
  }
  return result;
}

Result<StepResult> RankWorker::run(const BatchPlan& plan) {
  HADAL_RETURN_IF_ERROR(check_plan(plan));
  HADAL_RETURN_IF_ERROR(apply_updates(plan));
  has_step_ = true;
  last_step_id_ = plan.step_id;
  const StageArgs stage{.plan = plan,
                        .slots = *slots_,
                        .sampler = sampler_,
                        .vocab_size = sizes_.limits.vocab_size,
                        .logit_rows_max = static_cast<int32_t>(kLogitRowsMax)};
  auto staged = stage_step(stage, staging_);
  if (!staged) {
    return staged.error();
  }
  StagedStep& step = staged.value();
  staging_.upload(*backend_, *stream_);
  arena_.reset();
  const ForwardContext run = context();
  move_pages(plan);
  if (!step.page_copies.empty()) {
    run.ops.copy_pages({.kv_pool = pool_.view(), .copies = step.page_copies}, run.stream);
  }
  SampleOutputs out;
  if (step.geometry.num_tokens > 0) {
    step.inputs.geometry = &step.geometry;
    run.ops.begin_step(step.geometry, run.stream);
    const ForwardResult forward = model_->forward(step.inputs, run);
    if (!step.sampling.asks.empty()) {
      sample(step, forward, out);
    }
  }
  StepResult result = collect(plan, step.sampling, out);
  HADAL_RETURN_IF_ERROR(comm_->poll_error());
  return result;
}

}  // namespace hadal
