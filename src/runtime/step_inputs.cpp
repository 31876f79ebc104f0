// Rows of a plan become offsets, positions and page tables; sampling rows become entries.
#include "step_inputs.h"

#include <algorithm>
#include <limits>
#include <string>

namespace hadal {
namespace {

constexpr int64_t kAlign = 256;

int64_t aligned(int64_t bytes) {
  return (bytes + kAlign - 1) / kAlign * kAlign;
}

int32_t to_i32(size_t value) {
  return static_cast<int32_t>(value);
}

/// What a launch needs on the host.
void count_rows(const StageArgs& args, BatchGeometry& out) {
  if (args.shape) {
    out.num_rows = args.shape->rows;
    out.num_tokens = args.shape->rows;
    out.max_row_tokens = 1;
    out.max_kv_length = args.shape->length;
    return;
  }
  out.num_rows = to_i32(args.plan.rows.size());
  out.num_tokens = to_i32(args.plan.tokens.size());
  for (const PlanRow& row : args.plan.rows) {
    const int32_t length = row.kv_begin + row.num_tokens;
    if (row.form == AttentionForm::prompt) {
      ++out.num_prompt_rows;
      out.num_prompt_tokens += row.num_tokens;
      out.num_prompt_pages += (length + kPageTokens - 1) / kPageTokens;
    }
    out.max_row_tokens = std::max(out.max_row_tokens, row.num_tokens);
    out.max_kv_length = std::max(out.max_kv_length, length);
  }
}

void stage_geometry(const StageArgs& args, StagingBlock& block, BatchGeometry& out) {
  count_rows(args, out);
  const std::vector<PlanRow>& rows = args.plan.rows;
  const int64_t num_rows = out.num_rows;
  const int64_t num_tokens = out.num_tokens;
  const int64_t max_pages = (out.max_kv_length + kPageTokens - 1) / kPageTokens;
  auto offsets = block.add<int32_t>(DType::i32, {num_rows + 1}, out.row_offsets);
  auto token_rows = block.add<int32_t>(DType::i32, {num_tokens}, out.token_rows);
  auto positions = block.add<int32_t>(DType::i32, {num_tokens}, out.positions);
  auto lengths = block.add<int32_t>(DType::i32, {num_rows}, out.kv_lengths);
  auto table = block.add<int32_t>(DType::i32, {num_rows, max_pages}, out.page_table);
  auto forms = block.add<uint8_t>(DType::u8, {num_rows}, out.forms);
  std::fill(table.begin(), table.end(), -1);
  size_t token = 0;
  for (size_t r = 0; r < rows.size(); ++r) {
    const PlanRow& row = rows[r];
    offsets[r] = to_i32(token);
    for (int32_t i = 0; i < row.num_tokens; ++i, ++token) {
      token_rows[token] = to_i32(r);
      positions[token] = row.kv_begin + i;
    }
    lengths[r] = row.kv_begin + row.num_tokens;
    forms[r] = row.form == AttentionForm::prompt ? kFormPrompt : kFormGenerated;
    const std::vector<PageId>& pages = args.slots.at(row.slot).pages;
    const auto used = static_cast<size_t>((lengths[r] + kPageTokens - 1) / kPageTokens);
    std::copy_n(pages.begin(), used, table.begin() + static_cast<std::ptrdiff_t>(r) * max_pages);
  }
  for (size_t r = rows.size(); r < static_cast<size_t>(num_rows); ++r) {
    offsets[r] = to_i32(token);
    token_rows[token] = to_i32(r);
    positions[token++] = -1;
    lengths[r] = 0;
    forms[r] = kFormGenerated;
  }
  offsets[static_cast<size_t>(num_rows)] = to_i32(token);
}

Status stage_tokens(const StageArgs& args, StagingBlock& block, StepInputs& out) {
  const std::vector<TokenId>& tokens = args.plan.tokens;
  const int64_t num_tokens =
      args.shape ? int64_t{args.shape->rows} : static_cast<int64_t>(tokens.size());
  bool has_device_token = args.shape.has_value();
  for (const TokenId token : tokens) {
    if (token < kTokenFromDevice || token >= args.vocab_size) {
      return Error{ErrorCode::data_loss,
                   "plan: token " + std::to_string(token) + " of a vocabulary of " +
                       std::to_string(args.vocab_size)};
    }
    has_device_token = has_device_token || token == kTokenFromDevice;
  }
  auto ids = block.add<int32_t>(DType::i32, {num_tokens}, out.tokens);
  std::fill(std::copy(tokens.begin(), tokens.end(), ids.begin()), ids.end(), 0);
  if (!has_device_token) {
    return ok_status();
  }
  auto slots = block.add<int32_t>(DType::i32, {num_tokens}, out.token_slots);
  out.last_tokens = args.sampler.last_tokens;
  size_t token = 0;
  for (const PlanRow& row : args.plan.rows) {
    for (int32_t i = 0; i < row.num_tokens; ++i) {
      slots[token++] = row.slot;
    }
  }
  std::fill(slots.begin() + static_cast<std::ptrdiff_t>(token), slots.end(), 0);
  return ok_status();
}

/// Sampling of one slot at a position, without its biases.
SampleEntry entry_for(const Slot& slot, SlotId id, int32_t position) {
  const SamplingParams& p = slot.sampling;
  SampleEntry entry;
  entry.slot = id;
  entry.position = position;
  entry.seed = p.seed;
  entry.temperature = p.temperature;
  entry.top_p = p.top_p;
  entry.min_p = p.min_p;
  entry.frequency_penalty = p.frequency_penalty;
  entry.presence_penalty = p.presence_penalty;
  entry.repetition_penalty = p.repetition_penalty;
  entry.top_k = p.top_k;
  entry.num_top = std::max(0, p.num_top_logprobs);
  entry.wants_logprob = slot.wants_logprobs() ? 1 : 0;
  return entry;
}

/// Collects entries before their number is known.
struct EntryList {
  std::vector<SampleEntry> entries;
  std::vector<int32_t> token_rows;
  std::vector<int32_t> bias_tokens;
  std::vector<float> bias_values;
  std::vector<SamplePlan::Ask> asks;
};

/// Biases of a draw; stop tokens are impossible before min_new_tokens.
void add_biases(const Slot& slot, SampleEntry& entry, EntryList& list) {
  entry.bias_begin = to_i32(list.bias_tokens.size());
  for (const auto& [token, bias] : slot.sampling.logit_bias) {
    list.bias_tokens.push_back(token);
    list.bias_values.push_back(bias);
  }
  if (entry.position - slot.num_prompt_tokens < slot.sampling.min_new_tokens) {
    for (const TokenId token : slot.sampling.stop_tokens) {
      list.bias_tokens.push_back(token);
      list.bias_values.push_back(-std::numeric_limits<float>::infinity());
    }
  }
  entry.bias_end = to_i32(list.bias_tokens.size());
}

void add_row_entries(const StageArgs& args, size_t index, size_t first_token, EntryList& list) {
  const PlanRow& row = args.plan.rows[index];
  const Slot& slot = args.slots.at(row.slot);
  const auto add = [&](SampleEntry entry, int32_t token_of_row, bool is_prompt) {
    entry.logits_row = to_i32(list.entries.size()) % args.logit_rows_max;
    list.entries.push_back(entry);
    list.token_rows.push_back(to_i32(first_token) + token_of_row);
    list.asks.push_back({index, is_prompt});
  };
  for (int32_t i = row.num_tokens - row.num_logits; i + 1 < row.num_tokens; ++i) {
    const TokenId next = args.plan.tokens[first_token + static_cast<size_t>(i) + 1];
    if (slot.wants_logprobs() && next >= 0) {
      SampleEntry entry = entry_for(slot, row.slot, row.kv_begin + i + 1);
      entry.given_token = next;
      add(entry, i, true);
    }
  }
  if (row.sample) {
    SampleEntry entry = entry_for(slot, row.slot, row.kv_begin + row.num_tokens);
    entry.updates_history = 1;
    add_biases(slot, entry, list);
    add(entry, row.num_tokens - 1, false);
  }
}

template <class T>
void stage_list(const std::vector<T>& list,
                DType dtype,
                StagingBlock& block,
                ConstTensorView& out) {
  if (!list.empty()) {
    auto host = block.add<T>(dtype, {static_cast<int64_t>(list.size())}, out);
    std::copy(list.begin(), list.end(), host.begin());
  }
}

void stage_sampling(const StageArgs& args, StagingBlock& block, SamplePlan& out) {
  EntryList list;
  size_t first_token = 0;
  for (size_t r = 0; r < args.plan.rows.size(); ++r) {
    if (args.plan.rows[r].num_logits > 0) {
      add_row_entries(args, r, first_token, list);
    }
    first_token += static_cast<size_t>(args.plan.rows[r].num_tokens);
  }
  stage_list(list.token_rows, DType::i32, block, out.token_rows);
  stage_list(list.bias_tokens, DType::i32, block, out.bias_tokens);
  stage_list(list.bias_values, DType::f32, block, out.bias_values);
  if (!list.entries.empty()) {
    // Entries are plain structs: the view counts them, its bytes are theirs.
    auto host =
        block.add<SampleEntry>(DType::u8, {static_cast<int64_t>(list.entries.size())}, out.entries);
    std::copy(list.entries.begin(), list.entries.end(), host.begin());
  }
  for (const SampleEntry& entry : list.entries) {
    out.num_top.push_back(entry.num_top);
    out.max_top = std::max(out.max_top, entry.num_top);
  }
  out.asks = std::move(list.asks);
}

}  // namespace

Result<StagingBlock> StagingBlock::create(Backend& backend, int64_t size_bytes) {
  auto device = backend.allocate(size_bytes, MemoryKind::device);
  if (!device) {
    return device.error();
  }
  StagingBlock block;
  for (HostCopy& copy : block.host_) {
    auto host = backend.allocate(size_bytes, MemoryKind::pinned_host);
    if (!host) {
      return host.error();
    }
    copy.memory = std::move(host).value();
    copy.uploaded = backend.create_event();
  }
  block.device_ = std::move(device).value();
  block.device_id_ = backend.device();
  return block;
}

void StagingBlock::clear() {
  turn_ = 1 - turn_;
  used_bytes_ = 0;
  host_[turn_].uploaded->synchronize();
}

std::byte* StagingBlock::add_bytes(int64_t size_bytes,
                                   DType dtype,
                                   const Shape& shape,
                                   ConstTensorView& device_view) {
  const int64_t begin = used_bytes_;
  used_bytes_ = aligned(begin + size_bytes);
  HADAL_CHECK(used_bytes_ <= device_.size_bytes(),
              "step inputs of " + std::to_string(used_bytes_) + " bytes, planned " +
                  std::to_string(device_.size_bytes()));
  device_view = make_view(device_.data() + begin, dtype, shape, device_id_);
  return host_[turn_].memory.data() + begin;
}

void StagingBlock::upload(Backend& backend, Stream& stream) {
  const Shape all{1, used_bytes_};
  const HostCopy& from = host_[turn_];
  backend.copy(make_view(device_.data(), DType::u8, all, device_id_),
               make_view(from.memory.data(), DType::u8, all),
               stream);
  from.uploaded->record(stream);
}

Result<StagedStep> stage_step(const StageArgs& args, StagingBlock& block) {
  block.clear();
  StagedStep step;
  if (!args.plan.rows.empty() || args.shape) {
    // First, so that their places follow from the shape alone.
    stage_geometry(args, block, step.geometry);
    HADAL_RETURN_IF_ERROR(stage_tokens(args, block, step.inputs));
    stage_sampling(args, block, step.sampling);
  }
  if (!args.plan.page_copies.empty()) {
    auto copies = block.add<int32_t>(
        DType::i32, {static_cast<int64_t>(args.plan.page_copies.size()), 3}, step.page_copies);
    size_t at = 0;
    for (const PageCopy& copy : args.plan.page_copies) {
      copies[at++] = copy.src;
      copies[at++] = copy.dst;
      copies[at++] = copy.num_tokens;
    }
  }
  return step;
}

int64_t staging_bytes(int64_t max_step_tokens, int64_t max_slots, int64_t max_context_tokens) {
  // Rows: two a slot at most (the end of a prompt and recomputed tokens).
  const int64_t max_rows = std::min(2 * max_slots, max_step_tokens);
  const int64_t pages = max_context_tokens / kPageTokens + 1;
  const int64_t geometry = 2 * aligned(4 * (max_rows + 1)) + 4 * aligned(4 * max_step_tokens) +
                           aligned(4 * max_rows * pages) + aligned(max_rows);
  const int64_t sampling = aligned(4 * max_step_tokens) +
                           aligned(static_cast<int64_t>(sizeof(SampleEntry)) * max_step_tokens) +
                           2 * aligned(4 * max_rows * static_cast<int64_t>(kMaxSlotBiases));
  const int64_t copies = aligned(12 * max_slots);
  return geometry + sampling + copies;
}

}  // namespace hadal
