// Hash chains. Order matters in every one of them, and each field enters alone, so that no two
// different plans can look alike by their sums.
#include <hadal/cluster/plan_ledger.h>

#include "wire.h"

namespace hadal {
namespace {

uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30U)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27U)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31U);
}

class Hash {
 public:
  explicit Hash(uint64_t state = 0x9E3779B97F4A7C15ULL) : state_(state) {}

  void add(uint64_t value) { state_ = mix((state_ + 0x9E3779B97F4A7C15ULL) ^ mix(value)); }

  void add_int(int32_t value) { add(static_cast<uint32_t>(value)); }

  uint64_t value() const { return state_; }

 private:
  uint64_t state_;
};

}  // namespace

uint64_t PlanLedger::apply(const BatchPlan& plan) {
  for (const SlotUpdate& update : plan.slot_updates) {
    if (update.reset) {
      page_tables_[update.slot] = Hash().value();
    }
    Hash pages(page_tables_[update.slot]);
    for (const PageId page : update.append_pages) {
      pages.add_int(page);
    }
    page_tables_[update.slot] = pages.value();
  }
  Hash digest;
  digest.add(plan.step_id);
  for (const PageMove& move : plan.page_moves) {
    digest.add_int(move.page);
    digest.add_int(move.host_page);
    digest.add(move.to_host ? 1U : 0U);
  }
  for (const PageCopy& copy : plan.page_copies) {
    digest.add_int(copy.src);
    digest.add_int(copy.dst);
    digest.add_int(copy.num_tokens);
  }
  digest.add(plan.rows.size());
  for (const PlanRow& row : plan.rows) {
    digest.add_int(row.slot);
    digest.add_int(row.kv_begin);
    digest.add_int(row.num_tokens);
    digest.add_int(row.num_logits);
    digest.add((row.sample ? 2U : 0U) | static_cast<unsigned>(row.form));
    digest.add(page_tables_[row.slot]);
  }
  for (const TokenId token : plan.tokens) {
    digest.add_int(token);
  }
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
      hash.add_int(token);
    }
  }
  return hash.value();
}

uint64_t PlanLedger::record(const StepResult& result) {
  Hash hash;
  for (const RowResult& row : result.rows) {
    hash.add_int(row.slot);
    hash.add_int(row.token);
    if (row.token >= 0) {
      last_tokens_[row.slot] = row.token;
    }
  }
  return hash.value();
}

std::vector<std::byte> encode_plan_record(const BatchPlan& plan, uint64_t digest) {
  std::vector<std::byte> bytes = encode(plan);
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
