// `hadal bench plan`: what it costs rank 0 to send a plan, and when the last rank has it. No model:
// the ranks decode the plan, check its digest, note the time and answer.
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <fstream>

#include <nlohmann/json.hpp>

#include <hadal/cluster/board.h>
#include <hadal/cluster/plan_ledger.h>

#include "commands.h"
#include "exit_code.h"
#include "machine_roof.h"
#include "version.h"

#include <sys/wait.h>
#include <unistd.h>

namespace hadal {
namespace {

using nlohmann::json;

constexpr int32_t kSteps = 400;
constexpr int32_t kWarmUpSteps = 50;
/// Between steps, so that every rank sleeps as it does between the steps of a fast GPU.
constexpr useconds_t kPauseMicroseconds = 1500;

int64_t now_ns() {
  return std::chrono::steady_clock::now().time_since_epoch().count();
}

/// A decode step of `batch` slots; every 64th step of a slot opens a page.
BatchPlan decode_plan(uint64_t step_id, int32_t batch) {
  BatchPlan plan;
  plan.step_id = step_id;
  for (int32_t slot = 0; slot < batch; ++slot) {
    const auto position = static_cast<int32_t>(step_id) + slot % kPageTokens;
    if (position % kPageTokens == 0 || step_id == 1) {
      SlotUpdate update;
      update.slot = slot;
      if (step_id == 1) {
        update.reset = SlotReset{};
      }
      update.append_pages = {slot};
      plan.slot_updates.push_back(std::move(update));
    }
    plan.rows.push_back({slot, position, 1, AttentionForm::generated, 1, true});
    plan.tokens.push_back(kTokenFromDevice);
  }
  return plan;
}

/// A rank's process. The answer's "consumed" is the time at which the plan was there.
[[noreturn]] void be_rank(const Board& parents, int32_t rank) {
  const auto mapped = Board::attach(parents.path_for_children());  // as `hadal rank` does
  HADAL_CHECK(mapped, "the board cannot be mapped again");
  Board& board = *mapped.value();
  PlanLedger ledger;
  std::vector<std::byte> bytes;
  while (board.end_reason() == EndReason::none) {
    if (!board.read(rank, bytes, TimePoint::max())) {
      continue;
    }
    const auto record = decode_plan_record(bytes);
    const bool is_good = record && ledger.apply(record.value().plan) == record.value().digest;
    const auto arrived = static_cast<uint64_t>(now_ns());
    board.set_ack(rank, {is_good ? record.value().plan.step_id : 0, arrived, 0});
  }
  std::_Exit(0);
}

double percentile(std::vector<double>& values, double share) {
  std::sort(values.begin(), values.end());
  const auto at = static_cast<size_t>(share * static_cast<double>(values.size() - 1));
  return values[at];
}

struct PlanCase {
  int32_t num_ranks;  ///< that receive; rank 0 is one more
  int32_t batch;
};

class PlanBench {
 public:
  PlanBench(Board& board, const PlanCase& plan_case) : board_(board), case_(plan_case) {}

  json run() {
    for (int32_t i = 1; i <= kWarmUpSteps + kSteps; ++i) {
      step(static_cast<uint64_t>(i), i > kWarmUpSteps);
    }
    return {{"ranks", case_.num_ranks},
            {"batch", case_.batch},
            {"plan_bytes", plan_bytes_},
            {"last_rank_us_median", percentile(last_us_, 0.5)},
            {"last_rank_us_p90", percentile(last_us_, 0.9)},
            {"rank_0_us_median", percentile(own_us_, 0.5)},
            {"rank_0_us_p90", percentile(own_us_, 0.9)}};
  }

 private:
  void step(uint64_t step_id, bool is_counted) {
    usleep(kPauseMicroseconds);
    const BatchPlan plan = decode_plan(step_id, case_.batch);
    const int64_t start = now_ns();
    const std::vector<std::byte> bytes = encode_plan_record(plan, ledger_.apply(plan));
    HADAL_CHECK(board_.publish(bytes), "the plan stream is full");
    const int64_t published = now_ns();
    uint64_t last = 0;
    for (int32_t rank = case_.num_ranks; rank >= 1; --rank) {
      std::optional<StepAck> ack;
      while (!(ack = board_.ack_of(rank, step_id))) {
        const uint32_t seen = board_.ack_count();
        if (!board_.ack_of(rank, step_id)) {
          board_.wait_ack(seen, rank, TimePoint::max());
        }
      }
      last = std::max(last, ack->consumed);
    }
    plan_bytes_ = bytes.size();
    if (is_counted) {
      own_us_.push_back(static_cast<double>(published - start) / 1e3);
      last_us_.push_back(static_cast<double>(static_cast<int64_t>(last) - start) / 1e3);
    }
  }

  Board& board_;
  PlanCase case_;
  PlanLedger ledger_;
  size_t plan_bytes_ = 0;
  std::vector<double> own_us_;
  std::vector<double> last_us_;
};

Result<json> run_case(const PlanCase& plan_case) {
  auto board = Board::create({.world_size = plan_case.num_ranks + 1,
                              .first_rank = 0,
                              .num_local = plan_case.num_ranks + 1});
  if (!board) {
    return board.error();
  }
  std::vector<pid_t> children;
  for (int32_t rank = 1; rank <= plan_case.num_ranks; ++rank) {
    const pid_t child = fork();  // no thread exists yet
    if (child == 0) {
      be_rank(*board.value(), rank);
    }
    children.push_back(child);
  }
  json result = PlanBench(*board.value(), plan_case).run();
  board.value()->set_end(EndReason::drained, "measured");
  for (const pid_t child : children) {
    waitpid(child, nullptr, 0);
  }
  return result;
}

}  // namespace

int run_bench_plan(const Config& config) {
  json results = json::array();
  for (const PlanCase& plan_case :
       {PlanCase{1, 16}, {4, 1}, {4, 16}, {4, 256}, {16, 1}, {16, 16}, {16, 256}}) {
    auto result = run_case(plan_case);
    if (!result) {
      std::fprintf(stderr, "hadal bench plan: %s\n", result.error().message.c_str());
      return kExitInternal;
    }
    std::fprintf(stderr, "%s\n", result.value().dump().c_str());
    results.push_back(std::move(result).value());
  }
  const json report = {{"version", kVersion},
                       {"commit", kCommit},
                       {"compiler", kCompiler},
                       {"command", "hadal bench plan"},
                       {"machine", machine_name()},
                       {"threads", hardware_threads()},
                       {"results", results}};
  const std::string text = report.dump(2) + "\n";
  std::fputs(text.c_str(), stdout);
  if (!config.bench.output.empty() && !(std::ofstream(config.bench.output) << text)) {
    std::fprintf(stderr, "hadal bench plan: cannot write %s\n", config.bench.output.c_str());
    return kExitUsage;
  }
  return kExitOk;
}

}  // namespace hadal
