// BatchPlan to bytes and back, the frame that rank 0 sends to its workers.
//
// Little-endian, fixed-width, one version word in front. The hard thing is the decoder: a frame may
// be damaged or hostile, so every count is compared with the bytes that are left before anything is
// allocated, and every field is checked for range, so that what comes out can be executed.
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

#include <hadal/plan/batch_plan.h>

namespace hadal {
namespace {

constexpr uint32_t kMagic = 0x4E4C5048;  // "HPLN"
constexpr uint32_t kVersion = 2;
constexpr int32_t kMaxTopLogprobs = 1024;
// Numbers and arrays are copied as they lie in memory.
static_assert(std::endian::native == std::endian::little);

/// Writes into bytes reserved beforehand: the time to encode a plan is rank 0's own.
class Writer {
 public:
  explicit Writer(size_t reserved) { bytes_.reserve(reserved); }

  template <class... T>
  void put(T... values) {
    static_assert((std::is_integral_v<T> && ...));
    std::array<std::byte, (sizeof(T) + ...)> block;
    size_t at = 0;
    ((std::memcpy(block.data() + at, &values, sizeof values), at += sizeof values), ...);
    bytes_.insert(bytes_.end(), block.begin(), block.end());
  }

  void put_float(float value) { put(std::bit_cast<uint32_t>(value)); }

  void put_count(size_t count) { put(static_cast<uint32_t>(count)); }

  template <class T>
  void put_array(const std::vector<T>& values) {
    put_count(values.size());
    const auto raw = std::as_bytes(std::span(values));
    bytes_.insert(bytes_.end(), raw.begin(), raw.end());
  }

  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

/// Reads until the first fault and then only zeros; the fault keeps the name of the first bad
/// field, so callers check once at the end of each loop.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  template <class T>
  T get(const char* field) {
    static_assert(std::is_integral_v<T>);
    if (!ok() || bytes_.size() - pos_ < sizeof(T)) {
      fail(field, "the input ends inside it");
      return 0;
    }
    T value = 0;
    std::memcpy(&value, bytes_.data() + pos_, sizeof value);
    pos_ += sizeof value;
    return value;
  }

  float get_float(const char* field) {
    const float value = std::bit_cast<float>(get<uint32_t>(field));
    if (ok() && !std::isfinite(value))
      fail(field, "expected a finite number");
    return ok() ? value : 0.0F;
  }

  int32_t get_in(const char* field, int32_t min, int32_t max) {
    const auto value = get<int32_t>(field);
    if (value >= min && value <= max && ok())
      return value;
    if (ok())
      fail_range(field, min, max, value);
    return min;
  }

  bool get_bool(const char* field) {
    const auto value = get<uint8_t>(field);
    if (ok() && value > 1)
      fail(field, "expected 0 or 1, got " + std::to_string(value));
    return ok() && value == 1;
  }

  /// A count of elements of at least `min_bytes` each: never more than the input can hold.
  size_t get_count(const char* field, size_t min_bytes) {
    const auto count = get<uint32_t>(field);
    const size_t fits = (bytes_.size() - pos_) / min_bytes;
    if (ok() && count > fits)
      fail(field, std::to_string(count) + " elements, the input holds " + std::to_string(fits));
    return ok() ? count : 0;
  }

  std::vector<int32_t> get_array(const char* field, int32_t min) {
    std::vector<int32_t> values(get_count(field, sizeof(int32_t)));
    const size_t begin = pos_;
    if (!values.empty())
      std::memcpy(values.data(), bytes_.data() + begin, values.size() * sizeof(int32_t));
    for (size_t i = 0; i < values.size(); ++i)
      if (values[i] < min) {
        pos_ = begin + (i + 1) * sizeof(int32_t);
        fail_range(field, min, INT32_MAX, values[i]);
        return {};
      }
    pos_ = begin + values.size() * sizeof(int32_t);
    return values;
  }

  void fail(const char* field, const std::string& why) {
    if (is_failed_)
      return;
    is_failed_ = true;
    error_ = "batch plan: " + std::string(field) + " at byte " + std::to_string(pos_) + ": " + why;
  }

  bool ok() const { return !is_failed_; }

  size_t left() const { return bytes_.size() - pos_; }

  const std::string& error() const { return error_; }

 private:
  void fail_range(const char* field, int32_t min, int32_t max, int32_t got) {
    fail(field,
         "expected " + std::to_string(min) + ".." + std::to_string(max) + ", got " +
             std::to_string(got));
  }

  std::span<const std::byte> bytes_;
  size_t pos_ = 0;
  bool is_failed_ = false;
  std::string error_;
};

void put_sampling(Writer& out, const SamplingParams& params) {
  out.put_float(params.temperature);
  out.put_float(params.top_p);
  out.put(params.top_k);
  out.put_float(params.min_p);
  out.put_float(params.frequency_penalty);
  out.put_float(params.presence_penalty);
  out.put_float(params.repetition_penalty);
  out.put(params.seed);
  out.put_count(params.logit_bias.size());
  for (const auto& [token, bias] : params.logit_bias) {
    out.put(token);
    out.put_float(bias);
  }
  out.put(params.min_new_tokens);
  out.put_array(params.stop_tokens);
  out.put(params.num_top_logprobs);
}

SamplingParams get_sampling(Reader& in) {
  SamplingParams params;
  params.temperature = in.get_float("sampling.temperature");
  params.top_p = in.get_float("sampling.top_p");
  params.top_k = in.get_in("sampling.top_k", 0, INT32_MAX);
  params.min_p = in.get_float("sampling.min_p");
  params.frequency_penalty = in.get_float("sampling.frequency_penalty");
  params.presence_penalty = in.get_float("sampling.presence_penalty");
  params.repetition_penalty = in.get_float("sampling.repetition_penalty");
  params.seed = in.get<uint64_t>("sampling.seed");
  params.logit_bias.resize(in.get_count("sampling.logit_bias", 8));
  for (auto& [token, bias] : params.logit_bias) {
    token = in.get_in("sampling.logit_bias.token", 0, INT32_MAX);
    bias = in.get_float("sampling.logit_bias.bias");
  }
  params.min_new_tokens = in.get_in("sampling.min_new_tokens", 0, INT32_MAX);
  params.stop_tokens = in.get_array("sampling.stop_tokens", 0);
  params.num_top_logprobs = in.get_in("sampling.num_top_logprobs", -1, kMaxTopLogprobs);
  return params;
}

SlotUpdate get_slot_update(Reader& in) {
  SlotUpdate update;
  update.slot = in.get_in("slot_updates.slot", 0, INT32_MAX);
  if (in.get_bool("slot_updates.has_reset")) {
    SlotReset reset;
    reset.sampling = get_sampling(in);
    reset.history = in.get_array("slot_updates.history", 0);
    reset.num_prompt_tokens = in.get_in("slot_updates.num_prompt_tokens", 0, INT32_MAX);
    update.reset = std::move(reset);
  }
  update.append_pages = in.get_array("slot_updates.append_pages", 0);
  return update;
}

PlanRow get_row(Reader& in) {
  PlanRow row;
  row.slot = in.get_in("rows.slot", 0, INT32_MAX);
  row.kv_begin = in.get_in("rows.kv_begin", 0, INT32_MAX);
  row.num_tokens = in.get_in("rows.num_tokens", 1, INT32_MAX - row.kv_begin);
  const auto form = in.get<uint8_t>("rows.form");
  if (form > static_cast<uint8_t>(AttentionForm::generated))
    in.fail("rows.form", "expected 0 or 1, got " + std::to_string(form));
  row.form = static_cast<AttentionForm>(form & 1U);
  row.num_logits = in.get_in("rows.num_logits", 0, row.num_tokens);
  row.sample = in.get_bool("rows.sample");
  if (in.ok() && row.sample && row.num_logits == 0)
    in.fail("rows.sample", "a row that samples needs num_logits >= 1, got 0");
  return row;
}

// The smallest encoding of each element, for the bound on counts.
constexpr size_t kMinUpdateBytes = 4 + 1 + 4;
constexpr size_t kMoveBytes = 2 * 4 + 1;
constexpr size_t kCopyBytes = 3 * 4;
constexpr size_t kRowBytes = 3 * 4 + 1 + 4 + 1;
// All but the arrays inside an element.
constexpr size_t kFixedBytes = 2 * 4 + 8 + 5 * 4;
constexpr size_t kResetBytes = 7 * 4 + 8 + 5 * 4 + 4;

/// At least what encode() writes, and room for the digest that follows a plan on its way.
size_t encoded_bytes_max(const BatchPlan& plan) {
  size_t bytes = kFixedBytes + sizeof(uint64_t) + plan.page_moves.size() * kMoveBytes +
                 plan.page_copies.size() * kCopyBytes + plan.rows.size() * kRowBytes +
                 plan.tokens.size() * sizeof(TokenId);
  for (const SlotUpdate& update : plan.slot_updates) {
    bytes += kMinUpdateBytes + update.append_pages.size() * sizeof(PageId);
    if (update.reset) {
      const SamplingParams& sampling = update.reset->sampling;
      bytes += kResetBytes + sampling.logit_bias.size() * 8 +
               sampling.stop_tokens.size() * sizeof(TokenId) +
               update.reset->history.size() * sizeof(TokenId);
    }
  }
  return bytes;
}

}  // namespace

std::vector<std::byte> encode(const BatchPlan& plan) {
  Writer out(encoded_bytes_max(plan));
  out.put(kMagic, kVersion, plan.step_id);
  out.put_count(plan.slot_updates.size());
  for (const SlotUpdate& update : plan.slot_updates) {
    out.put(update.slot);
    out.put(static_cast<uint8_t>(update.reset ? 1 : 0));
    if (update.reset) {
      put_sampling(out, update.reset->sampling);
      out.put_array(update.reset->history);
      out.put(update.reset->num_prompt_tokens);
    }
    out.put_array(update.append_pages);
  }
  out.put_count(plan.page_moves.size());
  for (const PageMove& move : plan.page_moves) {
    out.put(move.page, move.host_page, static_cast<uint8_t>(move.to_host ? 1 : 0));
  }
  out.put_count(plan.page_copies.size());
  for (const PageCopy& copy : plan.page_copies) {
    out.put(copy.src, copy.dst, copy.num_tokens);
  }
  out.put_count(plan.rows.size());
  for (const PlanRow& row : plan.rows) {
    out.put(row.slot,
            row.kv_begin,
            row.num_tokens,
            static_cast<uint8_t>(row.form),
            row.num_logits,
            static_cast<uint8_t>(row.sample ? 1 : 0));
  }
  out.put_array(plan.tokens);
  return out.take();
}

Result<BatchPlan> decode_batch_plan(std::span<const std::byte> bytes) {
  Reader in(bytes);
  if (const auto magic = in.get<uint32_t>("magic"); in.ok() && magic != kMagic)
    in.fail("magic", "expected HPLN");
  if (const auto version = in.get<uint32_t>("version"); in.ok() && version != kVersion)
    in.fail("version", "expected " + std::to_string(kVersion) + ", got " + std::to_string(version));
  BatchPlan plan;
  plan.step_id = in.get<uint64_t>("step_id");
  // Elements are appended one by one: a SlotUpdate in memory is some 20 times its smallest
  // encoding, and a count alone must not buy that.
  const size_t num_updates = in.get_count("slot_updates", kMinUpdateBytes);
  for (size_t i = 0; i < num_updates && in.ok(); ++i)
    plan.slot_updates.push_back(get_slot_update(in));
  plan.page_moves.resize(in.get_count("page_moves", kMoveBytes));
  for (PageMove& move : plan.page_moves) {
    move.page = in.get_in("page_moves.page", 0, INT32_MAX);
    move.host_page = in.get_in("page_moves.host_page", 0, INT32_MAX);
    move.to_host = in.get_bool("page_moves.to_host");
  }
  plan.page_copies.resize(in.get_count("page_copies", kCopyBytes));
  for (PageCopy& copy : plan.page_copies) {
    copy.src = in.get_in("page_copies.src", 0, INT32_MAX);
    copy.dst = in.get_in("page_copies.dst", 0, INT32_MAX);
    copy.num_tokens = in.get_in("page_copies.num_tokens", 1, kPageTokens);
  }
  plan.rows.resize(in.get_count("rows", kRowBytes));
  int64_t num_tokens = 0;
  for (PlanRow& row : plan.rows) {
    row = get_row(in);
    num_tokens += row.num_tokens;
  }
  plan.tokens = in.get_array("tokens", kTokenFromDevice);
  if (in.ok() && num_tokens != static_cast<int64_t>(plan.tokens.size()))
    in.fail(
        "tokens",
        "rows need " + std::to_string(num_tokens) + ", got " + std::to_string(plan.tokens.size()));
  if (in.ok() && in.left() != 0)
    in.fail("end", std::to_string(in.left()) + " bytes follow the plan");
  if (!in.ok())
    return Error{ErrorCode::data_loss, in.error()};
  return plan;
}

}  // namespace hadal
