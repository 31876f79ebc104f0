// BatchPlan to bytes and back, the frame that rank 0 sends to its workers.
//
// Little-endian, fixed-width, one version word in front. The hard thing is the decoder: a frame may
// be damaged or hostile, so every count is compared with the bytes that are left before anything is
// allocated, and every field is checked for range, so that what comes out can be executed.
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

class Writer {
 public:
  template <class T>
  void put(T value) {
    static_assert(std::is_integral_v<T>);
    auto bits = static_cast<std::make_unsigned_t<T>>(value);
    for (size_t i = 0; i < sizeof(T); ++i) {
      bytes_.push_back(static_cast<std::byte>(bits & 0xFFU));
      if constexpr (sizeof(T) > 1)
        bits = static_cast<std::make_unsigned_t<T>>(bits >> 8U);
    }
  }

  void put_float(float value) { put(std::bit_cast<uint32_t>(value)); }

  void put_count(size_t count) { put(static_cast<uint32_t>(count)); }

  template <class T>
  void put_array(const std::vector<T>& values) {
    put_count(values.size());
    for (T value : values)
      put(value);
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
    std::make_unsigned_t<T> bits = 0;
    for (size_t i = 0; i < sizeof(T); ++i) {
      const auto byte = static_cast<uint64_t>(bytes_[pos_ + i]);
      bits = static_cast<std::make_unsigned_t<T>>(bits | (byte << (8 * i)));
    }
    pos_ += sizeof(T);
    return static_cast<T>(bits);
  }

  float get_float(const char* field) {
    const float value = std::bit_cast<float>(get<uint32_t>(field));
    if (ok() && !std::isfinite(value))
      fail(field, "expected a finite number");
    return ok() ? value : 0.0F;
  }

  int32_t get_in(const char* field, int32_t min, int32_t max) {
    const auto value = get<int32_t>(field);
    if (ok() && (value < min || value > max))
      fail(field,
           "expected " + std::to_string(min) + ".." + std::to_string(max) + ", got " +
               std::to_string(value));
    return ok() ? value : min;
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
    for (int32_t& value : values)
      value = get_in(field, min, INT32_MAX);
    return values;
  }

  void fail(const char* field, const std::string& why) {
    if (error_.empty())
      error_ =
          "batch plan: " + std::string(field) + " at byte " + std::to_string(pos_) + ": " + why;
  }

  bool ok() const { return error_.empty(); }

  size_t left() const { return bytes_.size() - pos_; }

  const std::string& error() const { return error_; }

 private:
  std::span<const std::byte> bytes_;
  size_t pos_ = 0;
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

}  // namespace

std::vector<std::byte> encode(const BatchPlan& plan) {
  Writer out;
  out.put(kMagic);
  out.put(kVersion);
  out.put(plan.step_id);
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
    out.put(move.page);
    out.put(move.host_page);
    out.put(static_cast<uint8_t>(move.to_host ? 1 : 0));
  }
  out.put_count(plan.page_copies.size());
  for (const PageCopy& copy : plan.page_copies) {
    out.put(copy.src);
    out.put(copy.dst);
    out.put(copy.num_tokens);
  }
  out.put_count(plan.rows.size());
  for (const PlanRow& row : plan.rows) {
    out.put(row.slot);
    out.put(row.kv_begin);
    out.put(row.num_tokens);
    out.put(static_cast<uint8_t>(row.form));
    out.put(row.num_logits);
    out.put(static_cast<uint8_t>(row.sample ? 1 : 0));
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
