// Slots change through updates alone; what is out of bounds is data_loss and names the number.
#include "slot_table.h"

#include "catch.h"

namespace hadal {
namespace {

using Catch::Matchers::Contains;

SlotTable table() {
  return SlotTable({.num_slots = 2, .num_pages = 8, .vocab_size = 10, .max_context_tokens = 200});
}

TEST_CASE("SlotTable: a reset replaces the state and empties the pages", "[runtime]") {
  SlotTable slots = table();
  SlotReset reset;
  reset.sampling.seed = 5;
  reset.num_prompt_tokens = 3;
  REQUIRE(slots.apply({1, reset, {4, 2}}));
  REQUIRE(slots.apply({1, std::nullopt, {7}}));
  CHECK(slots.at(1).pages == std::vector<PageId>{4, 2, 7});
  CHECK(slots.at(1).sampling.seed == 5);
  reset.sampling.seed = 6;
  REQUIRE(slots.apply({1, reset, {}}));
  CHECK(slots.at(1).pages.empty());
  CHECK(slots.at(1).sampling.seed == 6);
}

TEST_CASE("SlotTable: rows must lie in their slot's pages", "[runtime]") {
  SlotTable slots = table();
  REQUIRE(slots.apply({0, SlotReset{}, {1, 2}}));
  CHECK(slots.check_row({0, 0, 128, AttentionForm::prompt, 1, true}));
  CHECK(slots.check_row({0, 127, 1, AttentionForm::generated, 1, true}));
  CHECK_FALSE(slots.check_row({0, 0, 129, AttentionForm::prompt, 1, true}));
  CHECK_FALSE(slots.check_row({0, 128, 1, AttentionForm::generated, 1, true}));
  CHECK_FALSE(slots.check_row({0, INT32_MAX, INT32_MAX, AttentionForm::prompt, 1, true}));
  CHECK_FALSE(slots.check_row({0, -1, 1, AttentionForm::prompt, 1, true}));
  CHECK_FALSE(slots.check_row({0, 0, 0, AttentionForm::prompt, 0, false}));
  CHECK_FALSE(slots.check_row({0, 0, 1, AttentionForm::prompt, 0, true}));
  CHECK_FALSE(slots.check_row({1, 0, 1, AttentionForm::prompt, 1, true}));
  CHECK_FALSE(slots.check_row({2, 0, 1, AttentionForm::prompt, 1, true}));
}

TEST_CASE("SlotTable: tokens and lists of a reset are bounded", "[runtime]") {
  SlotTable slots = table();
  const auto refused = [&](const SlotReset& reset, const char* says) {
    const Status status = slots.apply({0, reset, {}});
    REQUIRE_FALSE(status);
    CHECK(status.error().code == ErrorCode::data_loss);
    CHECK_THAT(status.error().message, Contains(says));
  };
  SlotReset reset;
  reset.history = {1, 10};
  refused(reset, "history token 10");
  reset.history.assign(201, 1);
  refused(reset, "history of 201 tokens");
  reset = {};
  reset.sampling.stop_tokens = {-1};
  refused(reset, "stop token -1");
  reset = {};
  reset.sampling.logit_bias.assign(kMaxSlotBiases + 1, {1, 0.0F});
  refused(reset, "4096 biases");
  reset = {};
  reset.sampling.num_top_logprobs = kMaxTopLogprobs + 1;
  refused(reset, "num_top_logprobs 129");
}

TEST_CASE("SlotTable: a slot cannot have more pages than a context", "[runtime]") {
  SlotTable slots = table();
  REQUIRE(slots.apply({0, SlotReset{}, {0, 1, 2, 3}}));
  CHECK_FALSE(slots.apply({0, std::nullopt, {4}}));
}

}  // namespace
}  // namespace hadal
