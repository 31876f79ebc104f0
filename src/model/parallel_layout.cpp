// Every cut must be even: ranks run the same code on the same shapes.
#include <string>

#include <hadal/model/parallel_layout.h>

namespace hadal {
namespace {

Status divides(const char* name, int64_t size, const char* flag, int64_t ways) {
  if (size % ways == 0) {
    return ok_status();
  }
  return Error{ErrorCode::invalid_argument,
               std::string("parallel layout: ") + name + " " + std::to_string(size) +
                   " cannot be cut evenly over " + flag + " " + std::to_string(ways)};
}

}  // namespace

Result<ParallelLayout> make_parallel_layout(int32_t tp, int32_t ep, int32_t rank) {
  if (tp < 1 || tp > 1024) {
    return Error{ErrorCode::invalid_argument,
                 "parallel layout: tp " + std::to_string(tp) + ", expected 1 to 1024"};
  }
  if (ep < 1 || tp % ep != 0) {
    return Error{
        ErrorCode::invalid_argument,
        "parallel layout: ep " + std::to_string(ep) + " does not divide tp " + std::to_string(tp)};
  }
  if (rank < 0 || rank >= tp) {
    return Error{
        ErrorCode::invalid_argument,
        "parallel layout: rank " + std::to_string(rank) + " is outside tp " + std::to_string(tp)};
  }
  return ParallelLayout{.rank = rank, .tp = tp, .moe_tp = tp / ep, .moe_ep = ep};
}

Status check_layout(const DeepseekConfig& config, const ParallelLayout& layout) {
  HADAL_RETURN_IF_ERROR(
      divides("num_attention_heads", config.num_attention_heads, "tp", layout.tp));
  if (config.n_routed_experts == 0 || config.first_k_dense_replace > 0) {
    HADAL_RETURN_IF_ERROR(divides("intermediate_size", config.intermediate_size, "tp", layout.tp));
  }
  if (config.n_routed_experts == 0) {
    return ok_status();
  }
  HADAL_RETURN_IF_ERROR(divides("n_routed_experts", config.n_routed_experts, "ep", layout.moe_ep));
  HADAL_RETURN_IF_ERROR(
      divides("moe_intermediate_size", config.moe_intermediate_size, "tp / ep", layout.moe_tp));
  return divides("n_shared_experts * moe_intermediate_size",
                 config.n_shared_experts * config.moe_intermediate_size,
                 "tp",
                 layout.tp);
}

}  // namespace hadal
