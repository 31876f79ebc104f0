// The null runner: executes plans without a model, so that the whole engine, scheduler and HTTP
// path run at any speed on any machine.
//
// It answers with a keyed hash of (seed, position) and checks every plan as strictly as a device
// would suffer from it: slots that were never reset, pages that do not exist or are too few, rows
// out of order, and, in debug builds, KV that is not the sequence's own prefix. A breach aborts: it
// is a scheduler bug.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <deque>
#include <string>
#include <thread>

#include <hadal/base/check.h>
#include <hadal/runtime/runner.h>

namespace hadal {
namespace {

uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15U;
  x = (x ^ (x >> 30U)) * 0xBF58476D1CE4E5B9U;
  x = (x ^ (x >> 27U)) * 0x94D049BB133111EBU;
  return x ^ (x >> 31U);
}

/// What the KV of a page would hold: for each position a hash of all tokens up to it. Debug builds
/// only; 512 bytes a page.
class KvShadow {
 public:
  explicit KvShadow(int32_t num_pages)
      : hashes_(static_cast<size_t>(num_pages) * static_cast<size_t>(kPageTokens)) {}

  uint64_t& at(PageId page, int32_t offset) {
    return hashes_[static_cast<size_t>(page) * static_cast<size_t>(kPageTokens) +
                   static_cast<size_t>(offset)];
  }

  static uint64_t extend(uint64_t prefix, TokenId token) {
    return mix(prefix ^ static_cast<uint64_t>(static_cast<uint32_t>(token))) | 1U;
  }

 private:
  std::vector<uint64_t> hashes_;
};

struct Slot {
  bool in_use = false;
  SamplingParams sampling;
  int32_t num_prompt_tokens = 0;
  std::vector<PageId> pages;
  int32_t kv_end = -1;  ///< -1 = no row yet: the first may begin behind cached tokens
  TokenId last_token = -1;
  int32_t last_token_position = -1;
};

class NullRunner final : public Runner {
 public:
  explicit NullRunner(const NullRunnerConfig& config)
      : config_(config),
        slots_(static_cast<size_t>(config.limits.max_slots)),
        shadow_(HADAL_DEBUG_CHECKS ? config.limits.num_pages : 0) {
    HADAL_CHECK(config.limits.vocab_size > 0, "null runner: vocab_size must be positive");
    HADAL_CHECK(config.limits.max_steps_in_flight > 0, "null runner: max_steps_in_flight < 1");
  }

  const RunnerLimits& limits() const override { return config_.limits; }

  Status submit(const BatchPlan& plan) override {
    HADAL_CHECK(static_cast<int32_t>(in_flight_.size()) < config_.limits.max_steps_in_flight,
                "null runner: too many steps in flight");
    HADAL_CHECK(plan.step_id == last_step_id_ + 1 || last_step_id_ == 0,
                "null runner: step " + std::to_string(plan.step_id) + " follows step " +
                    std::to_string(last_step_id_));
    last_step_id_ = plan.step_id;
    for (const SlotUpdate& update : plan.slot_updates)
      apply(update);
    for (const PageCopy& copy : plan.page_copies)
      apply(copy);
    // Steps run one after another, as on a device.
    const auto now = std::chrono::steady_clock::now();
    const auto start = in_flight_.empty() ? now : std::max(now, in_flight_.back().ready);
    in_flight_.push_back({execute(plan), start + std::chrono::microseconds(config_.step_us)});
    return ok_status();
  }

  Result<StepResult> wait() override {
    HADAL_CHECK(!in_flight_.empty(), "null runner: wait() without a submitted step");
    Step step = std::move(in_flight_.front());
    in_flight_.pop_front();
    if (config_.step_us > 0)
      std::this_thread::sleep_until(step.ready);
    return std::move(step.result);
  }

 private:
  struct Step {
    StepResult result;
    std::chrono::steady_clock::time_point ready;
  };

  Slot& slot_at(SlotId id) {
    HADAL_CHECK(id >= 0 && id < config_.limits.max_slots,
                "null runner: slot " + std::to_string(id) + " of " +
                    std::to_string(config_.limits.max_slots));
    return slots_[static_cast<size_t>(id)];
  }

  void check_page(PageId page) const {
    HADAL_CHECK(page >= 0 && page < config_.limits.num_pages,
                "null runner: page " + std::to_string(page) + " of " +
                    std::to_string(config_.limits.num_pages));
  }

  void apply(const SlotUpdate& update) {
    Slot& slot = slot_at(update.slot);
    if (update.reset) {
      slot = Slot{};
      slot.in_use = true;
      slot.sampling = update.reset->sampling;
      slot.num_prompt_tokens = update.reset->num_prompt_tokens;
    }
    HADAL_CHECK(slot.in_use, "null runner: update of a slot that was never reset");
    for (const PageId page : update.append_pages) {
      check_page(page);
      HADAL_DCHECK(std::find(slot.pages.begin(), slot.pages.end(), page) == slot.pages.end(),
                   "null runner: page twice in one slot");
      slot.pages.push_back(page);
    }
  }

  void apply(const PageCopy& copy) {
    check_page(copy.src);
    check_page(copy.dst);
    HADAL_CHECK(copy.src != copy.dst, "null runner: page copied onto itself");
    HADAL_CHECK(copy.num_tokens > 0 && copy.num_tokens <= kPageTokens,
                "null runner: page copy of " + std::to_string(copy.num_tokens) + " tokens");
#if HADAL_DEBUG_CHECKS
    for (int32_t i = 0; i < kPageTokens; ++i)
      shadow_.at(copy.dst, i) = i < copy.num_tokens ? shadow_.at(copy.src, i) : 0;
#endif
  }

  StepResult execute(const BatchPlan& plan) {
    StepResult result;
    result.step_id = plan.step_id;
    size_t next_token = 0;
    int64_t num_logits = 0;
    for (const PlanRow& row : plan.rows) {
      HADAL_CHECK(row.num_tokens > 0, "null runner: empty row");
      const auto count = static_cast<size_t>(row.num_tokens);
      HADAL_CHECK(next_token + count <= plan.tokens.size(), "null runner: fewer tokens than rows");
      num_logits += row.num_logits;
      execute_row(row, std::span(plan.tokens).subspan(next_token, count), result);
      next_token += count;
    }
    HADAL_CHECK(next_token == plan.tokens.size(), "null runner: more tokens than rows");
    HADAL_CHECK(
        next_token > 0 && static_cast<int64_t>(next_token) <= config_.limits.max_step_tokens,
        "null runner: step of " + std::to_string(next_token) + " tokens, limit " +
            std::to_string(config_.limits.max_step_tokens));
    HADAL_CHECK(config_.limits.max_step_logits == 0 || num_logits <= config_.limits.max_step_logits,
                "null runner: more logits than max_step_logits");
    return result;
  }

  void execute_row(const PlanRow& row, std::span<const TokenId> tokens, StepResult& result) {
    Slot& slot = slot_at(row.slot);
    const int32_t end = row.kv_begin + row.num_tokens;
    HADAL_CHECK(slot.in_use, "null runner: row of a slot that was never reset");
    HADAL_CHECK(end <= config_.limits.max_context_tokens, "null runner: row beyond the context");
    HADAL_CHECK(static_cast<size_t>(end + kPageTokens - 1) / kPageTokens <= slot.pages.size(),
                "null runner: row ends at " + std::to_string(end) + " with " +
                    std::to_string(slot.pages.size()) + " pages");
    // One token back is allowed: a prompt scored in chunks repeats the last token of a chunk.
    HADAL_CHECK(slot.kv_end < 0 || row.kv_begin == slot.kv_end || row.kv_begin == slot.kv_end - 1,
                "null runner: row begins at " + std::to_string(row.kv_begin) + ", KV ends at " +
                    std::to_string(slot.kv_end));
    HADAL_CHECK(end <= slot.num_prompt_tokens || (row.form == AttentionForm::generated &&
                                                  row.kv_begin >= slot.num_prompt_tokens),
                "null runner: row crosses the end of the prompt");
    HADAL_CHECK(row.num_logits >= 0 && row.num_logits <= row.num_tokens, "null runner: num_logits");
    HADAL_CHECK(!row.sample || row.num_logits > 0, "null runner: sample without logits");
    write_kv(slot, row, tokens);
    slot.kv_end = end;
    if (row.num_logits > 0)
      result.rows.push_back(sample_row(slot, row, tokens));
  }

  void write_kv(Slot& slot, const PlanRow& row, std::span<const TokenId> tokens) {
#if HADAL_DEBUG_CHECKS
    if (slot.kv_end < 0)
      check_cached_prefix(slot, row.kv_begin);
    uint64_t prefix = row.kv_begin == 0 ? 0 : read_kv(slot, row.kv_begin - 1);
#endif
    for (int32_t i = 0; i < row.num_tokens; ++i) {
      TokenId token = tokens[static_cast<size_t>(i)];
      if (token == kTokenFromDevice) {
        HADAL_CHECK(slot.last_token_position == row.kv_begin + i,
                    "null runner: no token on the device for this position");
        token = slot.last_token;
      }
      HADAL_CHECK(token >= 0 && token < config_.limits.vocab_size,
                  "null runner: token " + std::to_string(token));
#if HADAL_DEBUG_CHECKS
      prefix = KvShadow::extend(prefix, token);
      const int32_t position = row.kv_begin + i;
      shadow_.at(slot.pages[static_cast<size_t>(position / kPageTokens)], position % kPageTokens) =
          prefix;
#endif
    }
  }

#if HADAL_DEBUG_CHECKS
  uint64_t read_kv(const Slot& slot, int32_t position) {
    return shadow_.at(slot.pages[static_cast<size_t>(position / kPageTokens)],
                      position % kPageTokens);
  }

  /// Cached pages must have been written; that they hold this prompt is checked by the scheduler's
  /// tests, which know it.
  void check_cached_prefix(const Slot& slot, int32_t num_cached) {
    for (int32_t position = 0; position < num_cached; ++position)
      HADAL_CHECK(read_kv(slot, position) != 0,
                  "null runner: cached KV was never written at " + std::to_string(position));
  }
#endif

  RowResult sample_row(Slot& slot, const PlanRow& row, std::span<const TokenId> tokens) const {
    RowResult out;
    out.slot = row.slot;
    const int32_t position = row.kv_begin + row.num_tokens;
    const int32_t num_top = std::min(slot.sampling.num_top_logprobs, config_.limits.vocab_size);
    if (row.num_logits > 1 && num_top >= 0) {
      const size_t first = tokens.size() - static_cast<size_t>(row.num_logits);
      for (size_t i = first; i + 1 < tokens.size(); ++i) {
        std::vector<TokenLogprob> top = top_logprobs(tokens[i + 1], std::max(num_top, 1));
        out.prompt_logprobs.push_back(top.front());
        top.resize(static_cast<size_t>(num_top));
        out.prompt_top.push_back(std::move(top));
      }
    }
    if (!row.sample)
      return out;
    out.token = draw(slot, position);
    slot.last_token = out.token;
    slot.last_token_position = position;
    if (num_top >= 0) {
      out.top = top_logprobs(out.token, std::max(num_top, 1));
      out.logprob = out.top.front().logprob;
      out.top.resize(static_cast<size_t>(num_top));
    }
    return out;
  }

  TokenId draw(const Slot& slot, int32_t position) const {
    const auto& params = slot.sampling;
    const bool may_stop = position - slot.num_prompt_tokens >= params.min_new_tokens;
    uint32_t attempt = 0;
    for (;; ++attempt) {
      const TokenId token =
          null_runner_token(params.seed, position, config_.limits.vocab_size, attempt);
      const auto& stops = params.stop_tokens;
      if (may_stop || attempt == 64 || std::find(stops.begin(), stops.end(), token) == stops.end())
        return token;
    }
  }

  /// The given token has probability 1/2, the next ids 1/4, 1/8, ...: valid, distinct, best first.
  std::vector<TokenLogprob> top_logprobs(TokenId best, int32_t count) const {
    std::vector<TokenLogprob> top;
    top.reserve(static_cast<size_t>(count));
    for (int32_t i = 0; i < count; ++i)
      top.push_back({static_cast<TokenId>((int64_t{best} + i) % config_.limits.vocab_size),
                     -static_cast<float>(i + 1) * std::log(2.0F)});
    return top;
  }

  NullRunnerConfig config_;
  std::vector<Slot> slots_;
  KvShadow shadow_;
  std::deque<Step> in_flight_;
  uint64_t last_step_id_ = 0;
};

}  // namespace

TokenId null_runner_token(uint64_t seed, int64_t position, int32_t vocab_size, uint32_t attempt) {
  const uint64_t key =
      mix(seed ^ mix(static_cast<uint64_t>(position) ^ (static_cast<uint64_t>(attempt) << 48U)));
  // Multiply-shift: uniform without the bias of a modulus.
  return static_cast<TokenId>(((key >> 32U) * static_cast<uint64_t>(vocab_size)) >> 32U);
}

std::unique_ptr<Runner> make_null_runner(const NullRunnerConfig& config) {
  return std::make_unique<NullRunner>(config);
}

}  // namespace hadal
