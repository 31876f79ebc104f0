// Every cut must be even: ranks run the same code on the same shapes. The sizes that are cut are
// listed once, and checked, and searched for degrees that fit, from that list.
#include <string>
#include <vector>

#include <hadal/backend/weight.h>
#include <hadal/model/parallel_layout.h>

namespace hadal {
namespace {

constexpr int32_t kMaxDegree = 1024;

/// One size of the model that is cut `ways` ways in units that stay whole.
struct Cut {
  const char* name;
  int64_t size;       ///< as config.json has it
  int64_t unit_size;  ///< rows or columns of one of `size`
  const char* flag;
  int64_t ways;
};

/// Without the experts' number, which is no dimension of a matrix.
std::vector<Cut> matrix_cuts(const DeepseekConfig& config, const ParallelLayout& layout) {
  const int64_t heads = config.num_attention_heads;
  const char* const kTp = "--tp-size";
  std::vector<Cut> cuts = {
      {"num_attention_heads", heads, config.qk_head_dim(), kTp, layout.attn_tp},
      {"num_attention_heads",
       heads,
       config.qk_nope_head_dim + config.v_head_dim,
       kTp,
       layout.attn_tp},
      {"num_attention_heads", heads, config.v_head_dim, kTp, layout.attn_tp}};
  const bool has_experts = config.n_routed_experts > 0;
  if (!has_experts || config.first_k_dense_replace > 0) {
    cuts.push_back({"intermediate_size", config.intermediate_size, 1, kTp, layout.tp});
  }
  if (has_experts) {
    cuts.push_back({"moe_intermediate_size",
                    config.moe_intermediate_size,
                    1,
                    "--tp-size / --ep-size",
                    layout.moe_tp});
    cuts.push_back({"n_shared_experts * moe_intermediate_size",
                    config.n_shared_experts * config.moe_intermediate_size,
                    1,
                    kTp,
                    layout.tp});
  }
  return cuts;
}

bool is_even(const Cut& cut) {
  return cut.size % cut.ways == 0;
}

bool keeps_blocks(const Cut& cut) {
  return cut.ways == 1 || cut.size / cut.ways * cut.unit_size % kScaleBlock == 0;
}

bool experts_divide(const DeepseekConfig& config, const ParallelLayout& layout) {
  return config.n_routed_experts % layout.moe_ep == 0;
}

bool fits(const DeepseekConfig& config, const ParallelLayout& layout, bool with_blocks) {
  for (const Cut& cut : matrix_cuts(config, layout)) {
    if (!is_even(cut) || (with_blocks && !keeps_blocks(cut))) {
      return false;
    }
  }
  return experts_divide(config, layout);
}

/// "with --ep-size 2, --tp-size can be 2, 4, 8".
std::string fitting_degrees(const DeepseekConfig& config, int32_t ep) {
  std::string text;
  for (int32_t tp = ep; tp <= kMaxDegree; tp += ep) {
    const auto layout = make_parallel_layout(tp, ep, 0);
    if (layout && fits(config, layout.value(), config.is_fp8)) {
      text += (text.empty() ? "" : ", ") + std::to_string(tp);
    }
  }
  return "with --ep-size " + std::to_string(ep) + ", --tp-size can be " +
         (text.empty() ? "nothing" : text);
}

Error does_not_fit(const DeepseekConfig& config,
                   const ParallelLayout& layout,
                   const std::string& what) {
  return Error{ErrorCode::invalid_argument,
               "parallel layout: " + what + "; " + fitting_degrees(config, layout.moe_ep)};
}

std::string cut_text(const Cut& cut) {
  return std::string(cut.name) + " " + std::to_string(cut.size);
}

std::string ways_text(const Cut& cut) {
  return std::string(cut.flag) + " " + std::to_string(cut.ways);
}

}  // namespace

Result<ParallelLayout> make_parallel_layout(const ParallelDegrees& degrees, int32_t rank) {
  const int32_t tp = degrees.tp;
  const int32_t ep = degrees.ep;
  if (degrees.pp != 1) {
    return Error{ErrorCode::unsupported,
                 "--pp-size: pipeline parallelism is not built, expected 1, got " +
                     std::to_string(degrees.pp)};
  }
  if (degrees.dp != 1) {
    return Error{
        ErrorCode::unsupported,
        "--dp-size: data parallelism is not built, expected 1, got " + std::to_string(degrees.dp)};
  }
  if (tp < 1 || tp > kMaxDegree) {
    return Error{ErrorCode::invalid_argument,
                 "parallel layout: tp " + std::to_string(tp) + ", expected 1 to " +
                     std::to_string(kMaxDegree)};
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
  return ParallelLayout{
      .rank = rank, .tp = tp, .attn_tp = tp, .moe_tp = tp / ep, .moe_ep = ep, .pp = 1, .dp = 1};
}

Result<ParallelLayout> make_parallel_layout(int32_t tp, int32_t ep, int32_t rank) {
  return make_parallel_layout({.tp = tp, .ep = ep, .pp = 1, .dp = 1}, rank);
}

Status check_layout(const DeepseekConfig& config, const ParallelLayout& layout) {
  for (const Cut& cut : matrix_cuts(config, layout)) {
    if (!is_even(cut)) {
      return does_not_fit(
          config, layout, cut_text(cut) + " cannot be cut evenly over " + ways_text(cut));
    }
  }
  if (!experts_divide(config, layout)) {
    return does_not_fit(config,
                        layout,
                        "n_routed_experts " + std::to_string(config.n_routed_experts) +
                            " cannot be cut evenly over --ep-size " +
                            std::to_string(layout.moe_ep));
  }
  return ok_status();
}

Status check_fp8_blocks(const DeepseekConfig& config, const ParallelLayout& layout) {
  if (!config.is_fp8) {
    return ok_status();
  }
  for (const Cut& cut : matrix_cuts(config, layout)) {
    if (is_even(cut) && !keeps_blocks(cut)) {
      return does_not_fit(config,
                          layout,
                          ways_text(cut) + " cuts " + cut_text(cut) + " into slices of " +
                              std::to_string(cut.size / cut.ways * cut.unit_size) +
                              ", inside the checkpoint's 128 x 128 FP8 blocks");
    }
  }
  return ok_status();
}

}  // namespace hadal
