// The file: a magic word and the limits, then records of a kind, a length and that many bytes.
#include <deque>
#include <fstream>

#include <hadal/base/log.h>
#include <hadal/cluster/plan_ledger.h>
#include <hadal/cluster/plan_log.h>
#include <hadal/runtime/wrapped_runner.h>

#include "wire.h"

namespace hadal {
namespace {

constexpr uint64_t kMagic = 0x32474F4C4E504C48;  // "HLPNLOG2"
constexpr uint32_t kRecordBytesMax = 64 << 20;
constexpr size_t kHeadBytes = 8 + 6 * 4;

enum class RecordKind : uint32_t { plan = 1, tokens = 2 };

WireWriter encode_head(const RunnerLimits& limits) {
  WireWriter out;
  out.put_u64(kMagic);
  for (const int32_t value : {limits.num_pages,
                              limits.max_step_tokens,
                              limits.max_slots,
                              limits.max_context_tokens,
                              limits.vocab_size,
                              limits.max_step_logits}) {
    out.put_u32(static_cast<uint32_t>(value));
  }
  return out;
}

/// Slot and token of each row.
WireWriter encode_tokens(const StepResult& result) {
  WireWriter out;
  out.put_u64(result.step_id);
  for (const RowResult& row : result.rows) {
    out.put_u32(static_cast<uint32_t>(row.slot));
    out.put_u32(static_cast<uint32_t>(row.token));
  }
  return out;
}

class RecordingRunner final : public WrappedRunner {
 public:
  RecordingRunner(std::unique_ptr<Runner> runner, std::ofstream file, std::string name)
      : WrappedRunner(std::move(runner)), file_(std::move(file)), name_(std::move(name)) {
    write(encode_head(limits()).bytes());
  }

  Status submit(const BatchPlan& plan) override {
    write_record(RecordKind::plan, encode_plan_record(plan, ledger_.apply(plan)));
    return WrappedRunner::submit(plan);
  }

  Result<StepResult> wait() override {
    auto result = WrappedRunner::wait();
    if (result) {
      write_record(RecordKind::tokens, encode_tokens(result.value()).bytes());
    }
    return result;
  }

 private:
  void write_record(RecordKind kind, std::span<const std::byte> bytes) {
    WireWriter head;
    head.put_u32(static_cast<uint32_t>(kind));
    head.put_u32(static_cast<uint32_t>(bytes.size()));
    write(head.bytes());
    write(bytes);
    file_.flush();
  }

  void write(std::span<const std::byte> bytes) {
    const bool was_good = file_.good();
    file_.write(reinterpret_cast<const char*>(bytes.data()), std::ssize(bytes));
    if (was_good && !file_.good()) {
      log_error("--record-plans: cannot write to " + name_ + " any more");
    }
  }

  std::ofstream file_;
  std::string name_;
  PlanLedger ledger_;
};

struct Record {
  RecordKind kind = RecordKind::plan;
  std::vector<std::byte> bytes;
};

class LogReader {
 public:
  explicit LogReader(const std::filesystem::path& path)
      : name_(path.string()), file_(path, std::ios::binary) {}

  Result<RunnerLimits> head() {
    if (!file_.is_open()) {
      return Error{ErrorCode::not_found, "cannot read " + name_};
    }
    std::vector<std::byte> bytes(kHeadBytes);
    WireReader in(bytes);
    if (!read(bytes) || in.get_u64() != kMagic) {
      return Error{ErrorCode::data_loss, name_ + ": not a plan log of this version"};
    }
    RunnerLimits limits;
    for (int32_t* value : {&limits.num_pages,
                           &limits.max_step_tokens,
                           &limits.max_slots,
                           &limits.max_context_tokens,
                           &limits.vocab_size,
                           &limits.max_step_logits}) {
      *value = static_cast<int32_t>(in.get_u32());
      if (*value < 0) {
        return Error{ErrorCode::data_loss, name_ + ": a negative limit"};
      }
    }
    return limits;
  }

  /// nullopt at the end, also when the last record was cut short.
  Result<std::optional<Record>> next() {
    std::vector<std::byte> head(8);
    if (!read(head)) {
      return std::optional<Record>();
    }
    WireReader in(head);
    const uint32_t kind = in.get_u32();
    const uint32_t size = in.get_u32();
    if ((kind != 1 && kind != 2) || size > kRecordBytesMax) {
      return Error{ErrorCode::data_loss, name_ + ": a damaged record"};
    }
    Record record{static_cast<RecordKind>(kind), std::vector<std::byte>(size)};
    if (!read(record.bytes)) {
      return std::optional<Record>();
    }
    return std::optional(std::move(record));
  }

 private:
  bool read(std::span<std::byte> bytes) {
    file_.read(reinterpret_cast<char*>(bytes.data()), std::ssize(bytes));
    return file_.gcount() == std::ssize(bytes);
  }

  std::string name_;
  std::ifstream file_;
};

/// Runs the recorded plans and compares in the order of the steps.
class Replay {
 public:
  explicit Replay(Runner& runner) : runner_(runner) {}

  Status on_record(const Record& record) {
    if (record.kind == RecordKind::plan) {
      return on_plan(record.bytes);
    }
    recorded_.emplace_back(record.bytes);
    return compare();
  }

  Result<ReplayReport> finish() {
    while (num_in_flight_ > 0) {
      HADAL_RETURN_IF_ERROR(retire());
    }
    HADAL_RETURN_IF_ERROR(compare());
    return std::move(report_);
  }

 private:
  Status on_plan(std::span<const std::byte> bytes) {
    auto record = decode_plan_record(bytes);
    if (!record) {
      return record.error();
    }
    const BatchPlan& plan = record.value().plan;
    if (ledger_.apply(plan) != record.value().digest) {
      return Error{ErrorCode::data_loss,
                   "the digest of step " + std::to_string(plan.step_id) + " is wrong"};
    }
    if (num_in_flight_ == runner_.limits().max_steps_in_flight) {
      HADAL_RETURN_IF_ERROR(retire());
    }
    ++num_in_flight_;
    return runner_.submit(plan);
  }

  Status retire() {
    auto result = runner_.wait();
    if (!result) {
      return result.error();
    }
    --num_in_flight_;
    ++report_.num_steps;
    for (const RowResult& row : result.value().rows) {
      report_.num_tokens += row.token >= 0 ? 1 : 0;
    }
    const WireWriter tokens = encode_tokens(result.value());
    replayed_.emplace_back(tokens.bytes().begin(), tokens.bytes().end());
    return compare();
  }

  Status compare() {
    while (!recorded_.empty() && !replayed_.empty()) {
      if (recorded_.front() != replayed_.front() && report_.first_difference.empty()) {
        const uint64_t step_id = WireReader(recorded_.front()).get_u64();
        report_.first_difference = "step " + std::to_string(step_id) + " sampled other tokens";
      }
      recorded_.pop_front();
      replayed_.pop_front();
    }
    return ok_status();
  }

  Runner& runner_;
  PlanLedger ledger_;
  std::deque<std::vector<std::byte>> recorded_;
  std::deque<std::vector<std::byte>> replayed_;
  int32_t num_in_flight_ = 0;
  ReplayReport report_;
};

}  // namespace

Result<std::unique_ptr<Runner>> make_recording_runner(std::unique_ptr<Runner> runner,
                                                      const std::filesystem::path& path) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  if (!file.is_open()) {
    return Error{ErrorCode::not_found, "--record-plans: cannot write " + path.string()};
  }
  return std::unique_ptr<Runner>(
      std::make_unique<RecordingRunner>(std::move(runner), std::move(file), path.string()));
}

Result<RunnerLimits> read_plan_log_limits(const std::filesystem::path& path) {
  return LogReader(path).head();
}

Result<ReplayReport> replay_plan_log(const std::filesystem::path& path, Runner& runner) {
  LogReader log(path);
  const auto wanted = log.head();
  if (!wanted) {
    return wanted.error();
  }
  const RunnerLimits& limits = runner.limits();
  if (wanted.value().num_pages > limits.num_pages || wanted.value().max_slots > limits.max_slots ||
      wanted.value().max_step_tokens > limits.max_step_tokens ||
      wanted.value().vocab_size != limits.vocab_size) {
    return Error{ErrorCode::invalid_argument,
                 "the log needs " + std::to_string(wanted.value().num_pages) + " pages, " +
                     std::to_string(wanted.value().max_slots) + " slots, steps of " +
                     std::to_string(wanted.value().max_step_tokens) + " tokens and " +
                     std::to_string(wanted.value().vocab_size) + " ids; the runner has " +
                     std::to_string(limits.num_pages) + ", " + std::to_string(limits.max_slots) +
                     ", " + std::to_string(limits.max_step_tokens) + " and " +
                     std::to_string(limits.vocab_size)};
  }
  Replay replay(runner);
  while (true) {
    auto record = log.next();
    if (!record) {
      return record.error();
    }
    if (!record.value()) {
      return replay.finish();
    }
    HADAL_RETURN_IF_ERROR(replay.on_record(*record.value()));
  }
}

}  // namespace hadal
