// The plan codec: what goes in comes out, and whatever damaged bytes come in, an error comes out.
#include <cstring>
#include <random>

#include <hadal/plan/batch_plan.h>

#include "catch.h"

namespace hadal {
namespace {

BatchPlan random_plan(std::mt19937& rng) {
  const auto below = [&](uint32_t bound) { return static_cast<int32_t>(rng() % bound); };
  BatchPlan plan;
  plan.step_id = (static_cast<uint64_t>(rng()) << 32U) | rng();
  for (int32_t i = below(6); i > 0; --i) {
    SlotUpdate update;
    update.slot = below(256);
    if (below(2) == 0) {
      SlotReset reset;
      reset.sampling.temperature = static_cast<float>(below(200)) / 100.0F;
      reset.sampling.top_p = 0.9F;
      reset.sampling.top_k = below(100);
      reset.sampling.min_p = 0.05F;
      reset.sampling.frequency_penalty = -0.5F;
      reset.sampling.presence_penalty = 1.5F;
      reset.sampling.repetition_penalty = 1.1F;
      reset.sampling.seed = (static_cast<uint64_t>(rng()) << 32U) | rng();
      for (int32_t k = below(4); k > 0; --k)
        reset.sampling.logit_bias.emplace_back(below(129280), static_cast<float>(below(200)) - 100);
      reset.sampling.min_new_tokens = below(10);
      for (int32_t k = below(4); k > 0; --k)
        reset.sampling.stop_tokens.push_back(below(129280));
      reset.sampling.num_top_logprobs = below(22) - 1;
      for (int32_t k = below(40); k > 0; --k)
        reset.history.push_back(below(129280));
      reset.num_prompt_tokens = below(1000);
      update.reset = std::move(reset);
    }
    for (int32_t k = below(10); k > 0; --k)
      update.append_pages.push_back(below(100000));
    plan.slot_updates.push_back(std::move(update));
  }
  for (int32_t i = below(3); i > 0; --i)
    plan.page_moves.push_back({below(1000), below(1000), below(2) == 0});
  for (int32_t i = below(3); i > 0; --i)
    plan.page_copies.push_back({below(1000), below(1000), 1 + below(64)});
  for (int32_t i = 1 + below(8); i > 0; --i) {
    PlanRow row;
    row.slot = below(256);
    row.kv_begin = below(100000);
    row.num_tokens = 1 + below(5);
    row.form = below(2) == 0 ? AttentionForm::prompt : AttentionForm::generated;
    row.num_logits = below(static_cast<uint32_t>(row.num_tokens) + 1);
    row.sample = row.num_logits > 0 && below(2) == 0;
    for (int32_t k = 0; k < row.num_tokens; ++k)
      plan.tokens.push_back(below(129281) - 1);
    plan.rows.push_back(row);
  }
  return plan;
}

/// Every field again from the decoded plan, so that a field the codec forgets shows.
void check_same(const BatchPlan& a, const BatchPlan& b) {
  REQUIRE(a.step_id == b.step_id);
  REQUIRE(a.tokens == b.tokens);
  REQUIRE(a.slot_updates.size() == b.slot_updates.size());
  for (size_t i = 0; i < a.slot_updates.size(); ++i) {
    const SlotUpdate& x = a.slot_updates[i];
    const SlotUpdate& y = b.slot_updates[i];
    REQUIRE(x.slot == y.slot);
    REQUIRE(x.append_pages == y.append_pages);
    REQUIRE(x.reset.has_value() == y.reset.has_value());
    if (!x.reset)
      continue;
    REQUIRE(x.reset->history == y.reset->history);
    REQUIRE(x.reset->num_prompt_tokens == y.reset->num_prompt_tokens);
    const SamplingParams& p = x.reset->sampling;
    const SamplingParams& q = y.reset->sampling;
    REQUIRE(p.temperature == q.temperature);
    REQUIRE(p.top_p == q.top_p);
    REQUIRE(p.top_k == q.top_k);
    REQUIRE(p.min_p == q.min_p);
    REQUIRE(p.frequency_penalty == q.frequency_penalty);
    REQUIRE(p.presence_penalty == q.presence_penalty);
    REQUIRE(p.repetition_penalty == q.repetition_penalty);
    REQUIRE(p.seed == q.seed);
    REQUIRE(p.logit_bias == q.logit_bias);
    REQUIRE(p.min_new_tokens == q.min_new_tokens);
    REQUIRE(p.stop_tokens == q.stop_tokens);
    REQUIRE(p.num_top_logprobs == q.num_top_logprobs);
  }
  REQUIRE(a.page_moves.size() == b.page_moves.size());
  for (size_t i = 0; i < a.page_moves.size(); ++i) {
    REQUIRE(a.page_moves[i].page == b.page_moves[i].page);
    REQUIRE(a.page_moves[i].host_page == b.page_moves[i].host_page);
    REQUIRE(a.page_moves[i].to_host == b.page_moves[i].to_host);
  }
  REQUIRE(a.page_copies.size() == b.page_copies.size());
  for (size_t i = 0; i < a.page_copies.size(); ++i) {
    REQUIRE(a.page_copies[i].src == b.page_copies[i].src);
    REQUIRE(a.page_copies[i].dst == b.page_copies[i].dst);
    REQUIRE(a.page_copies[i].num_tokens == b.page_copies[i].num_tokens);
  }
  REQUIRE(a.rows.size() == b.rows.size());
  for (size_t i = 0; i < a.rows.size(); ++i) {
    REQUIRE(a.rows[i].slot == b.rows[i].slot);
    REQUIRE(a.rows[i].kv_begin == b.rows[i].kv_begin);
    REQUIRE(a.rows[i].num_tokens == b.rows[i].num_tokens);
    REQUIRE(a.rows[i].form == b.rows[i].form);
    REQUIRE(a.rows[i].num_logits == b.rows[i].num_logits);
    REQUIRE(a.rows[i].sample == b.rows[i].sample);
  }
}

void put_u32(std::vector<std::byte>& bytes, size_t at, uint32_t value) {
  for (size_t i = 0; i < 4; ++i)
    bytes[at + i] = static_cast<std::byte>((value >> (8 * i)) & 0xFFU);
}

TEST_CASE("BatchPlan codec: random plans survive the round trip", "[plan]") {
  std::mt19937 rng(1);
  for (int i = 0; i < 2000; ++i) {
    const BatchPlan plan = random_plan(rng);
    const std::vector<std::byte> bytes = encode(plan);
    const Result<BatchPlan> decoded = decode_batch_plan(bytes);
    REQUIRE(decoded);
    check_same(plan, decoded.value());
    REQUIRE(encode(decoded.value()) == bytes);
  }
}

TEST_CASE("BatchPlan codec: the bytes are fixed", "[plan]") {
  BatchPlan plan;
  plan.step_id = 0x0102;
  PlanRow row;
  row.slot = 3;
  row.kv_begin = 64;
  row.num_tokens = 1;
  row.form = AttentionForm::generated;
  row.num_logits = 1;
  row.sample = true;
  plan.rows = {row};
  plan.tokens = {kTokenFromDevice};
  const std::vector<uint8_t> expected = {
      'H', 'P', 'L', 'N', 2,   0,   0,   0,         // magic, version
      2,   1,   0,   0,   0,   0,   0,   0,         // step
      0,   0,   0,   0,   0,   0,   0,   0,         // no updates, no moves
      0,   0,   0,   0,                             // no copies
      1,   0,   0,   0,                             // one row
      3,   0,   0,   0,   64,  0,   0,   0,         // slot, kv_begin
      1,   0,   0,   0,   1,   1,   0,   0,  0, 1,  // num_tokens, form, num_logits, sample
      1,   0,   0,   0,   255, 255, 255, 255};      // one token
  const std::vector<std::byte> bytes = encode(plan);
  REQUIRE(bytes.size() == expected.size());
  CHECK(std::memcmp(bytes.data(), expected.data(), bytes.size()) == 0);
}

TEST_CASE("BatchPlan codec: every truncation and every added byte is data loss", "[plan]") {
  std::mt19937 rng(2);
  for (int i = 0; i < 20; ++i) {
    std::vector<std::byte> bytes = encode(random_plan(rng));
    for (size_t size = 0; size < bytes.size(); ++size) {
      const auto decoded = decode_batch_plan(std::span(bytes).first(size));
      REQUIRE_FALSE(decoded);
      REQUIRE(decoded.error().code == ErrorCode::data_loss);
    }
    bytes.push_back(std::byte{0});
    REQUIRE_FALSE(decode_batch_plan(bytes));
  }
}

TEST_CASE("BatchPlan codec: flipped bits decode to a valid plan or an error", "[plan]") {
  std::mt19937 rng(3);
  int num_refused = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::vector<std::byte> bytes = encode(random_plan(rng));
    bytes[rng() % bytes.size()] ^= static_cast<std::byte>(1U << (rng() % 8));
    const auto decoded = decode_batch_plan(bytes);
    if (!decoded) {
      ++num_refused;
      continue;
    }
    REQUIRE(encode(decoded.value()) == bytes);
    size_t num_tokens = 0;
    for (const PlanRow& row : decoded.value().rows) {
      REQUIRE(row.num_logits <= row.num_tokens);
      num_tokens += static_cast<size_t>(row.num_tokens);
    }
    REQUIRE(num_tokens == decoded.value().tokens.size());
  }
  CHECK(num_refused > 1000);
}

TEST_CASE("BatchPlan codec: an absurd count names its field and allocates nothing", "[plan]") {
  std::vector<std::byte> bytes = encode(BatchPlan{});
  const std::pair<size_t, const char*> counts[] = {
      {16, "slot_updates"}, {20, "page_moves"}, {24, "page_copies"}, {28, "rows"}, {32, "tokens"}};
  for (const auto& [at, field] : counts) {
    std::vector<std::byte> damaged = bytes;
    put_u32(damaged, at, 0xFFFFFFFF);
    const auto decoded = decode_batch_plan(damaged);
    REQUIRE_FALSE(decoded);
    CHECK(decoded.error().message.find(field) != std::string::npos);
  }
}

TEST_CASE("BatchPlan codec: wrong magic, version and ranges are named", "[plan]") {
  BatchPlan plan;
  plan.rows.push_back({0, 0, 1, AttentionForm::prompt, 1, true});
  plan.tokens = {5};
  const std::vector<std::byte> good = encode(plan);
  REQUIRE(decode_batch_plan(good));
  const auto message_of = [&](size_t at, uint32_t value) {
    std::vector<std::byte> bytes = good;
    put_u32(bytes, at, value);
    const auto decoded = decode_batch_plan(bytes);
    return decoded ? std::string("accepted") : decoded.error().message;
  };
  CHECK(message_of(0, 1).find("magic") != std::string::npos);
  CHECK(message_of(4, 1).find("version") != std::string::npos);
  CHECK(message_of(32, 0x80000000U).find("rows.slot") != std::string::npos);
  CHECK(message_of(36, 0xFFFFFFFFU).find("rows.kv_begin") != std::string::npos);
  CHECK(message_of(40, 0).find("rows.num_tokens") != std::string::npos);
  CHECK(message_of(40, 2).find("tokens") != std::string::npos);
  CHECK(message_of(45, 2).find("rows.num_logits") != std::string::npos);
  CHECK(message_of(45, 0).find("rows.sample") != std::string::npos);
  CHECK(message_of(54, 0xFFFFFFFEU).find("tokens") != std::string::npos);
}

}  // namespace
}  // namespace hadal
