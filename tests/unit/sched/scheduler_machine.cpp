// Random operations on the scheduler in many small configurations: submit, cancel, plan, retire,
// flush, a row that is not a number, a runner that fails. The harness checks every rule of the
// reliability model after each.
#include <map>
#include <random>
#include <sstream>

#include "property_machine.h"
#include "scheduler_harness.h"

namespace hadal {
namespace {

enum Kind : uint32_t { kSubmit, kCancel, kFlush, kPoison, kPlan, kRetire, kAbandon };

constexpr int32_t kVocab = 50;
constexpr int32_t kMaxWaiting = 8;

SchedulerConfig random_config(uint32_t seed) {
  std::mt19937 rng(seed);
  const auto pick = [&](std::initializer_list<int32_t> values) {
    return *(values.begin() + static_cast<ptrdiff_t>(rng() % values.size()));
  };
  SchedulerConfig config;
  config.num_pages = pick({5, 6, 7, 9, 12, 20});
  config.max_slots = pick({2, 4, 6, 6});
  config.max_running_requests = pick({1, 3, 6, 6});
  config.max_step_tokens = pick({8, 60, 150, 400});
  config.max_prefill_tokens = pick({40, 100, 400});
  config.chunked_prefill_tokens = pick({-1, 30, 64, 200});
  config.absorbed_chunk_tokens = pick({0, 0, 8, 100});
  config.max_context_tokens = 320;
  config.vocab_size = kVocab;
  config.max_steps_in_flight = pick({1, 2, 2, 3});
  config.policy = static_cast<SchedulePolicy>(rng() % 5);
  config.enable_radix_cache = rng() % 8 != 0;
  config.conservativeness = rng() % 2 == 0 ? 0.0 : 1.0;
  config.num_host_pages = pick({0, 0, 3, 8, 30});
  config.max_pages_back_per_step = pick({1, 2, 32});
  config.max_draft_tokens = pick({0, 0, 1, 3, 8});
  config.max_decode_stretch = pick({0, 2});
  config.eviction = static_cast<EvictionPolicy>(rng() % 3);
  return config;
}

SchedulerHarness::Ask random_ask(uint32_t seed) {
  std::mt19937 rng(seed);
  const auto below = [&](uint32_t bound) { return static_cast<int32_t>(rng() % bound); };
  SchedulerHarness::Ask ask;
  const int32_t family = below(2);
  const int32_t num_shared = below(150);
  for (int32_t i = 0; i < num_shared; ++i)
    ask.prompt.push_back((family + i / 10) % kVocab);
  for (int32_t i = below(3) * below(20) + (num_shared == 0 ? 1 : 0); i > 0; --i)
    ask.prompt.push_back(below(kVocab));
  ask.max_new_tokens = below(6) == 0 ? 0 : 1 + below(below(2) == 0 ? 130 : 20);
  ask.wants_prompt_logprobs = below(8) == 0;
  ask.name_space = below(3) == 0 ? "B" : "A";
  for (int32_t i = below(3); i > 0; --i)
    ask.stop_tokens.push_back(below(kVocab));
  ask.priority = below(3);
  return ask;
}

class SchedulerMachine final : public PropertyMachine {
 public:
  explicit SchedulerMachine(uint32_t seed) : harness_(random_config(seed)) {
    if (seed % 2 == 0)
      harness_.time_steps();
  }

  void apply(const Operation& operation) override {
    const auto target = ids_.find(operation.target);
    switch (operation.kind) {
      case kSubmit:
        if (harness_.stats().num_waiting < kMaxWaiting)
          ids_[operation.uid] = harness_.submit(random_ask(operation.seed));
        break;
      case kCancel:
        if (target != ids_.end()) {
          num_cancelled_in_flight_ +=
              harness_.record(target->second).num_terminal == 0 && harness_.num_in_flight() > 0;
          harness_.cancel(target->second);
        }
        break;
      case kFlush:
        harness_.flush();
        break;
      case kPoison:
        if (target != ids_.end())
          harness_.poison(target->second);
        break;
      case kPlan:
        harness_.plan();
        num_copies_ += static_cast<int64_t>(harness_.last_plan().page_copies.size());
        break;
      case kRetire:
        harness_.retire();
        break;
      case kAbandon:
        harness_.abandon();
        break;
      default:
        need(false, "a known operation");
    }
  }

  void finish() override {
    harness_.drain();
    harness_.flush();
    need(harness_.stats().pages_free == harness_.stats().pages_total,
         "D3: the whole pool can be reclaimed");
  }

  void add_coverage(Coverage& coverage) const override {
    coverage[0] += harness_.stats().num_retractions;
    coverage[1] += harness_.stats().num_cached_tokens;
    coverage[2] += num_cancelled_in_flight_;
    coverage[3] += num_copies_;
    coverage[4] += harness_.num_drafts_accepted();
    coverage[5] += harness_.num_drafts_rejected();
  }

 private:
  SchedulerHarness harness_;
  std::map<uint32_t, RequestId> ids_;  ///< by the uid of the submit
  int64_t num_cancelled_in_flight_ = 0;
  int64_t num_copies_ = 0;
};

std::vector<Operation> generate(uint32_t seed, int count) {
  std::mt19937 rng(seed ^ 0x9E3779B9U);
  std::vector<Operation> operations;
  std::vector<uint32_t> submits;
  for (int i = 0; i < count; ++i) {
    Operation operation;
    operation.uid = static_cast<uint32_t>(i);
    operation.seed = static_cast<uint32_t>(rng());
    const auto choice = rng() % 200;
    operation.kind = choice < 44    ? kSubmit
                     : choice < 60  ? kCancel
                     : choice < 62  ? kFlush
                     : choice < 64  ? kPoison
                     : choice < 65  ? kAbandon
                     : choice < 132 ? kPlan
                                    : kRetire;
    if (!submits.empty())
      operation.target = submits[submits.size() - 1 - rng() % std::min<size_t>(8, submits.size())];
    if (operation.kind == kSubmit)
      submits.push_back(operation.uid);
    operations.push_back(operation);
  }
  return operations;
}

std::string describe(const Operation& operation) {
  std::ostringstream text;
  switch (operation.kind) {
    case kSubmit: {
      const SchedulerHarness::Ask ask = random_ask(operation.seed);
      text << "submit #" << operation.uid << " prompt " << ask.prompt.size() << " max_new_tokens "
           << ask.max_new_tokens << " namespace " << ask.name_space << " priority " << ask.priority
           << (ask.wants_prompt_logprobs ? " scored" : "");
      break;
    }
    case kCancel:
      text << "cancel #" << operation.target;
      break;
    case kFlush:
      text << "flush";
      break;
    case kPoison:
      text << "poison #" << operation.target;
      break;
    case kPlan:
      text << "plan";
      break;
    case kRetire:
      text << "retire";
      break;
    default:
      text << "abandon";
      break;
  }
  return text.str();
}

}  // namespace

const PropertyMachineKind kSchedulerMachine = {
    "scheduler",
    200,
    {"retractions",
     "cached tokens",
     "cancels in flight",
     "page copies",
     "accepted drafts",
     "rejected drafts"},
    [](uint32_t seed) -> std::unique_ptr<PropertyMachine> {
      return std::make_unique<SchedulerMachine>(seed);
    },
    generate,
    describe};

}  // namespace hadal
