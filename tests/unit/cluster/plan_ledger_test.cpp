// Digests tell plans apart; deadlines follow what was measured; a log replays itself.
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

#include <hadal/cluster/plan_ledger.h>
#include <hadal/cluster/plan_log.h>
#include <hadal/cluster/step_deadline.h>

#include "catch.h"

#include <unistd.h>

using namespace hadal;

namespace {

BatchPlan first_plan() {
  BatchPlan plan;
  plan.step_id = 1;
  SlotUpdate update;
  update.slot = 0;
  update.reset = SlotReset{};
  update.reset->num_prompt_tokens = 3;
  update.append_pages = {4, 5};
  plan.slot_updates = {update};
  plan.rows = {{0, 0, 3, AttentionForm::prompt, 1, true}};
  plan.tokens = {7, 8, 9};
  return plan;
}

BatchPlan decode_plan(uint64_t step_id, int32_t kv_begin) {
  BatchPlan plan;
  plan.step_id = step_id;
  plan.rows = {{0, kv_begin, 1, AttentionForm::generated, 1, true}};
  plan.tokens = {kTokenFromDevice};
  return plan;
}

NullRunnerConfig null_config() {
  NullRunnerConfig config;
  config.limits = {.num_pages = 16,
                   .max_step_tokens = 64,
                   .max_slots = 4,
                   .max_context_tokens = 512,
                   .vocab_size = 1000,
                   .max_steps_in_flight = 2};
  return config;
}

}  // namespace

TEST_CASE("ledger: every part of a plan is in its digest, and earlier pages too", "[cluster]") {
  std::set<uint64_t> digests;
  const auto digest = [](const BatchPlan& plan) { return PlanLedger().apply(plan); };
  digests.insert(digest(first_plan()));
  CHECK(digests.count(digest(first_plan())) == 1);
  const std::vector<void (*)(BatchPlan&)> changes = {
      [](BatchPlan& p) { p.step_id = 2; },
      [](BatchPlan& p) {
        p.slot_updates[0].append_pages = {5, 4};
      },
      [](BatchPlan& p) { p.slot_updates[0].append_pages = {4}; },
      [](BatchPlan& p) { p.tokens[1] = 9; },
      [](BatchPlan& p) { p.rows[0].sample = false; },
      [](BatchPlan& p) { p.rows[0].kv_begin = 1; },
      [](BatchPlan& p) { p.rows[0].form = AttentionForm::generated; },
      [](BatchPlan& p) {
        p.page_moves = {{1, 2, false}};
      },
      [](BatchPlan& p) {
        p.page_moves = {{1, 2, true}};
      },
      [](BatchPlan& p) {
        p.page_copies = {{1, 2, 3}};
      }};
  for (const auto& change : changes) {
    BatchPlan plan = first_plan();
    change(plan);
    CHECK(digests.insert(digest(plan)).second);
  }
  PlanLedger a;
  PlanLedger b;
  a.apply(first_plan());
  BatchPlan other = first_plan();
  other.slot_updates[0].append_pages = {4, 6};
  b.apply(other);
  CHECK(a.apply(decode_plan(2, 3)) != b.apply(decode_plan(2, 3)));
}

TEST_CASE("ledger: ids from the device count as what was sampled", "[cluster]") {
  PlanLedger a;
  PlanLedger b;
  StepResult sampled;
  sampled.rows = {{}};
  sampled.rows[0].token = 41;
  const uint64_t hash = a.record(sampled);
  CHECK(b.record(sampled) == hash);
  CHECK(a.consumed(decode_plan(2, 3)) == b.consumed(decode_plan(2, 3)));
  sampled.rows[0].token = 42;
  CHECK(b.record(sampled) != hash);
  CHECK(a.consumed(decode_plan(2, 3)) != b.consumed(decode_plan(2, 3)));
  BatchPlan known = decode_plan(2, 3);
  known.tokens = {41};
  CHECK(a.consumed(known) == a.consumed(decode_plan(2, 3)));
  sampled.rows[0].token = 41;
  sampled.rows[0].num_accepted = 1;
  CHECK(a.record(sampled) != hash);
  sampled.rows[0].num_accepted = 0;
  sampled.rows[0].drafts = {7};
  CHECK(a.record(sampled) != hash);
}

TEST_CASE("ledger: records survive the wire and damage does not pass", "[cluster]") {
  const auto bytes = encode_plan_record(first_plan(), 99);
  const auto record = decode_plan_record(bytes);
  REQUIRE(record);
  CHECK(record.value().digest == 99);
  CHECK(record.value().plan.tokens == first_plan().tokens);
  for (size_t size = 0; size < bytes.size(); ++size) {
    CHECK_FALSE(decode_plan_record(std::span(bytes).first(size)));
  }
}

TEST_CASE("deadline: ten times what such a step took", "[cluster]") {
  StepDeadline deadline(300, 3);
  CHECK(deadline.allowed_s(1) == 300);
  deadline.measured(1, 0.02);
  CHECK(deadline.allowed_s(1) == Approx(3.2));
  CHECK(deadline.allowed_s(1024) == Approx(3 + 10 * 1024 * 0.02));
  CHECK(deadline.allowed_s(1 << 20) == 300);
  deadline.measured(1000, 0.5);
  CHECK(deadline.allowed_s(1000) == Approx(8));
  CHECK(deadline.allowed_s(1) == Approx(3.2));
  for (int i = 0; i < 300; ++i) {
    deadline.measured(1, 0.01);
  }
  CHECK(deadline.allowed_s(1) == Approx(3.1).margin(0.01));  // an old slow step is forgotten
}

TEST_CASE("plan log: a recorded stream replays with the same tokens", "[cluster]") {
  std::string name = (std::filesystem::temp_directory_path() / "hadal_plans_XXXXXX").string();
  const int fd = mkstemp(name.data());
  REQUIRE(fd >= 0);
  close(fd);
  {
    auto recorder = make_recording_runner(make_null_runner(null_config()), name);
    REQUIRE(recorder);
    Runner& runner = *recorder.value();
    REQUIRE(runner.submit(first_plan()));
    for (int32_t step = 2; step < 10; ++step) {
      REQUIRE(runner.submit(decode_plan(static_cast<uint64_t>(step), step + 1)));
      REQUIRE(runner.wait());
    }
    REQUIRE(runner.wait());
  }
  CHECK(read_plan_log_limits(name).value().num_pages == 16);
  auto same = make_null_runner(null_config());
  const auto report = replay_plan_log(name, *same);
  REQUIRE(report);
  CHECK(report.value().num_steps == 9);
  CHECK(report.value().num_tokens == 9);
  CHECK(report.value().first_difference.empty());

  std::ifstream in(name, std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(in)), {});
  const auto replay = [&](const std::string& text) {
    std::ofstream(name, std::ios::binary) << text;
    auto runner = make_null_runner(null_config());
    return replay_plan_log(name, *runner);
  };
  std::string changed = bytes;
  changed.back() = static_cast<char>(changed.back() + 1);  // the last token's highest byte
  CHECK(replay(changed).value().first_difference == "step 9 sampled other tokens");
  CHECK(replay(bytes.substr(0, bytes.size() - 5)).value().num_steps == 9);
  changed = bytes;
  changed[40] ^= 1;  // inside the first plan
  CHECK_FALSE(replay(changed));
  CHECK_FALSE(replay("no plan log"));
  std::filesystem::remove(name);
}
