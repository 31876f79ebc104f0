// Hash chains over 64-bit words of whole fields. Order matters in every one of them, and the chain
// of a slot's pages is carried from plan to plan: a digest costs what the plan's rows cost.
#include <bit>

#include <hadal/cluster/plan_ledger.h>

#include "wire.h"

namespace hadal {
namespace {

constexpr uint64_t kOdd1 = 0x9E3779B185EBCA87ULL;
constexpr uint64_t kOdd2 = 0xC2B2AE3D27D4EB4FULL;

/// xxHash64's round for each word and its avalanche at the end. A step of the chain is one-to-one
/// in the state and in the word, so one difference never cancels itself; nobody who could forge it
/// is on this side of the group's secret.
class Hash {
 public:
  explicit Hash(uint64_t state = kOdd1) : state_(state) {}

  void add(uint64_t value) { state_ = std::rotl(state_ + value * kOdd2, 31) * kOdd1; }

  void add_pair(int32_t low, int32_t high) {
    add(static_cast<uint32_t>(low) | uint64_t{static_cast<uint32_t>(high)} << 32U);
  }

  /// The length is part of it.
  void add_ints(std::span<const int32_t> values) {
    add(values.size());
    size_t i = 0;
    for (; i + 1 < values.size(); i += 2) {
      add_pair(values[i], values[i + 1]);
    }
    if (i < values.size()) {
      add_pair(values[i], 0);
    }
  }

  /// To go on with later.
  uint64_t state() const { return state_; }

  uint64_t value() const {
    uint64_t x = (state_ ^ (state_ >> 33U)) * kOdd2;
    x = (x ^ (x >> 29U)) * 0x165667B19E3779F9ULL;
    return x ^ (x >> 32U);
  }

 private:
  uint64_t state_;
};

}  // namespace

uint64_t PlanLedger::apply(const BatchPlan& plan) {
  for (const SlotUpdate& update : plan.slot_updates) {
    uint64_t& table = page_tables_.try_emplace(update.slot, Hash().state()).first->second;
    Hash pages = update.reset ? Hash() : Hash(table);
    for (const PageId page : update.append_pages) {  // however they are spread over plans
      pages.add(static_cast<uint32_t>(page));
    }
    table = pages.state();
  }
  Hash digest;
  digest.add(plan.step_id);
  digest.add_pair(static_cast<int32_t>(plan.page_moves.size()),
                  static_cast<int32_t>(plan.page_copies.size()));
  for (const PageMove& move : plan.page_moves) {
    digest.add_pair(move.page, move.host_page);
    digest.add(move.to_host ? 1U : 0U);
  }
  for (const PageCopy& copy : plan.page_copies) {
    digest.add_pair(copy.src, copy.dst);
    digest.add_pair(copy.num_tokens, 0);
  }
  digest.add(plan.rows.size());
  for (const PlanRow& row : plan.rows) {
    digest.add_pair(row.slot, row.kv_begin);
    digest.add_pair(row.num_tokens, row.num_logits);
    const auto table = page_tables_.find(row.slot);
    const uint64_t pages = table == page_tables_.end() ? 0 : table->second;
    digest.add(pages ^ ((row.sample ? 2U : 0U) | static_cast<unsigned>(row.form)));
  }
  digest.add_ints(plan.tokens);
  return digest.value();
}

uint64_t PlanLedger::consumed(const BatchPlan& plan) const {
  Hash hash;
  size_t next = 0;
  for (const PlanRow& row : plan.rows) {
    for (int32_t i = 0; i < row.num_tokens && next < plan.tokens.size(); ++i, ++next) {
      TokenId token = plan.tokens[next];
      if (token == kTokenFromDevice) {
        const auto found = last_tokens_.find(row.slot);
        token = found == last_tokens_.end() ? kTokenFromDevice : found->second;
      }
      hash.add(static_cast<uint32_t>(token));
    }
  }
  return hash.value();
}

uint64_t PlanLedger::record(const StepResult& result) {
  Hash hash;
  for (const RowResult& row : result.rows) {
    hash.add_pair(row.slot, row.token);
    if (row.num_accepted > 0 || !row.drafts.empty()) {
      hash.add_pair(row.num_accepted, static_cast<int32_t>(row.drafts.size()));
      hash.add_ints(row.drafts);
    }
    if (row.token >= 0) {
      last_tokens_[row.slot] = row.token;
    }
  }
  return hash.value();
}

std::vector<std::byte> encode_plan_record(const BatchPlan& plan, uint64_t digest) {
  std::vector<std::byte> bytes = encode(plan);  // leaves room for the digest
  WireWriter tail;
  tail.put_u64(digest);
  bytes.insert(bytes.end(), tail.bytes().begin(), tail.bytes().end());
  return bytes;
}

Result<PlanRecord> decode_plan_record(std::span<const std::byte> bytes) {
  if (bytes.size() < sizeof(uint64_t)) {
    return Error{ErrorCode::data_loss, "plan: no digest"};
  }
  auto plan = decode_batch_plan(bytes.first(bytes.size() - sizeof(uint64_t)));
  if (!plan) {
    return plan.error();
  }
  return PlanRecord{std::move(plan).value(), WireReader(bytes.last(sizeof(uint64_t))).get_u64()};
}

}  // namespace hadal
